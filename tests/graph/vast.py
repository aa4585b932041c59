"""Small models that ask for much memory, one for each operator that can make it of little."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

GIB = 1 << 30
_TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "uint8": TensorProto.UINT8, "bool": TensorProto.BOOL}

Made = tuple[onnx.ModelProto, dict[str, np.ndarray]]  # a model, and feeds for it


def vast(op: str, inputs: Mapping[str, np.ndarray], fed: str, outputs: int = 1, **attrs: Any) -> Made:
    """Return a model of one node, named "vast". inputs: constants, but for those whose names are in `fed`, which a run gives."""
    ports = [
        helper.make_tensor_value_info(name, _TYPES[inputs[name].dtype.name], list(inputs[name].shape)) for name in fed.split()
    ]
    names = [f"y{i}" for i in range(outputs)]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names[:1]]
    node = helper.make_node(op, list(inputs), names, "vast", **attrs)
    constants = [numpy_helper.from_array(array, name) for name, array in inputs.items() if name and name not in fed.split()]
    graph = helper.make_graph([node], "g", ports, results, constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return made, {name: inputs[name] for name in fed.split()}


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def floats(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


COUNT = 15 * GIB // 4  # float32 numbers of 15 GiB

# Operators whose sizes, or kernels' scratch memory, follow from the model and the shapes of its inputs, by their names.
STATIC: dict[str, Callable[[], Made]] = {
    "ConstantOfShape": lambda: vast("ConstantOfShape", {"shape": ints(COUNT)}, ""),
    "Expand": lambda: vast("Expand", {"x": floats(1), "shape": ints(COUNT)}, "x"),
    "Tile": lambda: vast("Tile", {"x": floats(4), "repeats": ints(COUNT // 4)}, "x"),
    "Range": lambda: vast("Range", {"start": np.array(0), "limit": np.array(COUNT // 2), "delta": np.array(1)}, ""),
    "Pad": lambda: vast("Pad", {"x": floats(2, 2), "pads": ints(COUNT // 2, 0, 0, 0)}, "x"),
    "OneHot": lambda: vast("OneHot", {"x": ints(1), "depth": np.array(COUNT), "values": floats(2)}, "x"),
    "AveragePool": lambda: vast("AveragePool", {"x": floats(1, 3840, 2)}, "x", kernel_shape=[2**20], pads=[2**20 - 1] * 2),
    "MaxPool": lambda: vast("MaxPool", {"x": floats(1, 3840, 2)}, "x", kernel_shape=[2**20], pads=[2**20 - 1] * 2),
    "Conv": lambda: vast("Conv", {"x": floats(1, 8, 512, 512), "w": floats(1, 8, 45, 45)}, "x", pads=[22] * 4),
    "RoiAlign": lambda: vast(
        "RoiAlign",
        {"x": floats(1, 1, 4, 4), "rois": floats(1, 4), "images": ints(0)},
        "x rois",
        output_height=65_000,
        output_width=62_000,
        sampling_ratio=4096,
    ),
    "Resize": lambda: vast(
        "Resize", {"x": floats(1, 1, 4, 2**20), "": floats(0), "scales": floats(0), "sizes": ints(1, 1, 4096, 4)}, "x"
    ),
    "Einsum": lambda: vast("Einsum", {"x": floats(2**16), "z": floats(2**16), "w": floats(2**16)}, "x z w", equation="a,b,a->b"),
    "Attention": lambda: vast(
        "Attention", {"x": floats(1, 1, 2**16, 1), "k": floats(1, 1, 2**16, 1), "v": floats(1, 1, 2**16, 1)}, "x k v"
    ),
}
# Operators whose sizes follow from values that a run gives.
DYNAMIC: dict[str, Callable[[], Made]] = {
    "ConstantOfShape": lambda: vast("ConstantOfShape", {"shape": ints(COUNT)}, "shape"),
    "Expand": lambda: vast("Expand", {"x": floats(1), "shape": ints(COUNT)}, "x shape"),
    "Tile": lambda: vast("Tile", {"x": floats(4), "repeats": ints(COUNT // 4)}, "x repeats"),
    "Range": lambda: vast("Range", {"start": np.array(0), "limit": np.array(COUNT // 2), "delta": np.array(1)}, "limit"),
    "Pad": lambda: vast("Pad", {"x": floats(2, 2), "pads": ints(COUNT // 2, 0, 0, 0)}, "x pads"),
    "OneHot": lambda: vast("OneHot", {"x": ints(1), "depth": np.array(COUNT), "values": floats(2)}, "x depth"),
}
