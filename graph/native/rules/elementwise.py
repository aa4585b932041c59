"""Elementwise ops that are not fused into another node, with their epilogues: one loop that reads each operand once."""

from __future__ import annotations

from collections.abc import Sequence

from graph.ir import Node
from graph.native.epilogue_operands import image_operand
from graph.native.expressions import express, express_epilogue, refuses_behind
from graph.native.facts import Facts
from graph.native.lowering import Lowering
from graph.native.place import Imaged, Place, Viewed
from graph.native.rule import all_values, one_algorithm
from graph.native.values import overwritable
from kernels.expression import Apply
from kernels.native.errors import EmitError
from kernels.native.memory.image import Image
from kernels.native.memory.view import View
from kernels.size import surely_equal


def refuses(node: Node, facts: Facts) -> str | None:
    """Return why an elementwise op has no native form, or None."""
    try:
        express(node, facts.sources)
    except EmitError as error:
        return str(error)
    return None


def lower(b: Lowering, node: Node) -> None:
    """Append one elementwise kernel: over blocks where an operand lies in blocks, over strides otherwise.

    What dequantises is left to the kernels that read it, as far as they can: bytes take a quarter of the memory.
    """
    if node.op == "DequantizeLinear" and not node.epilogue and node.outputs[0] not in b.dataflow.results:
        b.values.defer(node, lambda: _append(b, node))
    else:
        _append(b, node)


def _append(b: Lowering, node: Node) -> None:
    bound = express(node, b.late_sources)
    steps = bound.expression.steps
    value = node.outputs[0]
    shape = b.spec(value).shape
    if _in_blocks(b, bound.operands, shape):
        pairs = [image_operand(b, name, shape) for name in bound.operands]
        y = b.values.new_image(value, overwritable([place for place, _ in pairs]))
        b.calls.map((y, y.blocks), [(place, _blocks(place, image, y)) for place, image in pairs], steps)
        return
    places = [b.values.strided(name) for name in bound.operands]
    made = b.values.new(value, overwritable(places))
    b.calls.map((made, made.view), [(place, place.view.broadcast(shape)) for place in places], steps)


def refuses_fused(node: Node, facts: Facts) -> str | None:
    """Return why an elementwise kernel cannot compute the epilogue of a node, or None."""
    return refuses_behind(node, facts.sources)


def fused_operands(b: Lowering, node: Node, source: Viewed) -> tuple[list[Viewed], Sequence[Apply]]:
    """Return where the operands of a node's epilogue lie, and its steps. source: the node's own result. No steps mean a copy."""
    if not node.epilogue:
        return [source], ()
    bound = express_epilogue(node, b.sources)
    return [b.values.strided(name) if name else source for name in bound.operands], bound.expression.steps


def apply_fused(b: Lowering, node: Node, made: Viewed) -> None:
    """Append the epilogue of a node, if it has one, in place on its result."""
    if node.epilogue:
        places, steps = fused_operands(b, node, made)
        b.calls.map((made, made.view), [(place, place.view.broadcast(made.view.shape)) for place in places], steps)


def apply_fused_in_blocks(b: Lowering, node: Node, made: Imaged) -> None:
    """Append the epilogue of a node, if it has one, in place on its result, which lies in blocks of channels."""
    if node.epilogue:
        bound = express_epilogue(node, b.sources)
        pairs = [image_operand(b, name, b.spec(node.outputs[0]).shape) for name in bound.operands[1:]]
        operands = [(made, made.blocks), *((place, _blocks(place, image, made)) for place, image in pairs)]
        b.calls.map((made, made.blocks), operands, bound.expression.steps)


def _in_blocks(b: Lowering, operands: Sequence[str], shape: tuple[int, ...]) -> bool:
    """Whether an operand of the result's shape lies in blocks that no strides describe."""
    places = (b.values.place(name) for name in operands if surely_equal(b.spec(name).shape, shape))
    return any(isinstance(place, Imaged) and place.strided is None for place in places)


def _blocks(place: Place, image: Image, y: Imaged) -> View:
    """Return an operand as a view of the same shape as the blocks of y."""
    if image.block == 1 and image.block_stride == 0:
        steps = (image.n_stride, 0, image.y_stride, image.x_stride, 0)
    else:
        steps = (image.n_stride, image.block_stride, image.y_stride, image.x_stride, 1)
    offset = place.view.offset if isinstance(place, Viewed) else place.offset
    return View(y.blocks.shape, steps, offset)


RULE = one_algorithm("map", refuses, lower, holds=all_values)  # of every op that has an expression
