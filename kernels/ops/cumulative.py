"""CumSum and CumProd: running sums and products along one axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.batch_axis import Application, only_first_input_has_rows
from kernels.cost import Cost, per_element
from kernels.errors import DTypeError, ShapeError
from kernels.half import in_single
from kernels.operands import INDICES, NUMBERS, axis_of
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.spec import Array, Spec


def _infer(name: str) -> Callable[..., Spec]:
    def infer(x: Spec, axis: Spec, *, exclusive: int = 0, reverse: int = 0) -> Spec:
        require_dtype(f"{name}: x", x, NUMBERS)
        require_dtype(f"{name}: axis", axis, INDICES)
        if axis.elements != 1:
            raise ShapeError(f"{name}: axis is {axis}, need a scalar")
        if axis.value is not None:
            axis_of(name, axis.value.item(), x.rank)
        return Spec(x.shape, x.dtype)

    return infer


def _run(name: str, ufunc: Any, neutral: int) -> Callable[..., None]:
    def run(out: tuple[Array, ...], x: Array, axis: Array, *, exclusive: int = 0, reverse: int = 0) -> None:
        """Along the first axis of views; `exclusive` shifts by one and starts with the neutral element."""
        along = axis_of(name, axis.item(), x.ndim)
        source, target = np.moveaxis(x, along, 0), np.moveaxis(out[0], along, 0)
        if reverse:
            source, target = source[::-1], target[::-1]
        if exclusive:
            target[:1] = neutral
            source, target = source[:-1], target[1:]
        if not target.size:
            return
        ufunc.accumulate(source, 0, dtype=x.dtype, out=target)

    return in_single(run)


_ZERO, _ONE = np.array(0, np.int64), np.array(1, np.int32)
_CASES = (
    Case("rows", inputs=((2, 3, 4), _ONE), cost=Cost(other_flops=24)),
    Case("exclusive", inputs=((5,), _ZERO), attrs={"exclusive": 1}),
    Case("reverse", inputs=((5, 2), _ZERO), attrs={"reverse": 1}),
    Case("exclusive_reverse", inputs=((2, 5), np.array(-1, np.int64)), attrs={"exclusive": 1, "reverse": 1}),
    Case("ints", inputs=(np.array([3, -1, 7], np.int32), _ZERO)),
    Case("half", inputs=(np.linspace(0.5, 1.5, 32, dtype=np.float16), _ZERO)),
    Case("empty", inputs=((0, 2), _ZERO), cost=Cost()),
    Case("axis_out_of_range", inputs=((2,), _ONE), raises=ShapeError),
    Case("axis_vector", inputs=((2,), np.zeros(2, np.int64)), raises=ShapeError),
    Case("float_axis", inputs=((2,), ()), raises=DTypeError),
)


def mixes_rows(call: Application) -> str:
    """A sum along axis 0 runs over the rows."""
    axes = call.axes(1)
    return only_first_input_has_rows(call) or ("it adds up along axis 0" if not axes or 0 in axes else "")


OPS = (
    Op(
        "CumSum",
        _infer("CumSum"),
        per_element(1, "add"),
        (Kernel("scan", _run("CumSum", np.add, 0)),),
        mixes_rows=mixes_rows,
        cases=_CASES,
    ),
    Op(
        "CumProd",
        _infer("CumProd"),
        per_element(1, "multiply"),
        (Kernel("scan", _run("CumProd", np.multiply, 1)),),
        mixes_rows=mixes_rows,
        cases=_CASES,
    ),
)
