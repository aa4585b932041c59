"""Models that the dashboard shows: MobileNetV2 as PyTorch exports it, and a chain of two thousand nodes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

EXPORT = "mobilenet_v2"  # as bench/exports.py calls it
BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
FIRST_NUMBER = 538  # in the names of weights into which the exporter folded a batch norm
LONG = 2000


def mobilenet_v2() -> bytes:
    """Return torchvision's MobileNetV2 as `torch.onnx.export` writes it: the same nodes and names, with random weights.

    Source: arXiv 1801.04381 §4, table 2. BLOCKS holds the expansion, channels, repeats and first stride of each row.
    """
    made = _Export()
    x, width = made.relu6(made.conv("x", "features.0/features.0.0", 3, 32, 3, 2)), 32
    number = 0
    for expansion, outputs, repeats, first_stride in BLOCKS:
        for repeat in range(repeats):
            number += 1
            x, width = made.block(x, f"features.{number}", width, outputs, expansion, 1 if repeat else first_stride), outputs
    x = made.relu6(made.conv(x, f"features.{number + 1}/features.{number + 1}.0", width, 1280, 1))
    x = made.add("/Flatten", "Flatten", [made.add("/GlobalAveragePool", "GlobalAveragePool", [x])], axis=1)
    made.draw("classifier.1.weight", 1000, 1280)
    made.draw("classifier.1.bias", 1000)
    gemm = [x, "classifier.1.weight", "classifier.1.bias"]
    made.add("/classifier/classifier.1/Gemm", "Gemm", gemm, "out", alpha=1.0, beta=1.0, transB=1)
    return _model(made.nodes, made.weights, "x", [1, 3, 224, 224], "out", [1, 1000])


def long() -> bytes:
    """Return a model of LONG additions and square roots, one after another."""
    nodes = []
    for number in range(LONG):
        last = "y" if number == LONG - 1 else f"v{number}"
        before = f"v{number - 1}" if number else "x"
        inputs = [before, "one"] if number % 2 == 0 else [before]
        nodes.append(helper.make_node("Add" if number % 2 == 0 else "Sqrt", inputs, [last], name=f"step{number:04}"))
    return _model(nodes, {"one": np.ones(1, np.float32)}, "x", [64], "y", [64])


class _Export:
    """Nodes named as the exporter does, after the module that they come from. Methods return the name of their output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self._random = np.random.default_rng(0)

    def add(self, name: str, op: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        output = output or f"{name}_output_0"
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        return output

    def draw(self, name: str, outputs: int, *rest: int) -> None:
        """Add a random weight, scaled so that activations keep their variance (He initialisation)."""
        scale = np.float32(np.sqrt(2 / max(math.prod(rest), 1)))
        self.weights[name] = self._random.standard_normal((outputs, *rest), np.float32) * scale

    def conv(self, x: str, module: str, inputs: int, outputs: int, size: int, stride: int = 1, group: int = 1) -> str:
        number = FIRST_NUMBER + 3 * len(self.weights) // 2
        names = [f"onnx::Conv_{number}", f"onnx::Conv_{number + 1}"]
        self.draw(names[0], outputs, inputs // group, size, size)
        self.weights[names[1]] = np.zeros(outputs, np.float32)
        window: dict[str, Any] = {
            "dilations": [1, 1],
            "kernel_shape": [size, size],
            "pads": [size // 2] * 4,
            "strides": [stride, stride],
        }
        return self.add(f"/features/{module}/Conv", "Conv", [x, *names], group=group, **window)

    def relu6(self, x: str) -> str:
        """Add the activation, two places after the convolution in its sequence; the folded batch norm was between them."""
        module = x.removesuffix(".0/Conv_output_0") + ".2"
        bounds = []
        for suffix, bound in (("", 0), ("_1", 6)):
            value = numpy_helper.from_array(np.array(bound, np.float32))
            bounds.append(self.add(f"{module}/Constant{suffix}", "Constant", [], value=value))
        return self.add(f"{module}/Clip", "Clip", [x, *bounds])

    def block(self, x: str, name: str, inputs: int, outputs: int, expansion: int, stride: int) -> str:
        """Add an inverted residual: expand, depthwise, project. The input is added to the result if their shapes agree."""
        start, width, place = x, inputs * expansion, 0
        if expansion > 1:
            x = self.relu6(self.conv(x, f"{name}/conv/conv.0/conv.0.0", inputs, width, 1))
            place = 1
        x = self.relu6(self.conv(x, f"{name}/conv/conv.{place}/conv.{place}.0", width, width, 3, stride, group=width))
        x = self.conv(x, f"{name}/conv/conv.{place + 1}", width, outputs, 1)
        return self.add(f"/features/{name}/Add", "Add", [start, x]) if stride == 1 and inputs == outputs else x


def _model(
    nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], x: str, shape: list[int], y: str, out: list[int]
) -> bytes:
    value = helper.make_tensor_value_info
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    ports = ([value(x, TensorProto.FLOAT, shape)], [value(y, TensorProto.FLOAT, out)])
    graph = helper.make_graph(nodes, "main_graph", *ports, initializers)
    opsets = [helper.make_opsetid("", 17)]
    made: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="pytorch").SerializeToString()
    return made
