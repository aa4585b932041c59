"""Transposed convolutions: a convolution for each phase of the output, which writes its pixels where they belong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from graph.choice import Choice
from graph.ir import Node
from graph.native.expressions import express_epilogue
from graph.native.facts import F32, Facts
from graph.native.lowering import Lowering
from graph.native.place import Imaged, Place, Storage, as_image, image_shape
from graph.native.rule import Rule
from graph.native.rules.conv import (
    bias_of,
    by_groups,
    depthwise_bias_of,
    depthwise_tile_of,
    finished,
    refuses_operands,
    tile_of,
    with_bias,
)
from graph.native.work import Layout, Work, moved_bytes, packed_bytes
from kernels.native.emit.epilogue import Epilogue
from kernels.native.emit.kernel import NativeKernel
from kernels.native.families.conv import conv_chunks, conv_cycles, conv_tiles, emit_conv, pack_weights
from kernels.native.families.conv_transpose import Phase, Transposed, as_convolution, phase_count, phase_taps, phases
from kernels.native.families.depthwise import depthwise_chunks, depthwise_cycles, depthwise_tiles, emit_depthwise, pack_depthwise
from kernels.native.memory.image import Image
from kernels.ops.conv_transpose import geometry as window
from kernels.spec import Array

_BLOCKS: Layout = "blocks"
_ANY: Layout = "any"
MAX_PHASES = 1024  # each is a call
MAX_COLUMNS = 32  # taps along a row of a phase: at the borders each pixel has code of its own for those that it meets


def refuses(node: Node, facts: Facts) -> str | None:
    """Why a ConvTranspose has no native form, or None."""
    if reason := refuses_operands(node, facts):
        return reason
    slide = window(facts.spec(node.inputs[0]), facts.spec(node.inputs[1]), **node.attrs)
    count = phase_count(slide.size, slide.strides)
    if count > MAX_PHASES:
        return f"it has {count} phases, {MAX_PHASES} at most have a native form"
    widest = phase_taps(slide.kernel[-1], slide.strides[-1], slide.dilations[-1])
    if widest > MAX_COLUMNS:
        return f"its phases are {widest} columns wide, {MAX_COLUMNS} at most have a native form"
    return facts.refuses_epilogue(node)


@dataclass(frozen=True, slots=True)
class _Whole:
    """What the phases of a node share. weights: as a convolution's; source: what they were made of."""

    node: Node
    source: Array
    weights: Array
    bias: Array | None
    epilogue: Epilogue[Image]
    x: Place
    y: Imaged
    operands: Mapping[str, Place]


def lower(b: Lowering, node: Node) -> None:
    """A ConvTranspose as a call for each phase."""
    source, groups, apart = b.constants[node.inputs[1]], node.attrs["group"], is_depthwise(node, b.facts)
    weights = as_convolution(source if source.ndim == 4 else source[:, :, None, :], groups)
    bias = b.constants[node.inputs[2]] if len(node.inputs) > 2 and node.inputs[2] else None
    bound = express_epilogue(node, b.spec, b.constants)
    rest, bias = with_bias(bound, bias, b, weights.shape[0], b.spec(node.outputs[0]).shape)
    if apart:
        x: Place = b.values.blocked(node.inputs[0])
        y, epilogue, operands = finished(b, node, x, bias, rest)
    else:
        x, y, epilogue, operands = by_groups(b, node, groups, weights.shape, bias, rest)
    whole = _Whole(node, source, weights, bias, epilogue, x, y, operands)
    transposed = geometry(node, b.facts, as_image(x), y.image)
    for phase in phases(transposed):
        _phase(b, whole, phase, transposed.strides, _depthwise if apart else _direct)


_Kernel = Callable[[Lowering, _Whole, Phase, Epilogue[Image]], tuple[NativeKernel, dict[str, Storage]]]


def _phase(b: Lowering, whole: _Whole, phase: Phase, strides: tuple[int, int], kernel_of: _Kernel) -> None:
    """One call. strides: of y's pixels."""
    epilogue = whole.epilogue.laid(lambda image: image.every(phase.first, strides)[0])
    kernel, packed = kernel_of(b, whole, phase, epilogue)
    places = {
        "x": _moved(whole.x, as_image(whole.x), phase.skipped, (1, 1)),
        "y": _moved(whole.y, whole.y.image, phase.first, strides),
    }
    for (name, place), image in zip(whole.operands.items(), whole.epilogue.operands, strict=True):
        places[name] = _moved(place, image, phase.first, strides)
    b.calls.append(kernel, {**places, **packed})


def _moved(place: Place, image: Image, first: tuple[int, int], steps: tuple[int, int]) -> Imaged:
    """Some pixels of what lies there as an image."""
    picked, before = image.every(first, steps)
    return Imaged(place.storage, picked, place.first_byte // F32.itemsize + before)


def _direct(b: Lowering, whole: _Whole, phase: Phase, epilogue: Epilogue[Image]) -> tuple[NativeKernel, dict[str, Storage]]:
    tile = tile_of(b.choice(whole.node), phase.conv, b.isa)
    key = ("phase", phase.conv.groups, tile.vectors, phase.rows, phase.columns)
    packed = b.packed.storage(whole.source, key, lambda: pack_weights(phase.conv, tile, b.isa, phase.weights(whole.weights)))
    return emit_conv(phase.conv, tile, epilogue, b.isa), {"w": packed, **bias_of(b, phase.conv, whole.bias)}


def _depthwise(b: Lowering, whole: _Whole, phase: Phase, epilogue: Epilogue[Image]) -> tuple[NativeKernel, dict[str, Storage]]:
    tile = depthwise_tile_of(b.choice(whole.node), phase.conv, b.isa)
    key = ("depthwise phase", tile.vectors, phase.rows, phase.columns)
    packed = b.packed.storage(whole.source, key, lambda: pack_depthwise(phase.conv, tile, b.isa, phase.weights(whole.weights)))
    return emit_depthwise(phase.conv, tile, epilogue, b.isa), {"w": packed, **depthwise_bias_of(b, whole.bias)}


def is_depthwise(node: Node, facts: Facts) -> bool:
    """Whether every channel is convolved by itself."""
    channels, outputs, *_ = facts.spec(node.inputs[1]).shape
    return bool(node.attrs["group"] == channels > 1 == outputs)


def geometry(node: Node, facts: Facts, x: Image, y: Image) -> Transposed:
    """The transposed convolution of a node between two images."""
    slide = window(facts.spec(node.inputs[0]), facts.spec(node.inputs[1]), **node.attrs)
    return Transposed(x, y, *slide.plane, node.attrs["group"])


def candidates(node: Node, facts: Facts) -> Sequence[Choice]:
    """The tiles of the phase with the most work, the best by the port model first."""
    x, y = (Image.blocked(*image_shape(facts.spec(v).shape), facts.isa.lanes) for v in (node.inputs[0], node.outputs[0]))
    largest = max((phase.conv for phase in phases(geometry(node, facts, x, y))), key=lambda conv: conv.macs)
    tiles = depthwise_tiles(largest, facts.isa) if is_depthwise(node, facts) else conv_tiles(largest, facts.isa)
    return [Choice("native", "phases", (("tile", str(tile)),)) for tile in tiles]


def work(node: Node, facts: Facts, choice: Choice) -> Work:
    """What a candidate does: all phases one after another."""
    isa, slim = facts.isa, is_depthwise(node, facts)
    x, y = (Image.blocked(*image_shape(facts.spec(v).shape), isa.lanes) for v in (node.inputs[0], node.outputs[0]))
    read, written = moved_bytes(node, facts)
    cycles, weight_bytes, chunks, calls = 0.0, 0, 0, 0
    for phase in phases(geometry(node, facts, x, y)):
        conv = phase.conv
        taps = conv.kernel[0] * conv.kernel[1] * conv.group_inputs
        if slim:
            tile = depthwise_tile_of(choice, conv, isa)
            cycles, chunks = cycles + depthwise_cycles(conv, tile, isa), chunks + depthwise_chunks(conv, tile, isa)
        else:
            broad = tile_of(choice, conv, isa)
            cycles, chunks = cycles + conv_cycles(conv, broad, isa), chunks + conv_chunks(conv, broad, isa)
        weight_bytes += packed_bytes(conv.group_outputs, taps, isa.lanes, conv.groups)
        calls += 1
    kind, wants = ("depthwise", _BLOCKS) if slim else ("direct", _ANY)
    return Work(kind, cycles * isa.flops_per_cycle, None, read, written, weight_bytes, 0, chunks, calls, wants=wants)


RULES = {"ConvTranspose": Rule(refuses, lower, candidates, work)}
