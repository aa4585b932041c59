"""Expansion of models of ai.onnx.ml into their scores and what follows: transforms and labels, which native kernels know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from graph.ir import Node
from graph.passes.editor import Editor, origins
from kernels.expression import FLOAT
from kernels.registry import find
from kernels.scores import MATRIX, class_labels
from kernels.spec import Array

_REGRESSOR = "ai.onnx.ml.TreeEnsembleRegressor"
_TRANSFORMS: Mapping[str, tuple[str, Mapping[str, Any]]] = {"SOFTMAX": ("Softmax", {"axis": -1}), "LOGISTIC": ("Sigmoid", {})}


def expand_models(editor: Editor) -> None:
    """Replace forests by their sums, linear models of float32 by Gemm, and what follows by TopK, Gather and a transform."""
    for name in [node.name for node in editor.graph.nodes if node.op in _EXPANSIONS and not node.epilogue]:
        node = editor.nodes[name]
        if all(editor.spec(value) is not None for value in node.reads()):
            _EXPANSIONS[node.op](editor, node)


def _put(
    editor: Editor, node: Node, op: str, inputs: tuple[str, ...], outputs: tuple[str, ...], attrs: Mapping[str, Any]
) -> None:
    """Put one node of an expansion."""
    editor.put(Node(editor.fresh(f"{node.name}/{op}"), op, inputs, outputs, find(op).bind(attrs), origins=origins(node)))


def _finish(editor: Editor, node: Node, scores: str, made: str, how: str) -> None:
    """Put the transform of scores, which makes a value."""
    op, attrs = _TRANSFORMS.get(how, ("edgewise.PostTransform", {"post_transform": how}))
    _put(editor, node, *(("Identity", (scores,), (made,), {}) if how == "NONE" else (op, (scores,), (made,), attrs)))


def _classify(editor: Editor, node: Node, scores: str, labels: Array) -> None:
    """Put what makes the outputs of a classifier: the label of the largest of a row's scores, and transformed scores."""
    label, *rest = node.outputs
    if label:
        most, places, flat = (editor.fresh(f"{node.name}/{part}") for part in ("most", "places", "place"))
        one, axis = (editor.add_constant(f"{node.name}/{part}", np.array([1], np.int64)) for part in ("one", "axis"))
        _put(editor, node, "TopK", (scores, one), (most, places), {})
        _put(editor, node, "Squeeze", (places, axis), (flat,), {})
        _put(editor, node, "Gather", (editor.add_constant(f"{node.name}/labels", labels), flat), (label,), {})
    if rest and rest[0]:
        _finish(editor, node, scores, rest[0], node.attrs["post_transform"])


def _trees(editor: Editor, node: Node) -> None:
    """Keep the sums of a forest, and put the transform behind it."""
    if (how := node.attrs["post_transform"]) == "NONE":
        return
    scores = editor.fresh(f"{node.name}/scores")
    editor.drop(node)
    editor.put(Node(node.name, node.op, node.inputs, (scores,), {**node.attrs, "post_transform": "NONE"}, origins=origins(node)))
    _finish(editor, node, scores, node.outputs[0], how)


def _tree_classifier(editor: Editor, node: Node) -> None:
    labels = class_labels(node.op, node.attrs["classlabels_int64s"], node.attrs["classlabels_strings"])
    scores = editor.fresh(f"{node.name}/scores")
    editor.drop(node)
    attrs = find(_REGRESSOR).bind({"n_targets": len(labels)})
    editor.put(Node(node.name, _REGRESSOR, node.inputs, (scores,), attrs, origins=origins(node)))
    _classify(editor, node, scores, labels)


def _linear(editor: Editor, node: Node) -> None:
    """Multiply and add by Gemm, if x is a matrix of float32."""
    x = editor.spec(node.inputs[0])
    if x is None or x.dtype != FLOAT or x.rank != MATRIX:
        return
    scores = editor.fresh(f"{node.name}/scores")
    editor.drop(node)
    editor.put(Node(node.name, "Gemm", node.inputs, (scores,), find("Gemm").bind({"transB": 1}), origins=origins(node)))
    if node.op == "ai.onnx.ml.LinearRegressor":
        _finish(editor, node, scores, node.outputs[0], node.attrs["post_transform"])
    else:
        _classify(editor, node, scores, class_labels(node.op, node.attrs["classlabels_ints"], node.attrs["classlabels_strings"]))


def _extractor(editor: Editor, node: Node) -> None:
    """Pick by Gather, along the last axis; what it picks of a vector is a row."""
    x, (data, indices) = editor.spec(node.inputs[0]), node.inputs
    if x is None:
        return
    editor.drop(node)
    flat, shape = editor.fresh(f"{node.name}/indices"), editor.add_constant(f"{node.name}/flat", np.array([-1], np.int64))
    _put(editor, node, "Reshape", (indices, shape), (flat,), {})
    if x.rank > 1:
        editor.put(
            Node(
                node.name, "Gather", (data, flat), node.outputs, find("Gather").bind({"axis": x.rank - 1}), origins=origins(node)
            )
        )
        return
    picked, row = editor.fresh(f"{node.name}/picked"), editor.add_constant(f"{node.name}/row", np.array([1, -1], np.int64))
    editor.put(Node(node.name, "Gather", (data, flat), (picked,), find("Gather").bind({}), origins=origins(node)))
    _put(editor, node, "Reshape", (picked, row), node.outputs, {})


_EXPANSIONS: Mapping[str, Callable[[Editor, Node], None]] = {
    "ai.onnx.ml.ArrayFeatureExtractor": _extractor,
    "ai.onnx.ml.LinearClassifier": _linear,
    "ai.onnx.ml.LinearRegressor": _linear,
    "ai.onnx.ml.TreeEnsemble": _trees,
    "ai.onnx.ml.TreeEnsembleClassifier": _tree_classifier,
    _REGRESSOR: _trees,
}
