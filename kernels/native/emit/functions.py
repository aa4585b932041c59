"""Elementary functions beside the activations, on fp32 vectors of any width, emitted inline: rounding, powers, sine and cosine.

Powers and the reduction of angles are computed in fp64 inside: angles below 2^28 by Cody and Waite's method (Software Manual for
the Elementary Functions, 1980), larger ones by a table of 2/π as Payne and Hanek do (SIGNUM Newsletter 18(1), 1983). The largest
errors over the whole range, in units in the last place, are asserted in `tests/kernels/native/test_functions.py`:

    sin 1.5    cos 1.5    pow 1.2    rsqrt 1.5    pow by a constant of -2 to 4: 2.5
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from kernels.native.emit.builder import Function, Value
from kernels.native.emit.math import ACTIVATIONS, POLYNOMIALS, integers, polynomial, scaled_exp, split_exponent
from kernels.native.emit.types import F64, I1, I32, I64

ROUNDER = 1.5 * 2.0**52  # adding it to an fp64 rounds to an integer, which then is in the low bits
LN2 = 0.6931471805599453
INFINITY, NAN = float("inf"), float("nan")


def sign(k: Function, x: Value) -> Value:
    """1, 0 or -1, the same where denormals count as 0: it compares bits."""
    magnitude = k.convert("bitcast", x, integers(x)) & 0x7FFFFFFF
    moves = (magnitude > 0) & k.compare("le", magnitude, 0x7F800000)  # neither 0 nor NaN
    return k.select(moves, k.copysign(k.const(x.type, 1.0), x), x)


# Powers


def power(k: Function, x: Value, exponent: float) -> Value:
    """Return x to a constant power: products for small integers, a square root for 1/2, else `pow`."""
    if exponent in range(-2, 5):
        return _integer_power(k, 1.0 / x if exponent < 0 else x, abs(int(exponent)))
    if exponent == 0.5:  # C's pow: +0 at -0, infinity at -infinity
        return k.select(k.compare("eq", x, -INFINITY), k.const(x.type, INFINITY), k.sqrt(x + 0.0))
    return pow(k, x, k.const(x.type, exponent))


def _integer_power(k: Function, x: Value, exponent: int) -> Value:
    if exponent == 0:
        return k.const(x.type, 1.0)
    if exponent == 1:
        return x
    half = _integer_power(k, x, exponent // 2)
    return half * half * x if exponent % 2 else half * half


def pow(k: Function, x: Value, y: Value) -> Value:
    """Return x^y as C defines it: negative x takes integers y only, and the result is 1 for y = 0 and for x = 1, NaN included."""
    wide, infinity = F64.by(x.type.lanes), k.const(x.type, INFINITY)
    magnitude = k.abs(x)
    e, m = (k.convert("fpext", part, wide) for part in split_exponent(k, magnitude))
    s = m / (m + 2.0)
    log2 = k.fma(s, polynomial(k, s * s, POLYNOMIALS["log2"]), e)
    log2 = k.select(k.compare("eq", magnitude, infinity), k.const(wide, INFINITY), log2)
    log2 = k.select(k.compare("eq", magnitude, 0.0), k.const(wide, -INFINITY), log2)
    log2 = k.select(k.compare("ne", x, x), k.const(wide, NAN), log2)
    finite = k.at_most(k.at_least(y, -1e38), 1e38)  # so that infinity·log2(1) is 0
    product = k.at_most(k.at_least(k.convert("fpext", finite, wide) * log2, -151.0), 129.0)
    biased = product + ROUNDER
    n = biased - ROUNDER
    r = k.convert("fptrunc", (product - n) * LN2, x.type)
    result = scaled_exp(k, k.convert("fptrunc", n, x.type), _low_bits(k, biased), r)
    whole = k.compare("eq", k.floor(y), y)
    half = y * 0.5
    odd = whole & k.compare("ne", k.floor(half), half)
    result = k.select(odd, k.copysign(result, x), result)
    undefined = k.compare("lt", x, 0.0) & k.compare("ne", magnitude, infinity) & (whole ^ k.const(whole.type, 1))
    result = k.select(undefined, k.const(x.type, NAN), result)
    return k.select(k.compare("eq", y, 0.0) | k.compare("eq", x, 1.0), k.const(x.type, 1.0), result)


def _low_bits(k: Function, biased: Value) -> Value:
    """Return the integer that an fp64 holds after ROUNDER was added, modulo 2^32."""
    lanes = biased.type.lanes
    return k.convert("trunc", k.convert("bitcast", biased, I64.by(lanes)), I32.by(lanes))


# Angles

TWO_OVER_PI = 0.6366197723675814
HALF_PI = (1.5707963109016418, 1.5893254712295857e-08, 6.123233995736766e-17)  # their sum is π/2, 25 bits in the first two
NEAR = 2.0**28  # below, n·HALF_PI is exact but for the last part
FIRST = 127 + 28  # biased exponent of NEAR


def sin(k: Function, x: Value) -> Value:
    """The sine of any angle; NaN at infinity."""
    return _sine(k, x, 0)


def cos(k: Function, x: Value) -> Value:
    """The cosine of any angle; NaN at infinity."""
    return _sine(k, x, 1)


def _sine(k: Function, x: Value, quarters: int) -> Value:
    """sin(x + quarters·π/2)."""
    r, n = _reduced(k, x)
    n = n + quarters
    square = r * r
    sine = k.fma(r * square, polynomial(k, square, POLYNOMIALS["sin"]), r)
    cosine = k.fma(square * square, polynomial(k, square, POLYNOMIALS["cos"]), k.fma(square, -0.5, 1.0))
    result = k.select(k.compare("ne", n & 1, 0), cosine, sine)
    flip = k.shift("shl", n & 2, 30)
    result = k.convert("bitcast", k.convert("bitcast", result, integers(x)) ^ flip, x.type)
    return result + x * 0.0 if quarters else k.select(k.compare("eq", x, 0.0), x, result + x * 0.0)


def _reduced(k: Function, x: Value) -> tuple[Value, Value]:
    """Reduce an angle to x = n·π/2 + r with |r| ≤ π/4, by Cody and Waite's method. Returns r, and n modulo 2^32."""
    wide = k.convert("fpext", x, F64.by(x.type.lanes))
    biased = k.fma(wide, TWO_OVER_PI, ROUNDER)
    n, r = biased - ROUNDER, wide
    for part in HALF_PI:
        r = k.fma(n, -part, r)
    near = (k.convert("fptrunc", r, x.type), _low_bits(k, biased))
    far = k.compare("ge", k.abs(x), NEAR)
    some = k.call(f"llvm.vector.reduce.or.{far.type.mangled}", I1, far) if x.type.lanes > 1 else far
    with k.fold("far", 0, k.convert("zext", some, I64), 1, near) as fold:  # once or not at all
        fold.values = [k.select(far, a, b) for a, b in zip(_reduced_far(k, x), near, strict=True)]
    return fold.values[0], fold.values[1]


def _reduced_far(k: Function, x: Value) -> tuple[Value, Value]:
    """Reduce an angle |x| ≥ NEAR, as Payne and Hanek (1983) do: x = m·2^e, and 2^e·2/π modulo 4 is a constant for each e."""
    lanes = x.type.lanes
    bits = k.convert("bitcast", x, integers(x))
    m = k.convert("bitcast", (bits & -0x7F800001) | (150 << 23), x.type)  # of 24 bits
    wide = k.convert("fpext", m, F64.by(lanes))
    exponent = (k.shift("lshr", bits, 23) & 0xFF) - FIRST
    table = k.module.table(k, "two_over_pi", F64, [part for pair in _scaled_two_over_pi() for part in pair])
    high = low = k.poison(F64.by(lanes))
    for lane in range(lanes):
        number = k.convert("sext", k.extract(exponent, lane) if lanes > 1 else exponent, I64)
        number = k.select(number > 0, number, k.const(I64, 0))  # lanes that are not far
        number = k.select(number < 254 - FIRST, number, k.const(I64, 254 - FIRST))  # infinity and NaN
        pair = (k.load(F64, table, number * 2), k.load(F64, table, number * 2 + 1))
        high, low = (k.insert(v, p, lane) if lanes > 1 else p for v, p in zip((high, low), pair, strict=True))
    quarters = wide * high  # exact: 24 bits times 29
    biased = k.fma(wide, low, quarters) + ROUNDER
    rest = k.fma(wide, low, quarters - (biased - ROUNDER))
    return k.convert("fptrunc", rest * (HALF_PI[0] + HALF_PI[1]), x.type), _low_bits(k, biased)


@functools.cache
def _scaled_two_over_pi() -> tuple[tuple[float, float], ...]:
    """2^e·2/π modulo 4 for every exponent e of the last bit of a far fp32: 29 bits, and the rest."""
    from fractions import Fraction  # noqa: PLC0415  a millisecond to import, for code that is emitted rarely

    two_over_pi = Fraction(2 << 300, _pi_bits(300))
    pairs = []
    for biased in range(FIRST, 255):
        value = two_over_pi * Fraction(2) ** (biased - 150) % 4
        high = Fraction(int(value * 2**27), 2**27)
        pairs.append((float(high), float(value - high)))
    return tuple(pairs)


def _pi_bits(bits: int) -> int:
    """π·2^bits by Machin's formula, 16·arctan(1/5) - 4·arctan(1/239)."""
    one = 1 << (bits + 16)

    def arctan_of_inverse(n: int) -> int:
        total, term, odd = 0, one // n, 1
        while term:
            total += term // odd * (1 if odd % 4 == 1 else -1)
            term //= n * n
            odd += 2
        return total

    return (16 * arctan_of_inverse(5) - 4 * arctan_of_inverse(239)) >> 16


FUNCTIONS: Mapping[str, Callable[..., Value]] = {
    "neg": lambda _, x: -x, "abs": lambda k, x: k.abs(x), "square": lambda _, x: x * x,
    "sqrt": lambda k, x: k.sqrt(x), "reciprocal": lambda _, x: 1.0 / x, "rsqrt": lambda k, x: 1.0 / k.sqrt(x),
    "floor": lambda k, x: k.floor(x), "ceil": lambda k, x: k.intrinsic("ceil", x.type, x),
    "round": lambda k, x: k.round_even(x), "sign": sign, "sin": sin, "cos": cos, "pow": power,
}  # fmt: skip
BINARY_FUNCTIONS: Mapping[str, Callable[[Function, Value, Value], Value]] = {"pow": pow}
UNARY: Mapping[str, Callable[..., Value]] = {**ACTIVATIONS, **FUNCTIONS}
LONG = frozenset(  # they take many instructions, each of which waits for the one before
    {"elu", "selu", "celu", "sigmoid", "tanh", "erf", "exp", "log", "silu", "mish", "gelu", "gelu_tanh", "softplus", "softsign",
     "sin", "cos", "pow"}
)  # fmt: skip
