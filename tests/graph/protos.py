"""Make small ONNX models for tests of the reader."""

import onnx
from onnx import TensorProto, helper


def model(nodes, initializers=(), inputs=None, outputs=("y",), opset=21) -> onnx.ModelProto:
    inputs = inputs or [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(nodes, "g", inputs, ports, list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def relu(x: str = "x", y: str = "y", name: str = "r") -> onnx.NodeProto:
    return helper.make_node("Relu", [x], [y], name)
