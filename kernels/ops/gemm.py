"""Gemm: y = alpha · A · B + beta · C, A and B transposed on demand, C broadcast to the product."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.batch_axis import Application
from kernels.cost import Cost
from kernels.errors import ShapeError
from kernels.half import in_single
from kernels.operands import NUMBERS, broadcast, one_dtype
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.spec import Array, Spec


def infer(
    a: Spec, b: Spec, c: Spec | None = None, *, alpha: float = 1.0, beta: float = 1.0, transA: int = 0, transB: int = 0
) -> Spec:
    """(m, n) of a (m, k) and b (k, n), or their transposes; c broadcasts to (m, n)."""
    require_dtype("Gemm: a", a, NUMBERS)
    dtype = one_dtype("Gemm", *(spec for spec in (a, b, c) if spec is not None))
    if a.rank != 2 or b.rank != 2:
        raise ShapeError(f"Gemm: a is {a}, b is {b}, need two matrices")
    m, k = a.shape[::-1] if transA else a.shape
    inner, n = b.shape[::-1] if transB else b.shape
    if k != inner:
        raise ShapeError(f"Gemm: a is {a}, b is {b} (transA {transA}, transB {transB}), the inner sizes {k} and {inner} differ")
    if c is not None and (c.rank > 2 or broadcast("Gemm: c", (m, n), c.shape) != (m, n)):
        raise ShapeError(f"Gemm: c is {c}, need a shape that broadcasts to [{m},{n}]")
    return Spec((m, n), dtype)


def cost(out: tuple[Spec, ...], a: Spec, b: Spec, c: Spec | None = None, **attrs: Any) -> Cost:
    """MACs: m · n · k. Scaling by alpha ≠ 1, scaling C by beta ≠ 1 and adding C: one per output each."""
    passes = (attrs["alpha"] != 1) + (c is not None) + (c is not None and attrs["beta"] != 1)
    return Cost(macs=out[0].elements * a.shape[0 if attrs["transA"] else 1], other_flops=passes * out[0].elements)


@in_single
def run(
    out: tuple[Array, ...],
    a: Array,
    b: Array,
    c: Array | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> None:
    """BLAS on transposed views, then scale and add in place."""
    (y,) = out
    left, right = a.T if transA else a, b.T if transB else b
    if left.shape[1]:
        np.matmul(left, right, out=y)
    else:
        y.fill(0)
    if alpha != 1:
        np.multiply(y, y.dtype.type(alpha), out=y, casting="unsafe")
    if c is not None:
        y += c if beta == 1 else c * y.dtype.type(beta)


def mixes_rows(call: Application) -> str:
    """Rows of A stay apart where B does not depend on the batch, and C does not either or has rows of its own."""
    a, b, c = call.input(0), call.input(1), call.input(2)
    if a is None or not a.is_rows or call.attrs["transA"] or b is None or not b.is_free:
        return "rows are multiplied with one another"
    if c is None:
        return ""
    aligned = len(c.shape) == 2 if c.is_rows else c.is_free and (len(c.shape) < 2 or c.shape[0] == 1)
    return "" if aligned else "its third input differs from row to row"


GEMM = Op(
    "Gemm",
    infer,
    cost,
    (Kernel("blas", run),),
    tolerance_eps=16,
    mixes_rows=mixes_rows,
    cases=(
        Case("plain", inputs=((3, 4), (4, 5)), cost=Cost(macs=60)),
        Case("linear_layer", inputs=((2, 6), (5, 6), (5,)), attrs={"transB": 1}, cost=Cost(macs=60, other_flops=10)),
        Case("transposed_left", inputs=((6, 2), (6, 5)), attrs={"transA": 1}, cost=Cost(macs=60)),
        Case("scaled", inputs=((2, 3), (3, 4), (2, 1)), attrs={"alpha": 0.5, "beta": 2.0}, cost=Cost(macs=24, other_flops=24)),
        Case("scalar_c", inputs=((2, 3), (3, 4), ())),
        Case("empty_inner", inputs=((2, 0), (0, 3), (3,))),
        Case("inner_differs", inputs=((2, 3), (4, 2)), raises=ShapeError),
        Case("c_does_not_broadcast", inputs=((2, 3), (3, 4), (5,)), raises=ShapeError),
        Case("not_matrices", inputs=((2, 3, 1), (3, 4)), raises=ShapeError),
    ),
)
