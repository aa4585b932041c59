"""QuantizeLinear and DequantizeLinear in native code: the same bits as in numpy, alone and in chains."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgewise
from graph.native.rules.table import RULES
from kernels.registry import Case, evaluate, find
from kernels.spec import Array
from tests.graph.native.test_cases import compiled, refused, run
from tests.kernels.native.conftest import HOST_ISAS

WHOLE = ["uint8", "int8", "uint16", "int16"]


def _assert_same_bits(op: str, inputs: tuple[Array, ...], isa) -> None:
    """Run an op whose first input is no constant, and compare with numpy bit by bit."""
    case = Case("it", inputs=inputs)
    assert refused(find(op), case, (0,), isa) is None
    segment, specs = compiled(find(op), case, (0,), isa, None)
    (y,) = run(segment, [inputs[0]], specs, 1)
    (wanted,) = evaluate(find(op), inputs, {})
    np.testing.assert_array_equal(y.view(np.uint8), wanted.view(np.uint8))


@pytest.mark.parametrize("isa", HOST_ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("kind", WHOLE)
def test_quantised_numbers_are_those_of_numpy(kind, isa) -> None:
    """Ties, saturated numbers, infinities, NaN with any bits, denormals, and numbers of every exponent."""
    rng = np.random.default_rng(3)
    bits = rng.integers(0, 1 << 32, 4000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    ties = (np.arange(-600, 600) / 2).astype(np.float32) * np.float32(0.25)
    near = rng.standard_normal(3001).astype(np.float32) * 40
    zero = np.array(7, kind)
    for scale in (0.25, 0.1, 3e-5):
        _assert_same_bits("QuantizeLinear", (np.concatenate([bits, ties, near]), np.array([scale], np.float32), zero), isa)


@pytest.mark.parametrize("isa", HOST_ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("kind", [*WHOLE, "int32"])
def test_dequantised_numbers_are_those_of_numpy(kind, isa) -> None:
    limits = np.iinfo(kind)
    x = np.random.default_rng(4).integers(limits.min, limits.max, 5001, endpoint=True).astype(kind)
    for zero in (limits.min, 0, limits.max):
        _assert_same_bits("DequantizeLinear", (x, np.array(0.0371, np.float32), np.array([zero], kind)), isa)


@pytest.mark.parametrize("op", ["QuantizeLinear", "DequantizeLinear"])
@pytest.mark.parametrize(("scales", "zeros", "axis"), [((), (), 1), ((1,), (1,), 1), ((24,), (24,), -1)])
def test_scales_that_only_a_run_knows(op, scales, zeros, axis) -> None:
    """One number, or one for each index of the last axis."""
    rng = np.random.default_rng(6)
    x = rng.standard_normal((3, 5, 24)).astype(np.float32) if op == "QuantizeLinear" else rng.integers(0, 256, (3, 5, 24))
    given = (
        x if x.dtype == np.float32 else x.astype(np.uint8),
        rng.uniform(0.01, 0.1, scales).astype(np.float32),
        rng.integers(0, 256, zeros).astype(np.uint8),
    )
    case = Case("it", inputs=given, attrs={"axis": axis})
    segment, specs = compiled(find(op), case, (0, 1, 2), HOST_ISAS[-1], None)
    (y,) = run(segment, given, specs, 1)
    np.testing.assert_array_equal(y, evaluate(find(op), given, case.attrs)[0])


def test_scales_along_another_axis_than_the_last_are_left_to_numpy() -> None:
    case = Case("it", inputs=((3, 24, 24), np.full(24, 0.1, np.float32), np.zeros(24, np.uint8)))
    assert refused(find("QuantizeLinear"), case, (0,)) is not None


def test_scales_that_native_code_would_take_for_nothing_are_left_to_numpy() -> None:
    case = Case("it", inputs=((9,), np.array(1e-39, np.float32), np.array(0, np.uint8)))
    assert refused(find("QuantizeLinear"), case, (0,)) is not None
    assert "QuantizeLinear" in RULES


def test_a_chain_from_bytes_to_bytes_is_one_segment() -> None:
    """A pooled sum of two quantised images, quantised again: in native code alone, with the same bytes as in numpy."""
    inits: dict[str, Array] = {"s": np.array(0.05, np.float32), "t": np.array(0.11, np.float32), "z": np.array(121, np.uint8)}
    nodes = [
        helper.make_node("DequantizeLinear", ["a", "s", "z"], ["ra"]),
        helper.make_node("DequantizeLinear", ["b", "t", "z"], ["rb"]),
        helper.make_node("Add", ["ra", "rb"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["positive"]),
        helper.make_node("QuantizeLinear", ["positive", "t", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "t", "z"], ["rq"]),
        helper.make_node("MaxPool", ["rq"], ["pooled"], kernel_shape=[2, 2]),
        helper.make_node("QuantizeLinear", ["pooled", "s", "z"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.UINT8, (1, 24, 9, 11)) for name in "ab"]
    graph = helper.make_graph(
        nodes, "g", ports, [onnx.ValueInfoProto(name="y")], [numpy_helper.from_array(a, n) for n, a in inits.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    rng = np.random.default_rng(5)
    feeds = {name: rng.integers(0, 256, (1, 24, 9, 11)).astype(np.uint8) for name in "ab"}
    native = edgewise.Session(model)
    np.testing.assert_array_equal(native.run(feeds)["y"], edgewise.Session(model, backend="numpy").run(feeds)["y"])
    assert {step.strategy.backend for step in native.plan.steps} <= {"native", "executor"}  # views are no kernels
    assert [step.op for step in native.plan.steps].count("DequantizeLinear") == 3


@pytest.mark.parametrize("shape", [(), (24,)], ids=["one", "each"])
def test_bytes_are_quantised_anew_by_scales_that_only_a_run_knows(shape) -> None:
    """Which reads the bytes themselves, whose numbers nothing made yet."""
    inits: dict[str, Array] = {"s": np.array(0.05, np.float32), "z": np.array(121, np.uint8)}
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "s", "z"], ["numbers"]),
        helper.make_node("QuantizeLinear", ["numbers", "t", "z" if shape == () else ""], ["y"], axis=1),
    ]
    ports = [
        helper.make_tensor_value_info("x", TensorProto.UINT8, (7, 24)),
        helper.make_tensor_value_info("t", TensorProto.FLOAT, shape),
    ]
    graph = helper.make_graph(
        nodes, "g", ports, [onnx.ValueInfoProto(name="y")], [numpy_helper.from_array(a, n) for n, a in inits.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    rng = np.random.default_rng(5)
    feeds = {"x": rng.integers(0, 256, (7, 24)).astype(np.uint8), "t": rng.uniform(0.05, 0.2, shape).astype(np.float32)}
    native = edgewise.Session(model, backend="native")
    np.testing.assert_array_equal(native.run(feeds)["y"], edgewise.Session(model, backend="numpy").run(feeds)["y"])
    assert {step.strategy.backend for step in native.plan.steps} <= {"native", "executor"}  # one kernel reads and writes bytes
