"""FlexAttention of ai.onnx.preview: its graphs are put between its products, under names of their own."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from graph.errors import CorruptModelError
from graph.formats.registry import read
from profiler.counting.counts import profile
from scheduler.session import Session
from scheduler.strategy import WantedBackend

node = helper.make_node
FEEDS = {name: np.random.default_rng(i).standard_normal((2, 2, 3, 4)).astype(np.float32) for i, name in enumerate("qkv")}


def graph(nodes, given="s", made="t", constants=()) -> onnx.GraphProto:
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (given, made)]
    return helper.make_graph(nodes, "mod", ports[:1], ports[1:], [numpy_helper.from_array(a, name) for name, a in constants])


def model(*nodes: onnx.NodeProto, constants=()) -> onnx.ModelProto:
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2, 3, 4]) for name in "qkv"]
    tensors = [numpy_helper.from_array(array, name) for name, array in constants]
    made = helper.make_graph(nodes, "g", ports, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], tensors)
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid("ai.onnx.preview", 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10)


def flex(inputs=("q", "k", "v"), output="y", **graphs) -> onnx.NodeProto:
    return node("FlexAttention", list(inputs), [output], domain="ai.onnx.preview", **graphs)


def test_two_with_graphs_of_one_naming_keep_them_apart() -> None:
    """The constant of each graph has the same name, and so has a value of the graph around them."""
    twice = graph([node("Mul", ["s", "c"], ["t"])], constants=[("c", np.float32(2))])
    shifted = graph([node("Sub", ["s", "c"], ["t"])], constants=[("c", np.full((3,), 0.25, np.float32))])
    proto = model(
        node("Relu", ["v"], ["t"]),
        flex(("q", "k", "t"), "middle", score_mod=twice),
        flex(("middle", "k", "v"), score_mod=shifted, prob_mod=twice),
    )
    expected: Any = ReferenceEvaluator(proto).run(None, FEEDS)
    backends: tuple[WantedBackend, ...] = ("numpy", "auto")
    for backend in backends:
        np.testing.assert_allclose(Session(proto, 1, backend=backend).run(FEEDS)["y"], expected[0], atol=1e-6)
    assert profile(proto).macs == 2 * 2 * (2 * 2 * 3 * 3 * 4)


def test_a_graph_reads_values_around_it_from_a_graph_of_its_own() -> None:
    """The branches of an If inside read its input, and a constant of the model."""
    then = helper.make_graph(
        [node("Mul", ["s", "two"], ["a"])], "then", [], [helper.make_tensor_value_info("a", TensorProto.FLOAT, None)]
    )
    other = helper.make_graph(
        [node("Neg", ["s"], ["b"])], "else", [], [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)]
    )
    choice = graph([node("If", ["yes"], ["t"], then_branch=then, else_branch=other)])
    constants = [("two", np.float32(2)), ("yes", np.array(True))]
    plain = model(flex(score_mod=graph([node("Mul", ["s", "two"], ["t"])])), constants=constants)
    chosen = model(flex(score_mod=choice), constants=constants)
    np.testing.assert_allclose(Session(chosen, 1).run(FEEDS)["y"], Session(plain, 1).run(FEEDS)["y"], atol=1e-6)


def test_a_graph_that_returns_its_input_changes_nothing() -> None:
    same = graph([node("Relu", ["s"], ["unread"])], made="s")
    made, wanted = (Session(model(each), 1).run(FEEDS)["y"] for each in (flex(score_mod=same), flex()))
    np.testing.assert_allclose(made, wanted, atol=1e-6)


def test_graphs_that_do_not_fit_are_refused() -> None:
    pair = helper.make_graph(
        [node("Add", ["s", "u"], ["t"])], "mod", [*graph([]).input, graph([], given="u").input[0]], graph([]).output
    )
    with pytest.raises(CorruptModelError, match="a graph in it has 2 inputs, 1 outputs"):
        read(model(flex(score_mod=pair)))
    with pytest.raises(CorruptModelError, match="2 inputs, 1 outputs, need 3 and 1"):
        read(model(flex(("q", "k"))))
    with pytest.raises(CorruptModelError, match="input 'nowhere' is not written"):
        read(model(flex(score_mod=graph([node("Add", ["s", "nowhere"], ["t"])]))))


def test_a_damaged_name_is_refused() -> None:
    whole = model(flex(score_mod=graph([node("Add", ["s", "damaged"], ["t"])]))).SerializeToString()
    with pytest.raises(CorruptModelError, match="not UTF-8"):
        read(whole.replace(b"damaged", b"dam\xffged"))
