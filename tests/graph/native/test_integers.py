"""Convolutions, products and maxima of bytes inside of graphs: their bits are those of the ops' definitions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import NodeProto, TensorProto, helper, numpy_helper

from scheduler.session import Session

TYPES = {np.dtype(np.uint8): TensorProto.UINT8, np.dtype(np.int8): TensorProto.INT8}


def model(nodes: Sequence[NodeProto], x: np.ndarray, y: int = TensorProto.FLOAT, **constants: np.ndarray) -> bytes:
    inputs = [helper.make_tensor_value_info("x", TYPES[x.dtype], x.shape)]
    outputs = [helper.make_tensor_value_info("y", y, None)]
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def check(data: bytes, x: np.ndarray, algorithm: str, epilogue: Sequence[str] | None = None) -> None:
    """Compare native kernels with numpy, bit by bit. algorithm: of the first step. epilogue: that it must have."""
    native, numpy = Session(data, threads=2), Session(data, backend="numpy")
    made, exact = native.run({"x": x})["y"], numpy.run({"x": x})["y"]
    step = native.executor({"x": x}).steps[0]
    assert step.algorithm.startswith(f"native/{algorithm}")
    if epilogue is not None:
        assert [fused.op for fused in step.node.epilogue] == epilogue
    assert made.dtype == exact.dtype
    np.testing.assert_array_equal(made, exact)


def random_bytes(rng: np.random.Generator, dtype: np.dtype, shape: Sequence[int]) -> np.ndarray:
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max + 1, shape).astype(dtype)


def convolution(x: np.ndarray, w: np.ndarray, zero: int, w_zero: np.ndarray | None = None, **attrs) -> tuple[bytes, list[str]]:
    """A convolution of bytes that is scaled, biased and clamped as quantised networks do it, and the ops behind it."""
    rng, channels = np.random.default_rng(1), (1, len(w), *[1] * (x.ndim - 2))
    zeros = {"x_zero": np.array(zero, x.dtype)} | ({} if w_zero is None else {"w_zero": w_zero})
    nodes = [
        helper.make_node("ConvInteger", ["x", "w", *zeros], ["sums"], **attrs),
        helper.make_node("Cast", ["sums"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "bias"], ["biased"]),
        helper.make_node("Relu", ["biased"], ["y"]),
    ]
    scale = rng.uniform(0.0001, 0.001, channels).astype(np.float32)
    bias = rng.standard_normal(channels).astype(np.float32)
    return model(nodes, x, TensorProto.FLOAT, w=w, scale=scale, bias=bias, **zeros), [node.op_type for node in nodes[1:]]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(
    ("channels", "outputs", "size", "kernel", "stride", "pad", "groups", "algorithm"),
    [
        (16, 32, 8, 3, 1, 1, 1, "direct"),
        (20, 33, 9, 3, 2, 1, 1, "direct"),
        (3, 16, 15, 7, 2, 3, 1, "direct"),
        (64, 128, 7, 1, 1, 0, 1, "direct"),
        (64, 64, 8, 3, 1, 1, 8, "direct"),
        (48, 48, 8, 3, 1, 1, 3, "direct"),
        (32, 32, 8, 3, 1, 1, 32, "depthwise"),
        (19, 19, 8, 5, 2, 2, 19, "depthwise"),
    ],
)
def test_convolutions(dtype, channels, outputs, size, kernel, stride, pad, groups, algorithm):
    rng = np.random.default_rng(0)
    x = random_bytes(rng, dtype, (2, channels, size, size))
    w = random_bytes(rng, np.dtype(np.int8), (outputs, channels // groups, kernel, kernel))
    for zero in (0, 9):
        data, behind = convolution(x, w, zero, pads=[pad] * 4, strides=[stride] * 2, group=groups)
        check(data, x, algorithm, behind)


def test_rows():
    rng = np.random.default_rng(0)
    x, w = random_bytes(rng, np.dtype(np.uint8), (1, 12, 30)), random_bytes(rng, np.dtype(np.int8), (20, 12, 5))
    check(convolution(x, w, 3, pads=[2, 2])[0], x, "direct")


@pytest.mark.parametrize("low", [0, 100])
def test_unsigned_weights(low):
    """Weights less their zero points are signed bytes, or numpy computes."""
    rng = np.random.default_rng(0)
    x, w = random_bytes(rng, np.dtype(np.uint8), (1, 8, 6, 6)), rng.integers(low, 200, (5, 8, 3, 3)).astype(np.uint8)
    zeros = np.array([128, 128, 128, 128, 128], np.uint8)
    check(convolution(x, w, 3, zeros)[0], x, "direct")
    zeros[2] = 110
    data, _ = convolution(x, w, 3, zeros)
    check(data, x, "direct")
    zeros[2] = 0
    session = Session(convolution(x, w, 3, zeros)[0])
    session.run({"x": x})
    assert not session.executor({"x": x}).steps[0].algorithm.startswith("native")


@pytest.mark.parametrize("inner", [64, 30])
@pytest.mark.parametrize("shape", [(7,), (3, 5), (1,)], ids=str)
def test_products(shape, inner):
    rng = np.random.default_rng(0)
    x, w = random_bytes(rng, np.dtype(np.uint8), (*shape, inner)), random_bytes(rng, np.dtype(np.int8), (inner, 21))
    nodes = [
        helper.make_node("MatMulInteger", ["x", "w", "x_zero"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "scale"], ["y"]),
    ]
    scale = rng.random(21).astype(np.float32)
    check(model(nodes, x, w=w, x_zero=np.array(117, np.uint8), scale=scale), x, "product", ["Cast", "Mul"])


def test_sums_without_anything_behind_them():
    rng = np.random.default_rng(0)
    x, w = random_bytes(rng, np.dtype(np.int8), (5, 16)), random_bytes(rng, np.dtype(np.int8), (16, 33))
    check(model([helper.make_node("MatMulInteger", ["x", "w"], ["y"])], x, TensorProto.INT32, w=w), x, "product")


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("channels", "size", "kernel", "stride", "pad"), [(20, 9, 3, 2, 1), (5, 14, 7, 1, 3), (33, 8, 9, 1, 4)])
def test_maxima(dtype, channels, size, kernel, stride, pad):
    low = np.iinfo(dtype).min  # so that what stands for padding would be seen
    x = np.random.default_rng(0).integers(low, low + 60, (2, channels, size, size)).astype(dtype)
    node = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4)
    check(model([node], x, TYPES[dtype]), x, "windows")


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(data=st.data())
def test_any_convolution(data):
    pair = lambda low, high: data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))  # noqa: E731
    kernel, strides, dilations, size, begin, end = pair(1, 5), pair(1, 3), pair(1, 2), pair(1, 12), pair(0, 3), pair(0, 3)
    reach = [dilations[i] * (kernel[i] - 1) + 1 for i in (0, 1)]
    assume(all(size[i] + begin[i] + end[i] >= reach[i] for i in (0, 1)))
    groups, dtype = data.draw(st.sampled_from([1, 1, 2, 3])), data.draw(st.sampled_from(list(TYPES)))
    inputs = data.draw(st.integers(1, 24)) if groups == 1 else data.draw(st.sampled_from([1, 4, 8, 16]))
    outputs = groups * (1 if inputs == 1 and groups > 1 else data.draw(st.integers(1, 20)))
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    x = random_bytes(rng, dtype, (2, groups * inputs, *size))
    w = random_bytes(rng, np.dtype(np.int8), (outputs, inputs, *kernel))
    zero = data.draw(st.integers(int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)))
    attrs = {"pads": [*begin, *end], "strides": strides, "dilations": dilations, "group": groups}
    check(convolution(x, w, zero, **attrs)[0], x, "")


def dequantised(name: str, y: str) -> NodeProto:
    return helper.make_node("DequantizeLinear", [name, "s", "z"], [y])


def quantised(name: str, y: str) -> NodeProto:
    return helper.make_node("QuantizeLinear", [name, "t", "z"], [y])


SCALES: dict[str, np.ndarray] = {"s": np.array(0.03, np.float32), "t": np.array(0.05, np.float32), "z": np.array(7, np.uint8)}


def test_bytes_are_dequantised_where_they_are_added():
    """A residual block: no float32 lies in memory between its convolutions of bytes."""
    rng = np.random.default_rng(0)
    x = random_bytes(rng, np.dtype(np.uint8), (1, 32, 9, 9))
    constants = {f"w{n}": random_bytes(rng, np.dtype(np.int8), (32, 32, 3, 3)) for n in (0, 1)}
    constants["m"] = np.array(1e-4, np.float32)
    nodes, before = [], "x"
    for n in (0, 1):
        nodes += [
            helper.make_node("ConvInteger", [before, f"w{n}", "z"], [f"i{n}"], pads=[1] * 4),
            helper.make_node("Cast", [f"i{n}"], [f"f{n}"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"f{n}", "m"], [f"m{n}"]),
            quantised(f"m{n}", f"q{n}"),
        ]
        before = f"q{n}"
    nodes += [dequantised("q1", "a"), dequantised("q0", "b"), helper.make_node("Add", ["a", "b"], ["c"])]
    nodes += [helper.make_node("Relu", ["c"], ["d"]), quantised("d", "y")]
    data = model(nodes, x, TensorProto.UINT8, **constants, **SCALES)
    check(data, x, "direct", ["Cast", "Mul", "QuantizeLinear"])
    held = [item.name for item in Session(data).executor({"x": x}).held]
    assert held
    assert not {"a", "b", "c", "d"} & set(held)


@pytest.mark.parametrize("op", ["GlobalAveragePool", "Transpose", "Softmax"])
def test_other_ops_read_what_is_dequantised(op):
    rng = np.random.default_rng(0)
    x = random_bytes(rng, np.dtype(np.uint8), (1, 8, 5, 5))
    nodes = [dequantised("x", "a"), helper.make_node(op, ["a"], ["b"]), helper.make_node("Add", ["b", "a"], ["y"])]
    if op == "Transpose":
        nodes[1:] = [helper.make_node(op, ["a"], ["y"], perm=[0, 1, 3, 2])]
    data = model(nodes, x, TensorProto.FLOAT, s=SCALES["s"], z=SCALES["z"])
    native, numpy = Session(data, threads=2), Session(data, backend="numpy")
    np.testing.assert_allclose(native.run({"x": x})["y"], numpy.run({"x": x})["y"], rtol=1e-6, atol=1e-6)
    assert all(step.algorithm.startswith("native") or step.algorithm == "view" for step in native.executor({"x": x}).steps)


def qdq(rng: np.random.Generator, x: np.ndarray) -> bytes:
    """A convolution, an activation, a residual and a pool between pairs of QuantizeLinear and DequantizeLinear."""
    channels = x.shape[1]
    steps = np.asarray(rng.uniform(0.0005, 0.003, (channels,)), np.float32)
    scales = {name: np.array(rng.uniform(low, 4 * low), np.float32) for name, low in (("xs", 0.02), ("ys", 0.05), ("zs", 0.05))}
    constants: dict[str, np.ndarray] = {
        **scales,
        "xz": np.array(rng.integers(0, 256), np.uint8),
        "yz": np.array(rng.integers(0, 256), np.uint8),
        "w": random_bytes(rng, np.dtype(np.int8), (channels, channels, 3, 3)),
        "ws": steps,
        "wz": np.zeros(channels, np.int8),
        "b": np.asarray(rng.integers(-3000, 3000, channels), np.int32),
    }
    constants["bs"] = np.asarray(scales["xs"] * steps)
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "xs", "xz"], ["a"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["v"], axis=0),
        helper.make_node("DequantizeLinear", ["b", "bs"], ["c"], axis=0),
        helper.make_node("Conv", ["a", "v", "c"], ["d"], pads=[1] * 4),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("QuantizeLinear", ["e", "ys", "yz"], ["fq"]),
        helper.make_node("DequantizeLinear", ["fq", "ys", "yz"], ["f"]),
        helper.make_node("Add", ["f", "a"], ["g"]),
        helper.make_node("QuantizeLinear", ["g", "zs", "yz"], ["hq"]),
        helper.make_node("DequantizeLinear", ["hq", "zs", "yz"], ["h"]),
        helper.make_node("MaxPool", ["h"], ["i"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("QuantizeLinear", ["i", "zs", "yz"], ["y"]),
    ]  # fmt: skip
    return model(nodes, x, TensorProto.UINT8, **constants)


def test_quantised_networks_are_those_of_unfused_ops_but_for_ties():
    """Native code computes in integers what numpy computes op by op in floats: of all results few are one step off, none more."""
    counted = off = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        x = random_bytes(rng, np.dtype(np.uint8), (1, 8, 14, 14))
        data = qdq(rng, x)
        native = Session(data, threads=2)
        made, exact = native.run({"x": x})["y"], Session(data, backend="numpy").run({"x": x})["y"]
        steps = native.executor({"x": x}).steps
        assert [step.node.op for step in steps if step.algorithm.startswith("native/")] == ["ConvInteger", "MaxPool"]
        difference = np.abs(made.astype(int) - exact.astype(int))
        assert difference.max() <= 1
        counted, off = counted + difference.size, off + int(difference.sum())
    assert off <= 1e-4 * counted


def test_convolutions_that_share_weights():
    """A 1×1 convolution without stride leaves no rows out, one with padding does: each has its own sums to start from."""
    rng = np.random.default_rng(0)
    x, w = random_bytes(rng, np.dtype(np.uint8), (1, 8, 6, 6)), random_bytes(rng, np.dtype(np.int8), (20, 8, 1, 1))
    forms: list[dict[str, Any]] = [
        {},
        {"strides": [2, 2]},
        {"pads": [0, 0, 2, 0]},
        {"pads": [1, 1, 1, 1], "strides": [2, 2]},
    ]
    nodes = [helper.make_node("ConvInteger", ["x", "w", "z"], [f"s{n}"], **attrs) for n, attrs in enumerate(forms)]
    nodes += [helper.make_node("ReduceMax", [f"s{n}"], [f"m{n}"], axes=[2, 3]) for n in range(len(forms))]
    nodes += [helper.make_node("Concat", [f"m{n}" for n in range(len(forms))], ["y"], axis=1)]
    data = model(nodes, x, TensorProto.INT32, w=w, z=np.array(9, np.uint8))
    check(data, x, "direct")
