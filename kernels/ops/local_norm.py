"""LRN over neighbouring channels, and LpNormalization along one axis."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.batch_axis import only_first_input_has_rows, works_along_axis
from kernels.cost import Cost
from kernels.errors import AttributeValueError, ShapeError
from kernels.half import in_single
from kernels.operands import axis_of, one_of
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.spec import FLOATS, Array, Spec


def infer_lrn(x: Spec, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Spec:
    """Same shape and dtype as x (n, c, …)."""
    require_dtype("LRN: x", x, FLOATS)
    if x.rank < 2:
        raise ShapeError(f"LRN: x is {x}, need (n, c, …)")
    if size < 1:
        raise AttributeValueError(f"LRN: size is {size}, need 1 or more channels")
    return Spec(x.shape, x.dtype)


def cost_lrn(out: tuple[Spec, ...], x: Spec, **attrs: Any) -> Cost:
    """size + 4 per element: square, size - 1 additions, multiply by alpha, add the bias, raise, divide."""
    return Cost(other_flops=(attrs["size"] + 4) * x.elements)


@in_single
def run_lrn(out: tuple[Array, ...], x: Array, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> None:
    """Whole planes, one neighbour at a time."""
    (y,) = out
    square, channels = np.square(x), x.shape[1]
    total = square.copy()
    for shift in range(1, min(size // 2, channels - 1) + 1):  # ceil((size - 1) / 2) channels after
        total[:, :-shift] += square[:, shift:]
    for shift in range(1, min((size - 1) // 2, channels - 1) + 1):
        total[:, shift:] += square[:, :-shift]
    total *= y.dtype.type(alpha / size)
    total += y.dtype.type(bias)
    np.power(total, y.dtype.type(-beta), out=total)
    np.multiply(x, total, out=y)


def infer_lp(x: Spec, *, axis: int = -1, p: int = 2) -> Spec:
    """Same shape and dtype as x."""
    require_dtype("LpNormalization: x", x, FLOATS)
    axis_of("LpNormalization", axis, x.rank)
    one_of("LpNormalization: attribute p", p, (1, 2))
    return Spec(x.shape, x.dtype)


def cost_lp(out: tuple[Spec, ...], x: Spec, **attrs: Any) -> Cost:
    """3 per element: square (or absolute value), sum, divide."""
    return Cost(other_flops=3 * x.elements)


@in_single
def run_lp(out: tuple[Array, ...], x: Array, *, axis: int = -1, p: int = 2) -> None:
    """A norm of 0 leaves 0."""
    (y,) = out
    norm = np.abs(x).sum(axis, keepdims=True) if p == 1 else np.sqrt(np.square(x).sum(axis, keepdims=True))
    np.divide(x, np.where(norm == 0, norm.dtype.type(1), norm), out=y)


_LRN = (
    Case("five", inputs=((2, 7, 3, 4),), attrs={"size": 5}, cost=Cost(other_flops=9 * 168)),
    Case("even", inputs=((1, 5, 3),), attrs={"size": 4, "alpha": 0.5, "beta": 0.6, "bias": 2.0}),
    Case("wider_than_channels", inputs=((1, 2, 3, 3),), attrs={"size": 9, "alpha": 1.0}),
    Case("one", inputs=((1, 3, 2, 2),), attrs={"size": 1, "alpha": 1.0}),
    Case("size_zero", inputs=((1, 3, 2, 2),), attrs={"size": 0}, raises=AttributeValueError),
    Case("vector", inputs=((3,),), attrs={"size": 3}, raises=ShapeError),
)
_LP = (
    Case("last_axis", inputs=((2, 3, 4),), cost=Cost(other_flops=72)),
    Case("first_axis_p1", inputs=((2, 3, 4),), attrs={"axis": 0, "p": 1}),
    Case("zeros", inputs=(np.array([[0, 0], [3, 4]], np.float32),)),
    Case("empty", inputs=((0, 3),), cost=Cost()),
    Case("p_three", inputs=((2, 3),), attrs={"p": 3}, raises=AttributeValueError),
    Case("axis_out_of_range", inputs=((2, 3),), attrs={"axis": 2}, raises=ShapeError),
)

OPS = (
    Op(
        "LRN",
        infer_lrn,
        cost_lrn,
        (Kernel("planes", run_lrn),),
        tolerance_eps=16,
        mixes_rows=only_first_input_has_rows,
        cases=_LRN,
    ),
    Op("LpNormalization", infer_lp, cost_lp, (Kernel("rows", run_lp),), tolerance_eps=8, mixes_rows=works_along_axis, cases=_LP),
)
