"""Adagrad, Adam and Momentum of ai.onnx.preview.training: one step of training, which moves parameters against their gradients.

Inputs are the rate, the number of updates so far, then all parameters, all their gradients, and all of each state; outputs are
the new parameters and states. Formulas are those of ONNX's definition.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.cost import Cost
from kernels.errors import AttributeValueError, DTypeError, ShapeError
from kernels.operands import one_of
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.scratch import times
from kernels.spec import Array, Spec

_FLOATS = frozenset(map(np.dtype, ("float32", "float64")))
_COUNTS = frozenset({np.dtype(np.int64)})
_Step = Callable[..., tuple[Array, ...]]  # rate, count, parameter, gradient and states -> the new parameter and states


def _infer(name: str, states: int, rate: Spec, count: Spec, tensors: tuple[Spec | None, ...]) -> tuple[Spec, ...]:
    """The specs of all new parameters and states."""
    require_dtype(f"{name}: rate", rate, _FLOATS)
    require_dtype(f"{name}: update count", count, _COUNTS)
    kinds = 2 + states
    if (rate.elements, count.elements) != (1, 1) or not tensors or len(tensors) % kinds:
        raise ShapeError(
            f"{name}: rate {rate}, update count {count}, {len(tensors)} tensors, need two numbers and {kinds} tensors each"
        )
    each = len(tensors) // kinds
    for i, spec in enumerate(tensors):
        first = tensors[i % each]
        if spec is None or spec != first:
            raise ShapeError(f"{name}: tensor {i} is {spec}, need {first} as its parameter")
        require_dtype(f"{name}: tensor {i}", spec, _FLOATS)
    return tuple(spec.with_value(None) for i, spec in enumerate(tensors) if spec is not None and not each <= i < 2 * each)


def _run(step: _Step, states: int, out: tuple[Array | None, ...], inputs: tuple[Array, ...], attrs: dict[str, Any]) -> None:
    rate, count, *tensors = inputs
    each = len(tensors) // (2 + states)
    for i in range(each):
        for kind, made in enumerate(step(float(rate.item()), int(count.item()), *tensors[i::each], **attrs)):
            if (target := out[kind * each + i] if kind * each + i < len(out) else None) is not None:
                np.copyto(target, made)


def infer_adagrad(
    rate: Spec,
    count: Spec,
    *tensors: Spec | None,
    decay_factor: float = 0.0,
    epsilon: float = 1e-6,
    norm_coefficient: float = 0.0,
) -> tuple[Spec, ...]:
    """New parameters and new sums of squared gradients."""
    return _infer("Adagrad", 1, rate, count, tensors)


def _adagrad(
    rate: float,
    count: int,
    x: Array,
    gradient: Array,
    squares: Array,
    decay_factor: float,
    epsilon: float,
    norm_coefficient: float,
) -> tuple[Array, ...]:
    slope = norm_coefficient * x + gradient
    squares = squares + slope * slope
    return x - rate / (1 + count * decay_factor) * slope / (np.sqrt(squares) + epsilon), squares


def infer_adam(
    rate: Spec,
    count: Spec,
    *tensors: Spec | None,
    alpha: float = 0.9,
    beta: float = 0.999,
    epsilon: float = 1e-6,
    norm_coefficient: float = 0.0,
    norm_coefficient_post: float = 0.0,
) -> tuple[Spec, ...]:
    """New parameters, new means of gradients and of squared gradients."""
    return _infer("Adam", 2, rate, count, tensors)


def _adam(
    rate: float,
    count: int,
    x: Array,
    gradient: Array,
    mean: Array,
    squares: Array,
    *,
    alpha: float,
    beta: float,
    epsilon: float,
    norm_coefficient: float,
    norm_coefficient_post: float,
) -> tuple[Array, ...]:
    slope = norm_coefficient * x + gradient
    mean = alpha * mean + (1 - alpha) * slope
    squares = beta * squares + (1 - beta) * slope * slope
    if count > 0:
        rate = float(rate * np.sqrt(1 - np.float64(beta) ** count) / (1 - np.float64(alpha) ** count))
    return (1 - norm_coefficient_post) * (x - rate * mean / (np.sqrt(squares) + epsilon)), mean, squares


def infer_momentum(
    rate: Spec, count: Spec, *tensors: Spec | None, alpha: float, beta: float, mode: str, norm_coefficient: float
) -> tuple[Spec, ...]:
    """New parameters and new momentums."""
    one_of("Momentum: attribute mode", mode, ("standard", "nesterov"))
    return _infer("Momentum", 1, rate, count, tensors)


def _momentum(
    rate: float,
    count: int,
    x: Array,
    gradient: Array,
    momentum: Array,
    *,
    alpha: float,
    beta: float,
    mode: str,
    norm_coefficient: float,
) -> tuple[Array, ...]:
    slope = norm_coefficient * x + gradient
    momentum = alpha * momentum + (beta if count > 0 else 1) * slope
    return x - rate * (momentum if mode == "standard" else slope + alpha * momentum), momentum


def _op(name: str, infer: Callable[..., Any], step: _Step, states: int, flops: int, cases: tuple[Case, ...]) -> Op:
    def cost(out: tuple[Spec, ...], rate: Spec, count: Spec, *tensors: Spec | None, **attrs: Any) -> Cost:
        return Cost(other_flops=flops * sum(spec.elements for spec in out[: len(tensors) // (2 + states)]))

    def run(out: tuple[Array | None, ...], *inputs: Array, **attrs: Any) -> None:
        _run(step, states, out, inputs, attrs)

    cost.__doc__ = f"{flops} per parameter, as ONNX's formula has them."
    kernel = Kernel("formula", run, scratch_bytes=times(4))
    return Op(f"ai.onnx.preview.training.{name}", infer, cost, (kernel,), tolerance_eps=16, cases=cases)


_R, _T = np.array(0.1, np.float32), np.array(3, np.int64)
_MOMENTUM = {"alpha": 0.95, "beta": 0.1, "mode": "standard", "norm_coefficient": 0.001}
_SQUARES = np.array([[0.5, 2, 3]], np.float32)
_BAD = (
    Case("shapes_differ", inputs=(_R, _T, (1, 3), (1, 3), (3, 1)), raises=ShapeError),
    Case("one_missing", inputs=(_R, _T, (1, 3), (1, 3)), raises=ShapeError),
    Case("float_count", inputs=(_R, _R, (1, 3), (1, 3), (1, 3)), raises=DTypeError),
)
OPS = (
    _op(
        "Adagrad",
        infer_adagrad,
        _adagrad,
        1,
        9,
        (
            Case("one", inputs=(_R, _T, (1, 3), (1, 3), _SQUARES), outputs=2, cost=Cost(other_flops=27)),
            Case(
                "two",
                inputs=(_R, _T, (1, 3), (2,), (1, 3), (2,), _SQUARES, np.ones(2, np.float32)),
                attrs={"decay_factor": 0.1},
                outputs=4,
            ),
            *_BAD,
        ),
    ),
    _op(
        "Adam",
        infer_adam,
        _adam,
        2,
        16,
        (
            Case("one", inputs=(_R, _T, (1, 3), (1, 3), (1, 3), _SQUARES), outputs=3, cost=Cost(other_flops=48)),
            Case(
                "first",
                inputs=(_R, np.array(0), (1, 3), (1, 3), (1, 3), _SQUARES),
                attrs={"norm_coefficient_post": 0.1},
                outputs=3,
            ),
            Case("one_missing", inputs=(_R, _T, (1, 3), (1, 3), (1, 3)), raises=ShapeError),
        ),
    ),
    _op(
        "Momentum",
        infer_momentum,
        _momentum,
        1,
        7,
        (
            Case("standard", inputs=(_R, _T, (1, 3), (1, 3), (1, 3)), attrs=_MOMENTUM, outputs=2, cost=Cost(other_flops=21)),
            Case(
                "nesterov", inputs=(_R, np.array(0), (1, 3), (1, 3), (1, 3)), attrs={**_MOMENTUM, "mode": "nesterov"}, outputs=2
            ),
            Case(
                "mode", inputs=(_R, _T, (1, 3), (1, 3), (1, 3)), attrs={**_MOMENTUM, "mode": "heavy"}, raises=AttributeValueError
            ),
            *(Case(case.id, case.inputs, _MOMENTUM, raises=case.raises) for case in _BAD),
        ),
    ),
)
