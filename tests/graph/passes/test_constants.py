"""Nodes whose inputs are constants are folded."""

from functools import partial

import numpy as np

from graph.passes.constants import SMALL_RESULT_BYTES, fold_constants
from graph.shapes import bind, propagate
from tests.graph.passes.checks import applied, build, const, folding, node, ops, random, rewritten


def test_nodes_of_constants_become_constants() -> None:
    graph = build(
        [node("Mul", ["a", "b"], ["ab"]), node("Exp", ["ab"], ["e"]), node("Add", ["x", "e"], ["y"])],
        [random("a", 2, 4), random("b", 4)],
    )
    after = rewritten(graph, folding)
    assert ops(after) == ["Add"]
    assert set(after.constants) == {"e"}


def test_shape_of_an_input_is_folded() -> None:
    graph = build([node("Shape", ["x"], ["s"]), node("ConstantOfShape", ["s"], ["z"]), node("Add", ["x", "z"], ["y"])])
    assert ops(rewritten(graph, folding)) == ["Add"]


def test_a_constant_graph_output_keeps_its_name() -> None:
    graph = build([node("Exp", ["a"], ["c"]), node("Relu", ["x"], ["y"])], [random("a", 3)], outputs=("y", "c"))
    after = rewritten(graph, folding)
    assert ops(after) == ["Relu"]
    assert "c" in after.constants


def test_random_ops_are_never_folded() -> None:
    graph = build([node("RandomNormal", [], ["r"], shape=[2, 4]), node("Add", ["x", "r"], ["y"])])
    assert applied(graph, folding) is graph


def test_a_small_constant_is_not_blown_up() -> None:
    wide = SMALL_RESULT_BYTES // 4 + 4
    graph = build(
        [node("Expand", ["a", "s"], ["e"]), node("Add", ["x", "e"], ["y"])],
        [const("a", [1.0]), const("s", [wide], np.int64)],
        inputs={"x": (wide,)},
    )
    assert ops(rewritten(graph, folding)) == ["Expand", "Add"]


def test_quantised_weights_are_folded_though_they_grow() -> None:
    count = SMALL_RESULT_BYTES // 4 + 4
    graph = build(
        [node("DequantizeLinear", ["w", "s"], ["r"]), node("Add", ["x", "r"], ["y"])],
        [const("w", np.arange(count) % 200 - 100, np.int8), const("s", 0.1)],
        inputs={"x": (count,)},
    )
    assert ops(rewritten(graph, folding)) == ["Add"]


def test_results_stay_below_the_limit_of_all_constants() -> None:
    graph = build(
        [node("Exp", ["a"], ["e"]), node("Add", ["x", "e"], ["y"]), node("Mul", ["y", "a"], ["z"])],
        [random("a", 2, 4)],
        outputs=("z",),
    )
    specs = propagate(graph, bind(graph))
    plain = {name: spec and spec.with_value(None) for name, spec in specs.items()}
    assert applied(graph, partial(fold_constants, limit_bytes=32), plain) is graph
    assert ops(applied(graph, partial(fold_constants, limit_bytes=64), plain)) == ["Add", "Mul"]
