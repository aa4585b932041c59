"""Transposed convolutions: a convolution for each phase of the output, which writes every stride-th pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graph.choice import Choice
from graph.ir import Node
from graph.native.facts import F32, Facts
from graph.native.lowering import Lowering
from graph.native.place import Imaged, Place, Storage, as_image
from graph.native.rule import Rule
from graph.native.rules import depthwise, direct
from graph.native.rules.direct import Grouped, Placed, Weighted, place_by_groups, place_in_blocks, refuses_operands, weighted_of
from graph.native.work import Work, moved_bytes
from kernels.native.emit.epilogue import Epilogue
from kernels.native.emit.kernel import NativeKernel
from kernels.native.families.conv import conv_tiles, emit_conv, pack_weights
from kernels.native.families.conv_transpose import Phase, Transposed, as_convolution, phase_count, phase_taps, phases
from kernels.native.families.depthwise import depthwise_tiles, emit_depthwise, make_depthwise_tile, pack_depthwise
from kernels.native.memory.image import Image
from kernels.ops.conv_transpose import geometry as window
from kernels.record import record
from kernels.size import hint

MAX_PHASES = 1024  # each is a call
MAX_COLUMNS = 32  # taps along a row of a phase: each pixel at a border has code of its own for the taps inside the image


def refuses(node: Node, facts: Facts) -> str | None:
    """Return why a ConvTranspose has no native form, or None."""
    if reason := refuses_operands(node, facts) or facts.not_image(node.inputs[0], (3, 4)):
        return reason
    slide = window(facts.spec(node.inputs[0]), facts.spec(node.inputs[1]), **node.attrs)
    count = phase_count(slide.size, slide.strides)
    if count > MAX_PHASES:
        return f"it has {count} phases, {MAX_PHASES} at most have a native form"
    widest = phase_taps(slide.kernel[-1], slide.strides[-1], slide.dilations[-1])
    if widest > MAX_COLUMNS:
        return f"its phases are {widest} columns wide, {MAX_COLUMNS} at most have a native form"
    return facts.refuses_epilogue(node)


@record
class _Whole:
    """The parts that all phases of a node share. weighted: with the weights of a convolution."""

    node: Node
    weighted: Weighted
    placed: Placed


def lower(b: Lowering, node: Node) -> None:
    """Append a call for each phase of a ConvTranspose."""
    weighted = weighted_of(b, node, lambda weights: as_convolution(weights, node.attrs["group"]))
    if apart := is_depthwise(node, b.facts):
        placed = place_in_blocks(b, node, b.values.blocked(node.inputs[0]), weighted.bound)
    else:
        placed = place_by_groups(b, node, Grouped.of(node, weighted.weights.shape), weighted.bound)
    transposed = geometry(node, b.facts, as_image(placed.x), placed.y.image)
    for phase in phases(transposed):
        _phase(b, _Whole(node, weighted, placed), phase, transposed.strides, _depthwise if apart else _direct)


_Kernel = Callable[[Lowering, _Whole, Phase, Epilogue[Image]], tuple[NativeKernel, dict[str, Storage]]]


def _phase(b: Lowering, whole: _Whole, phase: Phase, strides: tuple[int, int], kernel_of: _Kernel) -> None:
    """Append one call. strides: of y's pixels."""
    placed = whole.placed
    epilogue = placed.epilogue.laid(lambda image: image.every(phase.first, strides)[0])
    kernel, packed = kernel_of(b, whole, phase, epilogue)
    places = {
        "x": _moved(placed.x, as_image(placed.x), phase.skipped, (1, 1)),
        "y": _moved(placed.y, placed.y.image, phase.first, strides),
    }
    for (name, place), image in zip(placed.operands.items(), placed.epilogue.operands, strict=True):
        places[name] = _moved(place, image, phase.first, strides)
    b.calls.append(kernel, {**places, **packed})


def _moved(place: Place, image: Image, first: tuple[int, int], steps: tuple[int, int]) -> Imaged:
    """Return the place of some pixels of an image: every `steps`-th row and column from `first` on."""
    picked, before = image.every(first, steps)
    return Imaged(place.storage, picked, place.first_byte // F32.itemsize + before)


def _direct(b: Lowering, whole: _Whole, phase: Phase, epilogue: Epilogue[Image]) -> tuple[NativeKernel, dict[str, Storage]]:
    conv, weighted = phase.conv, whole.weighted
    tile = direct.tile_of(b.choice(whole.node), conv, b.isa)
    key = ("phase", conv.groups, tile.vectors, phase.rows, phase.columns)
    packed = b.packed.storage(weighted.source, key, lambda: pack_weights(conv, tile, b.isa, phase.weights(weighted.weights)))
    return emit_conv(conv, tile, epilogue, b.isa), {"w": packed, **direct.bias_argument(b, conv, weighted.bias, tile.vectors)}


def _depthwise(b: Lowering, whole: _Whole, phase: Phase, epilogue: Epilogue[Image]) -> tuple[NativeKernel, dict[str, Storage]]:
    conv, weighted = phase.conv, whole.weighted
    tile = depthwise.tile_of(b.choice(whole.node), conv, b.isa)
    if tile.pixels > conv.y.width:  # chosen for the phase with the most work, whose rows may be longer
        tile = make_depthwise_tile(conv, b.isa, conv.y.width, tile.vectors)
    key = ("depthwise phase", tile.vectors, phase.rows, phase.columns)
    packed = b.packed.storage(weighted.source, key, lambda: pack_depthwise(conv, tile, b.isa, phase.weights(weighted.weights)))
    return emit_depthwise(conv, tile, epilogue, b.isa), {"w": packed, **depthwise.bias_argument(b, weighted.bias, tile.vectors)}


def is_depthwise(node: Node, facts: Facts) -> bool:
    """Whether every channel is convolved by itself."""
    channels, outputs, *_ = facts.spec(node.inputs[1]).shape
    return bool(node.attrs["group"] == channels > 1 == outputs)


def geometry(node: Node, facts: Facts, x: Image, y: Image) -> Transposed:
    """Return the transposed convolution of a node between two images."""
    slide = window(facts.spec(node.inputs[0]), facts.spec(node.inputs[1]), **node.attrs)
    return Transposed(x, y, *slide.plane, node.attrs["group"])


def candidates(node: Node, facts: Facts) -> Sequence[Choice]:
    """Return the tiles of the phase with the most work, the best by the port model first."""
    largest = max((phase.conv for phase in phases(_in_blocks(node, facts))), key=lambda conv: hint(conv.macs))
    tiles = depthwise_tiles(largest, facts.isa) if is_depthwise(node, facts) else conv_tiles(largest, facts.isa)
    return [Choice("native", "phases", (("tile", str(tile)),)) for tile in tiles]


def work(node: Node, facts: Facts, choice: Choice) -> Work:
    """Return the work of a candidate: of all phases, one after another."""
    read, written = moved_bytes(node, facts)
    apart = is_depthwise(node, facts)
    works = [
        depthwise.work(phase.conv, choice, facts.isa, 0, 0)
        if apart
        else direct.direct_work("direct", phase.conv, direct.tile_of(choice, phase.conv, facts.isa), facts.isa, 0, 0)
        for phase in phases(_in_blocks(node, facts))
    ]
    return Work(
        kind=works[0].kind,
        flops=sum(each.flops for each in works),
        read_bytes=read,
        write_bytes=written,
        weight_bytes=sum(each.weight_bytes for each in works),
        chunks=sum(each.chunks for each in works),
        calls=len(works),
        wants=works[0].wants,
    )


def _in_blocks(node: Node, facts: Facts) -> Transposed:
    """Return the transposed convolution of a node between images in blocks, the layout that candidates are ranked for."""
    return geometry(node, facts, facts.image_in_blocks(node.inputs[0]), facts.image_in_blocks(node.outputs[0]))


RULES = {"ConvTranspose": Rule(refuses, lower, candidates, work)}
