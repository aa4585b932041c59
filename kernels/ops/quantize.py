"""QuantizeLinear, DequantizeLinear and DynamicQuantizeLinear: x / scale + zero point in few bits, and back.

One scale for the tensor, for each index of an axis, or for each block along an axis. com.microsoft has the first two without
blocks, from the time when ONNX had 8 bits only.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from kernels.batch_axis import Application, only_first_input_has_rows
from kernels.cost import Cost
from kernels.errors import AttributeValueError, DTypeError, ShapeError
from kernels.expression import Draft, Term
from kernels.operands import REALS, axis_of, element_type
from kernels.ops.cast import convert
from kernels.quantisation import LEAST_SCALE, WHOLE
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.spec import ELEMENT_TYPES, INTS, Array, DType, Spec

_F32, _I32, _U8 = np.dtype(np.float32), np.dtype(np.int32), np.dtype(np.uint8)
_E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)
_F8_NAMES = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
_SMALL_FLOATS = frozenset(
    np.dtype(getattr(ml_dtypes, name)) for name in (*_F8_NAMES, "float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn")
)
USUAL_ZERO = 128  # or -128, or 0: symmetric ranges in unsigned bytes, ranges from 0 on in signed ones
QUANTISED = frozenset(WHOLE) | _SMALL_FLOATS


def _check_grain(name: str, x: Spec, scale: Spec, zero: Spec | None, axis: int, block: int) -> None:
    """Raise ShapeError unless the scale has the shape for the whole tensor, for an axis or for blocks along it."""
    if block < 0:
        raise AttributeValueError(f"{name}: block_size is {block}, need 0 (no blocks) or more")
    if zero is not None and zero.shape != scale.shape and (zero.elements, scale.elements) != (1, 1):
        raise ShapeError(f"{name}: zero point is {zero}, need the shape of the scale {scale}")
    if block:
        along = axis_of(name, axis, x.rank)
        wanted = tuple(-(-size // block) if i == along else size for i, size in enumerate(x.shape))
        if scale.shape != wanted:
            raise ShapeError(f"{name}: scale is {scale}, need {list(wanted)} for x {x} in blocks of {block} along axis {along}")
    elif scale.shape not in ((), (1,)):
        along = axis_of(name, axis, x.rank)
        if scale.shape != x.shape[along : along + 1]:
            raise ShapeError(f"{name}: scale is {scale}, need one element or the {x.shape[along]} of axis {along} of x {x}")


def spread(values: Array, x: Array, axis: int, block: int) -> Array:
    """Scales or zero points in a shape that broadcasts to x."""
    if block:
        return np.repeat(values, min(block, x.shape[axis]), axis)[tuple(slice(size) for size in x.shape)]
    if values.size == 1:
        return values.reshape(())
    return values.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])


def infer_quantize(
    x: Spec,
    scale: Spec,
    zero: Spec | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> Spec:
    """x's shape in the zero point's dtype, or `output_dtype`, or uint8."""
    require_dtype("QuantizeLinear: x", x, REALS | {_I32})
    require_dtype("QuantizeLinear: scale", scale, REALS | {_I32, _E8M0})
    _check_grain("QuantizeLinear", x, scale, zero, axis, block_size)
    asked = element_type("QuantizeLinear: attribute output_dtype", output_dtype) if output_dtype else None
    made = zero.dtype if zero is not None else asked or _U8
    if asked not in (None, made):
        raise DTypeError(f"QuantizeLinear: output_dtype is {output_dtype} ({asked.name}), need the zero point's {made.name}")
    require_dtype("QuantizeLinear: output", Spec((), made), QUANTISED)
    if precision:
        divides = Spec((), element_type("QuantizeLinear: attribute precision", precision))
        require_dtype("QuantizeLinear: attribute precision", divides, REALS)
    return Spec(x.shape, made)


def cost_quantize(out: tuple[Spec, ...], x: Spec, scale: Spec, zero: Spec | None = None, **attrs: int) -> Cost:
    """Per element: divide, round, compare with both ends; one more to add a zero point."""
    return Cost(other_flops=(4 if zero is None else 5) * x.elements)


def run_quantize(
    out: tuple[Array, ...],
    x: Array,
    scale: Array,
    zero: Array | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> None:
    """Divide in the scale's precision, the rest in single: it holds every integer of 16 bits."""
    (y,) = out
    divides = element_type("precision", precision) if precision else scale.dtype if scale.dtype in REALS else _F32
    factor = spread(scale, x, axis, block_size).astype(divides)
    values = np.divide(x.astype(divides, copy=False), factor, dtype=divides).astype(_F32, copy=False)
    offset = None if zero is None else spread(zero, x, axis, block_size).astype(_F32)
    if y.dtype in WHOLE:
        round_into(y, values, offset)
    else:
        convert(y, values if offset is None else values + offset, bool(saturate), "nearest")


def round_into(y: Array, values: Array, offset: Array | None) -> None:
    """Write the nearest integers, ties to even, plus the zero point, saturated; NaN is 0. It writes over `values`, too."""
    values = np.asarray(values)
    np.rint(values, out=values)
    if offset is not None:
        values += offset
    np.clip(values, *WHOLE[y.dtype], out=values)
    np.copyto(values, 0, where=np.isnan(values))
    np.copyto(y, values, casting="unsafe")


def express_quantize(
    draft: Draft,
    x: Term,
    scale: Term,
    zero: Term | None = None,
    *,
    axis: int,
    block_size: int,
    output_dtype: int,
    precision: int,
    **_: object,
) -> Term | None:
    """Division, rounding, addition and a cast, which saturates; of float32 or int32, by scales of float32."""
    made = zero.dtype if zero is not None else ELEMENT_TYPES[output_dtype] if output_dtype else _U8
    if precision or not _is_expressible(x, scale, zero, axis, block_size, made):
        return None
    values = x if x.dtype == _F32 else draft("cast", x, dtype=_F32)
    scaled = values if _number(scale) == 1 else draft("div", values, scale)
    return draft("cast", _shifted(draft, "add", draft("round", scaled), zero), dtype=made)


def express_dequantize(
    draft: Draft,
    x: Term,
    scale: Term,
    zero: Term | None = None,
    *,
    axis: int,
    block_size: int,
    output_dtype: int,
    **_: object,
) -> Term | None:
    """A cast, subtraction and multiplication, by scales of float32."""
    made = ELEMENT_TYPES[output_dtype] if output_dtype else _F32
    if made != _F32 or not _is_expressible(x, scale, zero, axis, block_size, x.dtype):
        return None
    values = _shifted(draft, "sub", draft("cast", x, dtype=_F32), zero)
    return values if _number(scale) == 1 else draft("mul", values, scale)


def _is_expressible(x: Term, scale: Term, zero: Term | None, axis: int, block: int, quantised: DType) -> bool:
    """Whether native kernels compute the same bits: scales of float32 that broadcast to x, and integers of whole bytes.

    To native kernels denormals count as 0. That makes no difference unless the scale is next to them.
    """
    if scale.dtype != _F32 or block or quantised not in INTS:
        return False
    if scale.known is not None and not (scale.known >= LEAST_SCALE).all():
        return False
    return all(term is None or _broadcasts(term, x, axis) for term in (scale, zero))


def _broadcasts(term: Term, x: Term, axis: int) -> bool:
    """Whether a scale or zero point is one number, or one for each index of x's last axis."""
    if term.known is not None and term.known.size == 1:
        return True
    if term.shape is None or x.shape is None or len(term.shape) > len(x.shape):
        return False
    return term.shape in ((), (1,)) or axis % len(x.shape) == len(x.shape) - 1


def _shifted(draft: Draft, op: str, values: Term, zero: Term | None) -> Term:
    """Add or subtract a zero point. The usual ones are constants of the code, others are read, so that many share code."""
    if zero is None or (zero.known is not None and not zero.known.any()):
        return values
    offset = _number(zero)
    usual = offset is not None and abs(offset) == USUAL_ZERO
    return draft(op, values, draft.constant(offset, _F32) if usual and offset else draft("cast", zero, dtype=_F32))


def _number(term: Term) -> float | None:
    """Return the one number of a constant; None where there are several, or where only a run knows it."""
    return None if term.known is None or term.known.size != 1 else float(term.known.reshape(()))


def infer_microsoft_quantize(x: Spec, scale: Spec, zero: Spec | None = None, *, axis: int = 1) -> Spec:
    """x's shape in the zero point's dtype, or uint8."""
    return infer_quantize(x, scale, zero, axis=axis)


def infer_microsoft_dequantize(x: Spec, scale: Spec, zero: Spec | None = None, *, axis: int = 1) -> Spec:
    """x's shape in the scale's dtype."""
    return infer_dequantize(x, scale, zero, axis=axis)


def infer_dequantize(
    x: Spec, scale: Spec, zero: Spec | None = None, *, axis: int = 1, block_size: int = 0, output_dtype: int = 0
) -> Spec:
    """x's shape in `output_dtype`, or the scale's dtype."""
    require_dtype("DequantizeLinear: x", x, QUANTISED | {_I32})
    require_dtype("DequantizeLinear: scale", scale, REALS | {_E8M0})
    if zero is not None and zero.dtype != x.dtype:
        raise DTypeError(f"DequantizeLinear: zero point is {zero}, need the dtype of x {x}")
    _check_grain("DequantizeLinear", x, scale, zero, axis, block_size)
    made = element_type("DequantizeLinear: attribute output_dtype", output_dtype) if output_dtype else scale.dtype
    require_dtype("DequantizeLinear: output", Spec((), made), REALS)
    return Spec(x.shape, made)


def cost_dequantize(out: tuple[Spec, ...], x: Spec, scale: Spec, zero: Spec | None = None, **attrs: int) -> Cost:
    """Per element: multiply; one more to subtract a zero point."""
    return Cost(other_flops=(1 if zero is None else 2) * x.elements)


def run_dequantize(
    out: tuple[Array, ...],
    x: Array,
    scale: Array,
    zero: Array | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> None:
    """(x - zero) · scale in single, rounded once."""
    (y,) = out
    values = y if y.dtype == _F32 else np.empty(y.shape, _F32)
    np.copyto(values, x, casting="unsafe")
    if zero is not None:
        values -= spread(zero, x, axis, block_size).astype(_F32)
    values *= spread(scale, x, axis, block_size).astype(_F32)
    if values is not y:
        np.copyto(y, values, casting="unsafe")


def infer_dynamic(x: Spec) -> tuple[Spec, ...]:
    """x's shape in uint8; its scale, float32, and its zero point, uint8, both scalars."""
    require_dtype("DynamicQuantizeLinear: x", x, frozenset({_F32}))
    return Spec(x.shape, _U8), Spec((), _F32), Spec((), _U8)


def cost_dynamic(out: tuple[Spec, ...], x: Spec) -> Cost:
    """Per element: compare for both ends of the range, then divide, round, add the zero point, compare with both ends."""
    return Cost(other_flops=7 * x.elements)


def run_dynamic(out: tuple[Array | None, ...], x: Array) -> None:
    """Divide the range of x and 0 into 255 steps; an empty range gets steps of 1/255."""
    y, scale, zero = (*out, None, None)[:3]
    low, high = x.min(initial=0), x.max(initial=0)
    step = (high - low if high != low else _F32.type(1)) / _F32.type(255)
    offset = np.rint(np.clip(-low / step, 0, 255))
    if y is not None:
        round_into(y, x / step, offset)
    for target, value in ((scale, step), (zero, offset)):
        if target is not None:
            np.copyto(target, value, casting="unsafe")


def _f(*values: float) -> Array:
    return np.array(values, np.float32)


_S, _Z = np.array(0.25, np.float32), np.array(3, np.uint8)
_BYTES = np.arange(-12, 12, dtype=np.int8).reshape(2, 3, 4)
_QUANTIZE = (
    Case("tensor", inputs=((2, 3, 4), _S, _Z), domain=(-40, 40), cost=Cost(other_flops=120)),
    Case("no_zero_point", inputs=((2, 3), _S), domain=(-9, 99), cost=Cost(other_flops=24)),
    Case("ties_to_even", inputs=(_f(0.5, 1.5, 2.5, -0.5, -1.5), np.array(1, np.float32), np.array(0, np.int8))),
    Case("saturated", inputs=(_f(-1e9, 1e9, np.inf, -np.inf), _S, np.array(5, np.int8))),
    Case("specials", inputs=(np.tile(_f(np.nan, np.inf, -np.inf, 0.5, -0.0), 9), _S, np.array(5, np.int8))),
    Case("specials_of_sixteen_bits", inputs=(np.tile(_f(np.nan, np.inf, -np.inf, -2), 9), _S, np.array(5, np.uint16))),
    Case("of_ints", inputs=(np.array([1 << 24, 7, -7, (1 << 31) - 1], np.int32), np.array(3, np.float32), np.array(2, np.int16))),
    Case("channels", inputs=((2, 3, 4), _f(0.1, 0.2, 0.4), np.array([0, 7, -3], np.int8))),
    Case("last_axis", inputs=((2, 3), _f(0.1, 0.2, 0.4)), attrs={"axis": -1, "output_dtype": 3}),
    Case("blocks", inputs=((2, 5), _f(0.1, 0.2, 0.3, 0.4, 0.5, 0.6).reshape(2, 3)), attrs={"block_size": 2, "output_dtype": 5}),
    Case("half", inputs=(np.linspace(-3, 3, 12, dtype=np.float16), np.array(0.03, np.float16), np.array(0, np.int8))),
    Case("sixteen_bits", inputs=((6,), np.array(1e-4, np.float32), np.array(32768, np.uint16))),
    Case("four_bits", inputs=((6,), _S), attrs={"output_dtype": 22}),
    Case("float8", inputs=((6,), np.array(1e-3, np.float32)), attrs={"output_dtype": 17}),
    Case("empty", inputs=((0, 3), _S, _Z), cost=Cost()),
    Case("scale_length", inputs=((2, 3, 4), (4,)), raises=ShapeError),
    Case("zero_point_length", inputs=((2, 3), (3,), np.zeros(2, np.uint8)), raises=ShapeError),
    Case("blocks_differ", inputs=((2, 5), (2, 2)), attrs={"block_size": 2}, raises=ShapeError),
    Case("negative_block", inputs=((2, 5), (2, 2)), attrs={"block_size": -2}, raises=AttributeValueError),
    Case("type_differs", inputs=((2,), _S, _Z), attrs={"output_dtype": 3}, raises=DTypeError),
    Case("to_int32", inputs=((2,), _S, np.array(0, np.int32)), raises=DTypeError),
)
_DEQUANTIZE = (
    Case("tensor", inputs=(_BYTES, _S, np.array(3, np.int8)), cost=Cost(other_flops=48)),
    Case("no_zero_point", inputs=(_BYTES, _S), cost=Cost(other_flops=24)),
    Case("sixteen_bits", inputs=(_BYTES.astype(np.uint16), _S, np.array(32768, np.uint16))),
    Case("channels", inputs=(_BYTES, _f(0.1, 0.2, 0.4), np.array([0, 7, -128], np.int8))),
    Case("first_axis", inputs=(_BYTES, _f(0.1, 0.2)), attrs={"axis": 0}),
    Case("blocks", inputs=(_BYTES, _f(*range(12)).reshape(2, 3, 2)), attrs={"axis": 2, "block_size": 2}),
    Case("int32", inputs=(np.array([1 << 20, -7, (1 << 24) + 1, -(1 << 31)], np.int32), _S)),
    Case("to_half", inputs=(_BYTES, np.array(0.3, np.float16), np.array(-1, np.int8))),
    Case("output_type", inputs=(_BYTES, _S), attrs={"output_dtype": 10}),
    Case("four_bits", inputs=(np.array([-8, 7, 1], np.int8).astype(ml_dtypes.int4), _S)),
    Case("empty", inputs=(np.ones((0, 3), np.int8), _S), cost=Cost()),
    Case("types_differ", inputs=(_BYTES, _S, _Z), raises=DTypeError),
    Case("of_floats", inputs=((2, 3), _S), raises=DTypeError),
    Case("scale_length", inputs=(_BYTES, (4,)), raises=ShapeError),
)
_MICROSOFT_QUANTIZE = (
    Case("tensor", inputs=((2, 3, 4), _S, _Z), domain=(-40, 40), cost=Cost(other_flops=120)),
    Case("channels", inputs=((2, 3, 4), _f(0.1, 0.2, 0.4), np.array([0, 7, -3], np.int8)), attrs={"axis": 1}),
    Case("sixteen_bits", inputs=((6,), np.array(1e-4, np.float32), np.array(32768, np.uint16))),
    Case("scale_length", inputs=((2, 3, 4), (4,)), attrs={"axis": 1}, raises=ShapeError),
)
_MICROSOFT_DEQUANTIZE = (
    Case("tensor", inputs=(_BYTES, _S, np.array(3, np.int8)), cost=Cost(other_flops=48)),
    Case("first_axis", inputs=(_BYTES, _f(0.1, 0.2), np.array([0, 7], np.int8)), attrs={"axis": 0}),
    Case("sixteen_bits", inputs=(_BYTES.astype(np.uint16), _S, np.array(32768, np.uint16))),
    Case("int32", inputs=(np.array([1 << 20, -7], np.int32), _S)),
    Case("types_differ", inputs=(_BYTES, _S, _Z), raises=DTypeError),
)
_DYNAMIC = (
    Case("both_signs", inputs=((3, 4),), outputs=3, cost=Cost(other_flops=84)),
    Case("positive", inputs=((3, 4),), domain=(2, 5), outputs=3),
    Case("negative", inputs=((3, 4),), domain=(-5, -2), outputs=3),
    Case("zeros", inputs=(_f(0, 0, 0),), outputs=3),
    Case("of_ints", inputs=(_BYTES,), raises=DTypeError),
)


def mixes_rows(call: Application) -> str:
    """Scales along axis 0, or of blocks, belong to places in the batch."""
    first, scale = call.inputs[0], call.inputs[1]
    if first is None or scale is None:
        return "its scales are not known"
    if scale.shape != () and (call.attrs.get("block_size") or call.attrs["axis"] % len(first.shape) == 0):
        return "its scales differ from row to row"
    return only_first_input_has_rows(call)


OPS = (
    Op(
        "QuantizeLinear",
        infer_quantize,
        cost_quantize,
        (Kernel("passes", run_quantize),),
        expression=express_quantize,
        mixes_rows=mixes_rows,
        cases=_QUANTIZE,
    ),
    Op(
        "DequantizeLinear",
        infer_dequantize,
        cost_dequantize,
        (Kernel("passes", run_dequantize),),
        expression=express_dequantize,
        mixes_rows=mixes_rows,
        cases=_DEQUANTIZE,
    ),
    Op(
        "com.microsoft.QuantizeLinear",
        infer_microsoft_quantize,
        cost_quantize,
        (Kernel("passes", run_quantize),),
        mixes_rows=mixes_rows,
        cases=_MICROSOFT_QUANTIZE,
    ),
    Op(
        "com.microsoft.DequantizeLinear",
        infer_microsoft_dequantize,
        cost_dequantize,
        (Kernel("passes", run_dequantize),),
        mixes_rows=mixes_rows,
        cases=_MICROSOFT_DEQUANTIZE,
    ),
    Op("DynamicQuantizeLinear", infer_dynamic, cost_dynamic, (Kernel("passes", run_dynamic),), cases=_DYNAMIC),
)
