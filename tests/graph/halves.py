"""Models in half precision: a float32 model with every float in float16 or bfloat16, and small networks to make so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from kernels.half import is_half
from tests.graph.oracle import FLOAT, INT64, constant, expected, ints, make, node, port

DOUBLE = TensorProto.DOUBLE
F16, BF16 = int(TensorProto.FLOAT16), int(TensorProto.BFLOAT16)
DTYPES: dict[int, np.dtype[Any]] = {F16: np.dtype(np.float16), BF16: np.dtype(ml_dtypes.bfloat16), FLOAT: np.dtype(np.float32)}


def in_half(proto: onnx.ModelProto, code: int) -> onnx.ModelProto:
    """Return a model with `code` in place of float32 in all of its inputs, outputs, constants and attributes.

    What is float64 becomes float32: islands of more precision.
    """
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    _retype(made.graph, {FLOAT: code, DOUBLE: FLOAT})
    return made


def in_single(proto: onnx.ModelProto, code: int) -> onnx.ModelProto:
    """Return the model that `in_half` makes, with the same weights, in float32."""
    made = in_half(proto, code)
    _retype(made.graph, {code: FLOAT})
    return made


def _retype(graph: onnx.GraphProto, types: Mapping[int, int]) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.tensor_type
        kind.elem_type = types.get(kind.elem_type, kind.elem_type)
    for tensor in graph.initializer:
        _retype_tensor(tensor, types)
    for each in graph.node:
        for attribute in each.attribute:
            if attribute.name in ("to", "dtype"):
                attribute.i = types.get(attribute.i, attribute.i)
            if attribute.HasField("t"):
                _retype_tensor(attribute.t, types)
            if attribute.HasField("g"):
                _retype(attribute.g, types)


def _retype_tensor(tensor: onnx.TensorProto, types: Mapping[int, int]) -> None:
    if tensor.data_type in types:
        code = types[tensor.data_type]
        array = numpy_helper.to_array(tensor).astype(np.float64)
        array = np.clip(array, -65504, 65504) if code == F16 else array  # masks are the lowest number there is
        raw = array.astype(DTYPES[code]).tobytes()
        tensor.CopyFrom(helper.make_tensor(tensor.name, code, array.shape, raw, raw=True))


def halves(feeds: Mapping[str, np.ndarray], code: int) -> dict[str, np.ndarray]:
    """Return feeds with float32 in half precision."""
    return {name: each.astype(DTYPES[code]) if each.dtype == np.float32 else each for name, each in feeds.items()}


def singles(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return feeds with half precision in float32."""
    return {name: each.astype(np.float32) if is_half(each.dtype) else each for name, each in feeds.items()}


def by_onnx_runtime(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """Return the outputs of ONNX Runtime; None where it has no kernel for a half precision of an op."""
    try:
        return expected(proto, feeds)
    except (onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented, onnxruntime.capi.onnxruntime_pybind11_state.Fail):
        return None


def conv_net() -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Convolutions, a depthwise one, batch norms, a gate, a pool and a classifier."""
    rng = np.random.default_rng(3)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        return constant(name, rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:], initial=1)))

    nodes = [
        node("Conv", ["x", "w0"], ["a0"], "stem", strides=[2, 2], pads=[1] * 4),
        node("BatchNormalization", ["a0", "g", "b", "m", "v"], ["a1"], "norm"),
        node("Relu", ["a1"], ["a2"], "relu"),
        node("Conv", ["a2", "w1"], ["a3"], "depthwise", group=16, pads=[1] * 4),
        node("HardSwish", ["a3"], ["a4"], "swish"),
        node("GlobalAveragePool", ["a4"], ["s0"], "squeeze"),
        node("Conv", ["s0", "w2"], ["s1"], "excite"),
        node("Sigmoid", ["s1"], ["s2"], "gate"),
        node("Mul", ["a4", "s2"], ["a5"], "scaled"),
        node("Conv", ["a5", "w3"], ["a6"], "point"),
        node("Add", ["a6", "a2"], ["a7"], "residual"),
        node("MaxPool", ["a7"], ["a8"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", ["a8"], ["p0"], "mean"),
        node("Flatten", ["p0"], ["p1"], "flat"),
        node("Gemm", ["p1", "w4", "c"], ["y"], "classifier", transB=1),
    ]
    shapes = {"w0": (16, 3, 3, 3), "w1": (16, 1, 3, 3), "w2": (16, 16, 1, 1), "w3": (16, 16, 1, 1), "w4": (10, 16), "c": (10,)}
    statistics = {"g": rng.uniform(0.5, 2, 16), "b": rng.standard_normal(16), "m": rng.standard_normal(16) / 4}
    constants = [weights(name, *shape) for name, shape in shapes.items()]
    constants += [constant(name, value) for name, value in {**statistics, "v": rng.uniform(0.5, 2, 16)}.items()]
    proto = make(nodes, ["y"], constants, [port("x", ["batch", 3, 16, 16])], opset=17)
    return proto, {"x": rng.standard_normal((2, 3, 16, 16)).astype(np.float32)}


def decoder(layers: int = 2, *, islands: bool = False) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A decoder with a cache of keys and values, RMS norms and gated feed-forward layers.

    islands: norms and softmax are in float64, so that `in_half` makes them float32 between Casts, as exporters do.
    """
    rng = np.random.default_rng(4)
    heads, each_width, width, inner = 2, 8, 16, 40
    own = np.float64 if islands else np.float32
    constants = [ints("apart", 0, 0, heads, each_width), ints("joined", 0, 0, width), ints("last", -1), constant("two", 2.0, own)]
    constants += [
        constant("epsilon", 1e-6, own),
        constant("scale", 1 / np.sqrt(each_width)),
        constant("tokens", rng.standard_normal((50, width))),
    ]
    nodes = [node("Gather", ["tokens", "ids"], ["h0"], "embed")]
    inputs, outputs = [port("ids", ["batch", "new"], INT64)], {}

    def op(name: str, kind: str, *read: str, **attrs: Any) -> str:
        nodes.append(node(kind, list(read), [name], f"{name}/{kind}", **attrs))
        return name

    def weights(name: str, *shape: int) -> str:
        constants.append(constant(name, rng.standard_normal(shape) / np.sqrt(shape[0])))
        return name

    def wide(value: str) -> str:
        return op(f"{value}.wide", "Cast", value, to=DOUBLE) if islands else value

    def narrow(value: str) -> str:
        return op(f"{value}.narrow", "Cast", value, to=FLOAT) if islands else value

    def norm(name: str, value: str) -> str:
        value = wide(value)
        constants.append(constant(f"{name}.g", rng.uniform(0.5, 2, width)))
        mean = op(f"{name}.mean", "ReduceMean", op(f"{name}.square", "Pow", value, "two"), "last", keepdims=1)
        root = op(f"{name}.root", "Sqrt", op(f"{name}.spread", "Add", mean, "epsilon"))
        unit = op(f"{name}.unit", "Mul", value, op(f"{name}.inverse", "Reciprocal", root))
        return op(name, "Mul", f"{name}.g", narrow(unit))

    for n in range(layers):
        x, at = norm(f"n{n}", f"h{2 * n}"), f"l{n}"
        parts = {}
        for part in "qkv":
            flat = op(f"{at}.{part}", "MatMul", x, weights(f"{at}.w{part}", width, width))
            parts[part] = op(f"{at}.{part}h", "Transpose", op(f"{at}.{part}r", "Reshape", flat, "apart"), perm=[0, 2, 1, 3])
        for part in "kv":
            inputs.append(port(f"past.{n}.{part}", ["batch", heads, "past", each_width]))
            outputs[f"present.{n}.{part}"] = FLOAT
            parts[part] = op(f"present.{n}.{part}", "Concat", f"past.{n}.{part}", parts[part], axis=2)
        turned = op(f"{at}.kt", "Transpose", parts["k"], perm=[0, 1, 3, 2])
        scores = op(f"{at}.scaled", "Mul", op(f"{at}.scores", "MatMul", parts["q"], turned), "scale")
        mixed = op(f"{at}.mixed", "MatMul", narrow(op(f"{at}.soft", "Softmax", wide(scores), axis=-1)), parts["v"])
        flat = op(f"{at}.joined", "Reshape", op(f"{at}.turned", "Transpose", mixed, perm=[0, 2, 1, 3]), "joined")
        h = op(f"h{2 * n + 1}", "Add", f"h{2 * n}", op(f"{at}.out", "MatMul", flat, weights(f"{at}.wo", width, width)))
        x = norm(f"m{n}", h)
        gate = op(f"{at}.gate", "MatMul", x, weights(f"{at}.wg", width, inner))
        active = op(f"{at}.active", "Mul", gate, op(f"{at}.sigmoid", "Sigmoid", gate))
        up = op(f"{at}.gated", "Mul", active, op(f"{at}.up", "MatMul", x, weights(f"{at}.wu", width, inner)))
        op(f"h{2 * n + 2}", "Add", h, op(f"{at}.down", "MatMul", up, weights(f"{at}.wd", inner, width)))
    op("logits", "MatMul", norm("last.norm", f"h{2 * layers}"), weights("head", width, 50))
    proto = make(nodes, {"logits": FLOAT, **outputs}, constants, inputs, opset=18)
    past = {each.name: rng.standard_normal((1, heads, 5, each_width)).astype(np.float32) for each in inputs[1:]}
    return proto, {"ids": rng.integers(0, 50, (1, 3)), **past}
