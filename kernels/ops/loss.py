"""NegativeLogLikelihoodLoss and SoftmaxCrossEntropyLoss: what a classifier's log-probabilities give the right classes.

    loss[n, d…] = -log p[n, target[n, d…], d…] · weight[target[n, d…]]

and 0 where the target is `ignore_index`. The first reads log-probabilities, the second scores, of which it takes LogSoftmax
along axis 1. The mean is divided by the weights of all targets, not by their number.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.cost import Cost
from kernels.errors import IndexRangeError, ShapeError
from kernels.half import in_single
from kernels.operands import INDICES, one_dtype, one_of
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.scratch import times
from kernels.spec import FLOATS, Array, Spec

_REDUCTIONS = ("none", "sum", "mean")
_SOFTMAX_FLOPS = 5  # per score, as LogSoftmax counts


def infer_likelihood(
    x: Spec, target: Spec, weight: Spec | None = None, *, ignore_index: int | None = None, reduction: str = "mean"
) -> Spec:
    """The target's shape (n, d…) where nothing is reduced, else a scalar, in x's dtype. x: (n, c, d…)."""
    return _loss("NegativeLogLikelihoodLoss", x, target, weight, reduction)


def infer_entropy(
    scores: Spec, target: Spec, weight: Spec | None = None, *, ignore_index: int | None = None, reduction: str = "mean"
) -> tuple[Spec, Spec]:
    """The loss as of NegativeLogLikelihoodLoss, and the logarithms of the probabilities in the shape of the scores."""
    return _loss("SoftmaxCrossEntropyLoss", scores, target, weight, reduction), Spec(scores.shape, scores.dtype)


def _loss(name: str, x: Spec, target: Spec, weight: Spec | None, reduction: str) -> Spec:
    require_dtype(f"{name}: input", x, FLOATS)
    require_dtype(f"{name}: target", target, INDICES)
    one_of(f"{name}: attribute reduction", reduction, _REDUCTIONS)
    if x.rank < 2 or target.shape != x.shape[:1] + x.shape[2:]:
        raise ShapeError(f"{name}: input is {x}, target is {target}, need (n, c, d…) and (n, d…)")
    if weight is not None:
        one_dtype(f"{name}: weight", x, weight)
        if weight.shape != x.shape[1:2]:
            raise ShapeError(f"{name}: weight is {weight}, need one number for each of the {x.shape[1]} classes")
    return Spec(target.shape if reduction == "none" else (), x.dtype)


def cost_likelihood(out: tuple[Spec, ...], x: Spec, target: Spec, weight: Spec | None = None, **attrs: Any) -> Cost:
    """Per target: negate; one to multiply by a weight, one to add to the sum, another to add a weight to theirs."""
    reduces = attrs["reduction"] != "none"
    weighs = weight is not None
    divides = reduces and attrs["reduction"] == "mean"
    return Cost(other_flops=(1 + weighs + reduces + (divides and weighs)) * target.elements + divides)


def cost_entropy(out: tuple[Spec, ...], scores: Spec, target: Spec, weight: Spec | None = None, **attrs: Any) -> Cost:
    """5 per score as LogSoftmax, then as NegativeLogLikelihoodLoss."""
    return Cost(other_flops=_SOFTMAX_FLOPS * scores.elements) + cost_likelihood(out, scores, target, weight, **attrs)


@in_single
def run_likelihood(out: tuple[Array, ...], x: Array, target: Array, weight: Array | None = None, **attrs: Any) -> None:
    """Take the log-probability of each target."""
    _reduce(out[0], x, target, weight, **attrs)


@in_single
def run_entropy(out: tuple[Array | None, ...], scores: Array, target: Array, weight: Array | None = None, **attrs: Any) -> None:
    """LogSoftmax shifted by the maximum, so that nothing overflows; then take each target's."""
    loss, shown = (*out, None)[:2]
    logs = scores - scores.max(1, keepdims=True, initial=-np.inf)
    logs -= np.log(np.exp(logs).sum(1, keepdims=True))
    if shown is not None:
        np.copyto(shown, logs)
    if loss is not None:
        _reduce(loss, logs, target, weight, **attrs)


def _reduce(loss: Array, logs: Array, target: Array, weight: Array | None, *, ignore_index: int | None, reduction: str) -> None:
    """Write the loss. Raises IndexRangeError for a target that is no class and not ignored."""
    counts = np.ones(target.shape, np.bool_) if ignore_index is None else target != ignore_index
    classes = np.where(counts, target, 0)
    if classes.size and not 0 <= classes.min() <= classes.max() < max(logs.shape[1], counts.any()):
        bad = classes[(classes < 0) | (classes >= logs.shape[1])].flat[0]
        raise IndexRangeError(f"loss: a target is {bad}, need a class in [0, {logs.shape[1]}) or ignore_index {ignore_index}")
    each = -np.take_along_axis(logs, classes[:, None], 1)[:, 0] if logs.shape[1] else np.zeros(target.shape, logs.dtype)
    weights = counts.astype(logs.dtype) if weight is None or not weight.size else np.where(counts, weight[classes], 0)
    each = np.where(counts, each * weights, 0)
    if reduction == "none":
        np.copyto(loss, each)
    else:
        total = each.sum(dtype=logs.dtype)
        np.copyto(loss, total if reduction == "sum" else np.divide(total, weights.sum(dtype=logs.dtype)))


_TARGET = np.array([2, 0, 4], np.int64)
_PIXELS = np.arange(8).reshape(2, 2, 2) % 3
_CASES = (
    Case("rows_ignored", inputs=((3, 5), np.array([2, -100, 4])), attrs={"ignore_index": -100}),
    Case("pixels", inputs=((2, 3, 2, 2), _PIXELS.astype(np.int32)), attrs={"reduction": "none"}),
    Case("weights_ignored", inputs=((2, 3, 2, 2), _PIXELS, (3,)), attrs={"ignore_index": 1, "reduction": "sum"}),
    Case("all_ignored", inputs=((3, 5), np.zeros(3, np.int64)), attrs={"ignore_index": 0, "reduction": "none"}),
    Case("empty", inputs=((0, 5), np.zeros(0, np.int64)), attrs={"reduction": "sum"}),
    Case("half", inputs=(np.linspace(-3, 0, 15, dtype=np.float16).reshape(3, 5), _TARGET)),
    Case("target_shape", inputs=((3, 5), np.zeros((3, 5), np.int64)), raises=ShapeError),
    Case("weight_length", inputs=((3, 5), _TARGET, (4,)), raises=ShapeError),
)
_LIKELIHOOD = (
    Case("rows", inputs=((3, 5), _TARGET), cost=Cost(other_flops=7)),
    Case("weights", inputs=((3, 5), _TARGET, (5,)), domain=(0.5, 2), cost=Cost(other_flops=13)),
    *_CASES,
)
_ENTROPY = (
    Case("rows", inputs=((3, 5), _TARGET), outputs=2, cost=Cost(other_flops=75 + 7)),
    Case("weights", inputs=((3, 5), _TARGET, (5,)), domain=(0.5, 2), cost=Cost(other_flops=75 + 13)),
    Case("large", inputs=(np.array([[1e4, -1e4, 3.0]], np.float32), np.array([1])), outputs=2),
    *_CASES,
)

OPS = (
    Op(
        "NegativeLogLikelihoodLoss",
        infer_likelihood,
        cost_likelihood,
        (Kernel("take", run_likelihood, scratch_bytes=times(8)),),
        tolerance_eps=16,
        cases=_LIKELIHOOD,
    ),
    Op(
        "SoftmaxCrossEntropyLoss",
        infer_entropy,
        cost_entropy,
        (Kernel("rows", run_entropy, scratch_bytes=times(8)),),
        tolerance_eps=16,
        cases=_ENTROPY,
    ),
)
