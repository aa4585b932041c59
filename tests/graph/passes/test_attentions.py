"""Attention whose keys and values are repeated for groups of query heads reads each head once."""

import pytest
from onnx import helper

from graph.passes.optimise import optimise
from graph.shapes import bind
from tests.graph.passes.checks import agree, build, const

SHAPES = {"q": (2, 6, 3, 4), "k": (2, 2, 5, 4), "v": (2, 2, 5, 4)}


def grouped(middle, shape, order=("k", "v")):
    """Attention over heads that are repeated by Unsqueeze, Expand and Reshape, as exporters of decoders write it."""
    nodes, weights = [], [const("axis", [middle], "int64"), const("wide", shape, "int64"), const("joined", (2, 6, 5, 4), "int64")]
    for name in order:
        nodes += [
            helper.make_node("Unsqueeze", [name, "axis"], [f"{name}1"]),
            helper.make_node("Expand", [f"{name}1", "wide"], [f"{name}2"]),
            helper.make_node("Reshape", [f"{name}2", "joined"], [f"{name}3"]),
        ]
    nodes += [
        helper.make_node("Transpose", ["k3"], ["kt"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "v3"], ["y"]),
    ]
    return build(nodes, weights, SHAPES)


def test_repeated_heads_are_read_once():
    graph = grouped(2, (2, 2, 3, 5, 4))
    after = optimise(graph, bind(graph)).graph
    agree(graph, after)
    assert [node.op for node in after.nodes] == ["Attention"]
    assert after.nodes[0].inputs == ("q", "k", "v")


@pytest.mark.parametrize("shape", [(2, 3, 2, 5, 4)])
def test_heads_in_another_order_stay_repeated(shape):
    graph = grouped(1, shape)  # heads 0, 1, 0, 1… in place of 0, 0, 0, 1…
    after = optimise(graph, bind(graph)).graph
    agree(graph, after)
    assert "Expand" in [node.op for node in after.nodes]
