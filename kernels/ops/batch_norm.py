"""BatchNormalization: y = (x - mean) / sqrt(var + epsilon) · scale + bias, per channel.

At inference mean and variance are inputs. In training they are those of x, and move the inputs, which are outputs then, towards
them: mean · momentum + mean of x · (1 - momentum).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.batch_axis import Application, only_first_input_has_rows
from kernels.cost import Cost
from kernels.errors import ShapeError, UnsupportedError
from kernels.half import in_single
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.spec import FLOATS, Array, Spec


def infer(
    x: Spec,
    scale: Spec,
    bias: Spec,
    mean: Spec,
    var: Spec,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Spec | tuple[Spec, ...]:
    """Same shape and dtype as x (n, c, …); the four parameters are [c]. In training also the new mean and variance."""
    require_dtype("BatchNormalization: x", x, FLOATS)
    channels = x.shape[1:2] if x.rank > 1 else (1,)
    for name, spec in (("scale", scale), ("bias", bias), ("mean", mean), ("var", var)):
        require_dtype(f"BatchNormalization: {name}", spec, FLOATS)
        if spec.shape != channels:
            raise ShapeError(f"BatchNormalization: {name} is {spec}, need {list(channels)} for x {x}")
    y = Spec(x.shape, x.dtype)
    return (y, Spec(channels, mean.dtype), Spec(channels, var.dtype)) if training_mode else y


def cost(out: tuple[Spec, ...], x: Spec, *parameters: Spec, **attrs: Any) -> Cost:
    """Per element: multiply, add, the statistics being folded into these. In training 4 more for statistics, 6 per channel."""
    if not attrs["training_mode"]:
        return Cost(other_flops=2 * x.elements)
    return Cost(other_flops=(2 + 4) * x.elements + 6 * parameters[0].elements)


def scale_and_shift(scale: Array, bias: Array, mean: Array, var: Array, epsilon: float) -> tuple[Array, Array]:
    """Return the factor and the addend of inference per channel, in float64."""
    factor = scale.astype(np.float64) / np.sqrt(var.astype(np.float64) + epsilon)
    return factor, bias.astype(np.float64) - mean.astype(np.float64) * factor


@in_single
def run(out: tuple[Array | None, ...], x: Array, scale: Array, bias: Array, mean: Array, var: Array, **attrs: Any) -> None:
    """Two passes over x, and two before them for its statistics in training."""
    y, *moving = out
    if attrs["training_mode"]:
        axes = tuple(axis for axis in range(x.ndim) if axis != 1)
        found = x.mean(axes, keepdims=x.ndim == 1), x.var(axes, keepdims=x.ndim == 1)
        for target, before, now in zip(moving, (mean, var), found, strict=False):
            if target is not None:
                np.copyto(target, before * attrs["momentum"] + now * (1 - attrs["momentum"]), casting="unsafe")
        mean, var = found
    if y is None:
        return
    shape = (-1, *[1] * (x.ndim - 2)) if x.ndim > 1 else (-1,)
    factor, shift = scale_and_shift(scale, bias, mean, var, attrs["epsilon"])
    np.multiply(x, factor.astype(y.dtype).reshape(shape), out=y)
    y += shift.astype(y.dtype).reshape(shape)


def upgrade(opset: int, attrs: dict[str, Any], outputs: int) -> tuple[dict[str, Any], dict[int, Array]]:
    """Before opset 9 `spatial` could ask for statistics per element, which no exporter does; 1 was the default."""
    attrs = dict(attrs)
    if attrs.pop("spatial", 1) != 1:
        raise UnsupportedError("BatchNormalization: spatial is 0, only statistics per channel are supported")
    return attrs, {}


def mixes_rows(call: Application) -> str:
    """Training normalises by the statistics of the whole batch."""
    return "it is training" if call.attrs["training_mode"] else only_first_input_has_rows(call)


_VAR = np.array([0.5, 1.0, 2.0], np.float32)
BATCH_NORMALIZATION = Op(
    "BatchNormalization",
    infer,
    cost,
    (Kernel("scale_shift", run),),
    upgrade=upgrade,
    tolerance_eps=8,
    mixes_rows=mixes_rows,
    cases=(
        Case("planes", inputs=((2, 3, 4, 5), (3,), (3,), (3,), _VAR), cost=Cost(other_flops=240)),
        Case("matrix", inputs=((4, 3), (3,), (3,), (3,), _VAR), attrs={"epsilon": 0.1}),
        Case("scale_length", inputs=((2, 3, 4), (4,), (3,), (3,), _VAR), raises=ShapeError),
        Case(
            "training", inputs=((2, 3), (3,), (3,), (3,), _VAR), attrs={"training_mode": 1}, outputs=3, cost=Cost(other_flops=54)
        ),
        Case(
            "training_planes", inputs=((2, 3, 4), (3,), (3,), (3,), _VAR), attrs={"training_mode": 1, "momentum": 0.5}, outputs=3
        ),
    ),
)
