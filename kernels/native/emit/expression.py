"""Elementwise expressions on vectors: which operations native kernels have, on which types, and the code of each.

`kernels.expression` defines expressions. In registers a bool is one bit a lane, in memory one byte, 0 or 1. float32 has the
functions of `math` and `functions`, float64 those that are one instruction. Integers of every width wrap around as numpy's do: a
quotient by 0 is 0, and a shift by the width or more gives 0. Elements of any other type can be selected by `where` and copied.

    float32: a name of UNARY (one argument, and parameters as there) or of FLOAT_BINARY (two).
    float64: a name of DOUBLE_UNARY or DOUBLE_BINARY.
    integers: INTEGER_UNARY, INTEGER_BINARY, and "and" "or" "xor" "not", which bools have too.
    any numbers: "lt" "le" "gt" "ge" "eq" "ne" of two make a bool ("eq" "ne" of bools too); "isnan" "isinf" of a float.
    "where" of a bool and two of one type. "constant" and "cast" of bool, integers, float32 and float64: floats become integers
    toward zero, the nearest there is where they do not fit, NaN 0; an integer loses its high bits; what is not 0 is true.
    "fit" of float32 that is no NaN makes an integer of at most 16 bits, with less code than "cast".
    "cast" also of float16 and bfloat16, whose bits lie in registers, by way of float32; float64 would be rounded twice.
    "bits" of float16, bfloat16 or an integer makes an unsigned integer of the same bits.
    "hold" of float32 makes bfloat16 faster where no number below 2⁻¹²⁶ matters (`halves.hold`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from kernels.expression import COMPARISONS, DOUBLE, FLOAT, Apply, Expression
from kernels.half import is_half
from kernels.native.emit.builder import Function, Value
from kernels.native.emit.functions import BINARY_FUNCTIONS, LONG, UNARY
from kernels.native.emit.halves import hold, narrow, widen
from kernels.native.emit.math import BINARY
from kernels.native.emit.types import F32, F64, I1, I8, I16, I32, I64, Type
from kernels.native.errors import EmitError
from kernels.spec import BFLOAT16, BOOL, INTS, DType

_BITS: Mapping[int, Type] = {1: I8, 2: I16, 4: I32, 8: I64}  # by bytes of an element

BITWISE = ("and", "or", "xor")  # of bools too
FLOAT_BINARY: Mapping[str, Callable[[Function, Value, Value], Value]] = {**BINARY, **BINARY_FUNCTIONS}
DOUBLE_UNARY = ("neg", "abs", "square", "sqrt", "reciprocal", "floor", "ceil", "round", "relu", "clip")
DOUBLE_BINARY = ("add", "sub", "mul", "div", "max", "min")


def _quotient(k: Function, a: Value, b: Value, signed: bool) -> Value:
    """Divide and round toward zero; 0 where b is 0. b = -1 is computed as -a, since x86 traps on the least a divided by -1."""
    zero = k.compare("eq", b, 0)
    if not signed:
        return k.select(zero, 0, k.binary("udiv", a, k.select(zero, 1, b)))
    minus = k.compare("eq", b, -1)
    whole = k.binary("sdiv", a, k.select(zero | minus, 1, b))
    return k.select(zero, 0, k.select(minus, k.zero(a.type) - a, whole))


def _remainder(k: Function, a: Value, b: Value, signed: bool) -> Value:
    """Return the remainder of a / b, with the sign of a; 0 where b is 0."""
    zero = k.compare("eq", b, 0)
    if not signed:
        return k.binary("urem", a, k.select(zero, 1, b))
    return k.binary("srem", a, k.select(zero | k.compare("eq", b, -1), 1, b))


def _modulus(k: Function, a: Value, b: Value, signed: bool) -> Value:
    """Return the remainder of a / b, with the sign of b; 0 where b is 0."""
    rest = _remainder(k, a, b, signed)
    if not signed:
        return rest
    strays = k.compare("ne", rest, 0) & k.compare("lt", rest ^ b, 0)
    return k.select(strays, rest + b, rest)


def _shifted(k: Function, name: str, a: Value, b: Value) -> Value:
    """Shift a by b bits; b is read as unsigned, so a negative b is beyond the width."""
    fits = k.op(f"icmp ult {b}, {k.const(b.type, a.type.bits).ref}", I1.by(a.type.lanes), "fits")
    if name == "ashr":
        return k.binary(name, a, k.select(fits, b, a.type.bits - 1))
    return k.select(fits, k.binary(name, a, k.select(fits, b, 0)), 0)


def _sign(k: Function, a: Value, signed: bool) -> Value:
    """-1, 0 or 1."""
    one = INTEGER_BINARY["min"](k, a, k.const(a.type, 1), signed)
    return INTEGER_BINARY["max"](k, one, k.const(a.type, -1), signed) if signed else one


INTEGER_UNARY: Mapping[str, Callable[[Function, Value, bool], Value]] = {
    "neg": lambda k, a, _: k.zero(a.type) - a,
    "abs": lambda k, a, signed: k.intrinsic("abs", a.type, a, k.const(I1, 0)) if signed else a,
    "square": lambda _, a, __: a * a,
    "sign": _sign,
}
INTEGER_BINARY: Mapping[str, Callable[[Function, Value, Value, bool], Value]] = {
    "add": lambda _, a, b, __: a + b,
    "sub": lambda _, a, b, __: a - b,
    "mul": lambda _, a, b, __: a * b,
    "max": lambda k, a, b, signed: k.intrinsic("smax" if signed else "umax", a.type, a, b),
    "min": lambda k, a, b, signed: k.intrinsic("smin" if signed else "umin", a.type, a, b),
    "div": _quotient,
    "rem": _remainder,
    "mod": _modulus,
    "shl": lambda k, a, b, _: _shifted(k, "shl", a, b),
    "shr": lambda k, a, b, signed: _shifted(k, "ashr" if signed else "lshr", a, b),
}
SMALL = frozenset(dtype for dtype in INTS if dtype.itemsize <= 2)  # all of whose numbers float32 holds
_SIGN_BLIND = frozenset(  # 0 and -0 make equal numbers
    ("add", "sub", "mul", "max", "min", "round", "relu", "clip", "constant", "cast", "fit")
)
_CYCLES: Mapping[str, int] = {  # of a vector, roughly, where they are not 1: chunks are cut by it
    **dict.fromkeys(("div", "sqrt", "rsqrt", "reciprocal", "softsign"), 6),
    **dict.fromkeys(("exp", "log", "sigmoid", "silu", "elu", "selu", "celu", "mish"), 15),
    **dict.fromkeys(("sin", "cos", "pow", "rem", "mod"), 40),
    **dict.fromkeys(("tanh", "erf", "gelu", "gelu_tanh", "softplus"), 20),
}


def cycles_of(step: Apply) -> int:
    """Return the estimated cost of a step on one vector, in cycles."""
    return _CYCLES.get(step.op, 1)


def is_long(expression: Expression) -> bool:
    """Return whether a step is a long chain of instructions that depend on one another."""
    return any(step.op in LONG for step in expression.steps)


def value_types(expression: Expression) -> tuple[DType, ...]:
    """Return the types of all values. Raises EmitError for an operation or an argument that does not exist."""
    types = list(expression.operands)
    for step in expression.steps:
        if not all(0 <= arg < len(types) for arg in step.args):
            raise EmitError(f"expression: {step.op} takes the values {step.args}, there are {len(types)} before it")
        found = _result(step, [types[arg] for arg in step.args])
        if found is None:
            given = ", ".join(types[arg].name for arg in step.args)
            raise EmitError(f"expression: there is no {step.op} of ({given}){f' to {step.dtype.name}' if step.dtype else ''}")
        types.append(found)
    return tuple(types)


def _result(step: Apply, args: Sequence[DType]) -> DType | None:
    """Return the type of an operation's result, or None where the operation does not exist for these arguments."""
    op, first = step.op, args[0] if args else FLOAT
    same, integer, real = len(set(args)) == 1, first in INTS, first in (FLOAT, DOUBLE)
    if op == "constant":
        wanted = step.dtype or FLOAT
        return wanted if not args and len(step.parameters) == 1 and _computes(wanted) else None
    if op == "cast":
        wanted = step.dtype or FLOAT
        return wanted if len(args) == 1 and _converts(first, wanted) else None
    if op == "fit":
        return step.dtype if list(args) == [FLOAT] and step.dtype in SMALL else None
    if op == "hold":
        return BFLOAT16 if args == [FLOAT] else None
    if op == "bits":
        return np.dtype(f"u{first.itemsize}") if len(args) == 1 and (integer or is_half(first)) else None
    if op == "where":
        return args[1] if len(args) == 3 and first == BOOL and args[1] == args[2] else None
    if op in ("isnan", "isinf"):
        return BOOL if len(args) == 1 and real else None
    if op in COMPARISONS:
        fits = integer or real or (first == BOOL and op in ("eq", "ne"))
        return BOOL if len(args) == 2 and same and fits else None
    if op in BITWISE or op == "not":
        return first if len(args) == 2 - (op == "not") and same and (integer or first == BOOL) else None
    ones, twos = (
        (INTEGER_UNARY, INTEGER_BINARY)
        if integer
        else (DOUBLE_UNARY, DOUBLE_BINARY)
        if first == DOUBLE
        else (UNARY, FLOAT_BINARY)
    )
    known = (op in ones and len(args) == 1) or (op in twos and len(args) == 2 and same)
    return first if known and (integer or real) else None


def _computes(dtype: DType) -> bool:
    """Return whether operations compute with this type; other types can only be moved."""
    return dtype in INTS or dtype in (BOOL, FLOAT, DOUBLE)


def _converts(old: DType, new: DType) -> bool:
    """Return whether there is a conversion between two types."""
    if old == DOUBLE and is_half(new):
        return False
    return all(_computes(dtype) or is_half(dtype) for dtype in (old, new))


def memory_type(dtype: DType) -> Type:
    """Return the type of an element in memory. Raises EmitError where its size is not 1, 2, 4 or 8 bytes."""
    if dtype in (FLOAT, DOUBLE):
        return F32 if dtype == FLOAT else F64
    if dtype.itemsize not in _BITS:
        raise EmitError(f"expression: elements of {dtype.name} have {dtype.itemsize} bytes, need one of {sorted(_BITS)}")
    return _BITS[dtype.itemsize]


def from_memory(k: Function, raw: Value, dtype: DType) -> Value:
    """Convert a loaded vector to the form that operations take: a bool becomes one bit a lane."""
    return k.compare("ne", raw, k.zero(raw.type)) if dtype == BOOL else raw


def to_memory(k: Function, value: Value, dtype: DType) -> Value:
    """Convert a value to the form in which it is stored: a bool becomes one byte."""
    return k.convert("zext", value, I8.by(value.type.lanes)) if dtype == BOOL else value


def evaluate(k: Function, expression: Expression, loads: Sequence[Callable[[], Value]], lanes: int) -> Value:
    """Emit an expression on vectors of that many lanes and return its result.

    loads: functions that load each operand; one is called where the first step reads its operand.
    """
    types = value_types(expression)
    values: dict[int, Value] = {}

    def value(number: int) -> Value:
        if number not in values:
            values[number] = loads[number]()
        return values[number]

    for number in range(len(expression.operands), len(types)):
        values[number] = compute(k, expression, types, number, value, lanes)
    return value(len(types) - 1)


def compute(
    k: Function, expression: Expression, types: Sequence[DType], number: int, value: Callable[[int], Value], lanes: int
) -> Value:
    """Emit the step that makes the value of that number. types: of all values. value: returns an earlier one by its number."""
    step = expression.steps[number - len(expression.operands)]
    if (found := _requantised(expression, step, types)) is not None:
        whole, zero, narrow = found
        is_number, signed_zero = _is_number(expression, narrow), _hides_signs(expression, types)
        return _limited_around(k, value(whole), value(zero), types[narrow], is_number=is_number, signed_zero=signed_zero)
    if (inner := _narrowed(expression, step, types)) is not None:
        narrow, real = inner
        is_whole, is_number = _is_rounded(expression, real), _is_number(expression, narrow)
        return _limited(k, value(real), types[narrow], whole=is_whole, is_number=is_number)
    return apply(k, step, [value(arg) for arg in step.args], [types[arg] for arg in step.args], lanes)


def apply(k: Function, step: Apply, args: Sequence[Value], dtypes: Sequence[DType], lanes: int) -> Value:
    """Emit one step on vectors of that many lanes. dtypes: of the arguments, which `value_types` has checked."""
    op = step.op
    if op == "constant":
        wanted = step.dtype or FLOAT
        return k.const((I1 if wanted == BOOL else memory_type(wanted)).by(lanes), step.parameters[0])
    first, dtype = args[0], dtypes[0]
    if op == "cast":
        return _cast(k, first, dtype, step.dtype or FLOAT)
    if op == "fit":
        wanted = step.dtype or FLOAT
        return k.convert("trunc", _whole(k, first, wanted, is_number=True), memory_type(wanted).by(lanes))
    if op in ("hold", "bits"):
        return hold(k, first) if op == "hold" else first
    if op == "where":
        return k.select(first, args[1], args[2])
    if op in ("isnan", "isinf"):
        return k.compare("ne", first, first) if op == "isnan" else k.compare("eq", k.abs(first), float("inf"))
    if op in COMPARISONS:
        return _compare(k, op, first, args[1], dtype)
    if op in BITWISE:
        return k.binary(op, first, args[1])
    if op == "not":
        return first ^ k.const(first.type, 1 if dtype == BOOL else -1)
    if dtype in INTS:
        signed = dtype.kind == "i"
        return INTEGER_UNARY[op](k, first, signed) if len(args) == 1 else INTEGER_BINARY[op](k, first, args[1], signed)
    if len(args) == 2:
        return FLOAT_BINARY[op](k, first, args[1])
    return UNARY[op](k, first, *step.parameters)


def _compare(k: Function, op: str, a: Value, b: Value, dtype: DType) -> Value:
    if dtype.kind == "u" and op not in ("eq", "ne"):
        return k.op(f"icmp u{op} {a}, {b.ref}", I1.by(a.type.lanes), op)
    return k.compare(op, a, b)


def _narrowed(expression: Expression, step: Apply, types: Sequence[DType]) -> tuple[int, int] | None:
    """Return the numbers of a small integer that a step casts to float32, and of the float32 that it was made of; else None."""
    if step.op != "cast" or (step.dtype or FLOAT) != FLOAT or step.args[0] < len(expression.operands):
        return None
    narrow = expression.steps[step.args[0] - len(expression.operands)]
    small = types[step.args[0]] in SMALL and narrow.op in ("cast", "fit")
    return (step.args[0], narrow.args[0]) if small and types[narrow.args[0]] == FLOAT else None


def _requantised(expression: Expression, step: Apply, types: Sequence[DType]) -> tuple[int, int, int] | None:
    """Return the numbers of x, z and the integer of a step that is (float(integer(x + z)) - z), x and z whole; else None.

    That is what QuantizeLinear and DequantizeLinear make of x between them.
    """
    if (
        step.op != "sub"
        or (cast := _step(expression, step.args[0])) is None
        or (inner := _narrowed(expression, cast, types)) is None
    ):
        return None
    narrow, real = inner
    moved = _step(expression, real)
    if moved is None or moved.op != "add" or step.args[1] not in moved.args:
        return None
    whole = moved.args[0] if moved.args[1] == step.args[1] else moved.args[1]
    point = _step(expression, step.args[1])
    is_small = point is not None and point.op == "cast" and types[point.args[0]] == types[narrow]
    return (whole, step.args[1], narrow) if is_small and _is_rounded(expression, whole) else None


def _hides_signs(expression: Expression, types: Sequence[DType]) -> bool:
    """Whether the sign of a zero on the way changes no result."""
    return types[-1] in INTS and all(step.op in _SIGN_BLIND for step in expression.steps)


def _step(expression: Expression, number: int) -> Apply | None:
    """Return the step that makes a value; None for an operand."""
    at = number - len(expression.operands)
    return expression.steps[at] if at >= 0 else None


def _limited_around(k: Function, value: Value, zero: Value, dtype: DType, *, is_number: bool, signed_zero: bool) -> Value:
    """Emit a whole float32 within the range of a small integer less `zero`, a number of that range; of NaN it makes -`zero`.

    is_number: it is no NaN. signed_zero: a zero may be negative, which a result of integers cannot tell.
    """
    info = np.iinfo(dtype)
    number = value if is_number else k.select(k.compare("eq", value, value), value, k.zero(value.type) - zero)
    limited = k.at_most(k.at_least(number, k.const(zero.type, info.min) - zero), k.const(zero.type, info.max) - zero)
    return limited if signed_zero else limited + 0.0


def _is_rounded(expression: Expression, number: int) -> bool:
    """Whether a value of an expression is rounded to a whole number."""
    at = number - len(expression.operands)
    return at >= 0 and expression.steps[at].op == "round"


def _is_number(expression: Expression, number: int) -> bool:
    """Whether what is converted to a small integer, the value of that number, is no NaN."""
    step = _step(expression, number)
    return step is not None and step.op == "fit"


def _limited(k: Function, value: Value, dtype: DType, *, whole: bool, is_number: bool) -> Value:
    """Emit float32 as a cast to a small integer and back makes it: whole, within the integer's range, NaN 0.

    whole: it is a whole number, infinite or NaN already. is_number: it is no NaN.
    """
    limited = _within(k, value, dtype, is_number=is_number)
    made = limited if whole else k.intrinsic("trunc", value.type, limited)
    return made if dtype.kind == "u" else made + 0.0  # integers have no -0


def _within(k: Function, value: Value, dtype: DType, *, is_number: bool = False) -> Value:
    """Emit float32 within the range of a small integer, whose bounds float32 holds; NaN is 0. is_number: it is none."""
    info = np.iinfo(dtype)
    if is_number:
        return k.at_most(k.at_least(value, float(info.min)), float(info.max))
    if info.min == 0:  # which NaN becomes as well: it is not greater than 0
        number = k.select(k.compare("gt", value, 0.0), value, k.zero(value.type))
    else:
        number = k.at_least(k.select(k.compare("eq", value, value), value, k.zero(value.type)), float(info.min))
    return k.at_most(number, float(info.max))


def _whole(k: Function, value: Value, new: DType, *, is_number: bool = False) -> Value:
    """Convert float32 to int32 toward zero, within the range of a smaller integer. LLVM converts to those lane by lane."""
    return k.convert("fptosi", _within(k, value, new, is_number=is_number), I32.by(value.type.lanes))


def _cast(k: Function, value: Value, old: DType, new: DType) -> Value:
    lanes = value.type.lanes
    kind = (I1 if new == BOOL else memory_type(new)).by(lanes)
    if old == new:
        return value
    if is_half(old):
        return _cast(k, widen(k, value, old), FLOAT, new)
    if is_half(new):
        return narrow(k, _cast(k, value, old, FLOAT), new)
    if new == BOOL:
        return k.compare("ne", value, k.zero(value.type))
    if old.kind == "f" and new.kind == "f":
        return k.convert("fpext" if new == DOUBLE else "fptrunc", value, kind)
    if old == FLOAT and new.itemsize <= 2:
        return k.convert("trunc", _whole(k, value, new), kind)
    if old.kind == "f":
        name = f"llvm.fpto{'s' if new.kind == 'i' else 'u'}i.sat.{kind.mangled}.{value.type.mangled}"
        return k.call(name, kind, value)
    signed = old.kind == "i"
    if new.kind == "f":
        return k.convert("sitofp" if signed else "uitofp", value, kind)
    if kind.bits <= value.type.bits:
        return k.convert("trunc", value, kind)  # the same width: the same bits
    return k.convert("sext" if signed else "zext", value, kind)
