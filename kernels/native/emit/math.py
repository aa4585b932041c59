"""Elementary functions and activations on fp32 vectors, emitted inline.

Each takes the builder and a vector of any width and returns one. A NaN stays a NaN. Exponentials reduce their argument as Cody
and Waite do (Software Manual for the Elementary Functions, 1980): x = n·ln 2 + r, with ln 2 in two parts. Coefficients are what
`kernels.native.emit.remez.fit` gives for the target of the same name; a test fits them again. The largest errors over the whole
range, in units in the last place, are asserted in `tests/kernels/native/test_math.py`:

    exp 1.2    expm1 1.5    log 0.9    log1p of [0, 1] 2.0    tanh 2.4    erf 1.2    sigmoid 2.4    softplus 2.8

Where sigmoid and softplus lie below every normal number they may be 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from kernels.native.emit.builder import Function, Operand, Value
from kernels.native.emit.types import F32, I16, I32, Type

POLYNOMIALS: Mapping[str, tuple[float, ...]] = {  # worst weighted error in exact arithmetic
    "exp": (0.5, 0.1666652113199234, 0.041666388511657715, 0.008368677459657192, 0.0013941876823082566),  # 3.2e-09
    "exp_sixteenth": (0.5000162124633789, 0.16666999459266663),  # 1.6e-09
    "expm1": (0.5, 0.1666666716337204, 0.04166648909449577, 0.008333207108080387, 0.0013932662550359964,
              0.00019945047097280622),  # 4.2e-10
    "erf_small": (0.12837916612625122, -0.3761262893676758, 0.11283624172210693, -0.026855582371354103,
                  0.005191911943256855, -0.0008043122943490744, 7.965167606016621e-05),  # 9.7e-10
    "erf_large": (-0.00017636212578509003, 1.1295231580734253, 0.6333299279212952, 0.10829918831586838,
                  -0.025132067501544952, 0.004175981506705284, -0.0004355037526693195, 2.118746306223329e-05),  # 4.4e-11
    "log": (0.3333331048488617, -0.24999986588954926, 0.20002223551273346, -0.16669249534606934, 0.14218716323375702,
            -0.12384402006864548, 0.11872619390487671, -0.11789370328187943, 0.06915612518787384),  # 7.3e-10
    "log1p": (0.6666666865348816, 0.3999938368797302, 0.2860468626022339, 0.2154775857925415, 0.23884451389312744),  # 3.1e-10
    "log2": (2.88539008179014, 0.9617966732843202, 0.5770835944392638, 0.4116722198837427, 0.34073831822554623),  # 1.2e-11
    "sin": (-0.16666655242443085, 0.008332191966474056, -0.00019518790941219777),  # 3.7e-09
    "cos": (0.04166664555668831, -0.00138873013202101, 2.443066841806285e-05),  # 1.1e-10
}  # fmt: skip

LOG2_E = 1.4426950408889634
LOG2_E_LOW = LOG2_E - float(np.float32(LOG2_E))  # what fp32 misses of it
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440054690583e-4  # their sum is ln 2; n·LN2_HIGH is exact for |n| < 2^15
ROUNDER = 12582912.0  # 1.5·2^23: adding it rounds to an integer, which then is in the low bits
ROOTS = tuple(float(np.float32(2 ** (j / 16))) for j in range(16))
ROOTS_MISSED = tuple(2 ** (j / 16) / root - 1 for j, root in enumerate(ROOTS))  # relative
EXP_ZERO, EXP_INFINITE = -104.0, 89.0  # where e^x rounds to 0 and to infinity
EXP_LEAST, EXP_MOST = -87.33654, 88.0  # between them e^x is a normal number, and so is the power of two next to it
INFINITY = float("inf")
ERF_SPLIT = 0.921875  # below: odd polynomial; above: 1 - exp(-polynomial)
ERF_ONE = 3.92  # erf rounds to 1 from here on


def polynomial(k: Function, x: Value, coefficients: Sequence[float]) -> Value:
    """c0 + c1·x + c2·x² + … by Horner's rule."""
    total = k.const(x.type, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = k.fma(total, x, c)
    return total


def integers(x: Value) -> Type:
    """Return the type of integer that holds the bits of x's lanes."""
    return I32.by(x.type.lanes)


def _split(k: Function, x: Value) -> tuple[Value, Value, Value]:
    """x = n·ln2 + r, |r| ≤ ln2/2: (n as a float, n as an integer, r). |x| below 2^21."""
    biased = k.fma(x, LOG2_E, ROUNDER)
    n = biased - ROUNDER
    r = k.fma(n, -LN2_LOW, k.fma(n, -LN2_HIGH, x))
    bits = k.convert("bitcast", biased, integers(x)) - 0x4B400000  # the bits of ROUNDER
    return n, bits, r


def _power_of_two(k: Function, n: Value) -> Value:
    """2^n of integers, -127 < n < 128."""
    return k.convert("bitcast", k.shift("shl", n + 127, 23), F32.by(n.type.lanes))


def exp(k: Function, x: Value) -> Value:
    """e^x over all of fp32: denormal results, 0 and infinity included."""
    return exp_within(k, k.at_most(k.at_least(x, EXP_ZERO), EXP_INFINITE))


def exp_within(k: Function, x: Value) -> Value:
    """e^x for x from EXP_ZERO to EXP_INFINITE."""
    if _has_unit(k):
        return _exp_by_unit(k, x)
    return _exp_by_table(k, x) if _has_table(k, x) else scaled_exp(k, *_split(k, x))


def exp_or_zero(k: Function, x: Value) -> Value:
    """e^x for x up to EXP_MOST; 0 below EXP_LEAST."""
    if _has_unit(k):
        return _exp_by_unit(k, k.at_least(x, EXP_ZERO))
    if _has_table(k, x):
        return _exp_by_table(k, k.at_least(x, EXP_ZERO))
    return k.select(x < EXP_LEAST, k.zero(x.type), exp_normal(k, x))


def exp_normal(k: Function, x: Value) -> Value:
    """e^x for x from EXP_LEAST to EXP_MOST."""
    if _has_unit(k):
        return _exp_by_unit(k, x)
    if _has_table(k, x):
        return _exp_by_table(k, x)
    _, bits, r = _split(k, x)
    return _exp_of_rest(k, r) * _power_of_two(k, bits)


def _has_unit(k: Function) -> bool:
    """Whether one instruction computes 2^x: GPUs have it."""
    return k.isa.arch == "nvptx64"


def _exp_by_unit(k: Function, x: Value) -> Value:
    """e^x for x from EXP_ZERO to EXP_INFINITE by an instruction for 2^t, whose relative error is 2^-22.

    What the rounding of t = x·log2 e loses is put back: 2^(t + e) is 2^t·(1 + e·ln 2) for so small an e.
    """
    t = x * LOG2_E
    lost = k.fma(x, LOG2_E_LOW, k.fma(x, LOG2_E, -t))
    name = f"llvm.exp2.{x.type.mangled}"
    k.module.declare(name, x.type, [x.type])
    power = k.op(f"call afn {x.type.text} @{name}({t})", x.type, "power")
    return power * k.fma(lost, LN2_HIGH + LN2_LOW, 1.0)


def _has_table(k: Function, x: Value) -> bool:
    return k.isa.masks and x.type == F32.by(16)


def _exp_of_rest(k: Function, r: Value) -> Value:
    """e^r, |r| ≤ ln2/2."""
    return k.fma(r, k.fma(r, polynomial(k, r, POLYNOMIALS["exp"]), 1.0), 1.0)


def scaled_exp(k: Function, n: Value, bits: Value, r: Value) -> Value:
    """2^n·e^r, |r| ≤ ln2/2, for n as a float and as an integer from -151 to 129."""
    p = _exp_of_rest(k, r)
    if _has_table(k, r):
        return _scaled(k, p, n)
    half = k.shift("ashr", bits, 1)  # 2^n in two factors, each of which fp32 holds
    return p * _power_of_two(k, half) * _power_of_two(k, bits - half)


def _exp_by_table(k: Function, x: Value) -> Value:
    """x = n·ln2 + r, n in sixteenths: e^x = 2^floor(n) · 2^(n - floor(n)) · e^r, the second looked up in a register (and what
    fp32 misses of it in another), the first by `_scaled`."""
    biased = k.fma(x, LOG2_E, ROUNDER / 16)
    n, sixteenth = biased - ROUNDER / 16, k.convert("bitcast", biased, integers(x))
    r = k.fma(n, -LN2_LOW, k.fma(n, -LN2_HIGH, x))
    root, missed = (
        k.call("llvm.x86.avx512.permvar.sf.512", x.type, k.const(x.type, t), sixteenth) for t in (ROOTS, ROOTS_MISSED)
    )
    p = k.fma(root, k.fma(r * r, polynomial(k, r, POLYNOMIALS["exp_sixteenth"]), r + missed), root)
    return _scaled(k, p, n)


def _scaled(k: Function, p: Value, n: Value) -> Value:
    """p·2^floor(n) on AVX-512: one instruction, exact at both ends."""
    everywhere, rounding = k.const(I16, -1), k.const(I32, 4)
    return k.call("llvm.x86.avx512.mask.scalef.ps.512", p.type, p, n, p, everywhere, rounding)


def expm1(k: Function, x: Value) -> Value:
    """e^x - 1, accurate near 0 too; for x up to 87, where e^x is about to overflow."""
    x = k.at_most(k.at_least(x, -30.0), 87.0)
    _, bits, r = _split(k, x)
    q = k.fma(r * r, polynomial(k, r, POLYNOMIALS["expm1"]), r)
    scale = _power_of_two(k, bits)
    return k.fma(scale, q, scale - 1.0)


def split_exponent(k: Function, x: Value) -> tuple[Value, Value]:
    """x = 2^e·(1 + m), 1 + m from sqrt(1/2) to sqrt(2), both exact, for x above 0 and finite: (e, m)."""
    small = x < 1.1754943508222875e-38
    scaled = k.select(small, x * 2.0**23, x)  # denormals have no exponent of their own
    bits = k.convert("bitcast", scaled, integers(x))
    shifted = bits - 0x3F3504F3  # the bits of sqrt(1/2): the exponent then centres the mantissa on 1
    exponent = k.convert("sitofp", k.shift("ashr", shifted, 23), x.type) + k.select(small, k.const(x.type, -23.0), 0.0)
    m = k.convert("bitcast", (shifted & 0x007FFFFF) + 0x3F3504F3, x.type) - 1.0
    return exponent, m


def log(k: Function, x: Value) -> Value:
    """The natural logarithm: -infinity at 0, NaN below."""
    exponent, m = split_exponent(k, x)
    square = m * m
    low = k.fma(exponent, LN2_LOW, square * m * polynomial(k, m, POLYNOMIALS["log"]))
    result = k.fma(exponent, LN2_HIGH, k.fma(square, -0.5, low) + m)
    result = k.select(k.compare("eq", x, 0.0), k.const(x.type, -INFINITY), result)
    result = k.select(k.compare("eq", x, INFINITY), x, result)
    return k.select(k.compare("ge", x, 0.0), result, k.const(x.type, float("nan")))


def log1p_unit(k: Function, u: Value) -> Value:
    """log(1 + u) for u in [0, 1]."""
    s = u / (u + 2.0)
    square = s * s
    return k.fma(s * square, polynomial(k, square, POLYNOMIALS["log1p"]), s + s)


def tanh(k: Function, x: Value) -> Value:
    """The hyperbolic tangent, never outside [-1, 1]."""
    magnitude = k.at_most(k.abs(x), 9.1)
    e = expm1(k, magnitude + magnitude)
    return k.copysign(e / (e + 2.0), x)


def sigmoid(k: Function, x: Value) -> Value:
    """1 / (1 + e^-x), never outside [0, 1].

    The division stays: an approximate reciprocal with a Newton step takes 1.9 cycles a vector more on Zen 5 (AVX-512).
    """
    e = exp_or_zero(k, k.at_most(x, 40.0))
    return e / (e + 1.0)


def erf(k: Function, x: Value) -> Value:
    """The error function, never outside [-1, 1]."""
    magnitude = k.at_most(k.abs(x), ERF_ONE)
    square = magnitude * magnitude
    small = k.fma(magnitude, polynomial(k, square, POLYNOMIALS["erf_small"]), magnitude)
    large = 1.0 - exp_normal(k, -polynomial(k, magnitude, POLYNOMIALS["erf_large"]))
    return k.copysign(k.select(magnitude < ERF_SPLIT, small, large), x)


def relu(k: Function, x: Value) -> Value:
    """max(x, 0)."""
    return k.at_least(x, 0.0)


def clip(k: Function, x: Value, low: Operand = -INFINITY, high: Operand = INFINITY) -> Value:
    """min(max(x, low), high): high wins where they cross, as in ONNX."""
    x = x if low == -INFINITY else k.at_least(x, low)
    return x if high == INFINITY else k.at_most(x, high)


def leaky_relu(k: Function, x: Value, alpha: Operand = 0.01) -> Value:
    """x, and alpha·x below 0; with a vector of slopes this is PReLU."""
    return k.select(x < 0.0, x * alpha, x)


def thresholded_relu(k: Function, x: Value, alpha: float = 1.0) -> Value:
    """x where x > alpha, else 0."""
    return k.select(x > alpha, x, k.zero(x.type))


def elu(k: Function, x: Value, alpha: float = 1.0) -> Value:
    """x, and alpha·(e^x - 1) below 0."""
    return k.select(x < 0.0, expm1(k, x) * alpha, x)


def selu(k: Function, x: Value, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805) -> Value:
    """gamma·elu(x, alpha)."""
    return elu(k, x, alpha) * gamma


def celu(k: Function, x: Value, alpha: float = 1.0) -> Value:
    """x, and alpha·(e^(x/alpha) - 1) below 0."""
    return k.select(x < 0.0, expm1(k, x * (1.0 / alpha)) * alpha, x)


def silu(k: Function, x: Value) -> Value:
    """x·sigmoid(x)."""
    return x * sigmoid(k, x)


def hard_sigmoid(k: Function, x: Value, alpha: float = 0.2, beta: float = 0.5) -> Value:
    """alpha·x + beta within [0, 1]."""
    return clip(k, k.fma(x, alpha, beta), 0.0, 1.0)


def hard_swish(k: Function, x: Value) -> Value:
    """x·hard_sigmoid(x, 1/6, 1/2)."""
    return x * hard_sigmoid(k, x, 1 / 6, 0.5)


def gelu(k: Function, x: Value) -> Value:
    """x·(1 + erf(x/√2))/2."""
    return x * 0.5 * (erf(k, x * 0.7071067811865476) + 1.0)


def gelu_tanh(k: Function, x: Value) -> Value:
    """x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))/2."""
    inner = x * k.fma(x * x, 0.7978845608028654 * 0.044715, 0.7978845608028654)
    return x * 0.5 * (tanh(k, inner) + 1.0)


def softplus(k: Function, x: Value) -> Value:
    """log(1 + e^x)."""
    return k.at_least(x, 0.0) + log1p_unit(k, exp_or_zero(k, -k.abs(x)))


def softsign(k: Function, x: Value) -> Value:
    """x / (1 + |x|)."""
    return x / (k.abs(x) + 1.0)


def mish(k: Function, x: Value) -> Value:
    """x·tanh(softplus(x)): with e = e^x that is x·n/(n + 2), n = e·(e + 2)."""
    e = exp_or_zero(k, k.at_most(x, 30.0))
    n = e * (e + 2.0)
    return x * (n / (n + 2.0))


ACTIVATIONS: Mapping[str, Callable[..., Value]] = {
    "relu": relu, "clip": clip, "leaky_relu": leaky_relu, "thresholded_relu": thresholded_relu, "elu": elu, "selu": selu,
    "celu": celu, "sigmoid": sigmoid, "tanh": tanh, "erf": erf, "exp": exp, "log": log, "silu": silu, "mish": mish,
    "hard_sigmoid": hard_sigmoid, "hard_swish": hard_swish, "gelu": gelu, "gelu_tanh": gelu_tanh, "softplus": softplus,
    "softsign": softsign,
}  # fmt: skip


BINARY: Mapping[str, Callable[[Function, Value, Value], Value]] = {
    "add": lambda _, a, b: a + b, "sub": lambda _, a, b: a - b, "mul": lambda _, a, b: a * b, "div": lambda _, a, b: a / b,
    "max": lambda k, a, b: k.maximum(a, b), "min": lambda k, a, b: k.minimum(a, b),
    "prelu": leaky_relu,
}  # fmt: skip
