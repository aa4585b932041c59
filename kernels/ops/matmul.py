"""MatMul: numpy's matrix product, broadcast over leading axes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.batch_axis import Application, Content
from kernels.cost import Cost
from kernels.errors import ShapeError
from kernels.half import in_single
from kernels.operands import NUMBERS, broadcast, one_dtype
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.spec import Array, Spec


def infer(a: Spec, b: Spec) -> Spec:
    """(…, m, n) of a (…, m, k) and b (…, k, n); a vector counts as a row on the left, a column on the right."""
    require_dtype("MatMul: a", a, NUMBERS)
    dtype = one_dtype("MatMul", a, b)
    if not a.rank or not b.rank:
        raise ShapeError(f"MatMul: a is {a}, b is {b}, need a rank of 1 or more")
    rows = a.shape[-2:-1]
    inner, columns = (b.shape[-2], b.shape[-1:]) if b.rank > 1 else (b.shape[0], ())
    if a.shape[-1] != inner:
        raise ShapeError(f"MatMul: a is {a}, b is {b}, the inner sizes {a.shape[-1]} and {inner} differ")
    return Spec((*broadcast("MatMul: leading axes", a.shape[:-2], b.shape[:-2]), *rows, *columns), dtype)


def cost(out: tuple[Spec, ...], a: Spec, b: Spec) -> Cost:
    """MACs: outputs · k."""
    return Cost(macs=out[0].elements * a.shape[-1])


@in_single
def run(out: tuple[Array, ...], a: Array, b: Array) -> None:
    """BLAS; a matrix on the right turns the whole left side into one product."""
    (y,) = out
    if not a.shape[-1]:
        y.fill(0)
    elif y.size and a.ndim > 2 and b.ndim == 2 and a.flags.c_contiguous:
        np.matmul(a.reshape(-1, a.shape[-1]), b, out=y.reshape(-1, y.shape[-1]))
    elif y.size:
        np.matmul(a, b, out=y)


def _integers(*shape: int) -> Any:
    return np.arange(np.prod(shape), dtype=np.int64).reshape(shape)


def mixes_rows(call: Application) -> str:
    """Rows of a matrix on the left, and matrices of a stack, stay apart; the batch must not be the axis that is summed over."""
    a, b = call.inputs[0], call.inputs[1]
    if a is None or b is None or Content.SIZE in (a.content, b.content):
        return "an input depends on the batch's size"
    left, right = a.shape, b.shape
    rank = max(len(left), len(right))
    left_fits = len(left) == rank >= 2 if a.is_rows else len(left) < rank or math.prod(left[:1]) == 1
    right_fits = len(right) == rank >= 3 if b.is_rows else rank == 2 or len(right) < rank or math.prod(right[:1]) == 1
    return "" if left_fits and right_fits else "rows are multiplied with one another"


MATMUL = Op(
    "MatMul",
    infer,
    cost,
    (Kernel("blas", run),),
    tolerance_eps=16,
    mixes_rows=mixes_rows,
    cases=(
        Case("matrices", inputs=((3, 4), (4, 5)), cost=Cost(macs=60)),
        Case("batched", inputs=((2, 3, 4, 5), (2, 3, 5, 6)), cost=Cost(macs=720)),
        Case("matrix_on_the_right", inputs=((2, 3, 4), (4, 7)), cost=Cost(macs=168)),
        Case("broadcast", inputs=((2, 1, 3, 4), (5, 4, 2))),
        Case("vector_left", inputs=((4,), (2, 4, 3)), cost=Cost(macs=24)),
        Case("vector_right", inputs=((3, 4), (4,)), cost=Cost(macs=12)),
        Case("vectors", inputs=((4,), (4,)), cost=Cost(macs=4)),
        Case("empty_inner", inputs=((3, 0), (0, 2)), cost=Cost()),
        Case("integers", inputs=(_integers(2, 3), _integers(3, 2))),
        Case("inner_differs", inputs=((2, 3), (4, 2)), raises=ShapeError),
        Case("batches_differ", inputs=((2, 2, 3), (3, 3, 2)), raises=ShapeError),
    ),
)
