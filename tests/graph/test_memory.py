"""The memory plan: nothing alive overlaps, nothing is wasted without reason."""

from hypothesis import given, settings

from graph.ir import Graph, Specs
from graph.memory import MemoryPlan, plan_memory
from graph.reader import read
from graph.shapes import bind, propagate
from tests.graph.test_executor import random_models


def planned(graph: Graph, specs: Specs, **workspaces: int) -> MemoryPlan:
    return plan_memory(graph, specs, workspaces)


@given(random_models())
@settings(max_examples=60, deadline=None)
def test_values_alive_together_do_not_overlap(proto) -> None:
    graph = read(proto).graph
    specs = propagate(graph, bind(graph))
    scratch = {node.name: 100 for node in graph.nodes if node.op == "Softmax"}
    plan = plan_memory(graph, specs, scratch)
    places = {id(p): p for p in (*plan.placements.values(), *plan.workspaces.values())}
    held = list(places.values())
    for i, a in enumerate(held):
        assert a.offset_bytes % 64 == 0
        assert a.offset_bytes + a.nbytes <= plan.arena_bytes
        for b in held[:i]:
            together = a.first <= b.last and b.first <= a.last
            apart = a.offset_bytes + a.nbytes <= b.offset_bytes or b.offset_bytes + b.nbytes <= a.offset_bytes
            assert apart or not together
    assert plan.arena_bytes >= plan.lower_bound_bytes
    assert plan.peak_bytes >= max((moment.live_bytes for moment in plan.timeline), default=0)


@given(random_models())
@settings(max_examples=15, deadline=None)
def test_plan_is_deterministic(proto) -> None:
    graph = read(proto).graph
    specs = propagate(graph, bind(graph))
    assert plan_memory(graph, specs, {}) == plan_memory(graph, specs, {})
