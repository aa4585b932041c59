"""Softmax and LogSoftmax: y = exp(x - max) / sum(exp(x - max)) along one axis, and its logarithm."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.batch_axis import works_along_axis
from kernels.cost import Cost
from kernels.errors import ShapeError
from kernels.operands import axis_of
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.spec import FLOATS, Array, Spec


def infer(x: Spec, *, axis: int = -1, coerce_2d: bool = False) -> Spec:
    """Same shape and dtype. `coerce_2d` is the pre-13 meaning: normalise over every dimension from `axis` on."""
    require_dtype("Softmax: x", x, FLOATS)
    axis_of("Softmax", axis, x.rank)
    return Spec(x.shape, x.dtype)


def cost(out: tuple[Spec, ...], x: Spec, *, axis: int = -1, coerce_2d: bool = False) -> Cost:
    """Per element: compare for the maximum, subtract, exp, add to the sum, divide (or subtract the logarithm)."""
    return Cost(other_flops=5 * x.elements)


def _axes(x: Array, axis: int, coerce_2d: bool) -> tuple[int, ...]:
    return tuple(range(axis % x.ndim, x.ndim)) if coerce_2d else (axis,)


def run_softmax(out: tuple[Array, ...], x: Array, *, axis: int = -1, coerce_2d: bool = False) -> None:
    """Shift by the maximum, so that nothing overflows."""
    (y,) = out
    if not x.size:
        return
    axes = _axes(x, axis, coerce_2d)
    np.subtract(x, x.max(axes, keepdims=True), out=y)
    np.exp(y, out=y)
    y /= y.sum(axes, keepdims=True, dtype=y.dtype)


def run_log_softmax(out: tuple[Array, ...], x: Array, *, axis: int = -1, coerce_2d: bool = False) -> None:
    """x - max - log(sum(exp(x - max))), without dividing."""
    (y,) = out
    if not x.size:
        return
    axes = _axes(x, axis, coerce_2d)
    np.subtract(x, x.max(axes, keepdims=True), out=y)
    y -= np.log(np.exp(y).sum(axes, keepdims=True, dtype=y.dtype))


def upgrade(opset: int, attrs: dict[str, Any], outputs: int) -> tuple[dict[str, Any], dict[int, Array]]:
    """Before opset 13 the default axis was 1 and the input was treated as a matrix."""
    return ({"axis": 1, **attrs, "coerce_2d": True} if opset < 13 else attrs), {}


CASES = (
    Case("last_axis", inputs=((2, 3, 5),), cost=Cost(other_flops=150)),
    Case("first_axis", inputs=((4, 7),), attrs={"axis": 0}),
    Case("large_values", inputs=(np.array([[1e4, 1e4 + 1, -1e4]], np.float32),)),
    Case("empty", inputs=((2, 0),)),
    Case("axis_out_of_range", inputs=((2, 3),), attrs={"axis": 2}, raises=ShapeError),
)

SOFTMAX = Op("Softmax", infer, cost, (Kernel("rows", run_softmax),), upgrade=upgrade, mixes_rows=works_along_axis, cases=CASES)
LOG_SOFTMAX = Op(
    "LogSoftmax",
    infer,
    cost,
    (Kernel("rows", run_log_softmax),),
    upgrade=upgrade,
    tolerance_eps=8,
    mixes_rows=works_along_axis,
    cases=CASES,
)
