"""Linear models of ai.onnx.ml: LinearRegressor and LinearClassifier. Coefficients and intercepts are inputs, as weights are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kernels.cost import Cost
from kernels.errors import AttributeValueError, DTypeError, ShapeError
from kernels.registry import Case, Kernel, Op
from kernels.scores import (
    F32,
    MATRIX,
    check_transform,
    class_labels,
    classified,
    label_count,
    label_dtype,
    rows_of,
    rows_stay_apart,
    transform_flops,
    transformed,
)
from kernels.scratch import times
from kernels.spec import FLOATS, Array, Spec
from kernels.upgrades import constant_of


def _scores(subject: str, x: Spec, coefficients: Spec, intercepts: Spec | None, how: str) -> tuple[int, int]:
    """Return the shape of the scores. Raises DTypeError, ShapeError for a model that does not fit the rows of x."""
    check_transform(subject, how)
    rows, features = rows_of(subject, x)
    if coefficients.dtype not in FLOATS or coefficients.rank != MATRIX or coefficients.shape[1] != features:
        kind = DTypeError if coefficients.dtype not in FLOATS else ShapeError
        raise kind(f"{subject}: coefficients are {coefficients}, need floats (targets, {features}) as x has features")
    targets = coefficients.shape[0]
    if intercepts is not None and (intercepts.shape != (targets,) or intercepts.dtype not in FLOATS):
        raise ShapeError(f"{subject}: intercepts are {intercepts}, need {targets} floats")
    return rows, targets


def infer_regressor(x: Spec, coefficients: Spec, intercepts: Spec | None = None, *, post_transform: str = "NONE") -> Spec:
    """(n, targets) float32, of x (n, features)."""
    return Spec(_scores("ai.onnx.ml.LinearRegressor", x, coefficients, intercepts, post_transform), F32)


def infer_classifier(
    x: Spec,
    coefficients: Spec,
    intercepts: Spec | None = None,
    *,
    classlabels_ints: Sequence[int] = (),
    classlabels_strings: Sequence[str] = (),
    post_transform: str = "NONE",
) -> tuple[Spec, Spec]:
    """Labels (n), and scores (n, classes) float32, of x (n, features)."""
    subject = "ai.onnx.ml.LinearClassifier"
    labels = class_labels(subject, classlabels_ints, classlabels_strings)
    shape = _scores(subject, x, coefficients, intercepts, post_transform)
    if shape[1] != len(labels):
        raise ShapeError(f"{subject}: coefficients are {coefficients}, need a row for each of {len(labels)} labels")
    return Spec(shape[:1], label_dtype(classlabels_strings)), Spec(shape, F32)


def cost(
    out: tuple[Spec, ...], x: Spec, coefficients: Spec, intercepts: Spec | None = None, *, post_transform: str, **attrs: Any
) -> Cost:
    """n·targets·features MACs; for each score an addition of its intercept, and 5 (SOFTMAX), 4 (LOGISTIC), 7 (SOFTMAX_ZERO) or 14
    (PROBIT)."""
    rows, targets = out[-1].shape
    each = (intercepts is not None) + transform_flops(post_transform)
    return Cost(macs=rows * coefficients.elements, other_flops=rows * targets * each)


def _products(x: Array, coefficients: Array, intercepts: Array | None) -> Array:
    dtype = np.result_type(x.dtype if x.dtype.kind == "f" else np.float32, coefficients.dtype)
    scores = x.reshape(-1, x.shape[-1]).astype(dtype) @ coefficients.T.astype(dtype)
    return np.asarray(scores if intercepts is None else scores + intercepts)


def run_regressor(
    out: tuple[Array, ...], x: Array, coefficients: Array, intercepts: Array | None = None, *, post_transform: str = "NONE"
) -> None:
    """A matrix product."""
    np.copyto(out[0], transformed(_products(x, coefficients, intercepts), post_transform), casting="same_kind")


def run_classifier(
    out: tuple[Array | None, ...],
    x: Array,
    coefficients: Array,
    intercepts: Array | None = None,
    *,
    classlabels_ints: Sequence[int] = (),
    classlabels_strings: Sequence[str] = (),
    post_transform: str = "NONE",
) -> None:
    """A matrix product. The label is that of the largest score before the transform, the first of equals."""
    labels = class_labels("ai.onnx.ml.LinearClassifier", classlabels_ints, classlabels_strings)
    classified(out, _products(x, coefficients, intercepts), labels, post_transform)


def _matrices(attrs: dict[str, Any], targets: int) -> dict[int, Array]:
    """Take the coefficients of that many targets, and the intercepts where there are some."""
    coefficients = constant_of("coefficients", attrs.pop("coefficients", ()), "float32").reshape(-1)
    intercepts = constant_of("intercepts", attrs.pop("intercepts", ()), "float32").reshape(-1)
    if targets < 1 or not coefficients.size or coefficients.size % targets:
        raise AttributeValueError(
            f"attribute 'coefficients' has {coefficients.size} values, need as many for each of {targets} targets"
        )
    made = {1: coefficients.reshape(targets, -1)}
    return made | {2: intercepts} if intercepts.size else made


def upgrade_regressor(opset: int, attrs: dict[str, Any], outputs: int) -> tuple[dict[str, Any], dict[int, Array]]:
    """Matrices in place of lists."""
    attrs = dict(attrs)
    targets = attrs.pop("targets", 1)
    if not isinstance(targets, int):
        raise AttributeValueError(f"attribute 'targets' is {targets!r}, need a number")
    return attrs, _matrices(attrs, targets)


def upgrade_classifier(opset: int, attrs: dict[str, Any], outputs: int) -> tuple[dict[str, Any], dict[int, Array]]:
    """Matrices in place of lists. One score s of two classes, that of the second, becomes two: the first has -s.

    ONNX's text is silent; its reference computes this. ONNX Runtime says 1 - s where nothing transforms scores, but its label is
    that of the sign of s.
    """
    attrs = dict(attrs)
    attrs.pop("multi_class", None)  # says how a model was trained, not what it computes
    labels = label_count(attrs, "classlabels_ints", "classlabels_strings")
    scores = label_count(attrs, "intercepts") or labels
    made = _matrices(attrs, scores)
    if scores == 1 and labels == 2:
        made[1] = np.concatenate([-made[1], made[1]])
        start = made.get(2, np.zeros(1, np.float32))
        made[2] = np.concatenate([-start, start])
    return attrs, made


_X = np.array([[1, 2, 3], [-1, 0.5, 0]], np.float32)
_LABELS = {"classlabels_ints": (5, 6)}
_REGRESSOR = (
    Case("two_targets", inputs=((4, 3), (2, 3), (2,)), cost=Cost(macs=24, other_flops=8)),
    Case("no_intercepts", inputs=((4, 3), (1, 3)), cost=Cost(macs=12)),
    Case("one_row", inputs=((3,), (2, 3))),
    Case("integers", inputs=(np.array([[1, 2, 3]], np.int64), (2, 3))),
    Case("doubles", inputs=(_X.astype(np.float64), (2, 3), (2,))),
    Case("logistic", inputs=((4, 3), (2, 3)), attrs={"post_transform": "LOGISTIC"}),
    Case("probit", inputs=((4, 3), (2, 3)), attrs={"post_transform": "PROBIT"}),
    Case("empty", inputs=((0, 3), (2, 3)), cost=Cost()),
    Case("features_differ", inputs=((4, 3), (2, 4)), raises=ShapeError),
    Case("three_intercepts", inputs=((4, 3), (2, 3), (3,)), raises=ShapeError),
    Case("bools", inputs=(np.ones((2, 3), bool), (2, 3)), raises=DTypeError),
)
_CLASSIFIER = (
    Case("two", inputs=((4, 3), (2, 3), (2,)), attrs=_LABELS, outputs=2, cost=Cost(macs=24, other_flops=8)),
    Case("softmax", inputs=((4, 3), (2, 3), (2,)), attrs={**_LABELS, "post_transform": "SOFTMAX"}, outputs=2),
    Case("strings", inputs=((4, 3), (2, 3)), attrs={"classlabels_strings": ("a", "b")}, outputs=2),
    Case("three_labels", inputs=((4, 3), (2, 3)), attrs={"classlabels_ints": (1, 2, 3)}, raises=ShapeError),
    Case("no_labels", inputs=((4, 3), (2, 3)), raises=AttributeValueError),
)

OPS = (
    Op(
        "ai.onnx.ml.LinearRegressor",
        infer_regressor,
        cost,
        (Kernel("matmul", run_regressor, scratch_bytes=times(4)),),
        mixes_rows=rows_stay_apart,
        upgrade=upgrade_regressor,
        tolerance_eps=16,
        cases=_REGRESSOR,
    ),
    Op(
        "ai.onnx.ml.LinearClassifier",
        infer_classifier,
        cost,
        (Kernel("matmul", run_classifier, scratch_bytes=times(6)),),
        mixes_rows=rows_stay_apart,
        upgrade=upgrade_classifier,
        tolerance_eps=16,
        cases=_CLASSIFIER,
    ),
)
