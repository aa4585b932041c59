"""Steps of quantisation are folded into what is quantised."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from graph.formats.registry import read
from graph.ir import Graph
from graph.passes.steps import fold_steps
from graph.shapes import bind, propagate
from tests.graph.interpreter import interpret
from tests.graph.passes.checks import applied, ops

CONSTANTS: dict[str, np.ndarray] = {
    "s": np.array(0.037, np.float32),
    "t": np.array(0.5, np.float32),
    "z": np.array(11, np.uint8),
    "m": np.linspace(0.001, 0.02, 6, dtype=np.float32).reshape(6, 1, 1),
    "b": np.linspace(-3, 3, 6, dtype=np.float32).reshape(6, 1, 1),
}
SHAPE = (2, 6, 9, 7)


def step(op: str, *inputs: str, **attrs) -> NodeProto:
    """A node whose result has the name of its op and inputs."""
    return helper.make_node(op, inputs, ["_".join((op, *inputs))], name="_".join((op, *inputs)), **attrs)


def build(nodes: list[NodeProto], outputs: tuple[str, ...] = ()) -> Graph:
    nodes[-1].output[0] = "y"
    ports = [helper.make_tensor_value_info(name, TensorProto.UINT8, SHAPE) for name in ("p", "q")]
    ports += [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)]
    results = [onnx.ValueInfoProto(name=name) for name in ("y", *outputs)]
    constants = [numpy_helper.from_array(array, name) for name, array in CONSTANTS.items()]
    graph = helper.make_graph(nodes, "g", ports, results, constants)
    return read(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)).graph


def feeds() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = {name: rng.integers(0, 256, SHAPE).astype(np.uint8) for name in ("p", "q")}
    return made | {"x": rng.uniform(-200, 200, SHAPE).astype(np.float32)}


def folded(graph: Graph) -> Graph:
    """Fold the steps, and check that results differ by one step at most, and seldom."""
    after = applied(graph, fold_steps)
    propagate(after, bind(after))
    given = feeds()
    for made, wanted in zip(interpret(after, given).values(), interpret(graph, given).values(), strict=True):
        assert made.dtype == wanted.dtype
        off = np.abs(made.astype(np.float64) - wanted.astype(np.float64))
        assert off.max() <= 1
        assert (off > 0).mean() < 0.02  # scales here are chosen so that ties occur
    return after


def steps_of(graph: Graph) -> list[float]:
    """The scales of the QuantizeLinear nodes."""
    found = [graph.constants[node.inputs[1]] for node in graph.nodes if node.op == "QuantizeLinear"]
    return [float(scale.reshape(())) for scale in found]


LINEAR = [step("Mul", "x", "m"), step("Add", "Mul_x_m", "b"), step("Relu", "Add_Mul_x_m_b")]
RESIDUAL = [step("DequantizeLinear", "p", "s", "z"), step("DequantizeLinear", "q", "t", "z")]


def test_a_factor_and_a_bias_take_the_step() -> None:
    after = folded(build([*LINEAR, step("QuantizeLinear", "Relu_Add_Mul_x_m_b", "s", "z")]))
    assert ops(after) == ["Mul", "Add", "Relu", "QuantizeLinear"]
    assert steps_of(after) == [1]


@pytest.mark.parametrize("op", ["Add", "Mul"])
def test_what_is_dequantised_takes_the_step(op) -> None:
    pair = [each.output[0] for each in RESIDUAL]
    nodes = [*RESIDUAL, step(op, *pair), step("QuantizeLinear", f"{op}_{pair[0]}_{pair[1]}", "t", "z")]
    assert steps_of(folded(build(nodes))) == [1]


def test_what_is_dequantised_for_others_too_is_made_twice() -> None:
    x = RESIDUAL[0].output[0]
    nodes = [RESIDUAL[0], step("GlobalAveragePool", x), step("QuantizeLinear", f"GlobalAveragePool_{x}", "t", "z")]
    after = folded(build(nodes, (x,)))
    assert sorted(ops(after)) == ["DequantizeLinear", "DequantizeLinear", "GlobalAveragePool", "QuantizeLinear"]
    assert steps_of(after) == [1]


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        ([step("QuantizeLinear", "x", "s", "z")], ()),
        ([step("Sigmoid", "x"), step("QuantizeLinear", "Sigmoid_x", "s", "z")], ()),
        ([*LINEAR, step("QuantizeLinear", "Relu_Add_Mul_x_m_b", "s", "z")], ("Mul_x_m",)),
        ([step("Mul", "x", "m"), step("Add", "Mul_x_m", "x"), step("QuantizeLinear", "Add_Mul_x_m_x", "s", "z")], ()),
    ],
    ids=["input", "other-op", "read-elsewhere", "one-side"],
)
def test_steps_that_stay(nodes, outputs) -> None:
    graph = build(nodes, outputs)
    assert applied(graph, fold_steps) is graph


def test_a_slope_that_is_the_input_itself_stays() -> None:
    """Where x is negative, the op makes x · x of it, of which a factor would be squared."""
    nodes = [*LINEAR[:2], step("PRelu", "Add_Mul_x_m_b", "Add_Mul_x_m_b")]
    graph = build([*nodes, step("QuantizeLinear", nodes[-1].output[0], "s", "z")])
    assert applied(graph, fold_steps) is graph


@pytest.mark.parametrize("order", [["p", "m"], ["m", "p"]])
def test_one_factor_of_a_product_takes_the_step(order) -> None:
    names = {"p": RESIDUAL[0].output[0], "m": "m"}
    factors = [names[name] for name in order]
    nodes = [RESIDUAL[0], step("Mul", *factors), step("QuantizeLinear", "_".join(("Mul", *factors)), "t", "z")]
    after = folded(build(nodes))
    (product,) = (node for node in after.nodes if node.op == "Mul")
    assert product.inputs[0] not in factors
    assert product.inputs[1] == factors[1]


def test_nothing_is_folded_twice() -> None:
    after = folded(build([*LINEAR, step("QuantizeLinear", "Relu_Add_Mul_x_m_b", "s", "z")]))
    assert applied(after, fold_steps) is after
