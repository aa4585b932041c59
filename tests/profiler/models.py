"""Make small ONNX models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Sequence[str],
    initializers: Mapping[str, Any] | None = None,
    *,
    dtypes: Mapping[str, int] | None = None,
    opset: int = 17,
    producer: str = "pytorch",
) -> onnx.ModelProto:
    """Return a model whose outputs have no shape. Inputs and outputs are float32, except those whose type is in `dtypes`."""
    kinds = dtypes or {}
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), None) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (initializers or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, producer_name=producer, ir_version=8)


def node(op: str, inputs: str, outputs: str, name: str = "", **attrs: Any) -> onnx.NodeProto:
    """Return a node. inputs, outputs: names separated by blanks; "_" is an absent input."""
    return helper.make_node(op, ["" if i == "_" else i for i in inputs.split()], outputs.split(), name=name or outputs, **attrs)


def branch(name: str, *nodes: onnx.NodeProto, output: str) -> onnx.GraphProto:
    """Return a body of an If, which has no inputs and one float output."""
    return helper.make_graph(list(nodes), name, [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)])


def random(*shape: int) -> np.ndarray:
    """Return seeded, normally distributed float32 numbers."""
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def small_convnet() -> onnx.ModelProto:
    """Return a classifier of 14×14 images into ten classes, with every kind of layer once."""
    nodes = [
        node("Conv", "x w1 b1", "conv1", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Relu", "conv1", "relu1"),
        node("MaxPool", "relu1", "pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "pool w2", "depthwise", kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=8),
        node("BatchNormalization", "depthwise g be m v", "norm"),
        node("Add", "norm pool", "sum"),
        node("Concat", "sum pool", "both", axis=1),
        node("GlobalAveragePool", "both", "mean"),
        node("Flatten", "mean", "flat"),
        node("Gemm", "flat w3 b3", "logits", transB=1),
        node("Softmax", "logits", "y", axis=1),
    ]
    weights = {
        "w1": random(8, 3, 3, 3),
        "b1": random(8),
        "w2": random(8, 1, 3, 3),
        "g": random(8),
        "be": random(8),
        "m": random(8),
        "v": np.ones(8, np.float32),
        "w3": random(10, 16),
        "b3": random(10),
    }
    return model(nodes, {"x": ["batch", 3, 14, 14]}, ["y"], weights)
