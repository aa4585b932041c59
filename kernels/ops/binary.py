"""Two-input arithmetic, comparison, logic and bit operations with multidirectional broadcasting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.cost import Cost, per_element
from kernels.errors import AttributeValueError, DTypeError, ShapeError
from kernels.expression import Draft, Term, applied
from kernels.operands import NUMBERS, SCALARS, broadcast, one_dtype, one_of
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.scratch import fixed, for_each, twice
from kernels.spec import BOOL, INTS, Array, DType, Spec


def _checked(name: str, a: Spec, b: Spec, dtypes: frozenset[DType], result: DType | None = None) -> Spec:
    require_dtype(f"{name}: a", a, dtypes)
    dtype = one_dtype(name, a, b)
    return Spec(broadcast(name, a.shape, b.shape), result or dtype)


def _infer(name: str, dtypes: frozenset[DType], result: DType | None) -> Callable[..., Spec]:
    def infer(a: Spec, b: Spec) -> Spec:
        return _checked(name, a, b, dtypes, result)

    return infer


def _ufunc(ufunc: Callable[..., Any]) -> Callable[..., None]:
    def run(out: tuple[Array, ...], a: Array, b: Array) -> None:
        ufunc(a, b, out=out[0])

    return run


def run_divide(out: tuple[Array, ...], a: Array, b: Array) -> None:
    """Divide. Quotients of integers are rounded toward zero, and 0 where the divisor is 0."""
    if a.dtype.kind in "iu":
        np.floor_divide(a - np.fmod(a, b), b, out=out[0])
    else:
        np.divide(a, b, out=out[0])


def infer_mod(a: Spec, b: Spec, *, fmod: int = 0) -> Spec:
    """Broadcast shape, common dtype."""
    one_of("Mod: attribute fmod", fmod, (0, 1))
    return _checked("Mod", a, b, NUMBERS)


def run_mod(out: tuple[Array, ...], a: Array, b: Array, *, fmod: int = 0) -> None:
    """Remainder with the sign of the divisor, or with that of the dividend when fmod is 1."""
    (np.fmod if fmod else np.remainder)(a, b, out=out[0])


def express_mod(draft: Draft, a: Term, b: Term, *, fmod: int) -> Term:
    """The remainder with the sign that `fmod` selects."""
    return draft("rem" if fmod else "mod", a, b)


def infer_pow(a: Spec, b: Spec) -> Spec:
    """Broadcast shape, dtype of the base."""
    require_dtype("Pow: base", a, NUMBERS)
    require_dtype("Pow: exponent", b, NUMBERS)
    return Spec(broadcast("Pow", a.shape, b.shape), a.dtype)


def run_pow(out: tuple[Array, ...], a: Array, b: Array) -> None:
    """Power in the base's dtype; small constant exponents without `pow`, which is slow.

    Integer bases with fractional or negative exponents are computed in float64 and truncated.
    """
    (y,) = out
    if b.size == 1 and a.dtype.kind == "f" and b.item() in (2, 3):
        np.multiply(np.multiply(a, a) if b.item() == 3 else a, a, out=y)
    elif a.dtype.kind not in "iu":
        _power(y, a, b.astype(a.dtype, copy=False))
    elif b.dtype.kind in "iu" and (not b.size or b.min() >= 0):  # exact modulo 2^64, and so modulo any narrower type
        np.copyto(y, np.power(a.astype(np.uint64), b.astype(np.uint64)), casting="unsafe")
    else:
        np.copyto(y, np.power(a.astype(np.float64), b.astype(np.float64)), casting="unsafe")


def _power(y: Array, a: Array, b: Array) -> None:
    """Power of floats as C defines it. Numpy takes the square root for 1/2, but only where neighbours share the exponent."""
    if not (half := b == 0.5).any():
        np.power(a, b, out=y)
        return
    magnitude, positive = np.abs(a), half & ((a == 0) | (a == -np.inf))
    np.power(a, b, out=y)
    np.copyto(y, magnitude, where=positive)


def pow_scratch_bytes(out: tuple[Spec, ...], a: Spec, b: Spec) -> int:
    """Both operands and the result in 64 bits where the base is an integer."""
    return for_each(24)(out, a, b) if a.dtype.kind in "iu" else twice(out, a, b)


def express_pow(draft: Draft, a: Term, b: Term) -> Term | None:
    """A power of floats: by one known number, or by an exponent for each element, taken in the base's type."""
    if a.dtype.kind != "f":
        return None
    if b.known is not None and b.known.size == 1:
        return draft("pow", a, parameters=(float(b.known.reshape(())),))
    return draft("pow", a, draft("cast", b, dtype=a.dtype))


def infer_shift(a: Spec, b: Spec, *, direction: str) -> Spec:
    """Broadcast shape, common integer dtype."""
    one_of("BitShift: attribute direction", direction, ("LEFT", "RIGHT"))
    return _checked("BitShift", a, b, INTS)


def run_shift(out: tuple[Array, ...], a: Array, b: Array, *, direction: str) -> None:
    """Shift by b bits; numpy defines shifts by the width or more as 0 (or all sign bits)."""
    (np.left_shift if direction == "LEFT" else np.right_shift)(a, b, out=out[0])


def express_shift(draft: Draft, a: Term, b: Term, *, direction: str) -> Term:
    """The shift in that direction."""
    return draft("shl" if direction == "LEFT" else "shr", a, b)


_PAIR = Case("broadcast", inputs=((2, 3, 1), (1, 5)), cost=Cost(other_flops=30))
_SAME = Case("same_shape", inputs=((3, 5), (3, 5)), cost=Cost(other_flops=15))
_EMPTY = Case("empty", inputs=((0, 3), (1, 3)), cost=Cost())
_SCALARS = Case("scalars", inputs=((), ()), cost=Cost(other_flops=1))
_MISMATCH = Case("shapes_differ", inputs=((2, 3), (4,)), raises=ShapeError)
_MIXED = Case("dtypes_differ", inputs=((2,), np.ones(2, np.float64)), raises=DTypeError)
_A, _B = np.array([[-7, 7, 0], [-8, 9, 127]], np.int8), np.array([2, -2, 3], np.int8)
_INTS = Case("int8", inputs=(_A, _B), cost=Cost(other_flops=6))
_BYTES = Case("uint8", inputs=(np.array([250, 7, 0], np.uint8), np.array([10, 2, 3], np.uint8)))
_INT64 = Case("int64_scalar", inputs=(np.array(224, np.int64), np.array([32], np.int64)))
_HALF = Case("half", inputs=(np.linspace(-2, 2, 7, dtype=np.float16), np.linspace(3, 0.5, 7, dtype=np.float16)))
_SPECIALS = Case("specials", inputs=(np.array([np.nan, np.inf, -np.inf, 0, 1], np.float32), np.array([0], np.float32)))
_ARITHMETIC = (_PAIR, _SAME, _EMPTY, _SCALARS, _MISMATCH, _MIXED, _INTS, _BYTES, _INT64, _HALF, _SPECIALS)
_BOOLS = (
    Case("bools", inputs=(np.array([[True], [False]]), np.array([True, False])), cost=Cost(other_flops=4)),
    Case("empty", inputs=(np.ones((0, 2), bool), np.ones(2, bool)), cost=Cost()),
    Case("floats", inputs=((2,), (2,)), raises=DTypeError),
    Case("shapes_differ", inputs=(np.ones((2, 3), bool), np.ones(2, bool)), raises=ShapeError),
)
_WORDS = Case("strings", inputs=(np.array(["a", "b"], object), np.array(["a", "c"], object)))
_BITS = (_INTS, _BYTES, Case("floats", inputs=((2,), (2,)), raises=DTypeError))


def _op(
    name: str,
    ufunc: Callable[..., Any],
    operation: str,
    dtypes: frozenset[DType],
    cases: tuple[Case, ...],
    result: DType | None = None,
) -> Op:
    infer, kernels = _infer(name, dtypes, result), (Kernel("ufunc", _ufunc(ufunc), scratch_bytes=fixed),)
    return Op(name, infer, per_element(1, name), kernels, elementwise=True, expression=applied(operation), cases=cases)


_MOD_CASES = (
    _INTS,
    _BYTES,
    _INT64,
    Case("fmod_ints", inputs=(_A, _B), attrs={"fmod": 1}, cost=Cost(other_flops=6)),
    Case("fmod_floats", inputs=((2, 3), (3,)), attrs={"fmod": 1}),
    Case("floats", inputs=((2, 3), (3,))),
    Case("float_specials", inputs=(np.array([-0.0, np.inf, 5, -5], np.float32), np.array([3, 3, 0, np.inf], np.float32))),
    Case("fmod_two", inputs=(_A, _B), attrs={"fmod": 2}, raises=AttributeValueError),
)
_POW_CASES = (
    Case("positive_base", inputs=((2, 3, 1), (5,)), domain=(0.1, 3), cost=Cost(other_flops=30)),
    Case("square", inputs=((3, 5), np.array(2, np.float32))),
    Case("cube_int_exponent", inputs=((3, 5), np.array([3], np.int64))),
    Case("root", inputs=((3, 5), np.array(0.5, np.float32)), domain=(0, 9)),
    Case("root_of_specials", inputs=(np.tile([np.nan, np.inf, -np.inf, 0], 8).astype(np.float32), np.array(0.5, np.float32))),
    Case("roots_by_row", inputs=(np.array([np.nan, np.inf, -np.inf, 0], np.float32), np.array([[0.5], [1.5]], np.float32))),
    Case("ints", inputs=(np.array([-3, 0, 2], np.int32), np.array([3, 0, 10], np.int64))),
    Case("exponent_beyond_int32", inputs=(np.array([1, -1], np.int32), np.array(2**63 - 1, np.int64))),
    Case("int_base_float_exponent", inputs=(np.array([1, 2, 9], np.int64), np.array([3, 0.5, 1.5], np.float32))),
    Case("exponent_shape_wins", inputs=(np.array(2, np.float32), (2, 3))),
    Case("empty", inputs=((0, 3), (1,)), cost=Cost()),
    Case("bool_base", inputs=(np.ones(2, bool), (2,)), raises=DTypeError),
    _MISMATCH,
)
_SHIFT_A, _SHIFT_B = np.array([16, 4, 255], np.uint8), np.array([1, 2, 7], np.uint8)
_SHIFT_CASES = (
    Case("left", inputs=(_SHIFT_A, _SHIFT_B), attrs={"direction": "LEFT"}, cost=Cost(other_flops=3)),
    Case("right", inputs=(_SHIFT_A, _SHIFT_B), attrs={"direction": "RIGHT"}),
    Case("signed_right", inputs=(np.array([-16, 15], np.int32), np.array(2, np.int32)), attrs={"direction": "RIGHT"}),
    Case("direction_up", inputs=(_SHIFT_A, _SHIFT_B), attrs={"direction": "UP"}, raises=AttributeValueError),
    Case("floats", inputs=((2,), (2,)), attrs={"direction": "LEFT"}, raises=DTypeError),
)
_LOGIC = frozenset({BOOL})

OPS = (
    _op("Add", np.add, "add", NUMBERS, _ARITHMETIC),
    _op("Sub", np.subtract, "sub", NUMBERS, _ARITHMETIC),
    _op("Mul", np.multiply, "mul", NUMBERS, _ARITHMETIC),
    Op(
        "Div",
        _infer("Div", NUMBERS, None),
        per_element(1, "Div"),
        (Kernel("ufunc", run_divide),),
        elementwise=True,
        expression=applied("div"),
        cases=_ARITHMETIC,
    ),
    Op(
        "Mod",
        infer_mod,
        per_element(1, "Mod"),
        (Kernel("ufunc", run_mod),),
        elementwise=True,
        expression=express_mod,
        cases=_MOD_CASES,
    ),
    Op(
        "Pow",
        infer_pow,
        per_element(1, "Pow"),
        (Kernel("ufunc", run_pow, scratch_bytes=pow_scratch_bytes),),
        elementwise=True,
        expression=express_pow,
        tolerance_eps=8,
        cases=_POW_CASES,
    ),
    _op("Equal", np.equal, "eq", SCALARS, (*_ARITHMETIC, _WORDS), result=BOOL),
    _op("Less", np.less, "lt", NUMBERS, _ARITHMETIC, result=BOOL),
    _op("LessOrEqual", np.less_equal, "le", NUMBERS, _ARITHMETIC, result=BOOL),
    _op("Greater", np.greater, "gt", NUMBERS, _ARITHMETIC, result=BOOL),
    _op("GreaterOrEqual", np.greater_equal, "ge", NUMBERS, _ARITHMETIC, result=BOOL),
    _op("And", np.logical_and, "and", _LOGIC, _BOOLS),
    _op("Or", np.logical_or, "or", _LOGIC, _BOOLS),
    _op("Xor", np.logical_xor, "xor", _LOGIC, _BOOLS),
    _op("BitwiseAnd", np.bitwise_and, "and", INTS, _BITS),
    _op("BitwiseOr", np.bitwise_or, "or", INTS, _BITS),
    _op("BitwiseXor", np.bitwise_xor, "xor", INTS, _BITS),
    Op(
        "BitShift",
        infer_shift,
        per_element(1, "shift"),
        (Kernel("ufunc", run_shift),),
        elementwise=True,
        expression=express_shift,
        cases=_SHIFT_CASES,
    ),
)
