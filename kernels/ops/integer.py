"""MatMulInteger, ConvInteger, QLinearMatMul and QLinearConv: exact products of 8-bit integers less their zero points."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.attributes import takes
from kernels.batch_axis import only_first_input_has_rows
from kernels.cost import Cost
from kernels.errors import DTypeError, ShapeError
from kernels.operands import REALS
from kernels.ops import conv, matmul
from kernels.ops.quantize import round_into
from kernels.registry import Case, Kernel, Op, evaluate, require_dtype
from kernels.scratch import for_each
from kernels.spec import BYTES, Array, DType, Spec
from kernels.windows import Sliding

_I32 = np.dtype(np.int32)
_F32, _F64 = np.dtype(np.float32), np.dtype(np.float64)
_SINGLE_BITS, _INT32_BITS = 24, 31  # float32 holds every integer up to 2^24


def _centred(x: Array, zero: Array | None) -> Array:
    """x less its zero point, as int16: at most 255 either way."""
    wide = x.astype(np.int16)
    return wide if zero is None else np.subtract(wide, zero, out=wide)


def _largest(x: Array) -> int:
    return int(max(x.max(initial=0), -int(x.min(initial=0))))


def _exact(terms: int, a: Array, b: Array) -> tuple[DType, bool]:
    """Return the float type in which sums of that many products are exact, and whether they may exceed int32."""
    bound = terms * _largest(a) * _largest(b)
    return np.dtype(np.float32 if bound <= 1 << _SINGLE_BITS else np.float64), bound >= 1 << _INT32_BITS


def _as_int32(y: Array, sums: Array, wraps: bool) -> None:
    np.copyto(y, sums.astype(np.int64) if wraps else sums, casting="unsafe")


def _multiply(a: Array, b: Array) -> tuple[Array, bool]:
    """Return the exact matrix product, by BLAS in float32 or float64, which is ten times as fast as numpy's integers."""
    kind, wraps = _exact(a.shape[-1], a, b)
    return evaluate(matmul.MATMUL, (a.astype(kind), b.astype(kind)), {})[0], wraps


def _convolve(x: Array, w: Array, attrs: dict[str, Any]) -> tuple[Array, bool]:
    """Return the exact convolution. The padding is the zero point, which is subtracted already: 0."""
    kind, wraps = _exact(math.prod(w.shape[1:]), x, w)
    return evaluate(conv.CONV, (x.astype(kind), w.astype(kind)), attrs)[0], wraps


def product_scratch_bytes(out: tuple[Spec, ...], *inputs: Spec | None) -> int:
    """Operands as 16-bit integers and as floats; the product as floats, and again as integers or scaled."""
    return for_each(24)(out, *inputs)


def conv_scratch_bytes(out: tuple[Spec, ...], x: Spec, *inputs: Spec | None, **attrs: Any) -> int:
    """As a product, and the columns of an image in float64."""
    w = next(spec for spec in inputs if spec is not None and spec.rank == x.rank)
    columns = conv.im2col_bytes(Spec(x.shape, _F64), Spec(w.shape, _F64), **attrs)
    return product_scratch_bytes(out, x, *inputs) + columns + conv.TAP_BYTES * math.prod(w.shape[2:])


def _check_point(name: str, label: str, point: Spec | None, x: Spec, axis: int) -> None:
    """Raise unless a zero point or scale is one number, or one for each row (axis -2) or column (axis -1) of x."""
    if point is None or point.elements == 1:
        return
    kept = (*x.shape[:-2], *(x.shape[-2:-1], (1,))[axis == -1], *((1,), x.shape[-1:])[axis == -1])
    if x.rank < 2 or point.shape not in (x.shape[axis:][:1], kept):
        raise ShapeError(f"{name}: {label} is {point}, need one number or {list(kept)} for {x}")


def _rows(point: Array) -> Array:
    """One number, or one for each row, in a shape that broadcasts."""
    return point.reshape(()) if point.size == 1 else point[:, None] if point.ndim == 1 else point


def _bytes_of(name: str, **specs: Spec | None) -> None:
    for label, spec in specs.items():
        if spec is not None:
            require_dtype(f"{name}: {label}", spec, BYTES)


def _same_dtype(name: str, label: str, point: Spec | None, x: Spec) -> None:
    if point is not None and point.dtype != x.dtype:
        raise DTypeError(f"{name}: {label} is {point}, need the dtype of {x}")


def infer_matmul(a: Spec, b: Spec, a_zero_point: Spec | None = None, b_zero_point: Spec | None = None) -> Spec:
    """MatMul's shape in int32. a's zero point is one number or one a row, b's one number or one a column."""
    return Spec(_product("MatMulInteger", a, b, a_zero_point, b_zero_point), _I32)


def _product(name: str, a: Spec, b: Spec, a_zero: Spec | None, b_zero: Spec | None) -> tuple[int, ...]:
    _bytes_of(name, a=a, b=b)
    _same_dtype(name, "a_zero_point", a_zero, a)
    _same_dtype(name, "b_zero_point", b_zero, b)
    _check_point(name, "a_zero_point", a_zero, a, -2)
    _check_point(name, "b_zero_point", b_zero, b, -1)
    return matmul.infer(Spec(a.shape, _I32), Spec(b.shape, _I32)).shape


def cost_matmul(out: tuple[Spec, ...], a: Spec, b: Spec, *points: Spec | None) -> Cost:
    """MACs: outputs · k. a's zero point: one subtraction per element; b's, of the weights, is subtracted once for all runs."""
    shifted = bool(points) and points[0] is not None
    return Cost(macs=out[0].elements * a.shape[-1], other_flops=a.elements * shifted)


def run_matmul(
    out: tuple[Array, ...], a: Array, b: Array, a_zero_point: Array | None = None, b_zero_point: Array | None = None
) -> None:
    """Sums beyond int32 wrap."""
    _as_int32(out[0], *_multiply(_centred(a, None if a_zero_point is None else _rows(a_zero_point)), _centred(b, b_zero_point)))


@takes(Sliding)
def infer_conv(
    x: Spec,
    w: Spec,
    x_zero_point: Spec | None = None,
    w_zero_point: Spec | None = None,
    *,
    group: int = 1,
    kernel_shape: tuple[int, ...] | None = None,
    **sliding: Any,
) -> Spec:
    """Conv's shape in int32. x's zero point is one number, w's one number or one an output channel."""
    attrs = {"group": group, "kernel_shape": kernel_shape, **sliding}
    return Spec(_convolution("ConvInteger", x, w, x_zero_point, w_zero_point, attrs), _I32)


def _convolution(name: str, x: Spec, w: Spec, x_zero: Spec | None, w_zero: Spec | None, attrs: dict[str, Any]) -> tuple[int, ...]:
    _bytes_of(name, x=x, w=w)
    _same_dtype(name, "x_zero_point", x_zero, x)
    _same_dtype(name, "w_zero_point", w_zero, w)
    if x_zero is not None and x_zero.elements != 1:
        raise ShapeError(f"{name}: x_zero_point is {x_zero}, need one number")
    _check_channels(name, "w_zero_point", w_zero, w)
    return conv.infer(Spec(x.shape, _F32), Spec(w.shape, _F32), **attrs).shape


def _check_channels(name: str, label: str, point: Spec | None, w: Spec) -> None:
    if point is not None and point.elements != 1 and point.shape != w.shape[:1]:
        raise ShapeError(f"{name}: {label} is {point}, need one number or one for each output channel of w {w}")


def _by_channel(point: Array | None, rank: int) -> Array | None:
    """A number for each output channel in a shape that broadcasts to w."""
    return None if point is None else point.reshape(()) if point.size == 1 else point.reshape(-1, *[1] * (rank - 1))


def cost_conv(out: tuple[Spec, ...], x: Spec, w: Spec, *points: Spec | None, **attrs: Any) -> Cost:
    """MACs as Conv. x's zero point: one subtraction per element; that of the weights is subtracted once for all runs."""
    shifted = bool(points) and points[0] is not None
    return conv.cost(out, x, w) + Cost(other_flops=x.elements * shifted)


def run_conv(
    out: tuple[Array, ...],
    x: Array,
    w: Array,
    x_zero_point: Array | None = None,
    w_zero_point: Array | None = None,
    **attrs: Any,
) -> None:
    """Sums beyond int32 wrap."""
    zero = None if x_zero_point is None else x_zero_point.reshape(())
    _as_int32(out[0], *_convolve(_centred(x, zero), _centred(w, _by_channel(w_zero_point, w.ndim)), attrs))


def requantize(y: Array, sums: Array, factor: Array, zero: Array) -> None:
    """sums · factor to the nearest, ties to even, plus the zero point, saturated; in double, as sums fill 32 bits."""
    round_into(y, sums * factor.astype(np.float64), zero)


def infer_qlinear_matmul(
    a: Spec, a_scale: Spec, a_zero_point: Spec, b: Spec, b_scale: Spec, b_zero_point: Spec, y_scale: Spec, y_zero_point: Spec
) -> Spec:
    """MatMul's shape in y_zero_point's dtype. a and y are scaled as one or by row, b as one or by column."""
    name = "QLinearMatMul"
    shape = _product(name, a, b, a_zero_point, b_zero_point)
    _bytes_of(name, y_zero_point=y_zero_point)
    y = Spec(shape, y_zero_point.dtype)
    points = ((a_scale, a, -2), (b_scale, b, -1), (y_scale, y, -2))
    for label, (scale, given, axis) in zip(("a_scale", "b_scale", "y_scale"), points, strict=True):
        require_dtype(f"{name}: {label}", scale, REALS)
        _check_point(name, label, scale, given, axis)
    _check_point(name, "y_zero_point", y_zero_point, y, -2)
    return y


def cost_qlinear_matmul(out: tuple[Spec, ...], a: Spec, a_scale: Spec, a_zero: Spec, b: Spec, *more: Spec) -> Cost:
    """MACs: outputs · k. Others: subtract a zero point per element of a; multiply, round, add, compare twice per output."""
    return Cost(macs=out[0].elements * a.shape[-1], other_flops=a.elements + 5 * out[0].elements)


def run_qlinear_matmul(
    out: tuple[Array, ...],
    a: Array,
    a_scale: Array,
    a_zero_point: Array,
    b: Array,
    b_scale: Array,
    b_zero_point: Array,
    y_scale: Array,
    y_zero_point: Array,
) -> None:
    """Exact product, then one factor."""
    sums, _ = _multiply(_centred(a, _rows(a_zero_point)), _centred(b, b_zero_point))
    left, right, last = (scale.astype(_F32) for scale in (a_scale, b_scale, y_scale))
    factor = _rows(left) * (right.reshape(()) if right.size == 1 else right) / _rows(last)
    requantize(out[0], sums, factor, _rows(y_zero_point))


@takes(Sliding)
def infer_qlinear_conv(
    x: Spec,
    x_scale: Spec,
    x_zero_point: Spec,
    w: Spec,
    w_scale: Spec,
    w_zero_point: Spec,
    y_scale: Spec,
    y_zero_point: Spec,
    b: Spec | None = None,
    *,
    group: int = 1,
    kernel_shape: tuple[int, ...] | None = None,
    **sliding: Any,
) -> Spec:
    """Conv's shape in y_zero_point's dtype. w is scaled as one or by output channel; b is int32, in steps of both scales."""
    name = "QLinearConv"
    attrs = {"group": group, "kernel_shape": kernel_shape, **sliding}
    shape = _convolution(name, x, w, x_zero_point, w_zero_point, attrs)
    _bytes_of(name, y_zero_point=y_zero_point)
    for label, scale in (("x_scale", x_scale), ("w_scale", w_scale), ("y_scale", y_scale)):
        require_dtype(f"{name}: {label}", scale, frozenset({_F32}))
    for label, point in (("x_scale", x_scale), ("y_scale", y_scale), ("y_zero_point", y_zero_point)):
        if point.elements != 1:
            raise ShapeError(f"{name}: {label} is {point}, need one number")
    _check_channels(name, "w_scale", w_scale, w)
    if b is not None and (b.dtype != _I32 or b.shape != w.shape[:1]):
        raise ShapeError(f"{name}: bias is {b}, need int32 [{w.shape[0]}]")
    return Spec(shape, y_zero_point.dtype)


def cost_qlinear_conv(
    out: tuple[Spec, ...], x: Spec, x_scale: Spec, x_zero: Spec, w: Spec, *more: Spec | None, **attrs: Any
) -> Cost:
    """MACs as Conv. Others: 1 per element of x (zero point); multiply, round, add, compare twice per output; 1 for a bias."""
    bias = len(more) > 4 and more[4] is not None
    return conv.cost(out, x, w) + Cost(other_flops=x.elements + (5 + bias) * out[0].elements)


def run_qlinear_conv(
    out: tuple[Array, ...],
    x: Array,
    x_scale: Array,
    x_zero_point: Array,
    w: Array,
    w_scale: Array,
    w_zero_point: Array,
    y_scale: Array,
    y_zero_point: Array,
    b: Array | None = None,
    **attrs: Any,
) -> None:
    """Exact convolution, bias, then one factor per channel."""
    sums, _ = _convolve(_centred(x, x_zero_point.reshape(())), _centred(w, _by_channel(w_zero_point, w.ndim)), attrs)
    if b is not None:
        sums = sums.astype(np.float64) + b.reshape(-1, *[1] * (w.ndim - 2))
    factor = np.ravel(x_scale)[0] * w_scale / np.ravel(y_scale)[0]
    channels = factor.reshape(()) if factor.size == 1 else factor.reshape(-1, *[1] * (w.ndim - 2))
    requantize(out[0], sums, channels, y_zero_point.reshape(()))


def _u(*shape: int) -> Array:
    return (np.arange(math.prod(shape)) * 37 % 256).astype(np.uint8).reshape(shape)


def _i(*shape: int) -> Array:
    return (np.arange(math.prod(shape)) * 53 % 256 - 128).astype(np.int8).reshape(shape)


def _f(*values: float) -> Array:
    return np.array(values[0] if len(values) == 1 else values, np.float32)


_U128, _I3 = np.array(128, np.uint8), np.array(3, np.int8)
_MATMUL = (
    Case("plain", inputs=(_u(3, 4), _i(4, 5)), cost=Cost(macs=60)),
    Case("zero_points", inputs=(_u(3, 4), _i(4, 5), _U128, _I3), cost=Cost(macs=60, other_flops=12)),
    Case("signed_weights", inputs=(_u(3, 4), _i(4, 5), _U128)),
    Case("signed", inputs=(_i(2, 3, 6), _i(6, 35), _I3)),
    Case("batched", inputs=(_u(2, 3, 4), _u(2, 4, 5), _U128)),
    Case("by_row_and_column", inputs=(_u(2, 3), _i(3, 2), np.array([1, 255], np.uint8), np.array([-128, 127], np.int8))),
    Case("long_sums", inputs=(_u(2, 900), _i(900, 3), _U128)),
    Case("empty", inputs=(_u(0, 4), _i(4, 5)), cost=Cost()),
    Case("floats", inputs=((2, 3), (3, 2)), raises=DTypeError),
    Case("inner_differs", inputs=(_u(2, 3), _i(2, 3)), raises=ShapeError),
    Case("zero_point_type", inputs=(_u(2, 3), _i(3, 2), _I3), raises=DTypeError),
    Case("zero_point_length", inputs=(_u(2, 3), _i(3, 2), _u(3)), raises=ShapeError),
)
_PAD = {"pads": (1, 1, 1, 1)}
_CONV = (
    Case("plain", inputs=(_u(1, 2, 5, 5), _u(3, 2, 3, 3)), cost=Cost(macs=27 * 18)),
    Case("signed_weights", inputs=(_u(1, 2, 5, 5), _i(3, 2, 3, 3), _U128), attrs=_PAD),
    Case("signed", inputs=(_i(2, 5, 4, 6), _i(20, 5, 3, 2), _I3), attrs={"strides": (2, 1)}),
    Case("groups", inputs=(_i(1, 8, 4, 4), _i(6, 4, 3, 3), _I3), attrs={"group": 2}),
    Case("padded", inputs=(_u(1, 2, 4, 4), _u(3, 2, 3, 3), _U128), attrs=_PAD, cost=Cost(macs=48 * 18, other_flops=32)),
    Case("by_channel", inputs=(_u(1, 2, 4, 4), _u(3, 2, 3, 3), _U128, np.array([1, 2, 255], np.uint8)), attrs=_PAD),
    Case("depthwise", inputs=(_u(1, 3, 5, 5), _u(3, 1, 3, 3), _U128), attrs={"group": 3, "strides": (2, 2)}),
    Case("floats", inputs=((1, 1, 2, 2), (1, 1, 1, 1)), raises=DTypeError),
    Case("channels_differ", inputs=(_u(1, 2, 4, 4), _u(3, 3, 1, 1)), raises=ShapeError),
    Case("zero_point_length", inputs=(_u(1, 2, 4, 4), _u(3, 2, 1, 1), _U128, _u(2)), raises=ShapeError),
)
_QMATMUL = (
    Case(
        "plain",
        inputs=(_u(3, 4), _f(0.02), _U128, _u(4, 5), _f(0.01), _U128, _f(0.03), _U128),
        cost=Cost(macs=60, other_flops=87),
    ),
    Case("signed", inputs=(_i(2, 3, 4), _f(0.02), _I3, _i(2, 4, 5), _f(0.01), _I3, _f(0.3), _I3)),
    Case("by_column", inputs=(_i(3, 4), _f(0.02), _I3, _i(4, 2), _f(0.01, 0.03), np.array([1, 2], np.int8), _f(0.3), _I3)),
    Case("scale_length", inputs=(_i(3, 4), _f(1, 2), _I3, _i(4, 2), _f(0.01), _I3, _f(0.3), _I3), raises=ShapeError),
    Case("scale_double", inputs=(_i(3, 4), np.ones(()), _I3, _i(4, 2), _f(0.01), _I3, _f(0.3), _I3), raises=DTypeError),
)
_SHAPES = (_u(1, 2, 5, 5), _f(0.02), _U128, _u(3, 2, 3, 3))
_QCONV = (
    Case("plain", inputs=(*_SHAPES, _f(0.01), _U128, _f(0.05), _U128), cost=Cost(27 * 18, 50 + 27 * 5)),
    Case("bias", inputs=(*_SHAPES, _f(0.01), _U128, _f(0.05), _U128, np.array([100, -5000, 7], np.int32)), attrs=_PAD),
    Case("by_channel", inputs=(_u(1, 2, 5, 5), _f(0.02), _U128, _i(3, 2, 3, 3), _f(0.01, 0.1, 0.02), _i(3) * 0, _f(0.9), _U128)),
    Case("x_scale_length", inputs=(_SHAPES[0], _f(1, 2), *_SHAPES[2:], _f(0.01), _U128, _f(0.05), _U128), raises=ShapeError),
    Case("bias_length", inputs=(*_SHAPES, _f(0.01), _U128, _f(0.05), _U128, np.zeros(2, np.int32)), raises=ShapeError),
    Case("w_scale_length", inputs=(*_SHAPES, _f(1, 2), _U128, _f(0.05), _U128), raises=ShapeError),
)

OPS = (
    Op(
        "MatMulInteger",
        infer_matmul,
        cost_matmul,
        (Kernel("blas", run_matmul, scratch_bytes=product_scratch_bytes),),
        cases=_MATMUL,
    ),
    Op(
        "ConvInteger",
        infer_conv,
        cost_conv,
        (Kernel("blas", run_conv, scratch_bytes=conv_scratch_bytes),),
        mixes_rows=only_first_input_has_rows,
        cases=_CONV,
    ),
    Op(
        "QLinearMatMul",
        infer_qlinear_matmul,
        cost_qlinear_matmul,
        (Kernel("blas", run_qlinear_matmul, scratch_bytes=product_scratch_bytes),),
        cases=_QMATMUL,
    ),
    Op(
        "QLinearConv",
        infer_qlinear_conv,
        cost_qlinear_conv,
        (Kernel("blas", run_qlinear_conv, scratch_bytes=conv_scratch_bytes),),
        mixes_rows=only_first_input_has_rows,
        cases=_QCONV,
    ),
)
