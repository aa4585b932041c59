"""One-input mathematics that is one numpy function: signs, rounding, powers, trigonometry, predicates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.cost import Cost, per_element
from kernels.errors import DTypeError
from kernels.expression import Draft, Express, Term, applied
from kernels.operands import NUMBERS, SIGNED
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.scratch import fixed
from kernels.spec import BOOL, FLOATS, INTS, Array, DType, Spec

Ufunc = Callable[..., Any]


def _infer(name: str, dtypes: frozenset[DType], result: DType | None) -> Callable[..., Spec]:
    def infer(x: Spec) -> Spec:
        require_dtype(f"{name}: x", x, dtypes)
        return Spec(x.shape, result or x.dtype)

    return infer


def _run(ufunc: Ufunc) -> Callable[..., None]:
    def run(out: tuple[Array, ...], x: Array) -> None:
        ufunc(x, out=out[0])

    return run


def infer_isinf(x: Spec, *, detect_negative: int = 1, detect_positive: int = 1) -> Spec:
    """Same shape, bool."""
    require_dtype("IsInf: x", x, FLOATS)
    return Spec(x.shape, BOOL)


def run_isinf(out: tuple[Array, ...], x: Array, *, detect_negative: int = 1, detect_positive: int = 1) -> None:
    """Whether x is an infinity of a selected sign."""
    if detect_negative and detect_positive:
        np.isinf(x, out=out[0])
    elif detect_negative or detect_positive:
        np.equal(x, x.dtype.type(np.inf if detect_positive else -np.inf), out=out[0])
    else:
        out[0].fill(False)


def express_isinf(draft: Draft, x: Term, *, detect_negative: int, detect_positive: int) -> Term:
    """A comparison with the infinities of the selected signs."""
    if detect_negative and detect_positive:
        return draft("isinf", x)
    if not detect_negative and not detect_positive:
        return draft.constant(0, BOOL)
    return draft("eq", x, draft.constant(np.inf if detect_positive else -np.inf, x.dtype))


_RANDOM = Case("random", inputs=((2, 3, 5),), cost=Cost(other_flops=30))
_POSITIVE = Case("positive", inputs=((2, 3, 5),), cost=Cost(other_flops=30), domain=(0.01, 8))
_UNIT = Case("unit_interval", inputs=((2, 3, 5),), cost=Cost(other_flops=30), domain=(-0.99, 0.99))
_FROM_ONE = Case("from_one", inputs=((2, 3, 5),), cost=Cost(other_flops=30), domain=(1, 8))
_HALVES = Case("halves", inputs=(np.array([-2.5, -1.5, -0.5, -0.0, 0.5, 1.5, 2.5, 1e30, np.inf], np.float32),))
_INTS = Case("ints", inputs=(np.array([-7, 0, 3], np.int32),), cost=Cost(other_flops=3))
_SPECIALS = Case("specials", inputs=(np.array([np.nan, np.inf, -np.inf, -0.0, 1.5], np.float32),))


def _op(
    name: str,
    ufunc: Ufunc,
    dtypes: frozenset[DType],
    *cases: Case,
    result: DType | None = None,
    wrong: Array | None = None,
    expression: Express | None = None,
) -> Op:
    shared = (
        Case("scalar", inputs=(np.ones((), _any_of(dtypes)),)),
        Case("empty", inputs=(np.ones((0, 3), _any_of(dtypes)),), cost=Cost()),
        Case("wrong_dtype", inputs=(np.ones(2, bool) if wrong is None else wrong,), raises=DTypeError),
    )
    infer = _infer(name, dtypes, result)
    kernels = (Kernel("ufunc", _run(ufunc), scratch_bytes=fixed),)
    cost = per_element(1, name.lower())
    return Op(name, infer, cost, kernels, elementwise=True, expression=expression, cases=cases + shared)


def _any_of(dtypes: frozenset[DType]) -> DType:
    return np.dtype(np.float32) if np.dtype(np.float32) in dtypes else min(dtypes, key=str)


_ISINF = (
    Case("both", inputs=_SPECIALS.inputs, cost=Cost(other_flops=5)),
    Case("positive", inputs=_SPECIALS.inputs, attrs={"detect_negative": 0}),
    Case("negative", inputs=_SPECIALS.inputs, attrs={"detect_positive": 0}),
    Case("neither", inputs=_SPECIALS.inputs, attrs={"detect_positive": 0, "detect_negative": 0}),
    Case("wrong_dtype", inputs=(np.ones(2, np.int32),), raises=DTypeError),
)
_FLOAT_WRONG = np.ones(2, np.float32)

OPS = (
    _op("Abs", np.absolute, NUMBERS, _RANDOM, _INTS, expression=applied("abs")),
    _op("Neg", np.negative, FLOATS | SIGNED, _RANDOM, _INTS, expression=applied("neg")),
    _op("Sign", np.sign, NUMBERS, _RANDOM, _INTS, _SPECIALS, expression=applied("sign")),
    _op("Ceil", np.ceil, FLOATS, _RANDOM, _HALVES, expression=applied("ceil")),
    _op("Floor", np.floor, FLOATS, _RANDOM, _HALVES, expression=applied("floor")),
    _op("Round", np.rint, FLOATS, _RANDOM, _HALVES, expression=applied("round")),  # halves go to the even neighbour
    _op("Reciprocal", np.reciprocal, FLOATS, _POSITIVE, _SPECIALS, expression=applied("reciprocal")),
    _op("Sqrt", np.sqrt, FLOATS, _POSITIVE, _SPECIALS, expression=applied("sqrt")),
    _op("Exp", np.exp, FLOATS, _RANDOM, _SPECIALS, expression=applied("exp")),
    _op("Log", np.log, FLOATS, _POSITIVE, _SPECIALS, expression=applied("log")),
    _op("Sin", np.sin, FLOATS, _RANDOM, expression=applied("sin")),
    _op("Cos", np.cos, FLOATS, _RANDOM, expression=applied("cos")),
    _op("Tan", np.tan, FLOATS, _UNIT),
    _op("Asin", np.arcsin, FLOATS, _UNIT),
    _op("Acos", np.arccos, FLOATS, _UNIT),
    _op("Atan", np.arctan, FLOATS, _RANDOM),
    _op("Sinh", np.sinh, FLOATS, _RANDOM),
    _op("Cosh", np.cosh, FLOATS, _RANDOM),
    _op("Tanh", np.tanh, FLOATS, _RANDOM, _SPECIALS, expression=applied("tanh")),
    _op("Asinh", np.arcsinh, FLOATS, _RANDOM),
    _op("Acosh", np.arccosh, FLOATS, _FROM_ONE),
    _op("Atanh", np.arctanh, FLOATS, _UNIT),
    _op(
        "Not",
        np.logical_not,
        frozenset({BOOL}),
        Case("bools", inputs=(np.array([True, False]),)),
        wrong=_FLOAT_WRONG,
        expression=applied("not"),
    ),
    _op("BitwiseNot", np.invert, INTS, _INTS, wrong=_FLOAT_WRONG, expression=applied("not")),
    _op("IsNaN", np.isnan, FLOATS, _SPECIALS, result=BOOL, expression=applied("isnan")),
    Op(
        "IsInf",
        infer_isinf,
        per_element(1, "compare"),
        (Kernel("ufunc", run_isinf),),
        elementwise=True,
        expression=express_isinf,
        cases=_ISINF,
    ),
)
