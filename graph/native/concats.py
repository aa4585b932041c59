"""Concatenations: their inputs are made in place where their producers can, and copied where not."""

from __future__ import annotations

from collections.abc import Sequence

from graph.ir import Node
from graph.native.elementwise import tape_behind
from graph.native.epilogues import find_steps
from graph.native.lowering import Lowering
from graph.native.place import Imaged, Storage, image_shape, is_image
from graph.native.rule import Facts, Rule, is_f32, only, plain
from kernels.native.layout import Image

_MAKERS = ("Conv", "MaxPool", "AveragePool")  # whose results go where they are told


def refuses(node: Node, facts: Facts) -> str | None:
    """Why a Concat has no native form, or None."""
    if not is_f32(*(facts.spec(name) for name in (*node.reads(), node.outputs[0]))):
        return "it is not fp32, or a part is empty"
    if find_steps(node, facts.constants) is None:
        return "an op that is fused behind it has no native form"
    return None


def reserve(b: Lowering, nodes: Sequence[Node]) -> None:
    """Let the producers of what concatenations of images read write straight into the whole."""
    makers = {value: node for node in nodes for value in node.writes()}
    for node in nodes:
        shape = b.spec(node.outputs[0]).shape if node.op == "Concat" else ()
        if (
            not is_image(shape)
            or node.epilogue
            or node.attrs["axis"] % len(shape) != 1
            or len(set(node.inputs)) < len(node.inputs)
        ):
            continue
        sizes = [b.spec(name).shape[1] for name in node.inputs]
        if any(size % b.isa.lanes for size in sizes[:-1]):
            continue
        image = Image.blocked(*image_shape(shape), b.isa.lanes)
        whole = Imaged(Storage(node.outputs[0], image.elements), image)
        b.reserve(node.outputs[0], whole)
        first = 0
        for name, size in zip(node.inputs, sizes, strict=True):
            maker = makers.get(name)
            if maker is not None and maker.op in _MAKERS and name not in b.results and b.reserved(name) is None:
                b.reserve(name, _part(whole, first, size))
            first += size


def lower(b: Lowering, node: Node) -> None:
    """Copy what is not there yet; in blocks where all parts begin with one."""
    value = node.outputs[0]
    whole = b.reserved(value)
    if isinstance(whole, Imaged):
        b.define(value, whole)
        first = 0
        for name in node.inputs:
            size = b.spec(name).shape[1]
            if b.place(name).storage is not whole.storage:
                part, blocks = _part(whole, first, size), b.blocked(name)
                b.map((part, part.blocks), [(blocks, blocks.blocks)])
            first += size
        return
    y = b.new(value)
    axis, first = node.attrs["axis"] % len(y.view.shape), 0
    for name in node.inputs:
        source, count = b.strided(name), b.spec(name).shape[axis]
        operands, steps = tape_behind(b, node)
        others = [(place, place.view.broadcast(y.view.shape).sliced(axis, first, count)) for place in operands]
        b.map((y, y.view.sliced(axis, first, count)), [(source, source.view), *others], steps)
        first += count


def _part(whole: Imaged, first: int, channels: int) -> Imaged:
    """Channels of an image in blocks, from the beginning of a block."""
    image = whole.image
    part = Image(image.batch, channels, image.height, image.width, image.block, image.n_stride, image.block_stride,
                 image.y_stride, image.x_stride)  # fmt: skip
    return Imaged(whole.storage, part, whole.offset + first // image.block * image.block_stride)


RULES = {"Concat": Rule(refuses, lower, only("copy"), plain("copy"))}
