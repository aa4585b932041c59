"""Forests of decision trees: ai.onnx.ml.TreeEnsemble, TreeEnsembleRegressor and TreeEnsembleClassifier.

What ONNX writes as attributes, a number for each node of a tree, are inputs here, as weights are: `kernels.forest` says in which
form. Behind them may come numbers that are added to the scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kernels.cost import Cost
from kernels.errors import AttributeValueError, DTypeError, ShapeError
from kernels.forest import AGGREGATES, BLOCK_WALKS, WALK_BYTES, Aggregate, Forest
from kernels.forest_reading import either, ensemble_nodes, listed_nodes
from kernels.operands import one_of
from kernels.registry import Case, Kernel, Op
from kernels.scores import (
    F32,
    POST_TRANSFORMS,
    PostTransform,
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

BASE = 1 + len(Forest._fields)  # position of the numbers that are added, behind x and the forest
_HALF = np.dtype(np.float16)


# Inference


def _scores(subject: str, x: Spec, inputs: Sequence[Spec | None], targets: int, how: str) -> tuple[int, int]:
    """Return the shape of the scores. inputs: a forest, and base values if any. Raises an error for none over rows of x."""
    forest = [spec for spec in inputs[: BASE - 1] if spec is not None]
    if len(inputs) not in (BASE - 1, BASE) or len(forest) < BASE - 1:
        raise ShapeError(
            f"{subject}: it has {len(forest)} of {BASE - 1} inputs of a forest, {len(inputs)} in all, need these and base values"
        )
    base = inputs[BASE - 1] if len(inputs) == BASE else None
    check_transform(subject, how)
    rows, features = rows_of(subject, Spec(x.shape, F32) if x.dtype == _HALF else x)
    if targets < 1:
        raise AttributeValueError(f"{subject}: attribute n_targets is {targets}, need 1 or more")
    Forest.of(forest, subject).check(subject, features, targets)
    if base is not None and (base.shape != (targets,) or base.dtype not in FLOATS):
        raise ShapeError(f"{subject}: base values are {base}, need {targets} floats")
    return rows, targets


def infer_ensemble(
    x: Spec,
    *forest: Spec | None,
    n_targets: int = 1,
    aggregate_function: str = "SUM",
    post_transform: str = "NONE",
) -> Spec:
    """(n, n_targets), of the type of x, which is (n, features)."""
    subject = "ai.onnx.ml.TreeEnsemble"
    one_of(f"{subject}: attribute aggregate_function", aggregate_function, AGGREGATES)
    if x.dtype not in FLOATS:
        raise DTypeError(f"{subject}: x is {x}, need floats")
    return Spec(_scores(subject, x, forest, n_targets, post_transform), x.dtype)


def infer_regressor(
    x: Spec,
    *forest: Spec | None,
    n_targets: int = 1,
    aggregate_function: str = "SUM",
    post_transform: str = "NONE",
) -> Spec:
    """(n, n_targets) float32, of x (n, features)."""
    subject = "ai.onnx.ml.TreeEnsembleRegressor"
    one_of(f"{subject}: attribute aggregate_function", aggregate_function, AGGREGATES)
    return Spec(_scores(subject, x, forest, n_targets, post_transform), F32)


def infer_classifier(
    x: Spec,
    *forest: Spec | None,
    classlabels_int64s: Sequence[int] = (),
    classlabels_strings: Sequence[str] = (),
    post_transform: str = "NONE",
) -> tuple[Spec, Spec]:
    """Labels (n), and scores (n, classes) float32, of x (n, features)."""
    subject = "ai.onnx.ml.TreeEnsembleClassifier"
    labels = class_labels(subject, classlabels_int64s, classlabels_strings)
    shape = _scores(subject, x, forest, len(labels), post_transform)
    return Spec(shape[:1], label_dtype(classlabels_strings)), Spec(shape, F32)


# Cost and memory


def cost(out: tuple[Spec, ...], x: Spec, *forest: Spec | None, post_transform: str, **attrs: Any) -> Cost:
    """For each row and tree a comparison on each level of a balanced tree, and an addition for each entry of a leaf; for each
    score an addition of its base value, and 5 (SOFTMAX), 4 (LOGISTIC), 7 (SOFTMAX_ZERO) or 14 (PROBIT)."""
    rows, targets = out[-1].shape
    counts = {name: spec.elements for name, spec in zip(Forest._fields, forest, strict=False) if spec is not None}
    trees, leaves = counts["roots"], max(counts["leaves"] - 1, 1)
    levels, entries = (-(-leaves // max(trees, 1)) - 1).bit_length(), -(-counts["weights"] // leaves)
    each = (len(forest) == BASE) + transform_flops(post_transform)
    return Cost(other_flops=rows * (trees * (levels + entries) + targets * each))


def scratch_bytes(out: tuple[Spec, ...], x: Spec, *forest: Spec | None, **attrs: Any) -> int:
    """The walks of a block of rows, and the scores in float64."""
    elements = sum(spec.elements for spec in forest if spec is not None)
    return FIXED_BYTES + WALK_BYTES * (BLOCK_WALKS + elements) + 64 * out[-1].elements


# numpy


def _total(x: Array, inputs: Sequence[Array | None], aggregate: Aggregate, targets: int) -> Array:
    """Return the sums of all trees and the base values, in float64."""
    *forest, base = (*inputs, None)[:BASE]
    made = Forest(*(array for array in forest if array is not None))
    total = made.totals(x.reshape(-1, x.shape[-1]), aggregate, targets)
    return total if base is None else total + base


def run(
    out: tuple[Array, ...],
    x: Array,
    *forest: Array | None,
    n_targets: int = 1,
    aggregate_function: Aggregate = "SUM",
    post_transform: PostTransform = "NONE",
) -> None:
    """All trees at once, a level at a time; sums in float64."""
    np.copyto(out[0], transformed(_total(x, forest, aggregate_function, n_targets), post_transform), casting="same_kind")


def run_classifier(
    out: tuple[Array | None, ...],
    x: Array,
    *forest: Array | None,
    classlabels_int64s: Sequence[int] = (),
    classlabels_strings: Sequence[str] = (),
    post_transform: PostTransform = "NONE",
) -> None:
    """All trees at once, a level at a time; sums in float64. The label is that of the largest sum, the first of equals."""
    labels = class_labels("ai.onnx.ml.TreeEnsembleClassifier", classlabels_int64s, classlabels_strings)
    classified(out, _total(x, forest, "SUM", len(labels)), labels, post_transform)


# The attributes that ONNX has


def _inputs(forest: Forest, base: Array | None = None) -> dict[int, Array]:
    made = dict(enumerate(forest, 1))
    return made if base is None or not base.size else made | {BASE: base}


def upgrade_ensemble(opset: int, attrs: dict[str, Any], outputs: int) -> tuple[dict[str, Any], dict[int, Array]]:
    """Arrays in place of lists, and names in place of numbers."""
    attrs = dict(attrs)
    forest = ensemble_nodes(attrs)
    for name, names in (("aggregate_function", AGGREGATES), ("post_transform", POST_TRANSFORMS)):
        number = attrs.get(name, names.index("SUM") if name == "aggregate_function" else 0)
        if not isinstance(number, int) or not 0 <= number < len(names):
            raise AttributeValueError(f"attribute {name!r} is {number!r}, need 0 to {len(names) - 1}")
        attrs[name] = names[number]
    return attrs, _inputs(forest)


def upgrade_regressor(opset: int, attrs: dict[str, Any], outputs: int) -> tuple[dict[str, Any], dict[int, Array]]:
    """Arrays in place of lists."""
    attrs = dict(attrs)
    forest = listed_nodes(attrs, "target")
    return attrs, _inputs(forest, either(attrs, "base_values"))


def upgrade_classifier(opset: int, attrs: dict[str, Any], outputs: int) -> tuple[dict[str, Any], dict[int, Array]]:
    """Arrays in place of lists; two scores where trees have one, that of the second class under the number of the first."""
    attrs = dict(attrs)
    forest, base = listed_nodes(attrs, "class"), either(attrs, "base_values")
    labels = label_count(attrs, "classlabels_int64s", "classlabels_strings")
    if labels == 2 and forest.targets.size and not forest.targets.any():
        return attrs, _inputs(*_of_two(forest, base, attrs.get("post_transform", "NONE")))
    return attrs, _inputs(forest, base)


def _of_two(forest: Forest, base: Array, how: object) -> tuple[Forest, Array]:
    """Return the scores of two classes, given the score s of the second.

    Where no weight is negative and no transform makes probabilities of scores, s is one, and the first class has 1 - s. Otherwise
    it has -s. Exporters write either; ONNX's text is silent, and this is what its reference and ONNX Runtime compute.
    """
    share = how in ("NONE", "PROBIT") and not (forest.weights < 0).any()
    start = base[:1] if base.size else forest.weights.dtype.type([0])
    both = np.concatenate([(1 if share else 0) - start, start])
    weights = np.stack([-forest.weights, forest.weights], 1).reshape(-1)
    targets = np.tile(np.array([0, 1], np.int32), forest.targets.size)
    return forest._replace(leaves=2 * forest.leaves, targets=targets, weights=weights), both


# Cases: two trees over three features; the second is a leaf


def _forest(
    targets: Sequence[int] = (0, 0, 0, 0),
    weights: Sequence[float] = (1.5, -2, 4, 0.25),
    leaves: Sequence[int] = (0, 1, 2, 3, 4),
    **changed: Array,
) -> tuple[Array, ...]:
    made = Forest(
        np.array([0, -4], np.int32),
        np.array([2, 0], np.int32),
        np.array([0.5, -0.25]),
        np.array([[1, -3], [-1, -2]], np.int32),
        np.array([True, False]),
        np.array(leaves, np.int32),
        np.array(targets, np.int32),
        np.array(weights, np.float32),
    )
    return tuple(made._replace(**changed))


_X = np.array([[0, 1, 0.5], [-1, 0, -3], [9, 9, 9], [np.nan, 0, np.nan]], np.float32)
_BASE = np.array([0.5], np.float32)
_TWO = _forest((0, 1, 1, 0, 1), (1, 2, 3, 4, 5), (0, 2, 3, 4, 5))
_LOOP = np.array([[0, -3], [-1, -2]], np.int32)
_REGRESSION = (
    Case("sum", inputs=(_X, *_forest()), cost=Cost(other_flops=4 * 2 * (1 + 1))),
    Case("base", inputs=(_X, *_forest(), _BASE), cost=Cost(other_flops=4 * (2 * 2 + 1))),
    Case("average", inputs=(_X, *_TWO), attrs={"n_targets": 2, "aggregate_function": "AVERAGE"}),
    Case("least", inputs=(_X, *_TWO), attrs={"n_targets": 3, "aggregate_function": "MIN"}),
    Case("most", inputs=(_X, *_TWO), attrs={"n_targets": 3, "aggregate_function": "MAX"}),
    Case("logistic", inputs=(_X, *_forest()), attrs={"post_transform": "LOGISTIC"}, cost=Cost(other_flops=4 * (4 + 4))),
    Case("random", inputs=((50, 3), *_TWO), attrs={"n_targets": 2, "post_transform": "SOFTMAX"}),
    Case("one_row", inputs=((3,), *_forest())),
    Case("empty", inputs=((0, 3), *_forest()), cost=Cost()),
    Case("feature_beyond", inputs=((2, 2), *_forest()), raises=AttributeValueError),
    Case("cycle", inputs=((2, 3), *_forest(branches=_LOOP)), raises=AttributeValueError),
    Case("leaf_beyond", inputs=((2, 3), *_forest(roots=np.array([-6], np.int32))), raises=AttributeValueError),
    Case("target_beyond", inputs=((2, 3), *_TWO), raises=AttributeValueError),
    Case("leaves_out_of_order", inputs=((2, 3), *_forest(leaves=(0, 2, 1, 3, 4))), raises=AttributeValueError),
    Case("splits_missing", inputs=((2, 3), *_forest(splits=np.zeros(1))), raises=ShapeError),
    Case("roots_of_floats", inputs=((2, 3), *_forest(roots=np.zeros(2, np.float32))), raises=DTypeError),
    Case("no_such_aggregate", inputs=((2, 3), *_forest()), attrs={"aggregate_function": "ANY"}, raises=AttributeValueError),
    Case("no_targets", inputs=((2, 3), *_forest()), attrs={"n_targets": 0}, raises=AttributeValueError),
)
_INTS = Case("integers", inputs=(np.array([[0, 1, 0], [-1, 0, -3]], np.int64), *_forest()))
_DOUBLES = Case("doubles", inputs=(_X.astype(np.float64), *_forest()))
_HALVES = Case("halves", inputs=(_X.astype(np.float16), *_forest()))
_LABELS = {"classlabels_int64s": (7, -9)}
_CLASSIFICATION = (
    Case("two", inputs=(_X, *_TWO), attrs=_LABELS, outputs=2, cost=Cost(other_flops=4 * 2 * (1 + 2))),
    Case("strings", inputs=(_X, *_TWO), attrs={"classlabels_strings": ("no", "yes")}, outputs=2),
    Case("softmax", inputs=((20, 3), *_TWO), attrs={**_LABELS, "post_transform": "SOFTMAX"}, outputs=2),
    Case("softmax_zero", inputs=(_X, *_TWO), attrs={**_LABELS, "post_transform": "SOFTMAX_ZERO"}, outputs=2),
    Case("base", inputs=(_X, *_TWO, np.array([9, -9], np.float32)), attrs=_LABELS, outputs=2),
    Case("one_label", inputs=((2, 3), *_forest()), attrs={"classlabels_int64s": (1,)}, raises=AttributeValueError),
    Case("both_kinds", inputs=((2, 3), *_TWO), attrs={**_LABELS, "classlabels_strings": ("a", "b")}, raises=AttributeValueError),
    Case("no_such_transform", inputs=((2, 3), *_TWO), attrs={**_LABELS, "post_transform": "TANH"}, raises=AttributeValueError),
)

OPS = (
    Op(
        "ai.onnx.ml.TreeEnsemble",
        infer_ensemble,
        cost,
        (Kernel("levels", run, scratch_bytes=scratch_bytes),),
        mixes_rows=rows_stay_apart,
        upgrade=upgrade_ensemble,
        cases=(*_REGRESSION, _DOUBLES, _HALVES),
    ),
    Op(
        "ai.onnx.ml.TreeEnsembleRegressor",
        infer_regressor,
        cost,
        (Kernel("levels", run, scratch_bytes=scratch_bytes),),
        mixes_rows=rows_stay_apart,
        upgrade=upgrade_regressor,
        cases=(*_REGRESSION, _DOUBLES, _INTS),
    ),
    Op(
        "ai.onnx.ml.TreeEnsembleClassifier",
        infer_classifier,
        cost,
        (Kernel("levels", run_classifier, scratch_bytes=scratch_bytes),),
        mixes_rows=rows_stay_apart,
        upgrade=upgrade_classifier,
        cases=_CLASSIFICATION,
    ),
)
