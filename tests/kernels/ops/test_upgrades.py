"""Nodes of older opsets, rewritten by `Op.upgrade`, against ONNX Runtime, which still runs them as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from kernels.errors import AttributeValueError
from kernels.upgrades import constant_of
from tests.kernels.ops.models import array_of, evaluate_node, one_node_model

X = np.random.default_rng(5).standard_normal((2, 3, 4, 6)).astype(np.float32)
MATRIX = X[0, 0]

OLDER: list[tuple[str, int, tuple[Any, ...], dict[str, Any], int]] = [  # op, opset, inputs, attributes, outputs
    ("Clip", 7, (X,), {"min": -0.5, "max": 0.25}, 1),
    ("Clip", 10, (X,), {"max": 0.25}, 1),
    ("Clip", 7, (X,), {}, 1),
    ("Squeeze", 11, (X[:1, :, :1],), {"axes": (0, 2)}, 1),
    ("Squeeze", 7, (X[:1, :, :1],), {}, 1),
    ("Unsqueeze", 11, (MATRIX,), {"axes": (0, 3)}, 1),
    ("Slice", 9, (X,), {"starts": (1, 0), "ends": (3, -1), "axes": (1, 3)}, 1),
    ("Slice", 7, (X,), {"starts": (1,), "ends": (1000,)}, 1),
    ("Split", 7, (X,), {"axis": 1, "split": (1, 2)}, 2),
    ("Split", 11, (X,), {"axis": -1}, 3),
    ("Split", 13, (X, np.array([1, 5], np.int64)), {"axis": 3}, 2),
    ("Split", 17, (X,), {"axis": 3}, 2),
    ("Pad", 7, (MATRIX,), {"pads": (1, 0, 2, 3), "value": 1.5}, 1),
    ("Pad", 10, (MATRIX,), {"pads": (0, -1, 2, 0)}, 1),
    ("Pad", 7, (MATRIX,), {"pads": (1, 2, 0, 1), "mode": "reflect"}, 1),
    ("TopK", 7, (MATRIX,), {"k": 2, "axis": 1}, 2),
    ("TopK", 10, (MATRIX, np.array([3], np.int64)), {"axis": 0}, 2),
    ("ReduceSum", 11, (X,), {"axes": (1, -1), "keepdims": 0}, 1),
    ("ReduceSum", 12, (X,), {}, 1),
    ("ReduceMean", 13, (X,), {"axes": (2, 3)}, 1),
    ("ReduceMax", 17, (X,), {"axes": (0,)}, 1),
    ("ReduceLogSumExp", 11, (X,), {"axes": (1,), "keepdims": 1}, 1),
    ("Softmax", 11, (X,), {}, 1),
    ("Softmax", 7, (X,), {"axis": 2}, 1),
    ("LogSoftmax", 11, (X,), {"axis": 0}, 1),
    ("Hardmax", 11, (X,), {"axis": 2}, 1),
    ("Hardmax", 7, (X,), {}, 1),
    ("Dropout", 7, (X,), {"ratio": 0.3}, 1),
    ("Dropout", 10, (X,), {}, 1),
    ("Upsample", 7, (X,), {"scales": (1.0, 1.0, 2.0, 2.0)}, 1),
    ("Upsample", 9, (X, np.array([1, 1, 2, 3], np.float32)), {"mode": "linear"}, 1),
    ("Resize", 10, (X, np.array([1, 1, 0.5, 2], np.float32)), {"mode": "linear"}, 1),
    ("Resize", 10, (X, np.array([1, 1, 2, 1.5], np.float32)), {"mode": "nearest"}, 1),
    ("Resize", 11, (X, np.zeros(0, np.float32), np.array([1, 1, 2, 2], np.float32)), {"mode": "cubic"}, 1),
    (
        "Resize",
        11,
        (X, np.zeros(0, np.float32), np.zeros(0, np.float32), np.array([2, 3, 3, 9], np.int64)),
        {"nearest_mode": "floor", "coordinate_transformation_mode": "tf_half_pixel_for_nn"},
        1,
    ),
    ("Scatter", 10, (MATRIX, np.array([[1, 0, 3]], np.int64), X[0, 1, :1, :3]), {"axis": 0}, 1),
    ("GridSample", 16, (X, X[:, 0, :, :2].reshape(2, 2, 2, 2)), {"mode": "bicubic"}, 1),
    ("GridSample", 16, (X, X[:, 0, :, :2].reshape(2, 2, 2, 2)), {"padding_mode": "reflection"}, 1),
    ("DFT", 17, (X[..., :2],), {"axis": 1}, 1),
    ("DFT", 17, (X[..., :2],), {}, 1),
    ("Gelu", 20, (X,), {"approximate": "tanh"}, 1),
    ("ThresholdedRelu", 10, (X,), {"alpha": 0.5}, 1),
    ("Flatten", 7, (X,), {}, 1),
    ("Reshape", 7, (X, np.array([0, -1], np.int64)), {}, 1),
    ("ArgMax", 11, (X,), {"axis": 2, "keepdims": 0}, 1),
    ("Gemm", 7, (MATRIX, MATRIX.T.copy(), MATRIX[:, :4].copy()), {"alpha": 0.5}, 1),
    ("Add", 7, (X, X[0, 0]), {}, 1),
]


@pytest.mark.parametrize(
    ("name", "opset", "inputs", "attrs", "outputs"), OLDER, ids=[f"{case[0]}-{case[1]}-{i}" for i, case in enumerate(OLDER)]
)
def test_older_node_agrees_with_onnxruntime(name, opset, inputs, attrs, outputs):
    model = one_node_model(name, inputs, outputs, attrs, opset=opset)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    expected = session.run(None, {f"x{i}": x for i, x in enumerate(inputs)})
    for y, wanted in zip(evaluate_node(model.graph.node[0], opset, inputs)[:outputs], map(array_of, expected), strict=True):
        assert y.dtype == wanted.dtype
        np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)


def test_constant_of_refuses_text():
    with pytest.raises(AttributeValueError, match="attribute 'axes' is 'all', need numbers of int64"):
        constant_of("axes", "all")


def test_constant_of_refuses_fractions_where_integers_are_due():
    with pytest.raises(AttributeValueError, match=r"'\(0\.5,\)'"):
        constant_of("axes", (0.5,))
