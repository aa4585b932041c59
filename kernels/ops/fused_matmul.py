"""com.microsoft.FusedMatMul: MatMul of inputs transposed on demand, scaled by alpha."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.cost import Cost
from kernels.errors import ShapeError
from kernels.half import in_single
from kernels.operands import one_dtype
from kernels.ops import matmul
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.spec import FLOATS, Array, Spec


def axes_order(rank: int, batch: int, last: int) -> list[int]:
    """Return the axes in MatMul's order: with `batch` the rows or inner axis come first, with `last` the last two are swapped.

    A vector is left as it is.
    """
    axes = list(range(rank))
    if batch and rank > 2:
        axes = [*axes[1:-1], 0, axes[-1]]
    if last and rank > 1:
        axes[-2:] = axes[:-3:-1]
    return axes


def _turned(spec: Spec, batch: int, last: int) -> Spec:
    return Spec(tuple(spec.shape[axis] for axis in axes_order(spec.rank, batch, last)), spec.dtype)


def infer(
    a: Spec, b: Spec, *, alpha: float = 1.0, transA: int = 0, transB: int = 0, transBatchA: int = 0, transBatchB: int = 0
) -> Spec:
    """MatMul's shape for a and b after their transposes."""
    require_dtype("FusedMatMul: a", a, FLOATS)
    one_dtype("FusedMatMul", a, b)
    return matmul.infer(_turned(a, transBatchA, transA), _turned(b, transBatchB, transB))


def cost(out: tuple[Spec, ...], a: Spec, b: Spec, **attrs: Any) -> Cost:
    """MACs: outputs · k. Scaling by alpha ≠ 1: one per output."""
    inner = _turned(a, attrs["transBatchA"], attrs["transA"]).shape[-1]
    return Cost(macs=out[0].elements * inner, other_flops=out[0].elements * (attrs["alpha"] != 1))


@in_single
def run(out: tuple[Array, ...], a: Array, b: Array, **attrs: Any) -> None:
    """BLAS reads transposed views."""
    (y,) = out
    left = a.transpose(axes_order(a.ndim, attrs["transBatchA"], attrs["transA"]))
    right = b.transpose(axes_order(b.ndim, attrs["transBatchB"], attrs["transB"]))
    matmul.run(out, left, right)
    if attrs["alpha"] != 1:
        np.multiply(y, y.dtype.type(attrs["alpha"]), out=y)


FUSED_MATMUL = Op(
    "com.microsoft.FusedMatMul",
    infer,
    cost,
    (Kernel("blas", run),),
    tolerance_eps=16,
    cases=(
        Case("plain", inputs=((3, 4), (4, 5)), cost=Cost(macs=60)),
        Case("scaled", inputs=((2, 3, 4), (2, 5, 4)), attrs={"alpha": 0.125, "transB": 1}, cost=Cost(macs=120, other_flops=30)),
        Case("both_transposed", inputs=((2, 4, 3), (2, 5, 4)), attrs={"transA": 1, "transB": 1}),
        Case("batch_inside", inputs=((3, 2, 4), (2, 4, 5)), attrs={"transBatchA": 1}, cost=Cost(macs=120)),
        Case("batches_inside", inputs=((3, 2, 6, 4), (4, 2, 6, 5)), attrs={"transBatchA": 1, "transBatchB": 1}),
        Case("inner_differs", inputs=((2, 3), (2, 3)), raises=ShapeError),
    ),
)
