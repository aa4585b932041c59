"""Support vector machines of ai.onnx.ml: SVMRegressor and SVMClassifier. Vectors and coefficients are inputs, as weights are.

Without support vectors a model is linear: its coefficients are weights of features, and it has no kernel.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from kernels.cost import Cost
from kernels.errors import AttributeValueError, DTypeError, ShapeError
from kernels.operands import one_of
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
from kernels.scratch import FIXED_BYTES
from kernels.spec import FLOATS, Array, Spec
from kernels.upgrades import constant_of

_MOST_CLASSES = 1024  # the probabilities of a row take a matrix of classes by classes
_PARAMETERS = 3  # gamma, coef0, degree
_ROUNDS = 100  # of Newton's steps towards probabilities
_LEAST = 1e-7  # probability of a class of two
_BLOCK_NUMBERS = 1 << 18  # that are computed at once

_KERNEL_FLOPS = {"LINEAR": 0, "POLY": 3, "RBF": 5, "SIGMOID": 3}


def _kernels(x: Array, vectors: Array, kernel: str, parameters: Sequence[float]) -> Array:
    """Return the kernel of each row of x with each vector. parameters: gamma, coef0 and degree; none are zeros."""
    gamma, coef0, degree = parameters or (0.0, 0.0, 0.0)
    vectors = vectors.astype(np.float64)
    products = x @ vectors.T
    if kernel == "LINEAR":
        return np.asarray(products)
    if kernel == "RBF":
        squares = np.square(x).sum(1)[:, None] + np.square(vectors).sum(1) - 2 * products
        return np.asarray(np.exp(-gamma * np.maximum(squares, 0)))
    scaled = gamma * products + coef0
    return np.asarray(scaled**degree if kernel == "POLY" else np.tanh(scaled))


def _machine(subject: str, x: Spec, vectors: Spec | None, kernel: str, parameters: Sequence[float], how: str) -> tuple[int, int]:
    """Return the rows of x, and the numbers that coefficients weigh: support vectors, or features of a linear model."""
    check_transform(subject, how)
    rows, features = rows_of(subject, x)
    one_of(f"{subject}: attribute kernel_type", kernel, _KERNEL_FLOPS)
    if len(parameters) not in (0, _PARAMETERS):
        raise AttributeValueError(
            f"{subject}: attribute kernel_params has {len(parameters)} values, need gamma, coef0 and degree"
        )
    if vectors is None:
        return rows, features
    if vectors.dtype not in FLOATS or vectors.rank != MATRIX or vectors.shape[1] != features:
        kind = DTypeError if vectors.dtype not in FLOATS else ShapeError
        raise kind(f"{subject}: support vectors are {vectors}, need floats (vectors, {features}) as x has features")
    return rows, vectors.shape[0]


def _check(subject: str, name: str, spec: Spec | None, shape: tuple[int, ...]) -> None:
    if spec is not None and (spec.dtype not in FLOATS or spec.shape != shape):
        raise ShapeError(f"{subject}: {name} are {spec}, need floats {list(shape)}")


def infer_regressor(
    x: Spec,
    vectors: Spec | None,
    coefficients: Spec,
    rho: Spec,
    *,
    kernel_type: str = "LINEAR",
    kernel_params: Sequence[float] = (),
    one_class: int = 0,
    post_transform: str = "NONE",
) -> Spec:
    """(n, 1) float32, of x (n, features)."""
    subject = "ai.onnx.ml.SVMRegressor"
    rows, weighed = _machine(subject, x, vectors, kernel_type, kernel_params, post_transform)
    _check(subject, "coefficients", coefficients, (weighed,))
    _check(subject, "rho", rho, (1,))
    return Spec((rows, 1), F32)


def infer_classifier(
    x: Spec,
    vectors: Spec | None,
    coefficients: Spec,
    rho: Spec,
    prob_a: Spec | None = None,
    prob_b: Spec | None = None,
    *,
    vectors_per_class: Sequence[int] = (),
    kernel_type: str = "LINEAR",
    kernel_params: Sequence[float] = (),
    classlabels_ints: Sequence[int] = (),
    classlabels_strings: Sequence[str] = (),
    post_transform: str = "NONE",
) -> tuple[Spec, Spec]:
    """Labels (n), and scores of x (n, features).

    Scores are float32: (n, classes) of a linear model, of two classes, and of a model with probabilities; else a score for each
    pair of classes.
    """
    subject = "ai.onnx.ml.SVMClassifier"
    classes = len(class_labels(subject, classlabels_ints, classlabels_strings))
    if classes > _MOST_CLASSES:
        raise AttributeValueError(f"{subject}: it has {classes} labels, need {_MOST_CLASSES} at most")
    rows, weighed = _machine(subject, x, vectors, kernel_type, kernel_params, post_transform)
    pairs = classes * (classes - 1) // 2
    if vectors is None:
        _check(subject, "coefficients", coefficients, (classes, weighed))
        if rho.dtype not in FLOATS or rho.rank != 1 or not rho.elements:
            raise ShapeError(f"{subject}: rho is {rho}, need one float or more")
        return Spec((rows,), label_dtype(classlabels_strings)), Spec((rows, classes), F32)
    if len(vectors_per_class) != classes or min(vectors_per_class) < 0 or sum(vectors_per_class) != weighed:
        counts = str(list(vectors_per_class))[:80]
        raise AttributeValueError(
            f"{subject}: attribute vectors_per_class is {counts}, need {classes} numbers that make {weighed}"
        )
    _check(subject, "coefficients", coefficients, (classes - 1, weighed))
    _check(subject, "rho", rho, (pairs,))
    if (prob_a is None) != (prob_b is None):
        raise ShapeError(f"{subject}: prob_a is {prob_a} and prob_b {prob_b}, need both or none")
    _check(subject, "prob_a", prob_a, (pairs,))
    _check(subject, "prob_b", prob_b, (pairs,))
    columns = classes if prob_a is not None or classes == 2 else pairs
    return Spec((rows,), label_dtype(classlabels_strings)), Spec((rows, columns), F32)


def cost(
    out: tuple[Spec, ...],
    x: Spec,
    vectors: Spec | None,
    coefficients: Spec,
    *rest: Spec | None,
    kernel_type: str,
    post_transform: str,
    **attrs: Any,
) -> Cost:
    """For each row a MAC for each number of the support vectors and of the coefficients, and for each vector 3 operations of POLY
    or SIGMOID, 5 of RBF; for each score a rho and 5 (SOFTMAX), 4 (LOGISTIC), 7 (SOFTMAX_ZERO) or 14 (PROBIT). The steps towards
    the probabilities of classes are not counted, since values decide how many there are."""
    rows, columns = out[-1].shape
    macs = coefficients.elements + (0 if vectors is None else vectors.elements)
    each = 0 if vectors is None else vectors.shape[0] * _KERNEL_FLOPS[kernel_type]
    return Cost(macs=rows * macs, other_flops=rows * (each + columns * (1 + transform_flops(post_transform))))


def _in_blocks(x: Array, weighed: int) -> list[slice]:
    rows = max(_BLOCK_NUMBERS // max(weighed, 1), 1)
    return [slice(start, start + rows) for start in range(0, len(x), rows)]


def scratch_bytes(out: tuple[Spec, ...], x: Spec, vectors: Spec | None, coefficients: Spec, *rest: Spec | None, **_: Any) -> int:
    """The kernels of a block of rows, the rows and vectors in float64, and matrices of classes."""
    classes = coefficients.shape[0] + 1 if vectors is not None else 1
    model = coefficients.elements + (0 if vectors is None else vectors.elements)
    weighed = model if vectors is None else vectors.shape[0]
    pairs = x.elements // max(x.shape[-1], 1) * classes * classes
    return FIXED_BYTES + 8 * (6 * (_BLOCK_NUMBERS + weighed) + 4 * x.elements + 4 * model + 8 * out[-1].elements + 12 * pairs)


def _wide(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1]).astype(np.float64)


def run_regressor(
    out: tuple[Array, ...],
    x: Array,
    vectors: Array | None,
    coefficients: Array,
    rho: Array,
    *,
    kernel_type: str = "LINEAR",
    kernel_params: Sequence[float] = (),
    one_class: int = 0,
    post_transform: str = "NONE",
) -> None:
    """Matrix products in float64, some rows at a time."""
    rows = _wide(x)
    for part in _in_blocks(rows, coefficients.size):
        weighed = rows[part] if vectors is None else _kernels(rows[part], vectors, kernel_type, kernel_params)
        scores = (weighed @ coefficients.astype(np.float64) + rho[0])[:, None]
        made = np.where(scores > 0, 1.0, -1.0) if one_class else transformed(scores, post_transform)
        np.copyto(out[0][part], made, casting="same_kind")


def run_classifier(
    out: tuple[Array | None, ...],
    x: Array,
    vectors: Array | None,
    coefficients: Array,
    rho: Array,
    prob_a: Array | None = None,
    prob_b: Array | None = None,
    *,
    vectors_per_class: Sequence[int] = (),
    kernel_type: str = "LINEAR",
    kernel_params: Sequence[float] = (),
    classlabels_ints: Sequence[int] = (),
    classlabels_strings: Sequence[str] = (),
    post_transform: str = "NONE",
) -> None:
    """Matrix products in float64; each pair of classes votes for one. The label has the most votes, the first of equals."""
    labels, rows = class_labels("ai.onnx.ml.SVMClassifier", classlabels_ints, classlabels_strings), _wide(x)
    if vectors is None:
        classified(out, rows @ coefficients.T.astype(np.float64) + rho[0], labels, post_transform)
        return
    decisions = np.empty((len(rows), len(rho)))
    for part in _in_blocks(rows, len(vectors)):
        kernels = _kernels(rows[part], vectors, kernel_type, kernel_params)
        decisions[part] = _decisions(kernels, coefficients.astype(np.float64), vectors_per_class) + rho
    pairs = list(itertools.combinations(range(len(labels)), 2))
    votes = np.zeros((len(rows), len(labels)), np.int64)
    for number, (a, b) in enumerate(pairs):
        wins = decisions[:, number] > 0
        votes[:, a] += wins
        votes[:, b] += ~wins
    if out[0] is not None:
        out[0][...] = labels[votes.argmax(1)]
    if len(out) < 2 or out[1] is None:
        return
    if prob_a is not None and prob_b is not None:
        scores = _probabilities(1 / (1 + np.exp(decisions * prob_a + prob_b)), pairs, len(labels))
    else:
        scores = decisions if len(labels) > 2 else np.concatenate([-decisions, decisions], 1)  # as ONNX Runtime has them
    np.copyto(out[1], transformed(scores, post_transform), casting="same_kind")


def _decisions(kernels: Array, coefficients: Array, vectors_per_class: Sequence[int]) -> Array:
    """Return the score of each pair of classes: the vectors of either are weighed by their coefficients against the other."""
    ends = np.cumsum(vectors_per_class)
    ranges = [slice(int(end) - count, int(end)) for end, count in zip(ends, vectors_per_class, strict=True)]
    sums = [
        kernels[:, ranges[a]] @ coefficients[b - 1, ranges[a]] + kernels[:, ranges[b]] @ coefficients[a, ranges[b]]
        for a, b in itertools.combinations(range(len(ranges)), 2)
    ]
    return np.stack(sums, 1)


def _probabilities(wins: Array, pairs: Sequence[tuple[int, int]], classes: int) -> Array:
    """Return the probabilities of classes (n, classes), given that of the first of each pair.

    By Wu, Lin and Weng, "Probability estimates for multi-class classification by pairwise coupling" (2004). The steps, and where
    they stop, are those of LIBSVM, which has trained most such models.
    """
    won = np.zeros((len(wins), classes, classes))
    for number, (a, b) in enumerate(pairs):
        won[:, a, b] = np.clip(wins[:, number], _LEAST, 1 - _LEAST)
        won[:, b, a] = 1 - won[:, a, b]
    lost = won.transpose(0, 2, 1)
    q = -won * lost
    diagonal = np.square(won).sum(1)
    q[:, range(classes), range(classes)] = diagonal
    p = np.full((len(wins), classes), 1 / classes)
    for _ in range(_ROUNDS):
        gradient = (q @ p[:, :, None])[:, :, 0]
        mean = (p * gradient).sum(1)
        moving = np.flatnonzero(np.abs(gradient - mean[:, None]).max(1, initial=0) >= 0.005 / classes)
        if not moving.size:
            break
        p[moving] = _step(q[moving], p[moving], gradient[moving], mean[moving])
    return p


def _step(q: Array, p: Array, gradient: Array, mean: Array) -> Array:
    """Return the probabilities after one step for each class in turn."""
    for own in range(p.shape[1]):
        change = (mean - gradient[:, own]) / q[:, own, own]
        p[:, own] += change
        mean = (mean + change * (change * q[:, own, own] + 2 * gradient[:, own])) / np.square(1 + change)
        gradient = (gradient + change[:, None] * q[:, own]) / (1 + change)[:, None]
        p /= (1 + change)[:, None]
    return p


def _take(attrs: dict[str, Any], name: str) -> Array:
    return constant_of(name, attrs.pop(name, ()), "float32").reshape(-1)


def _rows(name: str, values: Array, rows: int) -> Array:
    if not 1 <= rows <= values.size or values.size % rows:
        raise AttributeValueError(f"attribute {name!r} has {values.size} values, need as many for each of {rows} rows")
    return values.reshape(rows, -1)


def upgrade_regressor(opset: int, attrs: dict[str, Any], outputs: int) -> tuple[dict[str, Any], dict[int, Array]]:
    """Matrices in place of lists."""
    attrs = dict(attrs)
    vectors, count = _take(attrs, "support_vectors"), attrs.pop("n_supports", 0)
    if not isinstance(count, int):
        raise AttributeValueError(f"attribute 'n_supports' is {count!r}, need a number")
    made = {2: _take(attrs, "coefficients"), 3: _take(attrs, "rho")}
    return attrs, made | ({1: _rows("support_vectors", vectors, count)} if count > 0 else {})


def upgrade_classifier(opset: int, attrs: dict[str, Any], outputs: int) -> tuple[dict[str, Any], dict[int, Array]]:
    """Matrices in place of lists."""
    attrs = dict(attrs)
    vectors, counts = (
        _take(attrs, "support_vectors"),
        constant_of("vectors_per_class", attrs.get("vectors_per_class", ()), "int64"),
    )
    coefficients, rho, count = _take(attrs, "coefficients"), _take(attrs, "rho"), int(counts.sum())
    classes = label_count(attrs, "classlabels_ints", "classlabels_strings")
    made = {3: rho, **{at: each for at, name in ((4, "prob_a"), (5, "prob_b")) if (each := _take(attrs, name)).size}}
    if count > 0:
        return attrs, made | {
            1: _rows("support_vectors", vectors, count),
            2: _rows("coefficients", coefficients, max(classes - 1, 1)),
        }
    return attrs, made | {2: _rows("coefficients", coefficients, max(classes, 1))}


_PARAMS = {"kernel_params": (0.5, 1.0, 3.0)}
_LABELS, _PAIR = {"classlabels_ints": (3, 4, 5), "vectors_per_class": (2, 1, 2)}, {"classlabels_strings": ("a", "b")}
_REGRESSOR = (
    Case("linear", inputs=((4, 3), None, (3,), (1,)), cost=Cost(macs=12, other_flops=4)),
    Case("linear_kernel", inputs=((4, 3), (5, 3), (5,), (1,)), cost=Cost(macs=80, other_flops=4)),
    *(
        Case(kernel.lower(), inputs=((4, 3), (5, 3), (5,), (1,)), attrs={"kernel_type": kernel, **_PARAMS})
        for kernel in ("POLY", "RBF", "SIGMOID")
    ),
    Case("one_class", inputs=((4, 3), (5, 3), (5,), (1,)), attrs={"one_class": 1}),
    Case("empty", inputs=((0, 3), (5, 3), (5,), (1,)), cost=Cost()),
    Case("features_differ", inputs=((4, 3), (5, 2), (5,), (1,)), raises=ShapeError),
    Case("coefficients_missing", inputs=((4, 3), (5, 3), (4,), (1,)), raises=ShapeError),
    Case("two_parameters", inputs=((4, 3), (5, 3), (5,), (1,)), attrs={"kernel_params": (1.0, 2.0)}, raises=AttributeValueError),
    Case("no_such_kernel", inputs=((4, 3), (5, 3), (5,), (1,)), attrs={"kernel_type": "COSINE"}, raises=AttributeValueError),
)
_CLASSIFIER = (
    Case("linear", inputs=((4, 3), None, (2, 3), (1,)), attrs=_PAIR, outputs=2, cost=Cost(macs=24, other_flops=8)),
    Case("pairs", inputs=((4, 3), (5, 3), (2, 5), (3,)), attrs=_LABELS, outputs=2, cost=Cost(macs=100, other_flops=12)),
    Case("rbf", inputs=((4, 3), (5, 3), (2, 5), (3,)), attrs={**_LABELS, **_PARAMS, "kernel_type": "RBF"}, outputs=2),
    Case("two", inputs=((4, 3), (5, 3), (1, 5), (1,)), attrs={**_PAIR, "vectors_per_class": (2, 3)}, outputs=2),
    Case("probabilities", inputs=((9, 3), (5, 3), (2, 5), (3,), (3,), (3,)), attrs=_LABELS, outputs=2),
    Case("logistic", inputs=((4, 3), (5, 3), (2, 5), (3,)), attrs={**_LABELS, "post_transform": "LOGISTIC"}, outputs=2),
    Case("vectors_uncounted", inputs=((4, 3), (6, 3), (2, 6), (3,)), attrs=_LABELS, raises=AttributeValueError),
    Case("one_rho", inputs=((4, 3), (5, 3), (2, 5), (1,)), attrs=_LABELS, raises=ShapeError),
    Case("half_of_probabilities", inputs=((4, 3), (5, 3), (2, 5), (3,), (3,)), attrs=_LABELS, raises=ShapeError),
)

OPS = (
    Op(
        "ai.onnx.ml.SVMRegressor",
        infer_regressor,
        cost,
        (Kernel("matmul", run_regressor, scratch_bytes=scratch_bytes),),
        mixes_rows=rows_stay_apart,
        upgrade=upgrade_regressor,
        tolerance_eps=16,
        cases=_REGRESSOR,
    ),
    Op(
        "ai.onnx.ml.SVMClassifier",
        infer_classifier,
        cost,
        (Kernel("matmul", run_classifier, scratch_bytes=scratch_bytes),),
        mixes_rows=rows_stay_apart,
        upgrade=upgrade_classifier,
        tolerance_eps=64,
        cases=_CLASSIFIER,
    ),
)
