"""Activations of several scalar operations each, computed in blocks that stay in cache.

In every formula y may be the same memory as x.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kernels.blocks import blockwise
from kernels.cost import Cost, per_element
from kernels.errors import DTypeError
from kernels.expression import Draft, Express, Term, applied
from kernels.operands import SIGNED
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.scratch import fixed
from kernels.spec import FLOATS, INTS, Array, DType, Spec
from kernels.special import erf


def sigmoid(y: Array, x: Array) -> None:
    """1 / (1 + exp(-x)); exp may overflow to infinity, which gives 0."""
    np.negative(x, out=y)
    np.exp(y, out=y)
    y += 1
    np.reciprocal(y, out=y)


def hard_sigmoid(y: Array, x: Array, alpha: float, beta: float) -> None:
    """max(0, min(1, alpha·x + beta))."""
    np.multiply(x, alpha, out=y)
    y += beta
    np.clip(y, 0, 1, out=y)


def hard_swish(y: Array, x: Array) -> None:
    """x · max(0, min(1, x/6 + 1/2))."""
    gate = np.multiply(x, 1 / 6, dtype=x.dtype)
    gate += 0.5
    np.clip(gate, 0, 1, out=gate)
    np.multiply(x, gate, out=y)


def relu(y: Array, x: Array) -> None:
    """max(x, 0)."""
    np.maximum(x, x.dtype.type(0), out=y)


def leaky_relu(y: Array, x: Array, alpha: float) -> None:
    """x where x ≥ 0, else alpha·x."""
    np.copyto(y, np.where(x < 0, x * x.dtype.type(alpha), x))


def thresholded_relu(y: Array, x: Array, alpha: float) -> None:
    """x where x > alpha, else 0."""
    np.copyto(y, np.where(x > alpha, x, x.dtype.type(0)))


def elu(y: Array, x: Array, alpha: float) -> None:
    """x where x ≥ 0, else alpha·(exp(x) - 1)."""
    np.copyto(y, np.where(x < 0, x.dtype.type(alpha) * np.expm1(x), x))


def selu(y: Array, x: Array, alpha: float, gamma: float) -> None:
    """gamma · (x where x > 0, else alpha·exp(x) - alpha)."""
    elu(y, x, alpha)
    y *= gamma


def celu(y: Array, x: Array, alpha: float) -> None:
    """max(0, x) + min(0, alpha·(exp(x/alpha) - 1))."""
    np.copyto(y, np.where(x < 0, x.dtype.type(alpha) * np.expm1(x / x.dtype.type(alpha)), x))


def softplus(y: Array, x: Array) -> None:
    """log(1 + exp(x)), as max(x, 0) + log1p(exp(-|x|)): nothing overflows, and three times as fast as np.logaddexp."""
    rest = np.abs(x)
    np.negative(rest, out=rest)
    np.exp(rest, out=rest)
    np.log1p(rest, out=rest)
    np.maximum(x, 0, out=y)
    y += rest


def softsign(y: Array, x: Array) -> None:
    """x / (1 + |x|)."""
    divisor = np.abs(x)
    divisor += 1
    np.divide(x, divisor, out=y)


def mish(y: Array, x: Array) -> None:
    """x · tanh(softplus(x))."""
    gate = np.empty_like(x)
    softplus(gate, x)
    np.tanh(gate, out=gate)
    np.multiply(x, gate, out=y)


def swish(y: Array, x: Array, alpha: float) -> None:
    """x · sigmoid(alpha·x)."""
    gate = np.multiply(x, alpha, dtype=x.dtype)
    sigmoid(gate, gate)
    np.multiply(x, gate, out=y)


def shrink(y: Array, x: Array, lambd: float, bias: float) -> None:
    """x + bias where x < -lambd, x - bias where x > lambd, else 0. Integers are shifted in float64, and rounded toward 0."""
    above, below = x > lambd, x < -lambd
    shifted = np.where(above, -bias, bias).astype(np.float64 if x.dtype.kind in "iu" else x.dtype)
    shifted += x
    np.copyto(y, np.where(above | below, shifted, shifted.dtype.type(0)), casting="unsafe")


def erf_formula(y: Array, x: Array) -> None:
    """The error function."""
    np.copyto(y, erf(x))


def _checked(name: str, x: Spec, dtypes: frozenset[DType] = FLOATS) -> Spec:
    require_dtype(f"{name}: x", x, dtypes)
    return Spec(x.shape, x.dtype)


def _plain(name: str, dtypes: frozenset[DType] = FLOATS) -> Callable[..., Spec]:
    def infer(x: Spec) -> Spec:
        return _checked(name, x, dtypes)

    return infer


def _with_alpha(name: str, default: float) -> Callable[..., Spec]:
    def infer(x: Spec, *, alpha: float = default) -> Spec:
        return _checked(name, x)

    return infer


def infer_hard_sigmoid(x: Spec, *, alpha: float = 0.2, beta: float = 0.5) -> Spec:
    """Same shape and dtype."""
    return _checked("HardSigmoid", x)


def infer_selu(x: Spec, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Spec:
    """Same shape and dtype."""
    return _checked("Selu", x)


def infer_shrink(x: Spec, *, lambd: float = 0.5, bias: float = 0.0) -> Spec:
    """Same shape and dtype; integers too."""
    return _checked("Shrink", x, FLOATS | INTS)


def express_relu(draft: Draft, x: Term) -> Term:
    """The activation of floats, the maximum with 0 of integers."""
    return draft("relu", x) if x.dtype.kind == "f" else draft("max", x, draft.constant(0, x.dtype))


def express_swish(draft: Draft, x: Term, *, alpha: float) -> Term:
    """The activation of its own that there is for alpha = 1, else the formula."""
    if alpha == 1:
        return draft("silu", x)
    return draft("mul", x, draft("sigmoid", draft("mul", x, draft.constant(alpha, x.dtype))))


def _op(
    infer: Callable[..., Spec],
    name: str,
    formula: Callable[..., None],
    flops: int,
    counted: str,
    *cases: Case,
    expression: Express | None = None,
) -> Op:
    def run(out: tuple[Array, ...], x: Array, **attrs: float) -> None:
        blockwise(lambda y_block, x_block: formula(y_block, x_block, **attrs), out[0], x)

    shared = (
        Case("random", inputs=((2, 3, 5),), cost=Cost(other_flops=30 * flops)),
        Case("several_blocks", inputs=((3, 20000),)),
        Case("specials", inputs=(np.array([np.nan, np.inf, -np.inf, -0.0, 100, -100, 88.8, -88.8], np.float32),)),
        Case("half", inputs=(np.linspace(-9, 9, 64, dtype=np.float16),)),
        Case("scalar", inputs=((),)),
        Case("empty", inputs=((0, 3),), cost=Cost()),
        Case("wrong_dtype", inputs=(np.ones(2, bool),), raises=DTypeError),
    )
    kernels = (Kernel("blocks", run, scratch_bytes=fixed),)
    return Op(name, infer, per_element(flops, counted), kernels, elementwise=True, expression=expression, cases=cases + shared)


_INTS = Case("ints", inputs=(np.array([-7, 0, 3], np.int32),))
_ALPHA = Case("alpha", inputs=((3, 5),), attrs={"alpha": 0.75})

OPS = (
    _op(_plain("Relu", FLOATS | SIGNED), "Relu", relu, 1, "compare", _INTS, expression=express_relu),
    _op(_plain("Erf"), "Erf", erf_formula, 1, "erf", expression=applied("erf")),
    _op(_plain("Sigmoid"), "Sigmoid", sigmoid, 4, "negate, exp, add, divide", expression=applied("sigmoid")),
    _op(
        infer_hard_sigmoid,
        "HardSigmoid",
        hard_sigmoid,
        4,
        "multiply, add, min, max",
        Case("attributes", inputs=((3, 5),), attrs={"alpha": 1 / 6, "beta": 0.25}),
        expression=applied("hard_sigmoid", "alpha", "beta"),
    ),
    _op(_plain("HardSwish"), "HardSwish", hard_swish, 5, "multiply, add, min, max, multiply", expression=applied("hard_swish")),
    _op(
        _with_alpha("LeakyRelu", 0.01),
        "LeakyRelu",
        leaky_relu,
        2,
        "compare, multiply",
        _ALPHA,
        expression=applied("leaky_relu", "alpha"),
    ),
    _op(
        _with_alpha("ThresholdedRelu", 1.0),
        "ThresholdedRelu",
        thresholded_relu,
        1,
        "compare",
        _ALPHA,
        expression=applied("thresholded_relu", "alpha"),
    ),
    _op(_with_alpha("Elu", 1.0), "Elu", elu, 4, "compare, exp, subtract, multiply", _ALPHA, expression=applied("elu", "alpha")),
    _op(
        infer_selu,
        "Selu",
        selu,
        5,
        "compare, exp, subtract, multiply by alpha and by gamma",
        Case("attributes", inputs=((3, 5),), attrs={"alpha": 2.0, "gamma": 3.0}),
        expression=applied("selu", "alpha", "gamma"),
    ),
    _op(
        _with_alpha("Celu", 1.0),
        "Celu",
        celu,
        5,
        "compare, divide, exp, subtract, multiply",
        _ALPHA,
        expression=applied("celu", "alpha"),
    ),
    _op(_plain("Softplus"), "Softplus", softplus, 3, "exp, add, log", expression=applied("softplus")),
    _op(_plain("Softsign"), "Softsign", softsign, 3, "absolute, add, divide", expression=applied("softsign")),
    _op(_plain("Mish"), "Mish", mish, 5, "exp, add, log, tanh, multiply", expression=applied("mish")),
    _op(_with_alpha("Swish", 1.0), "Swish", swish, 6, "multiply, sigmoid (4), multiply", _ALPHA, expression=express_swish),
    _op(
        _with_alpha("QuickGelu", 1.702),
        "com.microsoft.QuickGelu",
        swish,
        6,
        "multiply, sigmoid (4), multiply",
        _ALPHA,
        expression=express_swish,
    ),
    _op(
        infer_shrink,
        "Shrink",
        shrink,
        3,
        "two compares, add",
        Case("attributes", inputs=((3, 5),), attrs={"lambd": 0.25, "bias": 0.125}),
        _INTS,
        Case("ints_by_a_half", inputs=_INTS.inputs, attrs={"bias": 0.5}),
    ),
)
