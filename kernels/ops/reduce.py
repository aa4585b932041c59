"""The Reduce family: one result for all elements along some axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.batch_axis import Application, only_first_input_has_rows
from kernels.cost import Cost
from kernels.errors import DTypeError, ShapeError
from kernels.half import is_half
from kernels.operands import NUMBERS, axes_of, known_ints
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.spec import BOOL, FLOATS, Array, DType, Spec
from kernels.upgrades import attribute_inputs

Axes = tuple[int, ...]


def _reduced(name: str, x: Spec, axes: Spec | None, noop: int) -> Axes:
    """Return the reduced axes. Without axes: all, or none with `noop_with_empty_axes`."""
    named = () if axes is None else axes_of(name, known_ints(f"{name}: axes", axes), x.rank)
    return named or (() if noop else tuple(range(x.rank)))


def _infer(name: str, dtypes: frozenset[DType]) -> Callable[..., Spec]:
    def infer(x: Spec, axes: Spec | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Spec:
        require_dtype(f"{name}: x", x, dtypes)
        gone = _reduced(name, x, axes, noop_with_empty_axes)
        kept = [1 if i in gone else size for i, size in enumerate(x.shape) if keepdims or i not in gone]
        return Spec(tuple(kept), x.dtype)

    return infer


def _cost(each_input: int, each_output: int, formula: str) -> Callable[..., Cost]:
    def cost(out: tuple[Spec, ...], x: Spec, axes: Spec | None = None, **attrs: int) -> Cost:
        return Cost(other_flops=each_input * x.elements + each_output * out[0].elements)

    cost.__doc__ = formula
    return cost


def _run(name: str, reduce: Callable[[Array, Axes, Array], None]) -> Callable[..., None]:
    def run(
        out: tuple[Array, ...], x: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> None:
        spec = Spec(x.shape, x.dtype)
        gone = _reduced(name, spec, None if axes is None else Spec.of(axes), noop_with_empty_axes)
        y = out[0].reshape([1 if i in gone else size for i, size in enumerate(x.shape)])
        if is_half(x.dtype):  # adds up in single
            single = np.empty(y.shape, np.float32)
            reduce(x.astype(np.float32), gone, single)
            np.copyto(y, single, casting="unsafe")
        else:
            reduce(x, gone, y)

    return run


def _sum(x: Array, axes: Axes, y: Array) -> None:
    np.add.reduce(x, axes, dtype=x.dtype, out=y, keepdims=True)


def _mean(x: Array, axes: Axes, y: Array) -> None:
    """The mean; rounded toward zero for integers, NaN for no elements."""
    count = x.size // y.size if y.size else 0
    if x.dtype.kind in "iu":
        np.copyto(y, np.true_divide(np.add.reduce(x, axes, dtype=x.dtype, keepdims=True), count), casting="unsafe")
    else:
        _sum(x, axes, y)
        y /= count


def _product(x: Array, axes: Axes, y: Array) -> None:
    np.multiply.reduce(x, axes, dtype=x.dtype, out=y, keepdims=True)


def _lowest(dtype: DType, sign: int) -> Any:
    if dtype == BOOL:
        return sign > 0
    if dtype.kind in "iu":
        return np.iinfo(dtype).max if sign > 0 else np.iinfo(dtype).min
    return sign * np.inf


def _max(x: Array, axes: Axes, y: Array) -> None:
    """The maximum; for no elements the lowest value of the type, -inf for floats."""
    np.maximum.reduce(x, axes, out=y, keepdims=True, initial=_lowest(x.dtype, -1))


def _min(x: Array, axes: Axes, y: Array) -> None:
    np.minimum.reduce(x, axes, out=y, keepdims=True, initial=_lowest(x.dtype, 1))


def _l1(x: Array, axes: Axes, y: Array) -> None:
    _sum(np.abs(x), axes, y)


def _sum_square(x: Array, axes: Axes, y: Array) -> None:
    _sum(x * x, axes, y)


def _l2(x: Array, axes: Axes, y: Array) -> None:
    """Integers by way of float64, truncated."""
    if x.dtype.kind in "iu":
        np.copyto(y, np.sqrt(np.add.reduce(np.square(x.astype(np.float64)), axes, keepdims=True)), casting="unsafe")
    else:
        _sum_square(x, axes, y)
        np.sqrt(y, out=y)


def _log_sum(x: Array, axes: Axes, y: Array) -> None:
    _sum(x, axes, y)
    np.log(y, out=y)


def _log_sum_exp(x: Array, axes: Axes, y: Array) -> None:
    """Shifted by the maximum, so that nothing overflows; an infinite maximum is its own answer."""
    top = np.maximum.reduce(x, axes, keepdims=True, initial=-np.inf)
    top = np.where(np.isfinite(top), top, x.dtype.type(0))
    _sum(np.exp(x - top), axes, y)
    np.log(y, out=y)
    y += top


_WIDE = frozenset(dtype for dtype in NUMBERS if dtype.itemsize > 2) | FLOATS
_AXIS_1 = np.array([1], np.int64)
_INTS = Case("ints", inputs=(np.array([[-7, 4, 2], [1, 1, 9]], np.int32), _AXIS_1))
_BOOLS = Case("bools", inputs=(np.array([[True, False], [False, False]]), _AXIS_1))


def _op(
    name: str,
    reduce: Callable[[Array, Axes, Array], None],
    dtypes: frozenset[DType],
    each_input: int,
    each_output: int,
    counted: str,
    *cases: Case,
    first_opset: int = 18,
) -> Op:
    per_element = f"{each_input} per input element ({counted})"
    formula = per_element + (f", {each_output} per output element." if each_output else ".")

    def flops(inputs: int, outputs: int) -> Cost:
        return Cost(other_flops=each_input * inputs + each_output * outputs)

    domain = (0.1, 3.0)  # so that logarithms exist
    shared = (
        Case("last_two", inputs=((2, 3, 4, 5), np.array([2, 3], np.int64)), domain=domain, cost=flops(120, 6)),
        Case("middle_dropped", inputs=((2, 3, 4), _AXIS_1), attrs={"keepdims": 0}, domain=domain, cost=flops(24, 8)),
        Case("negative_axis", inputs=((2, 3), np.array([-1], np.int64)), domain=domain),
        Case("all_dropped", inputs=((2, 3),), attrs={"keepdims": 0}, domain=domain, cost=flops(6, 1)),
        Case("no_axes_kept", inputs=((2, 3),), attrs={"noop_with_empty_axes": 1}, domain=domain, cost=flops(6, 6)),
        Case("empty_axes", inputs=((2, 3), np.array([], np.int64)), domain=domain),
        Case("scalar", inputs=((),), domain=domain),
        Case("half", inputs=(np.linspace(0.25, 4, 24, dtype=np.float16).reshape(4, 6), _AXIS_1)),
        Case("of_nothing", inputs=((2, 0, 3), _AXIS_1)),
        Case("axis_out_of_range", inputs=((2, 3), np.array([2], np.int64)), raises=ShapeError),
        Case("axis_twice", inputs=((2, 3), np.array([1, -1], np.int64)), raises=ShapeError),
        Case("strings", inputs=(np.array(["a"], object),), raises=DTypeError),
    )
    upgrade = attribute_inputs(first_opset, "axes")
    kernels = (Kernel("ufunc", _run(name, reduce)),)
    infer, cost = _infer(name, dtypes), _cost(each_input, each_output, formula)
    return Op(name, infer, cost, kernels, upgrade=upgrade, tolerance_eps=8, mixes_rows=mixes_rows, cases=shared + cases)


def mixes_rows(call: Application) -> str:
    """A reduction of axis 0 runs over the rows; so does one without axes, unless that means no reduction at all."""
    axes = call.axes(1)
    if axes == [] and call.attrs["noop_with_empty_axes"]:
        return only_first_input_has_rows(call)
    return only_first_input_has_rows(call) or ("it reduces axis 0" if not axes or 0 in axes else "")


OPS = (
    _op("ReduceSum", _sum, _WIDE, 1, 0, "add", _INTS, first_opset=13),
    _op("ReduceMean", _mean, _WIDE, 1, 1, "add", Case("ints", inputs=(np.array([[-7, 4, 2]], np.int32), _AXIS_1))),
    _op("ReduceProd", _product, _WIDE, 1, 0, "multiply", _INTS),
    _op("ReduceMax", _max, NUMBERS | {BOOL}, 1, 0, "compare", _INTS, _BOOLS),
    _op("ReduceMin", _min, NUMBERS | {BOOL}, 1, 0, "compare", _INTS, _BOOLS),
    _op("ReduceL1", _l1, _WIDE, 2, 0, "absolute, add", _INTS),
    _op("ReduceL2", _l2, _WIDE, 2, 1, "multiply, add; then sqrt", _INTS),
    _op("ReduceSumSquare", _sum_square, _WIDE, 2, 0, "multiply, add", _INTS),
    _op("ReduceLogSum", _log_sum, FLOATS, 1, 1, "add; then log"),
    _op("ReduceLogSumExp", _log_sum_exp, FLOATS, 4, 2, "compare, subtract, exp, add; then log, add"),
)
