"""Models to look at in pages: a residual network of a usual size, and one of two thousand nodes."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTHS = (16, 32, 64)
BLOCKS = 3
LONG = 2000


def residual() -> bytes:
    """Three stages of three blocks of two convolutions for 32×32 images, about sixty nodes."""
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, np.ndarray] = {}
    random = np.random.default_rng(0)

    def add(op: str, inputs: list[str], name: str, **attributes: object) -> str:
        nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def conv(x: str, name: str, inputs: int, outputs: int, size: int, stride: int = 1) -> str:
        scale = np.sqrt(2 / (inputs * size * size))
        weights[f"{name}.w"] = (random.standard_normal((outputs, inputs, size, size)) * scale).astype(np.float32)
        weights[f"{name}.b"] = np.zeros(outputs, np.float32)
        return add("Conv", [x, f"{name}.w", f"{name}.b"], name, strides=[stride] * 2, pads=[size // 2] * 4)

    x, width = add("Relu", [conv("image", "stem", 3, WIDTHS[0], 3)], "stem.relu"), WIDTHS[0]
    for stage, outputs in enumerate(WIDTHS):
        for block in range(BLOCKS):
            name, stride = f"stage{stage}.block{block}", 2 if stage and not block else 1
            y = add("Relu", [conv(x, f"{name}.conv1", width, outputs, 3, stride)], f"{name}.relu1")
            y = conv(y, f"{name}.conv2", outputs, outputs, 3)
            if width != outputs:
                x = conv(x, f"{name}.shortcut", width, outputs, 1, stride)
            x, width = add("Relu", [add("Add", [y, x], f"{name}.add")], f"{name}.relu2"), outputs
    weights["head.w"] = (random.standard_normal((10, width)) / np.sqrt(width)).astype(np.float32)
    pooled = add("Flatten", [add("GlobalAveragePool", [x], "pool")], "flat")
    add("Softmax", [add("Gemm", [pooled, "head.w"], "head", transB=1)], "probabilities")
    return _model("residual", nodes, weights, ["batch", 3, 32, 32], "image", "probabilities", ["batch", 10])


def long() -> bytes:
    """Additions and square roots, one after another."""
    nodes = []
    for number in range(LONG):
        last = "y" if number == LONG - 1 else f"v{number}"
        before = f"v{number - 1}" if number else "x"
        inputs = [before, "one"] if number % 2 == 0 else [before]
        nodes.append(helper.make_node("Add" if number % 2 == 0 else "Sqrt", inputs, [last], name=f"step{number:04}"))
    return _model("long", nodes, {"one": np.ones(1, np.float32)}, [64], "x", "y", [64])


def _model(
    name: str,
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    shape: list[int | str],
    x: str,
    y: str,
    out: list[int | str],
) -> bytes:
    value = helper.make_tensor_value_info
    initializers = [numpy_helper.from_array(array, at) for at, array in weights.items()]
    graph = helper.make_graph(nodes, name, [value(x, TensorProto.FLOAT, shape)], [value(y, TensorProto.FLOAT, out)], initializers)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return made.SerializeToString()
