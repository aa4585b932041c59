"""Convolutions: direct, depthwise, and the ones over one pixel alone; 1-D ones are images of height 1."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from graph.choice import Choice
from graph.ir import Node
from graph.mapped import release
from graph.native.epilogue_operands import channels_last_operand, image_operand, make_epilogue
from graph.native.expressions import BoundExpression, express_epilogue
from graph.native.facts import F32, Facts
from graph.native.lowering import Lowering
from graph.native.place import Imaged, Place, Storage, as_image, image_shape, is_image
from graph.native.rule import MAX_TILE, Rule, parse_tile
from graph.native.values import overwritable
from graph.native.work import Layout, Work, moved_bytes, packed_bytes
from kernels.errors import UnsupportedError
from kernels.native.emit.epilogue import Epilogue
from kernels.native.emit.geometry import Conv
from kernels.native.families.conv import (
    ConvTile,
    conv_chunks,
    conv_cycles,
    conv_tiles,
    emit_conv,
    make_tile,
    pack_bias,
    pack_weights,
)
from kernels.native.families.depthwise import (
    DepthwiseTile,
    depthwise_chunks,
    depthwise_cycles,
    depthwise_tiles,
    emit_depthwise,
    make_depthwise_tile,
    pack_depthwise,
    pack_depthwise_bias,
)
from kernels.native.families.winograd import (
    Winograd,
    WinogradTile,
    choose_winograd,
    error_estimate,
    make_winograd_tile,
    winograd_cost,
    winograd_tiles,
)
from kernels.native.families.winograd_kernels import emit_winograd, pack_winograd
from kernels.native.memory.image import Image
from kernels.native.target.isa import Isa
from kernels.ops.conv import geometry as window
from kernels.spec import Array

MAX_GROUP = 1 << 20
_WINOGRAD_TILE = re.compile(r"(\d{1,2})x(\d{1,2})g(\d{1,7})([fs])")
UNITS = (2, 4, 6)
MIN_CHANNELS = 8  # of the input
MIN_PICKED = 64  # outputs of a convolution that first copies the pixels it reads: then copying costs some percent of it


def refuses(node: Node, facts: Facts) -> str | None:
    """Why a Conv has no native form, or None."""
    return refuses_operands(node, facts) or facts.refuses_epilogue(node)


def refuses_operands(node: Node, facts: Facts) -> str | None:
    """Why what a Conv or ConvTranspose reads does not suit native kernels, or None."""
    if reason := facts.not_f32(*node.inputs, node.outputs[0]):
        return reason
    x = facts.spec(node.inputs[0])
    if not is_image(x.shape):
        return f"x is {x}, need rank 3 or 4"
    if node.inputs[1] not in facts.constants or (len(node.inputs) > 2 and node.inputs[2] not in (*facts.constants, "")):
        return "its weights are no constants"
    return None


def lower(b: Lowering, node: Node) -> None:
    """A Conv as calls."""
    y_shape = b.spec(node.outputs[0]).shape
    weights = b.constants[node.inputs[1]]
    bias = b.constants[node.inputs[2]] if len(node.inputs) > 2 and node.inputs[2] else None
    rest, bias = with_bias(express_epilogue(node, b.spec, b.constants), bias, b, weights.shape[0], y_shape)
    four = weights if weights.ndim == 4 else weights[:, :, None, :]
    chosen = b.choice(node)
    if is_depthwise(node, b.facts):
        _depthwise(b, node, four, bias, rest)
    elif chosen.algorithm == "winograd":
        _winograd(b, node, four, bias, rest)
    else:
        _direct(b, node, four, bias, rest)


def is_depthwise(node: Node, facts: Facts) -> bool:
    """Whether every channel is convolved by itself."""
    return bool(node.attrs["group"] == facts.spec(node.inputs[1]).shape[0] == facts.spec(node.inputs[0]).shape[1] > 1)


def geometry(node: Node, facts: Facts, x: Image, y: Image) -> Conv:
    """The convolution of a node between two images."""
    slide = window(facts.spec(node.inputs[0]), facts.spec(node.inputs[1]), **node.attrs)
    return Conv(x, y, *slide.plane, node.attrs["group"])


def _direct(b: Lowering, node: Node, weights: Array, bias: Array | None, rest: BoundExpression) -> None:
    groups = node.attrs["group"]
    x, y, epilogue, operands = by_groups(b, node, groups, weights.shape, bias, rest)
    conv = geometry(node, b.facts, as_image(x), y.image)
    if isinstance(x, Imaged) and picks(conv, b.isa):
        x, conv = _picked(b, node, x, conv)
    tile = tile_of(b.choice(node), conv, b.isa)
    source, key = b.constants[node.inputs[1]], ("conv", groups, tile.vectors)
    packed = b.packed.storage(source, key, lambda: pack_weights(conv, tile, b.isa, weights, release))
    b.calls.append(emit_conv(conv, tile, epilogue, b.isa), {"x": x, "w": packed, "y": y, **bias_of(b, conv, bias), **operands})


def picks(conv: Conv, isa: Isa) -> bool:
    """Whether a convolution had better read a copy of the pixels that it needs: their rows join, and fill cache lines."""
    thin = conv.kernel == (1, 1) != conv.strides and conv.x.every((0, 0), conv.strides)[0].plane == conv.y.plane
    return thin and conv.x.block == isa.lanes and conv.top == conv.left == 0 and conv.group_outputs >= MIN_PICKED


def on_picked(conv: Conv) -> Conv:
    """The convolution of that copy."""
    x = Image.blocked(conv.x.batch, conv.x.channels, *conv.y.plane, conv.x.block)
    return replace(conv, x=x, strides=(1, 1))


def _picked(b: Lowering, node: Node, x: Imaged, conv: Conv) -> tuple[Imaged, Conv]:
    image, before = x.image.every((0, 0), conv.strides)
    dense = on_picked(conv)
    source = Imaged(x.storage, image, x.offset + before)
    made = Imaged.new(f"{node.inputs[0]}/picked", dense.x, F32)
    b.calls.map((made, made.blocks), [(source, source.blocks)])
    return made, dense


def by_groups(
    b: Lowering, node: Node, groups: int, shape: Sequence[int], bias: Array | None, rest: BoundExpression
) -> tuple[Place, Imaged, Epilogue[Image], dict[str, Place]]:
    """Where a direct convolution reads and writes: channels last where groups begin inside blocks. shape: of its weights."""
    splits = groups > 1 and (shape[1] % b.isa.lanes or shape[0] // groups % b.isa.lanes)
    x = b.values.strided(node.inputs[0]) if splits else b.values.place(node.inputs[0])
    y_shape = b.spec(node.outputs[0]).shape
    last = Image.nhwc(*image_shape(y_shape)) if splits else None
    return (x, *finished(b, node, x, bias, rest, last))


def finished(
    b: Lowering, node: Node, x: Place, bias: Array | None, rest: BoundExpression, layout: Image | None = None
) -> tuple[Imaged, Epilogue[Image], dict[str, Place]]:
    """Memory for the result of a node, and its epilogue with the operands. layout: where it shall not lie in blocks."""
    value, y_shape = node.outputs[0], b.spec(node.outputs[0]).shape
    operand_of = channels_last_operand if layout else image_operand
    epilogue, operands = make_epilogue(b, rest, operand_of, y_shape, bias=bias is not None)
    y = b.values.new_as(value, layout) if layout else b.values.new_image(value, overwritable(list(operands.values()), [x]))
    return y, epilogue, operands


def _winograd(b: Lowering, node: Node, weights: Array, bias: Array | None, rest: BoundExpression) -> None:
    value = node.outputs[0]
    x = b.values.blocked(node.inputs[0])
    y, epilogue, operands = finished(b, node, x, bias, rest)
    winograd, tile = winograd_of(geometry(node, b.facts, x.image, y.image), b.choice(node), b.isa)
    source, key = b.constants[node.inputs[1]], ("winograd", winograd.unit, tile.vectors, tile.fused)
    packed = b.packed.storage(source, key, lambda: pack_winograd(winograd, tile, b.isa, weights))
    places: dict[str, Place | Storage] = {"x": x, "w": packed, "y": y, **bias_of(b, winograd.conv, bias), **operands}
    for name, nbytes in winograd_cost(winograd, tile, b.isa).buffer_bytes.items():
        places[name] = Storage(f"{value}/{name}", nbytes // F32.itemsize, F32)
    for kernel in emit_winograd(winograd, tile, epilogue, b.isa):
        written = next(name for name in ("y", "m", "v") if name in kernel.arguments)
        b.calls.append(kernel, {name: places[name] for name in kernel.arguments if name in places}, [written])


def winograd_of(conv: Conv, choice: Choice, isa: Isa) -> tuple[Winograd, WinogradTile]:
    """The unit and tile of a choice. Raises UnsupportedError where there are no such."""
    units = {str(unit): unit for unit in UNITS}
    unit = units.get(choice.param("unit") or str(UNITS[1]))
    if unit is None:
        raise UnsupportedError(f"winograd: unit is {choice.param('unit')!r}, need one of {', '.join(units)}")
    found = _WINOGRAD_TILE.fullmatch(choice.param("tile") or "")
    sizes = [int(size) for size in found.groups()[:3]] if found else []
    if not found or not min(sizes) >= 1 or max(sizes[:2]) > MAX_TILE or sizes[2] > MAX_GROUP:
        raise UnsupportedError(f"winograd: tile is {choice.param('tile')!r:.60}, need one like 6x4g28f")
    winograd = Winograd(conv, unit)
    return winograd, make_winograd_tile(winograd, isa, *sizes, fused=found[4] == "f")


def takes_winograd(conv: Conv) -> bool:
    """Whether a convolution has the form that Winograd's algorithm computes, and channels that are worth transforming."""
    plain = (conv.strides, conv.dilations, conv.groups) == ((1, 1), (1, 1), 1)
    return plain and conv.kernel == (3, 3) and max(conv.top, conv.left) <= 2 and conv.x.channels >= MIN_CHANNELS


def bias_of(b: Lowering, conv: Conv, bias: Array | None) -> dict[str, Storage]:
    """The packed bias as an argument."""
    if bias is None:
        return {}
    return {"b": b.packed.storage(bias, ("bias", conv.groups), lambda: pack_bias(conv, b.isa, bias))}


def _depthwise(b: Lowering, node: Node, weights: Array, bias: Array | None, rest: BoundExpression) -> None:
    x = b.values.blocked(node.inputs[0])
    y, epilogue, operands = finished(b, node, x, bias, rest)
    conv = geometry(node, b.facts, x.image, y.image)
    tile = depthwise_tile_of(b.choice(node), conv, b.isa)
    source, key = b.constants[node.inputs[1]], ("depthwise", tile.vectors)
    packed = b.packed.storage(source, key, lambda: pack_depthwise(conv, tile, b.isa, weights))
    places = {"x": x, "w": packed, "y": y, **depthwise_bias_of(b, bias), **operands}
    b.calls.append(emit_depthwise(conv, tile, epilogue, b.isa), places)


def depthwise_tile_of(choice: Choice, conv: Conv, isa: Isa) -> DepthwiseTile:
    """The tile of a choice, or the best by the port model."""
    text = choice.param("tile")
    return depthwise_tiles(conv, isa)[0] if text is None else make_depthwise_tile(conv, isa, *parse_tile(text))


def depthwise_bias_of(b: Lowering, bias: Array | None) -> dict[str, Storage]:
    """The packed bias as an argument."""
    return {} if bias is None else {"b": b.packed.storage(bias, "depthwise bias", lambda: pack_depthwise_bias(b.isa, bias))}


def with_bias(
    bound: BoundExpression, bias: Array | None, b: Lowering, channels: int, shape: Sequence[int], axis: int = 1
) -> tuple[BoundExpression, Array | None]:
    """Take a constant that is added to every channel first for the bias. Returns what is left to do, and the bias.

    bound: what is done to the results. shape, axis: of the output, and which of its dimensions the channels are.
    """
    addend = bound.addend
    if bias is not None or addend is None or addend not in b.constants:
        return bound, bias
    array = b.constants[addend]
    given = (1,) * (len(shape) - array.ndim) + array.shape
    if array.size != channels or given[axis] != channels:
        return bound, bias
    return bound.without_addend(), np.ascontiguousarray(array.reshape(-1))


def tile_of(choice: Choice, conv: Conv, isa: Isa) -> ConvTile:
    """The tile of a choice, or the best by the port model."""
    if (text := choice.param("tile")) is None:
        return conv_tiles(conv, isa)[0]
    return make_tile(conv, isa, *parse_tile(text))


def candidates(node: Node, facts: Facts) -> Sequence[Choice]:
    """The tiles of a convolution, the best by the port model first."""
    conv = _in_blocks(node, facts)
    if is_depthwise(node, facts):
        return [Choice("native", "depthwise", (("tile", str(tile)),)) for tile in depthwise_tiles(conv, facts.isa)]
    direct = on_picked(conv) if picks(conv, facts.isa) else conv
    by_tile = [Choice("native", "direct", (("tile", str(tile)),)) for tile in conv_tiles(direct, facts.isa)]
    if not takes_winograd(conv):
        return by_tile
    by_unit = {unit: _winograd_choices(conv, unit, facts) for unit in UNITS}
    best = choose_winograd(conv, facts.isa, facts.threads)
    first = by_unit[best.unit][:1] if best else []
    return [*first, *by_tile, *(choice for found in by_unit.values() for choice in found if choice not in first)]


def _winograd_choices(conv: Conv, unit: int, facts: Facts) -> list[Choice]:
    """The best tile of either form of a unit, the form to use unmeasured first."""
    tiles = winograd_tiles(Winograd(conv, unit), facts.isa, facts.threads)
    best = {tile.fused: tile for tile in reversed(tiles)}
    ranked = sorted(best.values(), key=tiles.index)
    return [Choice("native", "winograd", (("tile", str(tile)), ("unit", str(unit)))) for tile in ranked]


def work(node: Node, facts: Facts, choice: Choice) -> Work:
    """What a convolution's candidate does, by the port model that chose its tile."""
    conv, isa = _in_blocks(node, facts), facts.isa
    read, written = moved_bytes(node, facts)
    if choice.algorithm == "winograd":
        winograd, cut = winograd_of(conv, choice, isa)
        cost = winograd_cost(winograd, cut, isa)
        return Work(
            kind="winograd",
            flops=cost.cycles * isa.flops_per_cycle,
            macs=cost.macs,
            read_bytes=read,
            write_bytes=written,
            weight_bytes=cost.weight_bytes,
            buffer_bytes=sum(cost.buffer_bytes.values()),
            chunks=cost.chunks,
            calls=1 if cut.fused else 3,
            tile=(cut.pixels, cut.vectors, cut.group, winograd.unit),
            wants="blocks",
            error=error_estimate(winograd.unit, conv.x.channels),
        )
    taps = conv.kernel[0] * conv.kernel[1]
    if is_depthwise(node, facts):
        slim = depthwise_tile_of(choice, conv, isa)
        flops = depthwise_cycles(conv, slim, isa) * isa.flops_per_cycle
        weight_bytes, chunks = packed_bytes(conv.y.channels, taps, isa.lanes), depthwise_chunks(conv, slim, isa)
        tile = (slim.pixels, slim.vectors)
        return Work("depthwise", flops, None, read, written, weight_bytes, 0, chunks, tile=tile, wants="blocks")
    if not picks(conv, isa):
        return direct_work("direct", conv, tile_of(choice, conv, isa), isa, read, written)
    dense = on_picked(conv)
    found = direct_work("direct", dense, tile_of(choice, dense, isa), isa, read, written)
    return replace(found, buffer_bytes=dense.x.elements * F32.itemsize, calls=2)


def direct_work(kind: str, conv: Conv, tile: ConvTile, isa: Isa, read: int, written: int) -> Work:
    """What a direct convolution or a product with packed weights does."""
    taps = conv.kernel[0] * conv.kernel[1] * conv.group_inputs
    weight_bytes = packed_bytes(conv.group_outputs, taps, isa.lanes, conv.groups)
    flops = conv_cycles(conv, tile, isa) * isa.flops_per_cycle
    chunks = conv_chunks(conv, tile, isa)
    wants: Layout = "rows" if kind == "product" else "any"
    shape = (tile.pixels, tile.vectors, tile.channels)
    return Work(kind, flops, None, read, written, weight_bytes, 0, chunks, tile=shape, wants=wants)


def _in_blocks(node: Node, facts: Facts) -> Conv:
    """The convolution of a node between images in blocks, wherever they will lie."""
    x, y = (Image.blocked(*image_shape(facts.spec(v).shape), facts.isa.lanes) for v in (node.inputs[0], node.outputs[0]))
    return geometry(node, facts, x, y)


RULES = {"Conv": Rule(refuses, lower, candidates, work)}
