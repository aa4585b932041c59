"""RMSNormalization: y = x / sqrt(mean(x²) + epsilon) · scale; and the com.microsoft ops that add a residual first.

SkipLayerNormalization and SkipSimplifiedLayerNormalization are x + skip + bias, normalised with a mean or without.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.batch_axis import works_along_axis
from kernels.cost import Cost
from kernels.errors import DTypeError, ShapeError, UnsupportedError
from kernels.half import in_single
from kernels.operands import axis_of, broadcast, one_dtype
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.spec import FLOATS, Array, Spec

_F32 = np.dtype(np.float32)


def infer(x: Spec, scale: Spec, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> Spec:
    """x's shape in the scale's dtype."""
    require_dtype("RMSNormalization: x", x, FLOATS)
    require_dtype("RMSNormalization: scale", scale, FLOATS)
    axis_of("RMSNormalization", axis, x.rank)
    if stash_type != 1:
        raise UnsupportedError(f"RMSNormalization: stash_type is {stash_type}, only 1 (float32) is supported")
    if broadcast("RMSNormalization: scale", x.shape, scale.shape) != x.shape:
        raise ShapeError(f"RMSNormalization: scale is {scale}, need a shape that broadcasts to x {x}")
    return Spec(x.shape, scale.dtype)


def cost(out: tuple[Spec, ...], x: Spec, scale: Spec, **attrs: Any) -> Cost:
    """4 per element: square, sum, multiply by the inverse root, scale."""
    return Cost(other_flops=4 * x.elements)


def run(out: tuple[Array, ...], x: Array, scale: Array, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> None:
    """In float32 (or float64 for doubles); rounded to x's dtype before it is scaled, as ONNX says."""
    (y,) = out
    if not y.size:
        return
    wide = x.astype(np.float64 if x.dtype.itemsize == 8 else np.float32, copy=False)
    normal = wide * _inverse_root(wide, axis % x.ndim, epsilon)
    if x.dtype != wide.dtype:
        normal = normal.astype(x.dtype)
    np.multiply(normal.astype(y.dtype, copy=False), scale, out=y, casting="unsafe")


def _inverse_root(x: Array, first: int, epsilon: float) -> Array:
    """1 / sqrt(mean(x²) + epsilon) over the axes from `first` on, which stay as 1."""
    rows = x.reshape(*x.shape[:first], -1)
    mean = np.einsum("...i,...i->...", rows, rows) / x.dtype.type(rows.shape[-1])
    inverse: Array = 1 / np.sqrt(mean + x.dtype.type(epsilon))
    return inverse.reshape(*x.shape[:first], *[1] * (x.ndim - first))


def _infer_skip(name: str, x: Spec, skip: Spec, *rows: Spec | None) -> tuple[Spec, ...]:
    """x's shape twice (normalised, and the sum last) around the statistics that training keeps."""
    require_dtype(f"{name}: x", x, FLOATS)
    one_dtype(name, x, skip, *(row for row in rows if row is not None))
    if x.rank not in (2, 3) or skip.shape not in (x.shape, x.shape[-2:], (1, *x.shape[1:])):
        raise ShapeError(f"{name}: x is {x}, skip is {skip}, need (batch, sequence, hidden), and skip the same but for the batch")
    for row in rows:
        if row is not None and row.shape != x.shape[-1:]:
            raise ShapeError(f"{name}: a parameter is {row}, need [{x.shape[-1]}] as the last axis of x {x}")
    statistic = Spec((*x.shape[:-1], 1), _F32)
    return Spec(x.shape, x.dtype), statistic, statistic, Spec(x.shape, x.dtype)


def infer_skip_layer(
    x: Spec, skip: Spec, gamma: Spec, beta: Spec | None = None, bias: Spec | None = None, *, epsilon: float = 1e-12
) -> tuple[Spec, ...]:
    """x (batch, sequence, hidden) normalised, its mean and inverse deviation, and x + skip + bias."""
    return _infer_skip("SkipLayerNormalization", x, skip, gamma, beta, bias)


def infer_skip_simplified(
    x: Spec, skip: Spec, gamma: Spec, bias: Spec | None = None, *, epsilon: float = 1e-12
) -> tuple[Spec, ...]:
    """x (batch, sequence, hidden) normalised, its mean and inverse root, and x + skip + bias."""
    return _infer_skip("SkipSimplifiedLayerNormalization", x, skip, gamma, bias)


def cost_skip_layer(
    out: tuple[Spec, ...], x: Spec, skip: Spec, gamma: Spec, beta: Spec | None = None, bias: Spec | None = None, **attrs: Any
) -> Cost:
    """7 per element: add skip, sum, subtract the mean, square, sum, multiply by the inverse deviation, scale; 1 for a bias."""
    return Cost(other_flops=(7 + (beta is not None) + (bias is not None)) * x.elements)


def cost_skip_simplified(out: tuple[Spec, ...], x: Spec, skip: Spec, gamma: Spec, bias: Spec | None = None, **attrs: Any) -> Cost:
    """5 per element: add skip, square, sum, multiply by the inverse root, scale; one more with a bias."""
    return Cost(other_flops=(5 + (bias is not None)) * x.elements)


@in_single
def run_skip_layer(
    out: tuple[Array | None, ...],
    x: Array,
    skip: Array,
    gamma: Array,
    beta: Array | None = None,
    bias: Array | None = None,
    *,
    epsilon: float = 1e-12,
) -> None:
    """Centre first, then square."""
    total = x + skip if bias is None else x + skip + bias
    mean = total.mean(-1, keepdims=True) if total.size else total[..., :1]
    _skip_into(out, total, mean, gamma, beta, epsilon)


@in_single
def run_skip_simplified(
    out: tuple[Array | None, ...], x: Array, skip: Array, gamma: Array, bias: Array | None = None, *, epsilon: float = 1e-12
) -> None:
    """Normalise as SkipLayerNormalization does, without subtracting the mean."""
    total = x + skip if bias is None else x + skip + bias
    _skip_into(out, total, np.zeros((*total.shape[:-1], 1), total.dtype), gamma, None, epsilon)


def _skip_into(
    out: tuple[Array | None, ...], total: Array, mean: Array, gamma: Array, beta: Array | None, epsilon: float
) -> None:
    centred = total - mean
    inverse = _inverse_root(centred, total.ndim - 1, epsilon) if total.size else total[..., :1]
    y, shift, factor, kept = (*out, None, None, None)[:4]
    if y is not None:
        np.multiply(centred, inverse, out=y)
        y *= gamma
        if beta is not None:
            y += beta
    for target, value in ((shift, mean), (factor, inverse), (kept, total)):
        if target is not None:
            np.copyto(target, value, casting="unsafe")


_RMS = (
    Case("last_axis", inputs=((2, 3, 8), (8,)), cost=Cost(other_flops=192)),
    Case("two_axes", inputs=((2, 3, 4), (3, 4)), attrs={"axis": 1, "epsilon": 0.01}),
    Case("scalar_scale", inputs=((4, 6), ())),
    Case("half", inputs=(np.linspace(-3, 3, 12, dtype=np.float16).reshape(2, 6), np.linspace(0, 1, 6, dtype=np.float16))),
    Case("empty", inputs=((0, 3), (3,)), cost=Cost()),
    Case("scale_does_not_broadcast", inputs=((2, 3), (4,)), raises=ShapeError),
    Case("axis_out_of_range", inputs=((2, 3), (3,)), attrs={"axis": 2}, raises=ShapeError),
    Case("stash_double", inputs=((2, 3), (3,)), attrs={"stash_type": 11}, raises=UnsupportedError),
)
_SHARED = (
    Case("skip_length", inputs=((2, 3, 4), (2, 3, 5), (4,)), raises=ShapeError),
    Case("gamma_length", inputs=((2, 3, 4), (2, 3, 4), (3,)), raises=ShapeError),
    Case("gamma_double", inputs=((2, 3, 4), (2, 3, 4), np.ones(4)), raises=DTypeError),
)
_SKIP_LAYER = (
    Case("all_inputs", inputs=((2, 3, 8), (2, 3, 8), (8,), (8,), (8,)), cost=Cost(other_flops=432)),
    Case("no_bias", inputs=((2, 3, 8), (2, 3, 8), (8,)), cost=Cost(other_flops=336)),
    Case("one_skip", inputs=((2, 3, 8), (3, 8), (8,), (8,)), attrs={"epsilon": 1e-3}),
    *_SHARED,
)
_SKIP_SIMPLIFIED = (
    Case("bias", inputs=((2, 3, 8), (2, 3, 8), (8,), (8,)), cost=Cost(other_flops=288)),
    Case("no_bias", inputs=((2, 3, 8), (2, 3, 8), (8,)), cost=Cost(other_flops=240)),
    *_SHARED,
)

OPS = (
    Op("RMSNormalization", infer, cost, (Kernel("rows", run),), tolerance_eps=8, mixes_rows=works_along_axis, cases=_RMS),
    Op(
        "com.microsoft.SkipLayerNormalization",
        infer_skip_layer,
        cost_skip_layer,
        (Kernel("rows", run_skip_layer),),
        tolerance_eps=16,
        cases=_SKIP_LAYER,
    ),
    Op(
        "com.microsoft.SkipSimplifiedLayerNormalization",
        infer_skip_simplified,
        cost_skip_simplified,
        (Kernel("rows", run_skip_simplified),),
        tolerance_eps=16,
        cases=_SKIP_SIMPLIFIED,
    ),
)
