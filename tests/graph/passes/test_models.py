"""Models of ai.onnx.ml become what native kernels know, and compute the same."""

from __future__ import annotations

import numpy as np
import pytest

from graph.passes.models import expand_models
from tests.graph.passes.checks import build, const, node, ops, optimised, rewritten
from tests.kernels.forests import Branch, Leaf, listed

ML = "ai.onnx.ml"
ROWS = {"x": (5, 3)}
TREES: list[Leaf | Branch] = [
    Branch(
        0, "BRANCH_LT", 0.25, False, Leaf([(0, 1.0), (1, 0.5)]), Branch(2, "BRANCH_GT", 0.0, False, Leaf([(1, 2.0)]), Leaf([]))
    ),
    Leaf([(2, 0.75)]),
]
REGRESSOR = f"{ML}.TreeEnsembleRegressor"
LABEL = ["TopK", "Squeeze", "Gather"]


def regressor(how="NONE"):
    return node("TreeEnsembleRegressor", ["x"], ["y"], domain=ML, n_targets=3, post_transform=how, **listed(TREES))


def classifier(how="NONE", outputs=("y", "z")):
    attrs = listed(TREES, "class") | {"classlabels_int64s": [4, 5, 6]}
    return node("TreeEnsembleClassifier", ["x"], list(outputs), domain=ML, post_transform=how, **attrs)


def linear(op, outputs, **attrs):
    return node(
        op, ["x"], list(outputs), domain=ML, coefficients=np.linspace(-1, 1, 9).tolist(), intercepts=[0.5, 0.0, -0.5], **attrs
    )


@pytest.mark.parametrize(
    ("how", "wanted"), [("SOFTMAX", "Softmax"), ("LOGISTIC", "Sigmoid"), ("SOFTMAX_ZERO", "edgewise.PostTransform")]
)
def test_transforms_follow_the_sums_of_trees(how, wanted):
    assert ops(rewritten(build([regressor(how)], (), ROWS), expand_models)) == [REGRESSOR, wanted]


def test_sums_without_a_transform_stay():
    graph = build([regressor()], (), ROWS)
    assert ops(rewritten(graph, expand_models)) == [REGRESSOR]


def test_classifiers_of_trees_become_sums_and_labels():
    graph = build([classifier("SOFTMAX")], (), ROWS, ("y", "z"))
    assert ops(rewritten(graph, expand_models)) == [REGRESSOR, *LABEL, "Softmax"]


def test_outputs_may_be_absent():
    labels = build([classifier(outputs=("y",))], (), ROWS)
    assert ops(optimised(labels).graph) == [REGRESSOR, *LABEL]
    scores = build([classifier(outputs=("", "z"))], (), ROWS, ("z",))
    assert ops(optimised(scores).graph) == [REGRESSOR]


def test_linear_models_become_products():
    regression = build([linear("LinearRegressor", ["y"], targets=3)], (), ROWS)
    assert ops(optimised(regression).graph) == ["Gemm"]
    attrs = {"classlabels_ints": [1, 2, 3], "post_transform": "SOFTMAX"}
    classes = build([linear("LinearClassifier", ["y", "z"], **attrs)], (), ROWS, ("y", "z"))
    assert ops(rewritten(classes, expand_models)) == ["Gemm", *LABEL, "Softmax"]


def test_linear_models_of_one_row_stay():
    graph = build([linear("LinearRegressor", ["y"], targets=3)], (), {"x": (3,)})
    assert ops(rewritten(graph, expand_models)) == [f"{ML}.LinearRegressor"]


@pytest.mark.parametrize(("shape", "wanted"), [((5, 3), ["Reshape", "Gather"]), ((4,), ["Reshape", "Gather", "Reshape"])])
def test_extracted_features_are_gathered(shape, wanted):
    graph = build([node("ArrayFeatureExtractor", ["x", "i"], ["y"], domain=ML)], (const("i", [[2, 0]], np.int64),), {"x": shape})
    assert ops(rewritten(graph, expand_models)) == wanted
