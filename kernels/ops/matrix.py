"""Ops on the last two axes: Trilu and Det."""

from __future__ import annotations

import numpy as np

from kernels.cost import Cost, moves
from kernels.errors import DTypeError, ShapeError
from kernels.half import in_single
from kernels.operands import SCALARS
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.spec import FLOATS, STRING, Array, Spec


def infer_trilu(x: Spec, k: Spec | None = None, *, upper: int = 1) -> Spec:
    """Same shape and dtype; x holds matrices."""
    require_dtype("Trilu: x", x, SCALARS - {STRING})
    if x.rank < 2:
        raise ShapeError(f"Trilu: x is {x}, need matrices in its last two axes")
    if k is not None:
        require_dtype("Trilu: k", k, frozenset({np.dtype(np.int64)}))
        if k.elements != 1:
            raise ShapeError(f"Trilu: k is {k}, need a scalar")
    return Spec(x.shape, x.dtype)


def run_trilu(out: tuple[Array, ...], x: Array, k: Array | None = None, *, upper: int = 1) -> None:
    """A copy, then zeros in the other triangle."""
    (y,) = out
    rows, columns = x.shape[-2:]
    # a diagonal beyond the corners keeps all or nothing, like the one at the corner
    diagonal = 0 if k is None else max(-rows - 1, min(k.item(), columns + 1))
    below = np.tri(rows, columns, diagonal - 1 if upper else diagonal, dtype=bool)
    np.copyto(y, x)
    np.copyto(y, y.dtype.type(0), where=below if upper else ~below)


def infer_det(x: Spec) -> Spec:
    """One number per matrix."""
    require_dtype("Det: x", x, FLOATS)
    if x.rank < 2 or x.shape[-1] != x.shape[-2]:
        raise ShapeError(f"Det: x is {x}, need square matrices in its last two axes")
    return Spec(x.shape[:-2], x.dtype)


def cost_det(out: tuple[Spec, ...], x: Spec) -> Cost:
    """n(n-1)/2 + n(n-1)(2n-1)/3 + n-1 per n×n matrix: elimination (divide; multiply, subtract), then the diagonal's product."""
    n = x.shape[-1]
    each = n * (n - 1) // 2 + n * (n - 1) * (2 * n - 1) // 3 + max(n - 1, 0)
    return Cost(other_flops=each * out[0].elements)


@in_single
def run_det(out: tuple[Array, ...], x: Array) -> None:
    """By LU decomposition."""
    np.copyto(out[0], np.linalg.det(x))


def _k(value: int) -> Array:
    return np.array(value, np.int64)


_TRILU = (
    Case("upper", inputs=((2, 3, 4),), cost=Cost()),
    Case("lower", inputs=((4, 3),), attrs={"upper": 0}),
    Case("upper_second", inputs=((3, 4), _k(1))),
    Case("lower_minus_one", inputs=((3, 4), _k(-1)), attrs={"upper": 0}),
    Case("far_diagonal", inputs=((2, 3), _k(2**62))),
    Case("bools", inputs=(np.ones((3, 3), bool),)),
    Case("infinite", inputs=(np.full((2, 2), np.inf, np.float32),)),
    Case("empty", inputs=((0, 3),)),
    Case("vector", inputs=((3,),), raises=ShapeError),
    Case("k_float", inputs=((3, 3), ()), raises=DTypeError),
)
_DET = (
    Case("one", inputs=((3, 3),), cost=Cost(other_flops=15)),
    Case("batch", inputs=((2, 4, 2, 2),), cost=Cost(other_flops=32)),
    Case("singular", inputs=(np.ones((2, 2), np.float32),)),
    Case("no_matrix", inputs=((0, 2, 2),)),
    Case("not_square", inputs=((2, 3),), raises=ShapeError),
    Case("ints", inputs=(np.ones((2, 2), np.int32),), raises=DTypeError),
)

OPS = (
    Op("Trilu", infer_trilu, moves, (Kernel("mask", run_trilu),), cases=_TRILU),
    Op("Det", infer_det, cost_det, (Kernel("lu", run_det),), tolerance_eps=16, cases=_DET),
)
