"""All passes together keep the results of a graph."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.exports import EXPORTS
from graph import shapes
from graph.formats.registry import read
from graph.passes.optimise import optimise
from graph.passes.reports import report_passes
from graph.shapes import bind, propagate
from tests.graph.interpreter import interpret
from tests.graph.passes.checks import build, const, node, ops, optimised, random


def small_net():
    nodes = [
        node("Identity", ["w"], ["w2"]),
        node("Pad", ["x", "p"], ["a"]),
        node("Conv", ["a", "w2"], ["c"]),
        node("BatchNormalization", ["c", "g", "b", "m", "v"], ["n"]),
        node("Dropout", ["n"], ["d"]),
        node("Relu", ["d"], ["r"]),
        node("GlobalAveragePool", ["r"], ["q"]),
        node("Flatten", ["q"], ["f"]),
        node("MatMul", ["f", "k"], ["h"]),
        node("Add", ["h", "t"], ["y"]),
        node("Exp", ["x"], ["dead"]),
    ]
    norms = [random("g", 6), random("b", 6), random("m", 6), random("v", 6, low=0.5)]
    weights = [random("w", 6, 4, 3, 3), random("k", 6, 3), random("t", 3), const("p", [0, 0, 1, 1, 0, 0, 1, 1], np.int64)]
    return build(nodes, norms + weights, {"x": (1, 4, 6, 5)})


def test_a_small_network_comes_down_to_what_it_is() -> None:
    made = optimised(small_net())
    assert ops(made.graph) == ["Conv+Relu", "GlobalAveragePool", "Flatten", "Gemm"]
    assert set(made.graph.nodes[0].origins) == {"n1", "n2", "n3", "n4", "n5"} - {"n4"}


def test_reports_add_up() -> None:
    graph = small_net()
    reports = {report.name: report for report in report_passes(graph, bind(graph))}
    assert sum(report.nodes_removed for report in reports.values()) == len(graph.nodes) - len(optimised(graph).graph.nodes)
    assert reports["batch-norms"].nodes_removed == 1
    assert reports["batch-norms"].flops_removed == 6 * 6 * 5  # two an element go, one an element (the new bias) comes
    assert reports["dead-code"].bytes_removed == 2 * 4 * 120
    assert reports["epilogues"].bytes_removed == 2 * 4 * 6 * 30


def test_optimising_twice_changes_nothing() -> None:
    graph = small_net()
    once = optimise(graph, bind(graph))
    assert optimise(once.graph, bind(graph)).graph is once.graph


def test_specs_are_those_of_the_new_graph() -> None:
    graph = small_net()
    made = optimise(graph, bind(graph))
    assert made.specs == propagate(made.graph, bind(graph))


def test_an_op_is_inferred_again_only_where_a_pass_changed_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain of products behind one no-op: the products read the same value after it is gone."""
    inferred: list[str] = []
    infer = shapes._infer
    monkeypatch.setattr(shapes, "_infer", lambda node, *rest: inferred.append(node.name) or infer(node, *rest))
    chain = [node("MatMul", [f"h{n}", "w"], [f"h{n + 1}"]) for n in range(20)]
    nodes = [*chain, node("Identity", ["h20"], ["i"]), node("Relu", ["i"], ["y"])]
    graph = build(nodes, [random("w", 4, 4)], {"h0": (4, 4)})
    optimise(graph, bind(graph))
    products = [name for name in inferred if name in {each.name for each in graph.nodes if each.op == "MatMul"}]
    assert len(products) <= len(chain) + 2  # each once, and those that passes rename or fuse
    assert len(inferred) <= len(graph.nodes) + 4


UNARY = ("Relu", "Identity", "Exp", "Neg", "Sigmoid", "Tanh", "Transpose", "Softmax")


@st.composite
def programs(draw: st.DrawFn):
    """Draw a graph on 4×4 matrices, in which values are read any number of times and one or two are outputs."""
    values, nodes = ["x", "w", "z"], []
    for index in range(draw(st.integers(1, 12))):
        op = draw(st.sampled_from((*UNARY, "Add", "Mul", "Sub", "MatMul", "Gemm")))
        inputs = [draw(st.sampled_from(values))]
        if op not in UNARY:
            inputs.append(draw(st.sampled_from([*values, "o"] if op in ("Add", "Mul", "Sub") else values)))
        nodes.append(node(op, inputs, [f"v{index}"]))
        values.append(f"v{index}")
    outputs = draw(st.lists(st.sampled_from(values[3:]), min_size=1, max_size=2, unique=True))
    return build(nodes, [random("w", 4, 4), const("z", np.zeros((4, 4))), const("o", np.ones((1, 4)))], {"x": (4, 4)}, outputs)


@given(programs())
@settings(max_examples=80, deadline=None)
def test_random_programs_compute_the_same(graph) -> None:
    made = optimise(graph, bind(graph))
    x = np.random.default_rng(1).uniform(-0.5, 0.5, (4, 4)).astype(np.float32)
    wanted, got = interpret(graph, {"x": x}), interpret(made.graph, {"x": x})
    assert list(wanted) == list(got)
    for name, array in wanted.items():
        finite = np.isfinite(array)
        np.testing.assert_allclose(
            got[name][finite], array[finite], rtol=1e-3, atol=1e-4 * np.abs(array[finite]).max(initial=1e-3)
        )


@pytest.mark.exports
@pytest.mark.parametrize("name", EXPORTS)
def test_exports_compute_the_same(name: str) -> None:
    folder = os.environ.get("EDGEWISE_EXPORTS")
    if not folder:
        pytest.skip("EDGEWISE_EXPORTS is not set: no folder of exported models")
    graph = read(Path(folder) / f"{name}.onnx").graph
    inputs = bind(graph)
    made = optimise(graph, inputs)
    rng = np.random.default_rng(0)
    feeds = {
        key: rng.integers(0, 2, spec.shape).astype(spec.dtype)
        if spec.dtype.kind in "iu"
        else rng.standard_normal(spec.shape).astype(spec.dtype)
        for key, spec in inputs.items()
    }
    wanted, got = interpret(graph, feeds), interpret(made.graph, feeds)
    assert len(made.graph.nodes) < len(graph.nodes)
    assert list(wanted) == list(got)
    for key, array in wanted.items():
        assert np.abs(got[key] - array).max() <= 1e-4 * np.abs(array).max()
