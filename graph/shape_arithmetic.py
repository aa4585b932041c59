"""Arithmetic on sizes that are symbols: what exporters compute from shapes before they pass it to Reshape, Expand and others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kernels.ops.layout import run_slice
from kernels.size import least, most
from kernels.spec import Array, Spec, fixed_array, size_array

Attrs = Mapping[str, Any]
Rule = Callable[[Sequence[Any], Attrs, Spec], Any]  # of arrays of objects, attributes and the output's spec


def compute_sizes(op: str, inputs: Sequence[Array | None], attrs: Attrs, made: Sequence[Spec]) -> tuple[Array, ...] | None:
    """Return the outputs of an op some of whose inputs are `SizeArray`s; None for an op that has no rule here.

    made: specs of the outputs, whose shapes are plain numbers. Raises what the arithmetic raises.
    """
    rule = _RULES.get(op)
    if rule is None or len(made) != 1:
        return None
    objects = [None if array is None else np.asarray(array).astype(object) for array in inputs]
    found = rule(objects, attrs, made[0])
    if found is None:
        return None
    found = np.broadcast_to(np.asarray(found, object), made[0].shape)
    return (size_array(found),) if made[0].dtype == np.int64 else (found.astype(made[0].dtype),)


def rule_of(op: str) -> Rule:
    """Return the rule of an op that has one here."""
    return _RULES[op]


def each(function: Callable[..., Any]) -> Rule:
    """Return the rule of an elementwise op: `function` of two elements, again and again where there are more inputs."""
    outer = np.frompyfunc(function, 2, 1)

    def rule(inputs: Sequence[Any], _: Attrs, __: Spec) -> Any:
        found = inputs[0]
        for other in inputs[1:]:
            found = outer(found, other)
        return found

    return rule


def _reduced(function: Callable[[Any], Any]) -> Rule:
    """Return the rule of a reduction of all elements; reductions of some axes have none."""

    def rule(inputs: Sequence[Any], _: Attrs, made: Spec) -> Any:
        return np.array(function(list(inputs[0].flat)), object) if made.elements == 1 else None

    return rule


def _divide(a: Any, b: Any) -> Any:
    """Divide as ONNX does, toward zero."""
    return -((-a) // b) if (a < 0) != (b < 0) else a // b


def _sliced(inputs: Sequence[Any], _: Attrs, made: Spec) -> Any:
    out = np.empty(made.shape, object)
    bounds: Any = (None if each is None else fixed_array(size_array(each)) for each in inputs[1:])
    run_slice((out,), inputs[0], *bounds)
    return out


def _reshaped(inputs: Sequence[Any], _: Attrs, made: Spec) -> Any:
    return inputs[0].reshape(made.shape)


def _kept(inputs: Sequence[Any], _: Attrs, __: Spec) -> Any:
    return inputs[0]


def _cast(inputs: Sequence[Any], _: Attrs, made: Spec) -> Any:
    return inputs[0] if made.dtype == np.int64 else None


def _gathered(inputs: Sequence[Any], attrs: Attrs, _: Spec) -> Any:
    return np.take(inputs[0], inputs[1].astype(np.int64), attrs["axis"])


def _selected(inputs: Sequence[Any], _: Attrs, __: Spec) -> Any:
    return np.where(inputs[0].astype(bool), inputs[1], inputs[2])


_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshaped),
    **dict.fromkeys(("Identity", "Expand"), _kept),
    "Cast": _cast,
    "Gather": _gathered,
    "Slice": _sliced,
    "Concat": lambda inputs, attrs, _: np.concatenate(inputs, attrs["axis"]),
    "Where": _selected,
    "Add": each(lambda a, b: a + b),
    "Sub": each(lambda a, b: a - b),
    "Mul": each(lambda a, b: a * b),
    "Div": each(_divide),
    "Mod": lambda inputs, attrs, spec: None if attrs["fmod"] else each(lambda a, b: a % b)(inputs, attrs, spec),
    "Neg": lambda inputs, _, __: -inputs[0],
    "Min": each(least),
    "Max": each(most),
    "Equal": each(lambda a, b: a == b),
    "Less": each(lambda a, b: a < b),
    "LessOrEqual": each(lambda a, b: a <= b),
    "Greater": each(lambda a, b: a > b),
    "GreaterOrEqual": each(lambda a, b: a >= b),
    "ReduceProd": _reduced(math.prod),
    "ReduceSum": _reduced(sum),
}
