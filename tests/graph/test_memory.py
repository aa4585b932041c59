"""The memory plan keeps values that are alive apart, lets others share memory, and reports how many bytes are alive."""

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st

from graph.formats.registry import read
from graph.ir import Graph
from graph.memory import MemoryPlan, is_static, plan_memory
from graph.placement import ALIGNMENT_BYTES
from graph.shapes import bind, propagate
from tests.graph.oracle import BOOL, body, constant, ints, make, node, port
from tests.graph.random_models import random_models

X_BYTES = 2 * 6 * 4


def planned(proto: onnx.ModelProto, **workspace_bytes: int) -> MemoryPlan:
    graph = read(proto).graph
    return plan_memory(graph, propagate(graph, bind(graph)), workspace_bytes)


def reads(graph: Graph) -> dict[str, list[int]]:
    """Return the steps at which each value is read. An output is also read at the end, after the last step."""
    found: dict[str, list[int]] = {}
    for step, made in enumerate(graph.nodes):
        for name in made.reads():
            found.setdefault(name, []).append(step)
    for output in graph.outputs:
        found.setdefault(output.name, []).append(len(graph.nodes))
    return found


@given(random_models(), st.integers(0, 500))
@settings(max_examples=150, deadline=None)
def test_memory_is_never_written_while_another_value_in_it_is_still_read(proto: onnx.ModelProto, scratch_bytes: int) -> None:
    """Independent of the plan's own lifetimes: from the graph alone, who is read when, and what bytes each step writes."""
    graph = read(proto).graph
    specs = propagate(graph, bind(graph))
    plan = plan_memory(graph, specs, {made.name: scratch_bytes for made in graph.nodes})
    read_at = reads(graph)
    holders: dict[str, range] = {}
    for step, made in enumerate(graph.nodes):
        writes = {name: plan.placements[name] for name in made.writes() if name in plan.placements}
        if made.name in plan.workspaces:
            writes[""] = plan.workspaces[made.name]
        for value, place in writes.items():
            spec = specs.get(value)
            assert place.offset_bytes % ALIGNMENT_BYTES == 0
            assert place.offset_bytes + place.nbytes <= plan.arena_bytes
            assert place.nbytes == (spec.nbytes if spec else scratch_bytes)
            written = range(place.offset_bytes, place.offset_bytes + place.nbytes)
            for name, held in holders.items():
                overlaps = max(held.start, written.start) < min(held.stop, written.stop)
                if overlaps and any(later > step for later in read_at.get(name, [])):
                    assert plan.owners[name] == plan.owners[value]  # a view: it writes nothing
                    assert made.op in ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")
                elif overlaps and step in read_at.get(name, []):
                    assert plan.owners[name] == plan.owners[value]  # in place
            if value:
                holders[value] = written


@given(random_models(), st.integers(0, 500))
@settings(max_examples=60, deadline=None)
def test_storages_held_together_do_not_overlap(proto: onnx.ModelProto, scratch_bytes: int) -> None:
    graph = read(proto).graph
    plan = plan_memory(graph, propagate(graph, bind(graph)), {made.name: scratch_bytes for made in graph.nodes})
    held = [*{plan.owners[value]: place for value, place in plan.placements.items()}.values(), *plan.workspaces.values()]
    for i, a in enumerate(held):
        for b in held[:i]:
            together = a.first <= b.last and b.first <= a.last
            apart = a.offset_bytes + a.nbytes <= b.offset_bytes or b.offset_bytes + b.nbytes <= a.offset_bytes
            assert apart or not together
    alive = [sum(-(-p.nbytes // 64) * 64 for p in held if p.first <= step <= p.last) for step in range(len(graph.nodes))]
    assert plan.lower_bound_bytes == max(alive)
    assert plan.arena_bytes >= plan.lower_bound_bytes
    assert [moment.live_bytes for moment in plan.timeline] == [
        sum(p.nbytes for p in held if p.first <= step <= p.last) for step in range(len(graph.nodes))
    ]


@given(random_models())
@settings(max_examples=15, deadline=None)
def test_the_same_graph_gives_the_same_plan(proto: onnx.ModelProto) -> None:
    assert planned(proto) == planned(proto)


def test_inputs_constants_and_outputs_are_outside_the_arena() -> None:
    proto = make([node("Softmax", ["x"], ["a"]), node("Concat", ["a", "x"], ["y"], axis=0)], ["y"])
    plan = planned(proto)
    assert set(plan.placements) == {"a"}
    assert plan.returned == {"y"}


def test_last_reader_works_in_place() -> None:
    nodes = [node("Softmax", ["x"], ["a"]), node("Relu", ["a"], ["b"]), node("Softmax", ["b"], ["y"])]
    assert planned(make(nodes, ["y"])).owners["b"] == "a"


def test_an_input_is_never_written_over() -> None:
    nodes = [node("Relu", ["x"], ["b"]), node("Softmax", ["b"], ["y"])]
    assert planned(make(nodes, ["y"])).owners["b"] == "b"


def test_a_value_read_later_is_not_written_over() -> None:
    nodes = [node("Softmax", ["x"], ["a"]), node("Relu", ["a"], ["b"]), node("Concat", ["a", "b"], ["y"], axis=0)]
    assert planned(make(nodes, ["y"])).owners["b"] == "b"


def test_a_value_whose_view_is_read_later_is_not_written_over() -> None:
    nodes = [node("Softmax", ["x"], ["a"]), node("Reshape", ["a", "t"], ["v"]), node("Relu", ["a"], ["b"])]
    nodes += [node("MatMul", ["b", "v"], ["y"])]
    owners = planned(make(nodes, ["y"], [ints("t", 6, 2)])).owners
    assert owners["v"] == "a"
    assert owners["b"] == "b"


def test_a_value_captured_later_is_not_written_over() -> None:
    then = body([node("Neg", ["a"], ["t"])], [], [port("t", [2, 6])])
    choice = node("If", ["c"], ["y"], then_branch=then, else_branch=then)
    nodes = [node("Softmax", ["x"], ["a"]), node("Relu", ["a"], ["b"]), node("Softmax", ["b"], ["z"]), choice]
    plan = planned(make(nodes, ["y", "z"], inputs=[port("x", [2, 6]), port("c", [], BOOL)]))
    assert plan.owners["b"] == "b"
    assert plan.placements["a"].last == 3


def test_a_broadcast_operand_is_not_written_over() -> None:
    nodes = [node("ReduceMax", ["x"], ["m"], axes=[0]), node("Add", ["x", "m"], ["b"]), node("Softmax", ["b"], ["y"])]
    assert planned(make(nodes, ["y"])).owners["b"] == "b"


def test_an_operand_of_another_shape_is_not_written_over() -> None:
    nodes = [node("Softmax", ["x"], ["a"]), node("Add", ["a", "w"], ["b"]), node("Softmax", ["b"], ["y"])]
    assert planned(make(nodes, ["y"], [constant("w", np.ones((1, 2, 6)))])).owners["b"] == "b"


def test_a_workspace_lives_for_its_step_only() -> None:
    nodes = [node("Softmax", [a], [b], b) for a, b in ("xa", "ab", "by")]
    plan = planned(make(nodes, ["y"]), a=1000, b=1000, y=1000)
    assert [(place.first, place.last) for place in plan.workspaces.values()] == [(0, 0), (1, 1), (2, 2)]
    assert plan.arena_bytes == plan.lower_bound_bytes == 1024 + 2 * 64


def test_the_timeline_says_what_is_alive() -> None:
    nodes = [node("Softmax", ["x"], ["a"], "one"), node("Softmax", ["a"], ["b"], "two"), node("Softmax", ["b"], ["y"], "three")]
    plan = planned(make(nodes, ["y"]))
    assert [(m.node, m.live_bytes, m.outside_bytes) for m in plan.timeline] == [
        ("one", X_BYTES, X_BYTES),
        ("two", 2 * X_BYTES, X_BYTES),
        ("three", X_BYTES, 2 * X_BYTES),
    ]
    assert [(held.name, held.first, held.last) for held in plan.held if held.offset_bytes is not None] == [
        ("a", 0, 1),
        ("b", 1, 2),
    ]
    assert plan.peak_bytes == 3 * X_BYTES


def test_values_that_only_a_run_can_size_are_not_planned() -> None:
    nodes = [
        node("NonZero", ["x"], ["n"]),
        node("Cast", ["n"], ["f"], to=1),
        node("Softmax", ["x"], ["a"]),
        node("Neg", ["f"], ["y"]),
    ]
    proto = make([*nodes, node("Softmax", ["a"], ["z"])], ["y", "z"])
    graph = read(proto).graph
    assert [is_static(made, propagate(graph, bind(graph))) for made in graph.nodes] == [False, False, True, False, True]
    assert set(planned(proto).placements) == {"a"}


def test_an_empty_graph_needs_nothing() -> None:
    plan = plan_memory(Graph("g", (), (), (), {}), {}, {})
    assert (plan.arena_bytes, plan.lower_bound_bytes, plan.peak_bytes, plan.timeline) == (0, 0, 0, ())
