"""Operators of ai.onnx.ml as files have them, against ONNX Runtime: attributes that become inputs, and defaults."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import edgewise
from kernels.spec import STRING, Array
from tests.kernels import forests
from tests.kernels.forests import Branch, Leaf
from tests.kernels.ops.models import array_of, one_node_model
from tests.kernels.ops.test_onnxruntime import session

ML, F32 = "ai.onnx.ml", np.float32
X = np.array([[-1, 0.5, 2], [1, 2, -0.25], [0, 0, 0], [3, -1, 1]], F32)
STRINGS = np.array([["a", "z"], ["b", "a"]], STRING)
LABELS = {"classlabels_ints": [5, 9]}
NAMES = {"classlabels_strings": ["no", "maybe", "yes"]}
ONE = {"coefficients": [0.5, 1.0, -1.0], "intercepts": [0.25]}
THREE = {"coefficients": np.linspace(-1, 1, 9).tolist(), "intercepts": [0.5, 0.0, -0.5]}
VECTORS = np.random.default_rng(0).standard_normal((5, 3)).astype(F32).reshape(-1).tolist()
PLAIN: dict[str, Any] = {"kernel_type": "LINEAR", "kernel_params": [0.0, 0.0, 0.0]}
MACHINE = {"support_vectors": VECTORS, "kernel_params": [0.5, 0.25, 2.0]}
PAIRS = {**MACHINE, "vectors_per_class": [2, 1, 2], "coefficients": np.linspace(-1, 1, 10).tolist(), "rho": [0.1, -0.2, 0.3]}
PAIR = {**MACHINE, "vectors_per_class": [2, 3], "coefficients": np.linspace(-1, 1.5, 5).tolist(), "rho": [0.1]}

CASES: list[tuple[str, list[Array], dict[str, Any], int]] = [
    ("Scaler", [X], {"offset": [1.0], "scale": [2.0]}, 1),
    ("Scaler", [X.astype(np.int64)], {"offset": [1.0, 2.0, 3.0], "scale": [2.0, 0.5, 1.0]}, 1),
    ("Imputer", [X], {"imputed_value_floats": [7.0, 8.0, 9.0], "replaced_value_float": 0.5}, 1),
    ("Imputer", [X.astype(np.int64)], {"imputed_value_int64s": [7], "replaced_value_int64": 2}, 1),
    ("LinearRegressor", [X], ONE, 1),
    ("LinearRegressor", [X], {"coefficients": THREE["coefficients"], "targets": 3}, 1),
    *(("LinearClassifier", [X], {**THREE, **NAMES, "post_transform": how}, 2) for how in ("NONE", "SOFTMAX", "LOGISTIC")),
    ("LinearClassifier", [X], {**ONE, **LABELS, "post_transform": "LOGISTIC"}, 2),
    *(
        ("SVMRegressor", [X], {**MACHINE, "coefficients": VECTORS[:5], "rho": [0.5], "n_supports": 5, "kernel_type": kind}, 1)
        for kind in ("LINEAR", "POLY", "RBF", "SIGMOID")
    ),
    ("SVMRegressor", [X], {"coefficients": [0.5, 1.0, -1.0], "rho": [0.5], "one_class": 1, **PLAIN}, 1),
    *(("SVMClassifier", [X], {**PAIRS, **NAMES, "kernel_type": kind}, 2) for kind in ("LINEAR", "POLY", "RBF", "SIGMOID")),
    ("SVMClassifier", [X], {**PAIRS, **NAMES, "kernel_type": "RBF", "prob_a": [-1.0, 0.5, -2.0], "prob_b": [0.1, 0.2, 0.3]}, 2),
    ("SVMClassifier", [X], {**PAIR, **LABELS, "kernel_type": "RBF"}, 2),
    ("SVMClassifier", [X], {**PAIR, **LABELS, "kernel_type": "RBF", "prob_a": [-1.5], "prob_b": [0.25]}, 2),
    ("SVMClassifier", [X], {"coefficients": THREE["coefficients"], "rho": [0.5], **PLAIN, **NAMES}, 2),
    ("LabelEncoder", [STRINGS], {"keys_strings": ["a", "b", "a"], "values_int64s": [1, 2, 3]}, 1),
    ("LabelEncoder", [STRINGS], {"keys_strings": ["a"], "values_floats": [0.5], "default_float": -2.0}, 1),
    ("LabelEncoder", [np.array([1, 7], np.int64)], {"keys_int64s": [7], "values_strings": ["seven"], "default_string": "?"}, 1),
    ("CategoryMapper", [STRINGS], {"cats_strings": ["b", "a"], "cats_int64s": [5, 6], "default_int64": 0}, 1),
    ("OneHotEncoder", [STRINGS], {"cats_strings": ["b", "a"]}, 1),
]


def check(name: str, inputs: list[Array], attrs: dict[str, Any], outputs: int, version: int = 1) -> None:
    """Compare a model of one node in Edgewise, natively and in numpy, with ONNX Runtime."""
    model = one_node_model(name, inputs, outputs, attrs, domain=ML, opset=17)
    model.opset_import[1].version = version
    feeds = {f"x{at}": array for at, array in enumerate(inputs)}
    expected = session(model).run(None, feeds)
    for backend in ("numpy", "auto"):
        made = edgewise.Session(model, backend=backend).run(feeds).values()
        for actual, wanted in zip(made, map(array_of, expected), strict=True):
            assert actual.dtype == wanted.dtype
            if actual.dtype.kind == "f":
                np.testing.assert_allclose(actual, wanted, rtol=2e-5, atol=2e-6)
            else:
                np.testing.assert_array_equal(actual, wanted)


@pytest.mark.parametrize(("name", "inputs", "attrs", "outputs"), CASES, ids=[f"{case[0]}-{at}" for at, case in enumerate(CASES)])
def test_node_agrees_with_onnxruntime(name, inputs, attrs, outputs):
    check(name, inputs, attrs, outputs, 2 if name == "LabelEncoder" else 1)


RIGHT = Branch(2, "BRANCH_GT", 0.0, True, Leaf([(2, 1.0)]), Leaf([(1, -1.0)]))
TREES: list[Leaf | Branch] = [
    Branch(0, "BRANCH_LT", 1.0, False, Leaf([(0, 0.5), (1, 2.0)]), RIGHT),
    Branch(1, "BRANCH_GTE", 0.5, False, Leaf([(0, 1.5), (2, -0.25)]), Leaf([(1, 0.75)])),
]
MISSING = np.array([[np.nan, np.nan, np.nan], [1, np.nan, 0], [1, 2, np.nan]], F32)
INPUTS = {"floats": X, "missing": MISSING, "doubles": X.astype(np.float64)}


@pytest.mark.parametrize("x", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("aggregate", ["SUM", "AVERAGE", "MIN", "MAX"])
def test_regression_trees_agree_with_onnxruntime(x, aggregate):
    """Without base values: ONNX Runtime leaves them out of targets that no leaf gives anything, ONNX's reference does not."""
    check("TreeEnsembleRegressor", [x], {**forests.listed(TREES), "n_targets": 3, "aggregate_function": aggregate}, 1, 3)


@pytest.mark.parametrize("aggregate", ["SUM", "AVERAGE", "MIN", "MAX"])
def test_base_values_agree_with_onnxruntime(aggregate):
    trees: list[Leaf | Branch] = [Branch(0, "BRANCH_LEQ", 0.5, False, Leaf([(0, 0.5)]), Leaf([(0, 2.0)])), Leaf([(0, 1.0)])]
    attrs = {**forests.listed(trees), "n_targets": 1, "aggregate_function": aggregate, "base_values": [0.25]}
    check("TreeEnsembleRegressor", [X], attrs, 1, 3)


def test_label_of_one_linear_score_is_that_of_its_sign():
    model = one_node_model("LinearClassifier", [X], 2, {**ONE, **LABELS}, domain=ML, opset=17)
    label, _ = session(model).run(None, {"x0": X})
    made = edgewise.Session(model).run({"x0": X})
    np.testing.assert_array_equal(made["y0"], label)
    score = X @ np.array(ONE["coefficients"], F32) + ONE["intercepts"]
    np.testing.assert_allclose(made["y1"], np.stack([-score, score], 1), rtol=1e-6)


@pytest.mark.parametrize("how", ["NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO"])
def test_classification_trees_agree_with_onnxruntime(how):
    check("TreeEnsembleClassifier", [X], {**forests.listed(TREES, "class"), **NAMES, "post_transform": how}, 2, 3)


@pytest.mark.parametrize(("low", "how"), [(-1.0, "NONE"), (-1.0, "LOGISTIC"), (0.25, "NONE")])
@pytest.mark.parametrize("base", [(), (0.125,)])
def test_one_score_of_two_classes_agrees_with_onnxruntime(low, how, base):
    """As exporters of binary classifiers write it: the score of the second class under the number of the first."""
    trees: list[Leaf | Branch] = [Branch(0, "BRANCH_LEQ", 0.5, False, Leaf([(0, low)]), Leaf([(0, 0.625)]))]
    attrs = {**forests.listed(trees, "class"), "classlabels_int64s": [5, 9], "post_transform": how}
    check("TreeEnsembleClassifier", [X], attrs | ({"base_values": list(base)} if base else {}), 2, 3)


def test_probit_is_the_approximation_that_onnxruntime_has():
    trees: list[Leaf | Branch] = [Branch(0, "BRANCH_LEQ", 0.5, False, Leaf([(0, 0.25)]), Leaf([(0, 0.75)]))]
    check("TreeEnsembleRegressor", [X], {**forests.listed(trees), "n_targets": 1, "post_transform": "PROBIT"}, 1, 3)


@pytest.mark.parametrize("aggregate", range(4))
def test_ensembles_agree_with_onnxruntime(aggregate):
    other = Branch(2, "BRANCH_EQ", -0.25, False, Leaf([(0, 4.0)]), Leaf([(1, 0.5)]))
    trees = [
        Branch(0, "BRANCH_MEMBER", 0.0, False, Leaf([(0, 1.0)]), Leaf([(1, 2.0)]), [1.0, 3.0]),
        Branch(1, "BRANCH_LEQ", 0.5, False, Leaf([(1, -1.0)]), other),
    ]
    attrs = {**forests.ensemble(trees, 2), "aggregate_function": aggregate}
    check("TreeEnsemble", [X], attrs, 1, 5)


def test_maps_agree_with_onnxruntime():
    made = helper.make_node("DictVectorizer", ["m"], ["y"], domain=ML, string_vocabulary=["b", "a", "c"])
    info = helper.make_value_info(
        "m", helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    )
    graph = helper.make_graph([made], "g", [info], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(ML, 1)], ir_version=9)
    (expected,) = session(model).run(None, {"m": {"a": 1.5, "z": 2.0}})
    feeds = {"m.keys": np.array(["a", "z"], STRING), "m.values": np.array([1.5, 2], F32)}
    np.testing.assert_array_equal(edgewise.Session(model).run(feeds)["y"], expected)
