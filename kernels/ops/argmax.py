"""ArgMax, ArgMin and Hardmax: positions of maxima and minima along an axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.batch_axis import works_along_axis
from kernels.cost import Cost, per_element
from kernels.errors import DTypeError, ShapeError
from kernels.operands import NUMBERS, axis_of
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.spec import FLOATS, Array, Spec

_INT64 = np.dtype(np.int64)


def _infer(name: str) -> Callable[..., Spec]:
    def infer(x: Spec, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Spec:
        require_dtype(f"{name}: x", x, NUMBERS)
        along = axis_of(name, axis, x.rank)
        if x.shape[along] == 0:
            raise ShapeError(f"{name}: axis {along} of x {x} has size 0, need an element to choose")
        return Spec((*x.shape[:along], *((1,) if keepdims else ()), *x.shape[along + 1 :]), _INT64)

    return infer


def cost(out: tuple[Spec, ...], x: Spec, **attrs: int) -> Cost:
    """1 per input element: compare."""
    return Cost(other_flops=x.elements)


def _run(choose: Callable[..., Any]) -> Callable[..., None]:
    def run(out: tuple[Array, ...], x: Array, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> None:
        """Find the first of equal elements, or the last by searching the axis backwards."""
        searched = np.flip(x, axis) if select_last_index else x
        found = choose(searched, axis=axis, keepdims=bool(keepdims))
        np.copyto(out[0], x.shape[axis] - 1 - found if select_last_index else found)

    return run


def infer_hardmax(x: Spec, *, axis: int = -1, coerce_2d: bool = False) -> Spec:
    """Same shape and dtype. `coerce_2d` is the pre-13 meaning: one maximum over every dimension from `axis` on."""
    require_dtype("Hardmax: x", x, FLOATS)
    axis_of("Hardmax", axis, x.rank)
    return Spec(x.shape, x.dtype)


def run_hardmax(out: tuple[Array, ...], x: Array, *, axis: int = -1, coerce_2d: bool = False) -> None:
    """1 at the first maximum along the axis, else 0."""
    (y,) = out
    y.fill(0)
    if not x.size:
        return
    if coerce_2d:
        rows = int(np.prod(x.shape[: axis % x.ndim], dtype=np.int64))
        x, y, axis = x.reshape(rows, -1), y.reshape(rows, -1), 1
    np.put_along_axis(y, np.argmax(x, axis=axis, keepdims=True), 1, axis)


def upgrade_hardmax(opset: int, attrs: dict[str, Any], outputs: int) -> tuple[dict[str, Any], dict[int, Array]]:
    """Before opset 13 the default axis was 1 and the input was treated as a matrix."""
    return ({"axis": 1, **attrs, "coerce_2d": True} if opset < 13 else attrs), {}


_TIES = np.array([[2, 2, 1], [0, 3, 3]], np.float32)
_CASES = (
    Case("default", inputs=((4, 3),), cost=Cost(other_flops=12)),
    Case("negative_axis_dropped", inputs=((2, 3, 4),), attrs={"axis": -2, "keepdims": 0}),
    Case("ties_first", inputs=(_TIES,), attrs={"axis": 1}),
    Case("ties_last", inputs=(_TIES,), attrs={"axis": 1, "select_last_index": 1}),
    Case("nan", inputs=(np.array([2, np.nan, 7], np.float32),)),
    Case("ints", inputs=(np.array([3, -1, 7], np.int8),)),
    Case("no_rows", inputs=((0, 3),), attrs={"axis": 1}),
    Case("empty_axis", inputs=((2, 0),), attrs={"axis": 1}, raises=ShapeError),
    Case("axis_out_of_range", inputs=((2, 3),), attrs={"axis": 2}, raises=ShapeError),
    Case("bools", inputs=(np.ones(2, bool),), raises=DTypeError),
)
_HARDMAX_CASES = (
    Case("last", inputs=((2, 3, 4),), cost=Cost(other_flops=24)),
    Case("first", inputs=((4, 3),), attrs={"axis": 0}),
    Case("ties", inputs=(_TIES,)),
    Case("older_rows", inputs=((2, 3, 4),), attrs={"axis": 1, "coerce_2d": True}),
    Case("empty", inputs=((2, 0),)),
    Case("axis_out_of_range", inputs=((2, 3),), attrs={"axis": -3}, raises=ShapeError),
    Case("ints", inputs=(np.ones(2, np.int32),), raises=DTypeError),
)

OPS = (
    Op("ArgMax", _infer("ArgMax"), cost, (Kernel("search", _run(np.argmax)),), mixes_rows=works_along_axis, cases=_CASES),
    Op("ArgMin", _infer("ArgMin"), cost, (Kernel("search", _run(np.argmin)),), mixes_rows=works_along_axis, cases=_CASES),
    Op(
        "Hardmax",
        infer_hardmax,
        per_element(1, "compare"),
        (Kernel("search", run_hardmax),),
        upgrade=upgrade_hardmax,
        mixes_rows=works_along_axis,
        cases=_HARDMAX_CASES,
    ),
)
