"""com.microsoft.QGemm: Gemm of 8-bit integers less their zero points, with an int32 bias; quantised again, or left as float32."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.batch_axis import Application, only_first_input_has_rows
from kernels.cost import Cost
from kernels.errors import DTypeError, ShapeError
from kernels.ops import gemm
from kernels.ops.integer import requantize
from kernels.registry import Case, Kernel, Op, evaluate, find, require_dtype
from kernels.scratch import for_each
from kernels.spec import BYTES, Array, Spec

_F32, _I32 = np.dtype(np.float32), np.dtype(np.int32)


def _check(label: str, x: Spec, scale: Spec, zero: Spec, columns: int) -> None:
    """Raise unless a matrix has 8 bits, and its scale and zero point are one number or one for each of `columns`."""
    require_dtype(f"QGemm: {label}", x, BYTES)
    require_dtype(f"QGemm: {label}_scale", scale, frozenset({_F32}))
    if zero.dtype != x.dtype:
        raise DTypeError(f"QGemm: {label}_zero_point is {zero}, need the dtype of {label} {x}")
    for part, spec in (("scale", scale), ("zero_point", zero)):
        if spec.elements != 1 and spec.shape != (columns,):
            raise ShapeError(f"QGemm: {label}_{part} is {spec}, need one number{f' or {columns}' if columns > 1 else ''}")


def infer(
    a: Spec,
    a_scale: Spec,
    a_zero_point: Spec,
    b: Spec,
    b_scale: Spec,
    b_zero_point: Spec,
    c: Spec | None = None,
    y_scale: Spec | None = None,
    y_zero_point: Spec | None = None,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Spec:
    """Gemm's shape, in y_zero_point's dtype or float32. b is scaled as one or by column; c is int32, in steps of the product."""
    factors = (Spec(a.shape, _F32), Spec(b.shape, _F32))
    addend = None if c is None else Spec(c.shape, _F32)
    y = gemm.infer(*factors, addend, alpha=alpha, transA=transA, transB=transB)
    _check("a", a, a_scale, a_zero_point, 1)
    _check("b", b, b_scale, b_zero_point, y.shape[1])
    if c is not None and c.dtype != _I32:
        raise DTypeError(f"QGemm: c is {c}, need int32")
    if y_scale is None or y_zero_point is None:
        if y_scale is not None or y_zero_point is not None:
            raise ShapeError(f"QGemm: y_scale is {y_scale} and y_zero_point is {y_zero_point}, need both or neither")
        return y
    _check("y", Spec(y.shape, y_zero_point.dtype), y_scale, y_zero_point, 1)
    return Spec(y.shape, y_zero_point.dtype)


def cost(
    out: tuple[Spec, ...],
    a: Spec,
    a_scale: Spec,
    a_zero_point: Spec,
    b: Spec,
    b_scale: Spec,
    b_zero_point: Spec,
    c: Spec | None = None,
    y_scale: Spec | None = None,
    y_zero_point: Spec | None = None,
    **attrs: Any,
) -> Cost:
    """MACs: m · n · k. Others: 1 per element of a (zero point); per output: scale, add c, round, shift, saturate (2)."""
    per_output = 1 + (c is not None) + 4 * (y_scale is not None)
    return Cost(out[0].elements * a.shape[0 if attrs["transA"] else 1], a.elements + per_output * out[0].elements)


def run(
    out: tuple[Array, ...],
    a: Array,
    a_scale: Array,
    a_zero_point: Array,
    b: Array,
    b_scale: Array,
    b_zero_point: Array,
    c: Array | None = None,
    y_scale: Array | None = None,
    y_zero_point: Array | None = None,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> None:
    """Exact product and bias, then one factor per column."""
    (y,) = out
    left, right = a.T if transA else a, b.T if transB else b
    by_column = b_zero_point.reshape(() if b_zero_point.size == 1 else (1, -1))
    sums = evaluate(find("MatMulInteger"), (left, right, a_zero_point.reshape(()), by_column), {})[0].astype(np.float64)
    if c is not None:
        sums += c
    factor = np.float64(alpha) * a_scale.reshape(()) * b_scale.astype(np.float64).reshape(() if b_scale.size == 1 else (1, -1))
    if y_scale is None or y_zero_point is None:
        np.multiply(sums, factor, out=y, casting="unsafe")
    else:
        requantize(y, sums, factor / y_scale.reshape(()), y_zero_point.reshape(()))


def mixes_rows(call: Application) -> str:
    """Rows of a stay apart where it is not transposed, and c is the same for every row."""
    c = call.input(6)
    if c is not None and len(c.shape) == 2 and c.shape[0] != 1:
        return "its addend differs from row to row"
    return "a is transposed" if call.attrs["transA"] else only_first_input_has_rows(call)


def _u(*shape: int) -> Array:
    return (np.arange(np.prod(shape, dtype=int)) * 37 % 256).astype(np.uint8).reshape(shape)


def _i(*shape: int) -> Array:
    return (np.arange(np.prod(shape, dtype=int)) * 53 % 256 - 128).astype(np.int8).reshape(shape)


def _f(*values: float) -> Array:
    return np.array(values[0] if len(values) == 1 else values, np.float32)


_U128, _I0 = np.array(128, np.uint8), np.array(0, np.int8)
_A, _B = (_u(3, 4), _f(0.02), _U128), (_i(4, 5), _f(0.01), _I0)
_C = np.array([100, -5000, 7, 0, 900], np.int32)
_Y = (_f(0.05), _U128)

QGEMM = Op(
    "com.microsoft.QGemm",
    infer,
    cost,
    (Kernel("blas", run, scratch_bytes=for_each(40)),),
    mixes_rows=mixes_rows,
    cases=(
        Case("plain", inputs=(*_A, *_B, None, *_Y), cost=Cost(60, 12 + 5 * 15)),
        Case("linear_layer", inputs=(*_A, _i(5, 4), _f(0.01), _I0, _C, *_Y), attrs={"transB": 1}, cost=Cost(60, 12 + 6 * 15)),
        Case("transposed_left", inputs=(_u(4, 3), _f(0.02), _U128, *_B, _C, *_Y), attrs={"transA": 1}),
        Case("by_column", inputs=(*_A, _i(4, 2), _f(0.01, 0.03), _i(2) * 0, _C[:2], *_Y)),
        Case("unsigned", inputs=(*_A, _u(4, 5), _f(0.01), _U128, None, *_Y)),
        Case("to_float", inputs=(*_A, *_B, _C), cost=Cost(60, 12 + 2 * 15)),
        Case("alpha", inputs=(*_A, *_B, _C, *_Y), attrs={"alpha": 0.5}),
        Case("inner_differs", inputs=(*_A, _i(3, 5), _f(0.01), _I0, None, *_Y), raises=ShapeError),
        Case("bias_of_floats", inputs=(*_A, *_B, (5,), *_Y), raises=DTypeError),
        Case("zero_point_type", inputs=(*_A, _i(4, 5), _f(0.01), _U128), raises=DTypeError),
        Case("scale_length", inputs=(*_A, _i(4, 5), _f(0.01, 0.02), _I0), raises=ShapeError),
        Case("no_y_zero_point", inputs=(*_A, *_B, _C, _f(0.05)), raises=ShapeError),
    ),
)
