"""A small network of three convolutions that tests plan and tune."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from graph.formats.onnx.reader import read
from graph.ir import Model


def convnet() -> Model:
    rng = np.random.default_rng(0)
    shapes = {"w1": (8, 3, 3, 3), "w2": (8, 8, 1, 1), "w3": (8, 1, 3, 3)}
    weights = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), name) for name, s in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "first", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "w2"], ["c"], "pointwise"),
        helper.make_node("Conv", ["c", "w3"], ["d"], "depthwise", group=8, pads=[1] * 4),
        helper.make_node("Flatten", ["d"], ["y"], "flatten"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "net", [value("x", TensorProto.FLOAT, ["n", 3, 16, 16])], [value("y", TensorProto.FLOAT, None)], weights
    )
    return read(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


MODEL = convnet()
