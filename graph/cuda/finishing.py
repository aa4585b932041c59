"""What is fused behind a node, as kernels take it: a bias, an expression, and arrays like the result that it reads."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from graph.cuda.facts import F32
from graph.cuda.layouts import Layout, in_order_of, is_aligned, matrix_of, new_view
from graph.cuda.lowering import Lowering
from graph.ir import Node
from graph.native.expressions import BoundExpression, express_epilogue
from graph.native.place import Storage, Viewed
from kernels.cuda.emit.descriptor import OPERANDS
from kernels.cuda.emit.epilogue import UNCHANGED
from kernels.expression import Expression
from kernels.native.memory.view import View
from kernels.record import record
from kernels.spec import Array


@record
class Finishing:
    """What a kernel does to its results before it stores them.

    bias: of each column, None where there is none. expression: of a result and of the others. others: matrices like the result,
    with a stride of 0 where all rows share one. rest: what is left for a map afterwards, None where nothing is.
    """

    bias: Viewed | None = None
    expression: Expression = UNCHANGED
    others: tuple[Viewed, ...] = ()
    rest: BoundExpression | None = None

    @property
    def strides(self) -> tuple[int, ...]:
        """The strides of the others."""
        return tuple(place.view.strides[0] for place in self.others)


def finishing(
    b: Lowering,
    node: Node,
    layout: Layout,
    *,
    bias: Array | None = None,
    addend: str = "",
    takes_bias: bool = True,
    most: int = OPERANDS,
) -> Finishing:
    """Return what a kernel does behind a node whose result lies in that layout.

    bias: of each column, added first. addend: a value that is added then. takes_bias: whether the kernel adds one; then a
    constant of the columns that is added first becomes it. most: how many arrays its expression may read.
    """
    bound = express_epilogue(node, b.facts.sources, addend)
    shape = b.spec(node.outputs[0]).shape
    axis = 1 if layout == "pixels" else len(shape) - 1
    if takes_bias and bias is None and (bias := _columns(b, bound.addend, shape, axis)) is not None:
        bound = bound.without_addend()
    place = None if bias is None or not bias.any() else b.constant(bias, F32)
    if not bound.expression.steps:
        return Finishing(place)
    if len(bound.operands) > 1 + most or any(dtype != F32 for dtype in bound.expression.operands):
        return Finishing(place, rest=bound)
    others = tuple(_other(b, value, shape, layout, axis) for value in bound.operands[1:])
    return Finishing(place, bound.expression, others)


def behind(b: Lowering, node: Node, addend: str = "") -> Finishing:
    """Return what is fused behind a node whose kernel does none of it: all is left for a map. addend: is added first."""
    bound = express_epilogue(node, b.facts.sources, addend)
    return Finishing(rest=bound if bound.expression.steps else None)


def _columns(b: Lowering, value: str | None, shape: Sequence[int], axis: int) -> Array | None:
    """Return a constant that differs along the columns alone, as one number for each; None where the value is none."""
    if value is None or (array := b.constants.get(value)) is None or array.dtype != F32:
        return None
    if array.ndim > len(shape):
        return None
    given = (1,) * (len(shape) - array.ndim) + array.shape
    if array.size == given[axis] == shape[axis]:
        return np.ascontiguousarray(array.reshape(-1))
    return np.full(shape[axis], array.reshape(-1)[0], F32) if array.size == 1 else None


def _other(b: Lowering, value: str, shape: Sequence[int], layout: Layout, axis: int) -> Viewed:
    """Return a value as a matrix like the result: its own rows, or one row for all."""
    columns = shape[axis]
    if value in b.constants and (known := _columns(b, value, shape, axis)) is not None:
        return _shared(b.constant(known), columns)
    given = b.spec(value).shape
    whole = (1,) * (len(shape) - len(given)) + given
    if whole == tuple(shape):
        if len(given) == len(shape):
            return b.matrix(value, layout)
    elif prod(given) == whole[axis] == columns:
        return _shared(b.dense(value), columns)
    source = b.place(value)
    made = Viewed(Storage(value, prod(shape), b.dtype), in_order_of(new_view(shape, layout)))
    b.copy(source, made)
    seen = matrix_of(made.view, layout)
    assert seen is not None, f"{value}: new memory {made.view} must be a matrix"  # noqa: S101
    return made.under(seen)


def _shared(place: Viewed, columns: int) -> Viewed:
    return place.under(View((1, columns), (0, 1), place.view.offset))


def matrix_written(b: Lowering, value: str, layout: Layout) -> tuple[Viewed, Viewed]:
    """Return new memory for a value, and the matrix in it that a kernel writes; copied later where something else is reserved."""
    y = b.new(value, layout)
    seen = matrix_of(y.view, layout)
    if seen is None or not is_aligned(y.under(seen)):
        y = Viewed(Storage(value, y.view.size, b.stored(value)), new_view(y.view.shape, layout))
        b.define(value, y)
        seen = matrix_of(y.view, layout)
    assert seen is not None, f"{value}: new memory {y.view} must be a matrix"  # noqa: S101
    return y, y.under(seen)


def finish(b: Lowering, node: Node, y: Viewed, done: Finishing) -> None:
    """Append what is left of a node's epilogue as a map over its result, in place."""
    if done.rest is not None:
        b.map(y, [b.place(value) if value else y for value in done.rest.operands], done.rest.expression)
