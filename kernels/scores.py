"""Scores of models of `ai.onnx.ml`: the transforms behind them, and the labels of classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from kernels.batch_axis import Application
from kernels.errors import AttributeValueError, DTypeError, ShapeError
from kernels.operands import one_of
from kernels.spec import STRING, Array, DType, Spec

PostTransform = Literal["NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT"]
POST_TRANSFORMS: tuple[PostTransform, ...] = (
    "NONE",
    "SOFTMAX",
    "LOGISTIC",
    "SOFTMAX_ZERO",
    "PROBIT",
)  # as TreeEnsemble counts them
INT64, F32 = np.dtype(np.int64), np.dtype(np.float32)
MODEL_INPUTS = frozenset(map(np.dtype, ("float32", "float64", "int32", "int64")))  # what models of ai.onnx.ml read
MATRIX = 2  # dimensions
_ZERO = 1e-7  # SOFTMAX_ZERO takes scores up to this size for 0
_WINITZKI = 0.147  # of his approximation of the inverse error function, which ONNX's reference and ONNX Runtime compute


def _softmax(scores: Array) -> Array:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def _softmax_zero(scores: Array) -> Array:
    """Softmax over the scores that are not 0."""
    most = scores.max(-1, keepdims=True)
    powers = np.where(np.abs(scores) > _ZERO, np.exp(scores - most), scores * np.exp(-most))
    total = powers.sum(-1, keepdims=True)
    return np.asarray(np.where(total == 0, scores.dtype.type(0.5), powers / total))


def _logistic(scores: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-scores)))


def _probit(scores: Array) -> Array:
    signed = 2 * scores - 1
    log = np.log((1 - signed) * (1 + signed))
    half = 2 / (math.pi * _WINITZKI) + 0.5 * log
    return np.asarray(math.sqrt(2) * np.copysign(np.sqrt(np.sqrt(half * half - log / _WINITZKI) - half), signed))


_TRANSFORMS: Mapping[str, Callable[[Array], Array]] = {
    "NONE": np.asarray, "SOFTMAX": _softmax, "LOGISTIC": _logistic, "SOFTMAX_ZERO": _softmax_zero, "PROBIT": _probit,
}  # fmt: skip
_FLOPS: Mapping[str, int] = {"NONE": 0, "SOFTMAX": 5, "LOGISTIC": 4, "SOFTMAX_ZERO": 7, "PROBIT": 14}


def transformed(scores: Array, how: str) -> Array:
    """Return the scores of rows (…, n) after a transform. Softmaxes are over a row."""
    return _TRANSFORMS[how](scores) if scores.size else scores


def transform_flops(how: str) -> int:
    """Return what a transform takes for each score.

    SOFTMAX: maximum, subtract, power, add, divide; SOFTMAX_ZERO: and compare and multiply. LOGISTIC: negate, power, add, divide.
    PROBIT: 14 operations of Winitzki's approximation.
    """
    return _FLOPS[how]


def check_transform(subject: str, how: str) -> None:
    """Raise AttributeValueError unless there is such a transform."""
    one_of(f"{subject}: attribute post_transform", how, POST_TRANSFORMS)


def rows_of(subject: str, x: Spec) -> tuple[int, int]:
    """Return rows and features of an input (n, features), or (features) of one row. Raises DTypeError, ShapeError."""
    if x.dtype not in MODEL_INPUTS:
        raise DTypeError(f"{subject}: x is {x}, need one of {sorted(dtype.name for dtype in MODEL_INPUTS)}")
    if x.rank not in (1, MATRIX):
        raise ShapeError(f"{subject}: x is {x}, need (n, features)")
    return (1, x.shape[0]) if x.rank == 1 else (x.shape[0], x.shape[1])


def class_labels(subject: str, ints: Sequence[int], strings: Sequence[str]) -> Array:
    """Return the labels of classes, of which there must be two or more of one type. Raises AttributeValueError."""
    if bool(ints) == bool(strings):
        raise AttributeValueError(
            f"{subject}: it has {len(ints)} integer and {len(strings)} string labels, need those of one type"
        )
    labels = ints or strings
    if len(labels) < 2:
        raise AttributeValueError(f"{subject}: it has {len(labels)} label, need 2 or more")
    return np.array(labels, STRING if strings else INT64)


def label_count(attrs: Mapping[str, Any], *names: str) -> int:
    """Return how many labels unchecked attributes of these names list."""
    lists = (attrs.get(name, ()) for name in names)
    return max(len(labels) if isinstance(labels, tuple | list) else 0 for labels in lists)


def label_dtype(strings: Sequence[str]) -> DType:
    """Return the type of the labels of a classifier."""
    return STRING if strings else INT64


def classified(out: Sequence[Array | None], scores: Array, labels: Array, how: str) -> None:
    """Write the label of the largest of each row's scores in float32, the first of equals, and the scores after a transform."""
    if out[0] is not None:
        out[0][...] = labels[scores.astype(F32).argmax(-1)]
    if len(out) > 1 and out[1] is not None:
        np.copyto(out[1], transformed(scores, how), casting="same_kind")


def rows_stay_apart(call: Application) -> str:
    """For models that score each row of x (n, features) alone: the `RowRule` of all of them."""
    first, *others = call.inputs
    if first is None or not first.is_rows or len(first.shape) != MATRIX:
        return "its input 0 holds no rows of features"
    late = [operand for operand in others if operand is not None and not operand.is_free]
    return f"{late[0].name!r} depends on the batch" if late else ""
