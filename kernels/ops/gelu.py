"""Gelu in ONNX's two forms, and the com.microsoft ops that add a bias first."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from kernels.blocks import Formula, blockwise
from kernels.cost import Cost
from kernels.errors import AttributeValueError, DTypeError, ShapeError
from kernels.expression import Draft, Term
from kernels.operands import one_dtype, one_of
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.scratch import fixed
from kernels.spec import FLOATS, Array, Spec
from kernels.special import erf


def gelu(y: Array, x: Array) -> None:
    """x/2 · (1 + erf(x/√2)): the exact form."""
    gate = erf(np.multiply(x, math.sqrt(0.5), dtype=x.dtype))
    gate += 1
    gate *= 0.5
    np.multiply(x, gate, out=y)


def gelu_tanh(y: Array, x: Array) -> None:
    """x/2 · (1 + tanh(√(2/π)·(x + 0.044715·x³)))."""
    gate = x * x
    gate *= 0.044715
    gate += 1
    gate *= x
    gate *= math.sqrt(2 / math.pi)
    np.tanh(gate, out=gate)
    gate += 1
    gate *= 0.5
    np.multiply(x, gate, out=y)


_FORMS: dict[str, tuple[Formula, int]] = {"none": (gelu, 5), "tanh": (gelu_tanh, 9)}  # formula, flops an element


def infer(x: Spec, *, approximate: str = "none") -> Spec:
    """Same shape and dtype."""
    require_dtype("Gelu: x", x, FLOATS)
    one_of("Gelu: attribute approximate", approximate, _FORMS)
    return Spec(x.shape, x.dtype)


def cost(out: tuple[Spec, ...], x: Spec, *, approximate: str = "none") -> Cost:
    """Per element: 5 (divide, erf, add, two multiplies); the tanh form 9 (six multiplies, two adds, tanh)."""
    return Cost(other_flops=_FORMS[approximate][1] * x.elements)


def run(out: tuple[Array, ...], x: Array, *, approximate: str = "none") -> None:
    """In blocks."""
    blockwise(_FORMS[approximate][0], out[0], x)


def express(draft: Draft, x: Term, *, approximate: str) -> Term:
    """The activation of that form."""
    return draft("gelu_tanh" if approximate == "tanh" else "gelu", x)


def _express_biased(approximate: str) -> Callable[..., Term]:
    def express_biased(draft: Draft, x: Term, bias: Term | None = None) -> Term:
        return express(draft, x if bias is None else draft("add", x, bias), approximate=approximate)

    return express_biased


def infer_microsoft(x: Spec) -> Spec:
    """Same shape and dtype."""
    return infer(x)


def infer_bias_gelu(x: Spec, bias: Spec) -> Spec:
    """Same shape and dtype; one bias for each of the last axis."""
    return _infer_biased("BiasGelu", x, bias)


def infer_fast_gelu(x: Spec, bias: Spec | None = None) -> Spec:
    """Same shape and dtype; one bias for each of the last axis, or none."""
    return _infer_biased("FastGelu", x, bias)


def _infer_biased(name: str, x: Spec, bias: Spec | None) -> Spec:
    require_dtype(f"{name}: x", x, FLOATS)
    if bias is not None:
        one_dtype(name, x, bias)
        if bias.rank != 1 or x.shape[-1:] != bias.shape:
            raise ShapeError(f"{name}: bias is {bias}, need one value for each of the last axis of x {x}")
    return Spec(x.shape, x.dtype)


def _cost_biased(approximate: str) -> Callable[..., Cost]:
    flops = _FORMS[approximate][1]

    def cost_biased(out: tuple[Spec, ...], x: Spec, bias: Spec | None = None) -> Cost:
        return Cost(other_flops=(flops + (bias is not None)) * x.elements)

    cost_biased.__doc__ = f"{flops} per element as Gelu's {approximate} form, and one for the bias where there is one."
    return cost_biased


def _run_biased(approximate: str) -> Callable[..., None]:
    def run_biased(out: tuple[Array, ...], x: Array, bias: Array | None = None) -> None:
        shifted = x if bias is None else np.add(x, bias, out=out[0])
        run(out, shifted, approximate=approximate)

    return run_biased


_SPECIALS = np.array([np.nan, np.inf, -0.0, 100, -100], np.float32)
_SHARED = (
    Case("empty", inputs=((0, 3),), cost=Cost()),
    Case("wrong_dtype", inputs=(np.ones(2, np.int32),), raises=DTypeError),
)
_CASES = (
    Case("exact", inputs=((2, 3, 5),), cost=Cost(other_flops=150)),
    Case("tanh", inputs=((2, 3, 5),), attrs={"approximate": "tanh"}, cost=Cost(other_flops=270)),
    Case("specials", inputs=(_SPECIALS,)),
    Case("half", inputs=(np.linspace(-9, 9, 64, dtype=np.float16),)),
    Case("unknown_form", inputs=((2,),), attrs={"approximate": "erf"}, raises=AttributeValueError),
    *_SHARED,
)
_FAST_CASES = (
    Case("bias", inputs=((2, 3), (3,)), cost=Cost(other_flops=60)),
    Case("no_bias", inputs=((2, 3),), cost=Cost(other_flops=54)),
    Case("bias_length", inputs=((2, 3), (2,)), raises=ShapeError),
    *_SHARED,
)
_BIAS_CASES = (
    Case("bias", inputs=((2, 3), (3,)), cost=Cost(other_flops=36)),
    Case("empty", inputs=((0, 3), (3,)), cost=Cost()),
    Case("no_bias", inputs=((2, 3),), raises=ShapeError),
    Case("bias_dtype", inputs=((2, 3), np.ones(3, np.float64)), raises=DTypeError),
    Case("wrong_dtype", inputs=(np.ones(2, np.int32), np.ones(2, np.int32)), raises=DTypeError),
)

OPS = (
    Op("Gelu", infer, cost, (Kernel("blocks", run, scratch_bytes=fixed),), elementwise=True, expression=express, cases=_CASES),
    Op(
        "com.microsoft.Gelu",
        infer_microsoft,
        cost,
        (Kernel("blocks", run, scratch_bytes=fixed),),
        elementwise=True,
        expression=_express_biased("none"),
        cases=_CASES[:1] + _SHARED,
    ),
    Op(
        "com.microsoft.BiasGelu",
        infer_bias_gelu,
        _cost_biased("none"),
        (Kernel("blocks", _run_biased("none")),),
        elementwise=True,
        expression=_express_biased("none"),
        cases=_BIAS_CASES,
    ),
    Op(
        "com.microsoft.FastGelu",
        infer_fast_gelu,
        _cost_biased("tanh"),
        (Kernel("blocks", _run_biased("tanh")),),
        elementwise=True,
        expression=_express_biased("tanh"),
        cases=_FAST_CASES,
    ),
)
