"""Patterns of nodes become one op, and elementwise nodes become epilogues."""

import itertools
import math

import numpy as np
import pytest

from graph.passes.activations import find_activations
from graph.passes.epilogues import MAX_FUSED, fuse_epilogues
from graph.passes.layer_norms import find_layer_norms
from graph.run.executor import Executor
from graph.shapes import bind, propagate
from tests.graph.passes.checks import agree, build, const, node, ops, optimised, random, rewritten

IMAGE = {"x": (1, 4, 6, 5)}
NUMBERS = [const("half", 0.5), const("one", 1.0), const("root", math.sqrt(2)), const("inv", 1 / math.sqrt(2))]


def gelu(order: str, scaled: str, swapped: bool):
    """Return one of the ways in which exporters write 0.5 · x · (1 + erf(x / √2))."""
    both = (lambda a, b: [b, a]) if swapped else (lambda a, b: [a, b])
    first = node("Div", ["a", "root"], ["s"]) if scaled == "div" else node("Mul", both("a", "inv"), ["s"])
    start = [node("Neg", ["x"], ["a"]), first, node("Erf", ["s"], ["e"]), node("Add", both("e", "one"), ["t"])]
    ends = {
        "x-t-half": [node("Mul", both("a", "t"), ["p"]), node("Mul", both("p", "half"), ["y"])],
        "x-half-t": [node("Mul", both("a", "half"), ["p"]), node("Mul", both("p", "t"), ["y"])],
        "t-half-x": [node("Mul", both("t", "half"), ["p"]), node("Mul", both("p", "a"), ["y"])],
    }
    return build(start + ends[order], NUMBERS)


@pytest.mark.parametrize(
    ("order", "scaled", "swapped"), list(itertools.product(["x-t-half", "x-half-t", "t-half-x"], ["div", "mul"], [False, True]))
)
def test_gelu_is_found(order, scaled, swapped) -> None:
    assert ops(rewritten(gelu(order, scaled, swapped), find_activations)) == ["Neg", "Gelu"]


def test_gelu_with_another_factor_is_not_gelu() -> None:
    nodes = [
        node("Div", ["x", "half"], ["s"]),
        node("Erf", ["s"], ["e"]),
        node("Add", ["e", "one"], ["t"]),
        node("Mul", ["x", "t"], ["p"]),
        node("Mul", ["p", "half"], ["y"]),
    ]
    assert "Gelu" not in ops(rewritten(build(nodes, NUMBERS), find_activations))


def test_gelu_whose_inside_is_read_elsewhere_stays() -> None:
    nodes = [
        node("Div", ["x", "root"], ["s"]),
        node("Erf", ["s"], ["e"]),
        node("Add", ["e", "one"], ["t"]),
        node("Mul", ["x", "t"], ["p"]),
        node("Mul", ["p", "half"], ["y"]),
    ]
    assert "Gelu" not in ops(rewritten(build(nodes, NUMBERS, outputs=("y", "e")), find_activations))


@pytest.mark.parametrize("pair", [["x", "s"], ["s", "x"]], ids=["x-first", "x-last"])
def test_swish_is_found(pair) -> None:
    assert ops(rewritten(build([node("Sigmoid", ["x"], ["s"]), node("Mul", pair, ["y"])]), find_activations)) == ["Swish"]


def test_swish_with_alpha_is_found() -> None:
    nodes = [node("Mul", ["x", "k"], ["m"]), node("Sigmoid", ["m"], ["s"]), node("Mul", ["x", "s"], ["y"])]
    after = rewritten(build(nodes, [const("k", 1.702)]), find_activations)
    assert ops(after) == ["Swish"]
    assert after.nodes[0].attrs["alpha"] == pytest.approx(1.702)


def test_a_gate_of_another_value_is_not_swish() -> None:
    nodes = [node("Exp", ["x"], ["e"]), node("Sigmoid", ["e"], ["s"]), node("Mul", ["x", "s"], ["y"])]
    assert len(rewritten(build(nodes), find_activations).nodes) == 3


def test_hard_swish_and_mish_are_found() -> None:
    hard = [node("HardSigmoid", ["x"], ["h"], alpha=1 / 6, beta=0.5), node("Mul", ["x", "h"], ["y"])]
    assert ops(rewritten(build(hard), find_activations)) == ["HardSwish"]
    mish = [node("Softplus", ["x"], ["p"]), node("Tanh", ["p"], ["t"]), node("Mul", ["x", "t"], ["y"])]
    assert ops(rewritten(build(mish), find_activations)) == ["Mish"]


def layer_norm(axes=(-1,), squared="pow", beta=True, gamma_shape=(5,), outputs=("y",), keepdims=1):
    square = node("Pow", ["d", "two"], ["q"]) if squared == "pow" else node("Mul", ["d", "d"], ["q"])
    nodes = [
        node("ReduceMean", ["x", "axes"], ["m"], keepdims=keepdims),
        node("Sub", ["x", "m"], ["d"]),
        square,
        node("ReduceMean", ["q", "axes"], ["v"], keepdims=keepdims),
        node("Add", ["v", "eps"], ["ve"]),
        node("Sqrt", ["ve"], ["r"]),
        node("Div", ["d", "r"], ["n"]),
        node("Mul", ["n", "g"], ["y" if not beta else "s"]),
    ]
    nodes += [node("Add", ["s", "b"], ["y"])] if beta else []
    constants = [
        const("two", 2.0),
        const("eps", 1e-3),
        random("g", *gamma_shape),
        random("b", *gamma_shape),
        const("axes", axes, np.int64),
    ]
    return build(nodes, constants, {"x": (2, 3, 5)}, outputs)


@pytest.mark.parametrize("squared", ["pow", "mul"])
@pytest.mark.parametrize("beta", [True, False], ids=["beta", "no-beta"])
def test_layer_norm_is_found(squared, beta) -> None:
    after = rewritten(layer_norm(squared=squared, beta=beta), find_layer_norms)
    assert ops(after) == ["LayerNormalization"]
    assert len(after.nodes[0].inputs) == 2 + beta


def test_layer_norm_over_two_axes_is_found() -> None:
    after = rewritten(layer_norm(axes=(1, 2), gamma_shape=(3, 5)), find_layer_norms)
    assert ops(after) == ["LayerNormalization"]
    assert after.nodes[0].attrs["axis"] == 1


@pytest.mark.parametrize(
    "options", [{"axes": (1,), "gamma_shape": (5,)}, {"outputs": ("y", "d")}, {"gamma_shape": (3, 5)}], ids=str
)
def test_other_normalisations_stay(options) -> None:
    assert "LayerNormalization" not in ops(rewritten(layer_norm(**options), find_layer_norms))


def residual():
    nodes = [
        node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        node("Relu", ["a"], ["b"]),
        node("Conv", ["b", "w"], ["c"], pads=[1, 1, 1, 1]),
        node("Add", ["b", "c"], ["d"]),
        node("Relu", ["d"], ["y"]),
    ]
    return build(nodes, [random("w", 4, 4, 3, 3)], IMAGE)


def test_residual_block_is_two_nodes() -> None:
    after = rewritten(residual(), fuse_epilogues)
    assert ops(after) == ["Conv+Relu", "Conv+Add+Relu"]
    assert after.nodes[1].epilogue[0].inputs == ("b", "")
    assert after.nodes[1].origins == ("n2", "n3", "n4")
    assert after.nodes[1].epilogue[1].origin == "n4"


def test_epilogues_run_the_same_in_the_executor() -> None:
    graph = residual()
    made = optimised(graph)
    x = np.random.default_rng(3).standard_normal(IMAGE["x"]).astype(np.float32)
    plain = Executor(graph, propagate(graph, bind(graph))).run({"x": x})["y"]
    np.testing.assert_allclose(Executor(made.graph, made.specs).run({"x": x})["y"], plain, rtol=1e-5, atol=1e-5)


def test_both_branches_of_a_residual_go_to_the_later() -> None:
    nodes = [node("Conv", ["x", "w"], ["a"]), node("Conv", ["x", "v"], ["b"]), node("Add", ["a", "b"], ["y"])]
    after = rewritten(build(nodes, [random("w", 4, 4, 1, 1), random("v", 4, 4, 1, 1)], IMAGE), fuse_epilogues)
    assert ops(after) == ["Conv", "Conv+Add"]


def test_the_running_value_may_be_read_twice() -> None:
    graph = build([node("MatMul", ["x", "w"], ["a"]), node("Mul", ["a", "a"], ["y"])], [random("w", 4, 4)])
    after = rewritten(graph, fuse_epilogues)
    assert after.nodes[0].epilogue[0].inputs == ("", "")


def test_ops_of_several_operations_are_epilogues_too() -> None:
    nodes = [node("MatMul", ["x", "w"], ["m"]), node("Max", ["m", "r", "s"], ["t"]), node("Mean", ["t", "r"], ["y"])]
    after = rewritten(build(nodes, [random("w", 4, 4), random("r", 4), random("s", 4)]), fuse_epilogues)
    assert ops(after) == ["MatMul+Max+Mean"]


FIXED = {
    "two-readers": ([node("Relu", ["m"], ["a"]), node("Exp", ["m"], ["b"]), node("Concat", ["a", "b"], ["y"], axis=0)], ("y",)),
    "graph-output": ([node("Relu", ["m"], ["y"])], ("y", "m")),
    "widening": ([node("Add", ["m", "big"], ["y"])], ("y",)),
    "other-dtype": ([node("Cast", ["m"], ["c"], to=11), node("Cast", ["c"], ["y"], to=1)], ("y",)),
    "not-elementwise": ([node("Softmax", ["m"], ["y"])], ("y",)),
}


@pytest.mark.parametrize(("tail", "outputs"), FIXED.values(), ids=FIXED)
def test_what_cannot_be_an_epilogue(tail, outputs) -> None:
    graph = build([node("MatMul", ["x", "w"], ["m"]), *tail], [random("w", 4, 4), random("big", 3, 2, 4)], outputs=outputs)
    after = rewritten(graph, fuse_epilogues)
    assert next(n for n in after.nodes if n.op == "MatMul").epilogue == ()


def test_a_value_that_comes_later_is_not_awaited() -> None:
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Softmax", ["x"], ["s"]), node("Add", ["a", "s"], ["y"])]
    after = rewritten(build(nodes, [random("w", 4, 4)]), fuse_epilogues)
    assert ops(after) == ["MatMul", "Softmax+Add"]


def test_a_long_chain_is_cut_into_bounded_epilogues() -> None:
    length = 3 * MAX_FUSED
    names = ["x", *(f"v{i}" for i in range(length - 1)), "y"]
    after = rewritten(build([node("Tanh", [a], [b]) for a, b in itertools.pairwise(names)]), fuse_epilogues)
    assert [len(n.epilogue) for n in after.nodes] == [MAX_FUSED, MAX_FUSED, length - 2 * MAX_FUSED - 3]


def test_what_a_subgraph_reads_keeps_its_node() -> None:
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    body = [helper.make_graph([node(op, ["a"], [op])], op, [], [value(op, TensorProto.FLOAT, None)]) for op in ("Exp", "Neg")]
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("ReduceSum", ["x"], ["t"], keepdims=0),
        node("Greater", ["t", "zero"], ["c"]),
        node("If", ["c"], ["y"], then_branch=body[0], else_branch=body[1]),
    ]
    graph = build(nodes, [random("w", 4, 4), const("zero", 0.0)])
    made = optimised(graph)
    for seed in range(4):
        agree(graph, made.graph, seed)
    assert "MatMul" in ops(made.graph)
