"""Convolutions: directly, channel by channel, or by Winograd's algorithm, over rows, images and volumes.

A row is an image of height 1. A volume lies as an image, the rows of a plane behind one another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from graph.choice import Choice
from graph.ir import Node
from graph.native.facts import F32, Facts
from graph.native.lowering import Lowering
from graph.native.place import Imaged, as_image
from graph.native.rule import Rule, all_values
from graph.native.rules import depthwise, winograd
from graph.native.rules.direct import (
    Grouped,
    Weighted,
    bias_argument,
    depth_of,
    pack_as_words,
    place_by_groups,
    place_in_blocks,
    precisions_of,
    refuses_operands,
    tile_of,
    tiles_of,
    weighted_of,
    work_in_words,
)
from graph.native.work import Work, moved_bytes
from kernels.native.emit.geometry import Conv
from kernels.native.emit.words import Words, products_at_once, words_of
from kernels.native.families.conv import emit_conv
from kernels.native.families.depthwise import emit_depthwise, pack_depthwise
from kernels.native.memory.image import Image
from kernels.native.target.isa import Isa
from kernels.ops.conv import geometry as window
from kernels.precision import Precision

MIN_PICKED = 64  # outputs of a convolution that first copies the pixels it reads: then copying costs some percent of it


def refuses(node: Node, facts: Facts) -> str | None:
    """Return why a Conv has no native form, or None."""
    return refuses_operands(node, facts) or facts.refuses_epilogue(node)


def lower(b: Lowering, node: Node) -> None:
    """Append the calls of a Conv."""
    weighted = weighted_of(b, node)
    if is_depthwise(node, b.facts):
        _depthwise(b, node, weighted)
    elif b.choice(node).algorithm == "winograd":
        placed = place_in_blocks(b, node, x := b.values.blocked(node.inputs[0]), weighted.bound)
        conv = replace(geometry(node, b.facts, x.image, placed.y.image), words=Words(x.storage.dtype))
        winograd.lower(b, node, conv, placed, weighted)
    else:
        _direct(b, node, weighted)


def is_depthwise(node: Node, facts: Facts) -> bool:
    """Whether every channel is convolved by itself."""
    return bool(node.attrs["group"] == facts.spec(node.inputs[1]).shape[0] == facts.spec(node.inputs[0]).shape[1] > 1)


def geometry(node: Node, facts: Facts, x: Image, y: Image) -> Conv:
    """Return the convolution of a node between two images."""
    slide = window(facts.spec(node.inputs[0]), facts.spec(node.inputs[1]), **node.attrs)
    return Conv(x, y, *slide.plane, node.attrs["group"], depth_of(slide)).joined(facts.isa.lanes)


def _direct(b: Lowering, node: Node, weighted: Weighted) -> None:
    words = words_of(b.choice(node).precision)
    placed = place_by_groups(b, node, Grouped.of(node, weighted.weights.shape), weighted.bound, words)
    x, conv = placed.x, geometry(node, b.facts, as_image(placed.x), placed.y.image)
    if isinstance(x, Imaged) and picks(conv, b.isa):
        x, conv = _picked(b, node, x, conv)
    conv = conv.counted(words)
    tile = tile_of(b.choice(node), conv, b.isa)
    key = ("conv", conv.groups, tile.vectors, words)
    packed = b.packed.storage(weighted.source, key, lambda: pack_as_words(conv, tile, b.isa, weighted.weights))
    places = {"x": x, "w": packed, "y": placed.y, **bias_argument(b, conv, weighted.bias, tile.vectors), **placed.operands}
    b.calls.append(emit_conv(conv, tile, placed.epilogue, b.isa), places)


def picks(conv: Conv, isa: Isa) -> bool:
    """Whether a convolution reads a copy of the pixels that its strides pick: contiguous rows fill cache lines."""
    if conv.depth is not None or conv.kernel != (1, 1) or conv.strides == (1, 1):
        return False
    thin = conv.x.every((0, 0), conv.strides)[0].plane == conv.y.plane
    return thin and conv.x.block == isa.lanes and conv.top == conv.left == 0 and conv.group_outputs >= MIN_PICKED


def on_picked(conv: Conv) -> Conv:
    """Return the convolution over a copy of the picked pixels."""
    x = Image.blocked(conv.x.batch, conv.x.channels, *conv.y.plane, conv.x.block)
    return replace(conv, x=x, strides=(1, 1))


def _picked(b: Lowering, node: Node, x: Imaged, conv: Conv) -> tuple[Imaged, Conv]:
    image, before = x.image.every((0, 0), conv.strides)
    dense = on_picked(conv)
    source = Imaged(x.storage, image, x.offset + before)
    made = Imaged.new(f"{node.inputs[0]}/picked", dense.x, x.storage.dtype)
    b.calls.map((made, made.blocks), [(source, source.blocks)])
    return made, dense


def _depthwise(b: Lowering, node: Node, weighted: Weighted) -> None:
    placed = place_in_blocks(b, node, x := b.values.blocked(node.inputs[0]), weighted.bound)
    conv = replace(geometry(node, b.facts, x.image, placed.y.image), words=Words(x.storage.dtype))
    tile = depthwise.tile_of(b.choice(node), conv, b.isa)
    key = ("depthwise", tile.vectors)
    packed = b.packed.storage(weighted.source, key, lambda: pack_depthwise(conv, tile, b.isa, weighted.weights))
    places = {"x": x, "w": packed, "y": placed.y, **depthwise.bias_argument(b, weighted.bias, tile.vectors), **placed.operands}
    b.calls.append(emit_depthwise(conv, tile, placed.epilogue, b.isa), places)


def candidates(node: Node, facts: Facts) -> Sequence[Choice]:
    """Return the algorithms and tiles of a convolution in every precision, the best by the port model first."""
    conv = _in_blocks(node, facts)
    return [choice for precision in precisions_of(node, facts) for choice in _candidates(conv, node, facts, precision)]


def _candidates(conv: Conv, node: Node, facts: Facts, precision: Precision) -> Sequence[Choice]:
    if is_depthwise(node, facts):
        return [replace(choice, precision=precision) for choice in depthwise.candidates(conv, facts.isa)]
    direct = on_picked(conv) if picks(conv, facts.isa) else conv
    by_tile = tiles_of("direct", direct, node, facts, precision)
    if conv.depth is not None or not winograd.takes(conv):
        return by_tile
    found = winograd.candidates(conv, facts.isa, facts.threads, products_at_once(words_of(precision), facts.isa))
    first, rest = ([replace(choice, precision=precision) for choice in choices] for choices in found)
    return [*first, *by_tile, *rest]


def holds(node: Node, choice: Choice) -> Sequence[str]:
    """Return the values that a convolution takes as bfloat16: all, but for what a direct one multiplies as float32."""
    reads_words = choice.algorithm == "direct" and choice.precision == "fp32"
    return [name for name in all_values(node, choice) if not (reads_words and name == node.inputs[0])]


def work(node: Node, facts: Facts, choice: Choice) -> Work:
    """Return the work of a candidate, by the port model that chose its tile."""
    conv, isa = _in_blocks(node, facts), facts.isa
    read, written = moved_bytes(node, facts)
    if choice.algorithm == "winograd":
        return winograd.work(conv, choice, isa, read, written)
    if is_depthwise(node, facts):
        return depthwise.work(conv, choice, isa, read, written)
    if not picks(conv, isa):
        return work_in_words("direct", conv, node, facts, choice)
    dense = on_picked(conv)
    found = work_in_words("direct", dense, node, facts, choice)
    return replace(found, buffer_bytes=dense.x.elements * F32.itemsize, calls=2)


def _in_blocks(node: Node, facts: Facts) -> Conv:
    """Return the convolution of a node between images in blocks, the layout that candidates are ranked for."""
    return geometry(node, facts, facts.image_in_blocks(node.inputs[0]), facts.image_in_blocks(node.outputs[0]))


RULES = {"Conv": Rule(refuses, lower, candidates, work, holds=holds)}
