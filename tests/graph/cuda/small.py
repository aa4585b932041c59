"""Small models of every kind of layer that GPUs have, with feeds."""

from collections.abc import Callable
from functools import cache

import numpy as np
import onnx

from tests.graph.oracle import INT64, constant, ints, make, node, port

Made = tuple[onnx.ModelProto, dict[str, np.ndarray]]
_RNG = np.random.default_rng(7)


def draw(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (_RNG.standard_normal(shape) * scale).astype(np.float32)


def _made(nodes, constants, shape, opset=17) -> Made:
    return make(nodes, ["y"], constants, [port("x", list(shape))], opset), {"x": draw(*shape)}


def convolution(shape, weights, *nodes, **attributes) -> Made:
    """A convolution with a bias, and nodes behind it that make y of c."""
    fan = int(np.prod(weights[1:]))
    constants = [constant("w", draw(*weights, scale=fan**-0.5)), constant("b", draw(weights[0]))]
    first = node("Conv", ["x", "w", "b"], ["c" if nodes else "y"], **attributes)
    return _made([first, *nodes], constants, shape)


def residual() -> Made:
    behind = [node("Conv", ["c", "v"], ["d"], pads=[1, 1, 1, 1]), node("Add", ["d", "c"], ["e"]), node("Relu", ["e"], ["y"])]
    proto, feeds = convolution((2, 3, 9, 11), (16, 3, 3, 3), *behind, pads=[1, 1, 1, 1], strides=[2, 2])
    proto.graph.initializer.append(constant("v", draw(16, 16, 3, 3, scale=0.1)))
    return proto, feeds


def squeezed() -> Made:
    """Channels weighed by what a small network makes of their means."""
    nodes = [
        node("GlobalAveragePool", ["c"], ["m"]),
        node("Conv", ["m", "v"], ["f"]),
        node("Sigmoid", ["f"], ["g"]),
        node("Mul", ["g", "c"], ["y"]),
    ]
    proto, feeds = convolution((2, 8, 32, 16), (16, 8, 1, 1), *nodes)
    proto.graph.initializer.append(constant("v", draw(16, 16, 1, 1)))
    return proto, feeds


def joined() -> Made:
    """Branches whose channels are joined: in place where they begin at 16 bytes, and copied elsewhere."""
    parts = [(16, 1), (12, 3), (8, 1)]
    constants = [constant(f"w{n}", draw(out, 8, k, k, scale=0.2)) for n, (out, k) in enumerate(parts)]
    nodes = [node("Conv", ["x", f"w{n}"], [f"c{n}"], pads=[k // 2] * 4) for n, (_, k) in enumerate(parts)]
    nodes += [node("Concat", ["c0", "c1", "c2", "x"], ["j"], axis=1), node("MaxPool", ["j"], ["y"], kernel_shape=[2, 2])]
    return _made(nodes, constants, (1, 8, 6, 6))


def pooled() -> Made:
    nodes = [
        node("MaxPool", ["x"], ["m"], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
        node("AveragePool", ["m"], ["a"], kernel_shape=[3, 2], pads=[1, 0, 1, 1], count_include_pad=1),
        node("AveragePool", ["a"], ["y"], kernel_shape=[2, 2], pads=[1, 1, 0, 0]),
    ]
    return _made(nodes, [], (2, 8, 14, 13))


def products() -> Made:
    """Products side by side of one value, one with a bias, and one of two tensors."""
    constants = [constant(name, draw(16, out, scale=0.25)) for name, out in (("q", 16), ("k", 16), ("v", 24))]
    constants += [constant("b", draw(24)), constant("o", draw(24, 16, scale=0.2))]
    nodes = [node("MatMul", ["x", name], [f"{name}x"]) for name in "qkv"]
    nodes += [
        node("Transpose", ["kx"], ["kt"], perm=[0, 2, 1]),
        node("MatMul", ["qx", "kt"], ["s"]),
        node("Softmax", ["s"], ["p"], axis=-1),
        node("MatMul", ["p", "vx"], ["m"]),
        node("Add", ["m", "b"], ["n"]),
        node("MatMul", ["n", "o"], ["z"]),
        node("Add", ["z", "x"], ["y"]),
    ]
    return _made(nodes, constants, (2, 10, 16))


def attended(heads: int = 2) -> Made:
    """Attention of one packed product, with a mask and a norm."""
    constants = [constant("w", draw(32, 96, scale=0.2)), constant("g", draw(32)), constant("b", draw(32))]
    constants += [ints("heads", 2, 9, 3, heads, 32 // heads), ints("flat", 2, 9, 32), constant("scale", (32 / heads) ** -0.5)]
    constants += [constant(f"i{n}", n, np.int64) for n in range(3)]
    nodes = [node("LayerNormalization", ["x", "g", "b"], ["l"], axis=-1), node("MatMul", ["l", "w"], ["p"])]
    nodes += [node("Reshape", ["p", "heads"], ["r"]), node("Transpose", ["r"], ["t"], perm=[2, 0, 3, 1, 4])]
    nodes += [node("Gather", ["t", f"i{n}"], [name], axis=0) for n, name in enumerate("qkv")]
    nodes += [
        node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]),
        node("MatMul", ["q", "kt"], ["s"]),
        node("Mul", ["s", "scale"], ["z"]),
        node("Softmax", ["z"], ["a"], axis=-1),
        node("MatMul", ["a", "v"], ["o"]),
        node("Transpose", ["o"], ["u"], perm=[0, 2, 1, 3]),
        node("Reshape", ["u", "flat"], ["f"]),
        node("Add", ["f", "x"], ["y"]),
    ]
    return _made(nodes, constants, (2, 9, 32))


def reduced() -> Made:
    """Rows, columns, columns in parts, and a softmax along another axis than the last."""
    nodes = [
        node("ReduceMean", ["x"], ["rows"], axes=[2], keepdims=1),
        node("Sub", ["x", "rows"], ["d"]),
        node("ReduceMax", ["d"], ["columns"], axes=[1], keepdims=1),
        node("Sub", ["d", "columns"], ["e"]),
        node("Softmax", ["e"], ["y"], axis=1),
    ]
    return _made(nodes, [], (2, 1024, 12))


def views() -> Made:
    """Slices that begin anywhere, parts, transposes, repeated rows."""
    constants = [ints("start", 1, 3), ints("end", 9, 16), ints("axes", 1, 2), ints("steps", 2, 1), ints("sizes", 4, 9)]
    constants += [ints("shape", 2, 4, 13), ints("flat", 8, 13)]
    nodes = [
        node("Slice", ["x", "start", "end", "axes", "steps"], ["s"]),
        node("Split", ["s", "sizes"], ["a", "b"], axis=2),
        node("ReduceSum", ["a"], ["one"], keepdims=1),
        node("Expand", ["one", "shape"], ["many"]),
        node("Add", ["s", "many"], ["t"]),
        node("Reshape", ["t", "flat"], ["f"]),
        node("Transpose", ["f"], ["g"], perm=[1, 0]),
        node("Tanh", ["g"], ["y"]),
    ]
    return _made(nodes, constants, (2, 10, 18))


def embedded() -> Made:
    """Rows of a table, and masks of integers and bools."""
    table = constant("table", draw(20, 16))
    constants = [table, constant("zero", 0, np.int64), constant("low", -1e4), constant("none", 0.0), constant("p", draw(5, 16))]
    nodes = [
        node("Gather", ["table", "ids"], ["e"], axis=0),
        node("Add", ["e", "p"], ["f"]),
        node("Equal", ["ids", "zero"], ["blank"]),
        node("Where", ["blank", "low", "none"], ["m"]),
        node("Unsqueeze", ["m", "last"], ["n"]),
        node("Add", ["f", "n"], ["y"]),
    ]
    feeds = {"ids": np.array([[0, 3, -1, 19, 7], [1, 0, 0, 2, 5]])}
    return make(nodes, ["y"], [*constants, ints("last", 2)], [port("ids", [2, 5], INT64)]), feeds


def volume_of_rows() -> Made:
    return convolution((2, 8, 30), (16, 8, 5), node("Relu", ["c"], ["y"]), strides=[2], pads=[2, 1])


_MAKERS: dict[str, Callable[[], Made]] = {
    "stem": lambda: convolution((1, 3, 17, 15), (8, 3, 7, 7), node("Relu", ["c"], ["y"]), strides=[2, 2], pads=[3, 3, 3, 3]),
    "one channel": lambda: convolution((1, 1, 9, 9), (8, 1, 3, 3)),
    "narrow": lambda: convolution((1, 5, 7, 7), (3, 5, 3, 3), pads=[1, 1, 1, 1], dilations=[2, 2]),
    "groups": lambda: convolution((1, 16, 8, 8), (32, 8, 3, 3), node("Sigmoid", ["c"], ["y"]), group=2, pads=[1, 1, 1, 1]),
    "depthwise": lambda: convolution((2, 12, 9, 8), (12, 1, 5, 5), node("HardSwish", ["c"], ["y"]), group=12, pads=[2, 2, 2, 2]),
    "line": volume_of_rows,
    "residual": residual,
    "squeezed": squeezed,
    "joined": joined,
    "pooled": pooled,
    "products": products,
    "attended": attended,
    "reduced": reduced,
    "views": views,
    "embedded": embedded,
}
MODELS: dict[str, Callable[[], Made]] = {name: cache(make) for name, make in _MAKERS.items()}  # each drawn once
