"""LayerNormalization: y = (x - mean) / sqrt(var + epsilon) · scale + bias over the axes from `axis` on."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.batch_axis import works_along_axis
from kernels.cost import Cost
from kernels.errors import ShapeError
from kernels.half import in_single
from kernels.operands import axis_of, broadcast
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.spec import FLOATS, Array, Spec

_F32 = np.dtype(np.float32)


def infer(
    x: Spec, scale: Spec, bias: Spec | None = None, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> tuple[Spec, ...]:
    """Same shape and dtype as x; mean and inverse deviation with 1 in the normalised axes."""
    require_dtype("LayerNormalization: x", x, FLOATS)
    first = axis_of("LayerNormalization", axis, x.rank)
    for name, spec in (("scale", scale), ("bias", bias)):
        if spec is None:
            continue
        require_dtype(f"LayerNormalization: {name}", spec, FLOATS)
        if broadcast(f"LayerNormalization: {name}", x.shape, spec.shape) != x.shape:
            raise ShapeError(f"LayerNormalization: {name} is {spec}, need a shape that broadcasts to x {x}")
    stash = Spec((*x.shape[:first], *[1] * (x.rank - first)), x.dtype if x.dtype.itemsize == 8 else _F32)
    return Spec(x.shape, x.dtype), stash, stash


def cost(out: tuple[Spec, ...], x: Spec, scale: Spec, bias: Spec | None = None, **attrs: Any) -> Cost:
    """Per element: sum, subtract the mean, square, sum, multiply by the inverse deviation, scale; one more with a bias."""
    return Cost(other_flops=(7 if bias is not None else 6) * x.elements)


@in_single
def run(out: tuple[Array, ...], x: Array, scale: Array, bias: Array | None = None, **attrs: Any) -> None:
    """Centre first, then square: E[x²] - E[x]² would cancel."""
    y = out[0]
    axes = tuple(range(attrs["axis"] % x.ndim, x.ndim))
    if not x.size:
        return
    mean = x.mean(axes, keepdims=True)
    np.subtract(x, mean, out=y)
    count = math.prod(x.shape[axis] for axis in axes)
    square = np.einsum("...i,...i->...", y, y)[..., None] if len(axes) == 1 else np.square(y).sum(axes, keepdims=True)
    inverse = 1 / np.sqrt(square / y.dtype.type(count) + y.dtype.type(attrs["epsilon"]))
    y *= inverse
    y *= scale
    if bias is not None:
        y += bias
    for target, value in zip(out[1:], (mean, inverse), strict=False):
        if target is not None:
            np.copyto(target, value, casting="unsafe")


LAYER_NORMALIZATION = Op(
    "LayerNormalization",
    infer,
    cost,
    (Kernel("rows", run),),
    tolerance_eps=16,
    mixes_rows=works_along_axis,
    cases=(
        Case("last_axis", inputs=((2, 3, 8), (8,), (8,)), cost=Cost(other_flops=336)),
        Case("no_bias", inputs=((4, 6), (6,)), cost=Cost(other_flops=144)),
        Case("two_axes", inputs=((2, 3, 4), (3, 4), (3, 4)), attrs={"axis": 1}),
        Case("all_outputs", inputs=((2, 3, 8), (8,), (8,)), attrs={"epsilon": 1e-3}, outputs=3),
        Case("scale_does_not_broadcast", inputs=((2, 3), (4,)), raises=ShapeError),
        Case("axis_out_of_range", inputs=((2, 3), (3,)), attrs={"axis": 2}, raises=ShapeError),
    ),
)
