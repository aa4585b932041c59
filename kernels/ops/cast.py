"""Cast, CastLike and BitCast: the same elements in another type, by value or by bits. RoundTo: as another would hold them."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from kernels.batch_axis import first_input_has_rows
from kernels.cost import moves
from kernels.errors import AttributeValueError, DTypeError, InvalidError
from kernels.expression import Draft, Term
from kernels.half import is_half
from kernels.operands import element_type, one_of
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.spec import BOOL, ELEMENT_TYPES, STRING, Array, DType, Spec, element_bits

_F32 = np.dtype(np.float32)
_E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)
_SATURATING = frozenset(
    map(np.dtype, (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e4m3fnuz, ml_dtypes.float8_e5m2, ml_dtypes.float8_e5m2fnuz))
)
_ROUND_MODES = ("up", "down", "nearest")


def infer_cast(x: Spec, *, to: int, saturate: int = 1, round_mode: str = "up") -> Spec:
    """Same shape, dtype `to`. `saturate` and `round_mode` speak of the 8-bit floats only."""
    one_of("Cast: attribute round_mode", round_mode, _ROUND_MODES)
    return _converted("Cast", x, element_type("Cast: attribute to", to))


def _converted(name: str, x: Spec, dtype: DType) -> Spec:
    if x.dtype != dtype and "c" in (x.dtype.kind, dtype.kind):
        raise DTypeError(f"{name}: x is {x}, to {dtype.name}: complex numbers cannot be converted")
    return Spec(x.shape, dtype)


def run_cast(out: tuple[Array, ...], x: Array, *, to: int, saturate: int = 1, round_mode: str = "up") -> None:
    """Out of range: integers drop high bits, floats become infinite, 8-bit floats saturate or become NaN."""
    convert(out[0], x, bool(saturate), round_mode)


def express_cast(draft: Draft, x: Term, *, to: int, **_: object) -> Term:
    """The conversion; `saturate` and `round_mode` speak of types that no expression has."""
    return draft("cast", x, dtype=ELEMENT_TYPES[to])


def infer_cast_like(x: Spec, target: Spec, *, saturate: int = 1, round_mode: str = "up") -> Spec:
    """Same shape, dtype of `target`, whose values are not read."""
    one_of("CastLike: attribute round_mode", round_mode, _ROUND_MODES)
    return _converted("CastLike", x, target.dtype)


def run_cast_like(out: tuple[Array, ...], x: Array, target: Array, *, saturate: int = 1, round_mode: str = "up") -> None:
    """Convert as Cast does."""
    convert(out[0], x, bool(saturate), round_mode)


def express_cast_like(draft: Draft, x: Term, target: Term, **_: object) -> Term:
    """As Cast."""
    return draft("cast", x, dtype=target.dtype)


def infer_round(x: Spec, *, to: int) -> Spec:
    """Same shape and dtype, each number as float16 or bfloat16 (`to`) would hold it."""
    require_dtype("edgewise.RoundTo: x", x, frozenset({_F32, np.dtype(np.float64)}))
    half = element_type("edgewise.RoundTo: attribute to", to)
    if not is_half(half):
        raise AttributeValueError(f"edgewise.RoundTo: attribute to is {to} ({half.name}), need float16 (10) or bfloat16 (16)")
    return x.with_value(None)


def run_round(out: tuple[Array, ...], x: Array, *, to: int) -> None:
    """Ties go to the even one; what is too large becomes infinite."""
    np.copyto(out[0], x.astype(ELEMENT_TYPES[to]), casting="unsafe")


def express_round(draft: Draft, x: Term, *, to: int) -> Term:
    """To the half and back."""
    return draft("cast", draft("cast", x, dtype=ELEMENT_TYPES[to]), dtype=x.dtype)


def convert(y: Array, x: Array, saturate: bool, round_mode: str) -> None:
    """Write x into y in y's type, as Cast does: `saturate` and `round_mode` speak of the 8-bit floats only."""
    if x.dtype == y.dtype:
        np.copyto(y, x)
    elif x.dtype == STRING:
        np.copyto(y, _parse(x, y.dtype), casting="unsafe")
    elif y.dtype == STRING:
        np.copyto(y, (x.astype(np.float32) if x.dtype.kind == "V" else x).astype(np.str_).astype(STRING))
    elif y.dtype == _E8M0:
        np.copyto(y, _powers_of_two(x, saturate, round_mode))
    elif y.dtype in _SATURATING and saturate:
        highest = float(ml_dtypes.finfo(y.dtype).max)  # type: ignore[no-untyped-call]
        np.copyto(y, np.clip(x.astype(np.float32), -highest, highest), casting="unsafe")
    else:
        np.copyto(y, x, casting="unsafe")


def _parse(x: Array, dtype: DType) -> Array:
    """Numbers from strings: whole ones exactly where an integer is wanted."""
    whole = dtype.kind in "iu"

    def number(text: str) -> int | float:
        try:
            return int(text) if whole else float(text)
        except ValueError:
            pass
        try:
            return int(float(text)) if whole else float(text)
        except (ValueError, OverflowError):
            raise InvalidError(f"Cast: a string is {text[:40]!r}, need a number to make {dtype.name} of") from None

    values = np.empty(x.shape, STRING if whole else np.float64)
    values.reshape(-1)[:] = [number(text) for text in x.ravel().tolist()]
    return values


def _powers_of_two(x: Array, saturate: bool, round_mode: str) -> Array:
    """float8_e8m0: 2^(code - 127), code 255 is NaN; zero and what lies outside saturate or become NaN."""
    mantissa, exponent = np.frexp(np.abs(x.astype(np.float32)))  # x = mantissa · 2^exponent, mantissa in [0.5, 1)
    border = {"up": 0.5, "down": 1.0, "nearest": np.nextafter(np.float32(0.75), np.float32(0))}[round_mode]
    code = exponent.astype(np.int64) - 1 + (mantissa > border) + 127
    code[np.isinf(x.astype(np.float32))] = 1000
    code[mantissa == 0] = -1000
    code = np.clip(code, 0, 254) if saturate else np.where((code < 0) | (code > 254), 255, code)
    code[np.isnan(x.astype(np.float32))] = 255
    return code.astype(np.uint8).view(_E8M0)


def infer_bit_cast(x: Spec, *, to: int) -> Spec:
    """Same shape; a dtype of as many bits, no string."""
    dtype = element_type("BitCast: attribute to", to)
    if STRING in (dtype, x.dtype):
        raise DTypeError(f"BitCast: x is {x} and `to` is {dtype.name}, strings cannot be reinterpreted")
    if element_bits(dtype) != element_bits(x.dtype):
        bits = element_bits(x.dtype), element_bits(dtype)
        raise DTypeError(f"BitCast: x is {x} of {bits[0]} bits and `to` is {dtype.name} of {bits[1]}, need equal widths")
    return Spec(x.shape, dtype)


def run_bit_cast(out: tuple[Array, ...], x: Array, *, to: int) -> None:
    """A copy of the bytes; any byte but 0 is true."""
    if out[0].dtype == BOOL and x.dtype != BOOL:
        np.not_equal(np.ascontiguousarray(x).view(np.uint8), 0, out=out[0])
    else:
        np.copyto(out[0].view(x.dtype), x)


_NUMBERS = np.array([-2.7, -0.0, 0.4, 3.5, 100], np.float32)
_CAST = (
    Case("to_int64", inputs=(_NUMBERS,), attrs={"to": 7}),
    Case("to_bool", inputs=(_NUMBERS,), attrs={"to": 9}),
    Case("to_half_overflow", inputs=(np.array([1e6, -1e6, 1.5], np.float32),), attrs={"to": 10}),
    Case("to_bfloat16", inputs=(_NUMBERS,), attrs={"to": 16}),
    Case("to_float8_saturated", inputs=(np.array([1e6, -1e6, 1.5], np.float32),), attrs={"to": 17}),
    Case("int_wraps", inputs=(np.array([200, -1, 300], np.int16),), attrs={"to": 3}),
    Case("int64_to_float", inputs=(np.array([[7, -3]], np.int64),), attrs={"to": 1}),
    Case("bool_to_float", inputs=(np.array([True, False]),), attrs={"to": 1}),
    Case("strings_to_float", inputs=(np.array(["3.5", "-INF", "1e-3"], object),), attrs={"to": 1}),
    Case("same", inputs=(_NUMBERS,), attrs={"to": 1}),
    Case("empty", inputs=((0, 2),), attrs={"to": 7}),
    Case("complex", inputs=(np.ones(2, np.complex64),), attrs={"to": 1}, raises=DTypeError),
    Case("unknown_type", inputs=((2,),), attrs={"to": 99}, raises=AttributeValueError),
    Case("unknown_rounding", inputs=((2,),), attrs={"to": 24, "round_mode": "even"}, raises=AttributeValueError),
)
_LIKE = (
    Case("to_int64", inputs=(_NUMBERS, np.array([0], np.int64))),
    Case("to_double", inputs=(_NUMBERS, np.array(0, np.float64))),
    Case("unknown_rounding", inputs=((2,), (2,)), attrs={"round_mode": "even"}, raises=AttributeValueError),
)
_ROUND = (
    Case("to_half", inputs=(np.array([1 / 3, 2049, -65520, 1e-9, np.inf], np.float32),), attrs={"to": 10}),
    Case("to_bfloat16", inputs=(np.array([1 / 3, 257, 259, -3.4e38], np.float32),), attrs={"to": 16}),
    Case("wide", inputs=((2,),), attrs={"to": 11}, raises=AttributeValueError),
    Case("half", inputs=(np.ones(2, np.float16),), attrs={"to": 10}, raises=DTypeError),
)
_BITS = (
    Case("float_to_int", inputs=(_NUMBERS,), attrs={"to": 6}),
    Case("byte_sign", inputs=(np.array([200, 1], np.uint8),), attrs={"to": 3}),
    Case("byte_to_bool", inputs=(np.array([2, 0], np.uint8),), attrs={"to": 9}),
    Case("widths_differ", inputs=(_NUMBERS,), attrs={"to": 7}, raises=DTypeError),
    Case("nibble_to_byte", inputs=(np.array([-1], ml_dtypes.int4),), attrs={"to": 3}, raises=DTypeError),
    Case("strings", inputs=(np.array(["a"], object),), attrs={"to": 7}, raises=DTypeError),
)

OPS = (
    Op("Cast", infer_cast, moves, (Kernel("convert", run_cast),), elementwise=True, expression=express_cast, cases=_CAST),
    Op(
        "CastLike",
        infer_cast_like,
        moves,
        (Kernel("convert", run_cast_like),),
        expression=express_cast_like,
        mixes_rows=first_input_has_rows,
        cases=_LIKE,
    ),
    Op(
        "edgewise.RoundTo",
        infer_round,
        moves,
        (Kernel("convert", run_round),),
        elementwise=True,
        expression=express_round,
        cases=_ROUND,
    ),
    Op("BitCast", infer_bit_cast, moves, (Kernel("copy", run_bit_cast),), cases=_BITS),
)
