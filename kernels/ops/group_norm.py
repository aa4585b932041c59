"""InstanceNormalization, GroupNormalization and MeanVarianceNormalization: (x - mean) / deviation over parts of an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from kernels.batch_axis import only_first_input_has_rows
from kernels.cost import Cost
from kernels.errors import AttributeValueError, ShapeError
from kernels.half import in_single
from kernels.operands import axes_of, one_dtype
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.spec import FLOATS, Array, Spec


def _centre(y: Array, x: Array, axes: tuple[int, ...]) -> Array:
    """Write x - mean into y and return the variance, both over the axes. E[x²] - E[x]² would cancel."""
    np.subtract(x, x.mean(axes, keepdims=True), out=y)
    if len(axes) == 1 and axes[0] == y.ndim - 1:
        square = np.einsum("...i,...i->...", y, y)[..., None]
    else:
        square = np.square(y).sum(axes, keepdims=True)
    variance: Array = square / y.dtype.type(math.prod(x.shape[axis] for axis in axes))
    return variance


def _image(name: str, x: Spec, scale: Spec, bias: Spec, parameters: int) -> None:
    require_dtype(f"{name}: x", x, FLOATS)
    one_dtype(name, x, scale, bias)
    for label, spec in (("scale", scale), ("bias", bias)):
        if spec.shape != (parameters,):
            raise ShapeError(f"{name}: {label} is {spec}, need [{parameters}] for x {x}")


def infer_instance(x: Spec, scale: Spec, bias: Spec, *, epsilon: float = 1e-5) -> Spec:
    """Same shape and dtype as x (n, c, …); scale and bias are [c]."""
    if x.rank < 3:
        raise ShapeError(f"InstanceNormalization: x is {x}, need (n, c, spatial…)")
    _image("InstanceNormalization", x, scale, bias, x.shape[1])
    return Spec(x.shape, x.dtype)


def infer_group(
    x: Spec,
    scale: Spec,
    bias: Spec,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    scale_groups: bool = False,
) -> Spec:
    """Same shape and dtype as x (n, c, …); scale and bias are [c]. `scale_groups`, the pre-21 meaning: one for each group."""
    if x.rank < 2:
        raise ShapeError(f"GroupNormalization: x is {x}, need (n, c, …)")
    if num_groups < 1 or x.shape[1] % num_groups:
        raise AttributeValueError(f"GroupNormalization: num_groups is {num_groups}, need a divisor of the {x.shape[1]} channels")
    _image("GroupNormalization", x, scale, bias, num_groups if scale_groups else x.shape[1])
    return Spec(x.shape, x.dtype)


def cost_image(out: tuple[Spec, ...], x: Spec, *inputs: Spec, **attrs: Any) -> Cost:
    """7 per element: sum, subtract the mean, square, sum, multiply by the inverse deviation, scale, add the bias."""
    return Cost(other_flops=7 * x.elements)


@in_single
def run_instance(out: tuple[Array, ...], x: Array, scale: Array, bias: Array, **attrs: Any) -> None:
    """Every channel of every image is a group."""
    _run_groups(out[0], x, scale, bias, x.shape[1], attrs["epsilon"])


@in_single
def run_group(out: tuple[Array, ...], x: Array, scale: Array, bias: Array, **attrs: Any) -> None:
    """Rows of one group each, then scaled by channel."""
    groups = attrs["num_groups"]
    if attrs["scale_groups"]:
        scale, bias = (np.repeat(values, x.shape[1] // groups) for values in (scale, bias))
    _run_groups(out[0], x, scale, bias, groups, attrs["epsilon"])


def _run_groups(y: Array, x: Array, scale: Array, bias: Array, groups: int, epsilon: float) -> None:
    if not y.size:
        return
    rows = y.reshape(x.shape[0], groups, -1)
    variance = _centre(rows, x.reshape(rows.shape), (2,))
    inverse = 1 / np.sqrt(variance + y.dtype.type(epsilon))
    channels = y.reshape(x.shape[0], groups, x.shape[1] // groups, -1)
    channels *= inverse[..., None] * scale.reshape(groups, -1, 1)  # one pass: both factors are small
    channels += bias.reshape(groups, -1, 1)


def upgrade_group(opset: int, attrs: dict[str, Any], outputs: int) -> tuple[dict[str, Any], dict[int, Array]]:
    """Before opset 21 scale and bias were given for each group."""
    return ({**attrs, "scale_groups": True} if opset < 21 else attrs), {}


def infer_mean_variance(x: Spec, *, axes: Sequence[int] = (0, 2, 3)) -> Spec:
    """Same shape and dtype as x."""
    require_dtype("MeanVarianceNormalization: x", x, FLOATS)
    axes_of("MeanVarianceNormalization", axes, x.rank)
    return Spec(x.shape, x.dtype)


def cost_mean_variance(out: tuple[Spec, ...], x: Spec, **attrs: Any) -> Cost:
    """5 per element: sum, subtract the mean, square, sum, divide by the deviation."""
    return Cost(other_flops=5 * x.elements)


@in_single
def run_mean_variance(out: tuple[Array, ...], x: Array, *, axes: Sequence[int] = (0, 2, 3)) -> None:
    """ONNX adds 1e-9 to the deviation, so that a constant becomes 0."""
    (y,) = out
    if y.size:
        variance = _centre(y, x, axes_of("MeanVarianceNormalization", axes, x.ndim))
        y /= np.sqrt(variance) + y.dtype.type(1e-9)


_INSTANCE = (
    Case("image", inputs=((2, 3, 4, 5), (3,), (3,)), cost=Cost(other_flops=840)),
    Case("line", inputs=((2, 3, 7), (3,), (3,)), attrs={"epsilon": 0.01}),
    Case("empty", inputs=((0, 3, 4), (3,), (3,)), cost=Cost()),
    Case("scale_length", inputs=((2, 3, 4), (4,), (3,)), raises=ShapeError),
    Case("matrix", inputs=((2, 3), (3,), (3,)), raises=ShapeError),
)
_GROUP = (
    Case("image", inputs=((2, 6, 4, 5), (6,), (6,)), attrs={"num_groups": 3}, cost=Cost(other_flops=1680)),
    Case("one_group", inputs=((2, 4, 3), (4,), (4,)), attrs={"num_groups": 1, "epsilon": 0.01}),
    Case("by_group", inputs=((2, 6, 4), (3,), (3,)), attrs={"num_groups": 3, "scale_groups": True}),
    Case("empty", inputs=((0, 4, 3), (4,), (4,)), attrs={"num_groups": 2}, cost=Cost()),
    Case("groups_do_not_divide", inputs=((2, 6, 4), (6,), (6,)), attrs={"num_groups": 4}, raises=AttributeValueError),
    Case("scale_length", inputs=((2, 6, 4), (3,), (3,)), attrs={"num_groups": 3}, raises=ShapeError),
)
_MEAN_VARIANCE = (
    Case("channels", inputs=((2, 3, 4, 5),), cost=Cost(other_flops=600)),
    Case("last_axis", inputs=((2, 3, 8),), attrs={"axes": (-1,)}),
    Case("empty", inputs=((0, 3, 4, 5),), cost=Cost()),
    Case("axis_twice", inputs=((2, 3),), attrs={"axes": (1, -1)}, raises=ShapeError),
)

OPS = (
    Op(
        "InstanceNormalization",
        infer_instance,
        cost_image,
        (Kernel("rows", run_instance),),
        tolerance_eps=16,
        mixes_rows=only_first_input_has_rows,
        cases=_INSTANCE,
    ),
    Op(
        "GroupNormalization",
        infer_group,
        cost_image,
        (Kernel("rows", run_group),),
        upgrade=upgrade_group,
        tolerance_eps=16,
        mixes_rows=only_first_input_has_rows,
        cases=_GROUP,
    ),
    Op(
        "MeanVarianceNormalization",
        infer_mean_variance,
        cost_mean_variance,
        (Kernel("two_passes", run_mean_variance),),
        tolerance_eps=16,
        cases=_MEAN_VARIANCE,
    ),
)
