"""Fused elementwise ops as steps that a kernel does to its results before it stores them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graph.ir import Node
from kernels.native.emit.functions import Activation
from kernels.native.errors import EmitError
from kernels.spec import Array

BINARY: Mapping[str, str] = {
    "Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Max": "max", "Min": "min", "PRelu": "prelu",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Merged:
    """A step that takes another value: `op` of math.BINARY on what is there and `value`, swapped: the other way round."""

    op: str
    value: str
    swapped: bool = False


def find_steps(node: Node, constants: Mapping[str, Array]) -> list[Activation | Merged] | None:
    """What a node's epilogue does, or None when one of its ops has no native form."""
    steps = []
    for fused in node.epilogue:
        step = step_of(fused.op, fused.inputs, fused.attrs, "", constants)
        if step is None:
            return None
        steps.append(step)
    return steps


def steps_of(node: Node, constants: Mapping[str, Array]) -> list[Activation | Merged]:
    """What a node's epilogue does. Raises EmitError when one of its ops has no native form: such a node is refused before."""
    steps = find_steps(node, constants)
    if steps is None:
        raise EmitError(f"epilogue of {node.name!r}: {'+'.join(f.op for f in node.epilogue)} has no native form")
    return steps


def step_of(
    op: str, inputs: Sequence[str], attrs: Mapping[str, Any], value: str, constants: Mapping[str, Array]
) -> Activation | Merged | None:
    """One elementwise op as a step on `value`, which is one of its inputs; None when it has no native form."""
    if op in _UNARY and inputs[0] == value and all(name in constants for name in inputs[1:] if name):
        return _UNARY[op](attrs, [constants.get(name) for name in inputs])
    if op == "Mul" and inputs[0] == inputs[1] == value:
        return Activation("square")
    if op not in BINARY or len(inputs) != 2 or inputs[0] == inputs[1]:
        return None
    swapped = inputs[1] == value
    if swapped and op == "PRelu":
        return None
    return Merged(BINARY[op], inputs[0] if swapped else inputs[1], swapped)


_Unary = Callable[[Mapping[str, Any], Sequence[Array | None]], Activation | None]


def _plain(name: str, *parameters: str) -> _Unary:
    """The activation of that name with those attributes as its parameters."""
    return lambda attrs, _: Activation(name, tuple(float(attrs[p]) for p in parameters))


def _clip(attrs: Mapping[str, Any], inputs: Sequence[Array | None]) -> Activation | None:
    """Clip's bounds are inputs; they have to be known."""
    bounds = [-math.inf, math.inf]
    for n, bound in enumerate(inputs[1:3]):
        if bound is not None:
            bounds[n] = float(bound)
    return Activation("clip", (bounds[0], bounds[1])) if not any(map(math.isnan, bounds)) else None


def _gelu(attrs: Mapping[str, Any], _: Sequence[Array | None]) -> Activation:
    return Activation("gelu_tanh" if attrs.get("approximate") == "tanh" else "gelu")


def _swish(attrs: Mapping[str, Any], _: Sequence[Array | None]) -> Activation | None:
    return Activation("silu") if attrs["alpha"] == 1 else None


def _power(_: Mapping[str, Any], inputs: Sequence[Array | None]) -> Activation | None:
    """A known exponent, the same for all."""
    exponent = inputs[1]
    return Activation("pow", (float(exponent.reshape(())),)) if exponent is not None and exponent.size == 1 else None


_UNARY: Mapping[str, _Unary] = {
    "Relu": _plain("relu"), "Clip": _clip, "Sigmoid": _plain("sigmoid"), "Tanh": _plain("tanh"), "Erf": _plain("erf"),
    "Exp": _plain("exp"), "Log": _plain("log"), "Swish": _swish, "Mish": _plain("mish"), "Gelu": _gelu,
    "HardSigmoid": _plain("hard_sigmoid", "alpha", "beta"), "HardSwish": _plain("hard_swish"),
    "LeakyRelu": _plain("leaky_relu", "alpha"), "ThresholdedRelu": _plain("thresholded_relu", "alpha"),
    "Elu": _plain("elu", "alpha"), "Selu": _plain("selu", "alpha", "gamma"), "Celu": _plain("celu", "alpha"),
    "Softplus": _plain("softplus"), "Softsign": _plain("softsign"), "Neg": _plain("neg"), "Abs": _plain("abs"),
    "Sqrt": _plain("sqrt"), "Reciprocal": _plain("reciprocal"), "Floor": _plain("floor"), "Ceil": _plain("ceil"),
    "Round": _plain("round"), "Sign": _plain("sign"), "Sin": _plain("sin"), "Cos": _plain("cos"), "Pow": _power,
}  # fmt: skip
NATIVE_STEPS = (*BINARY, *_UNARY)  # the ops that can be a step
