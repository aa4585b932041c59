"""Descriptions: the default strategies of a session without a plan, written as a plan with estimated times."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from graph.ir import Model, Node
from graph.memory import MemoryPlan, is_static, plan_memory
from graph.order import without_unread
from graph.run.executor import DYNAMIC, VIEW
from kernels.registry import find
from profiler.device.profile import DeviceProfile
from scheduler.cost.fitting import CostModel
from scheduler.plan import EXECUTOR, Constraints, Plan
from scheduler.planning.planner import compose
from scheduler.planning.steps import Evidence
from scheduler.planning.subject import Subject
from scheduler.strategy import Strategy, WantedBackend, WantedPrecision


def describe(
    model: Model,
    shapes: Mapping[str, tuple[int, ...]] | None,
    threads: int,
    backend: WantedBackend,
    precision: WantedPrecision,
    device: DeviceProfile,
) -> Plan:
    """Describe the runs of a session without a plan.

    Args:    shapes: of the inputs, None = as the model declares them. threads, backend, precision: of the session. device: this
             machine.
    Returns: a plan whose steps are those that the executor runs, in its order. Nothing was compared for it, and its times are
             estimates from the rooflines of the device; `why` says so.
    Raises:  FeedError for open dimensions.
    """
    subject = replace(
        Subject.of(model, shapes, backend=backend, precision=precision), error_budget=math.inf
    )  # a first candidate is never refused
    strategies = default_strategies(subject, threads)
    subject = subject.reordered(tuple(strategies))
    plan = compose(
        subject,
        device,
        "latency",
        Constraints(max_threads=threads, backend=backend, precision=precision),
        Evidence({}, CostModel(device)),
        {threads: strategies},
    )
    measured = all(figure.source == "measured" for figure in device.figures)
    source = "its measured rates" if measured else "what its processor should reach, nothing was measured"
    why = (
        f"description of a session without a plan: the first candidate of every op, threads: {threads}, none were compared; "
        f"{plan.predicted_ns / 1e6:.2f} ms, estimated from the roofline of this device by {source}"
    )
    return plan.model_copy(update={"why": why})


def default_strategies(subject: Subject, threads: int) -> dict[str, Strategy]:
    """Return how an executor computes each node where nothing is chosen: by node name, in the order in which it runs them.

    Nodes that no output depends on are not among them. Nothing is compiled.
    """
    graph, specs, native = without_unread(subject.graph), subject.specs, subject.native
    if native is None:
        memory = plan_memory(graph, specs, {})
        return {node.name: _in_numpy(subject, node, memory, threads) for node in graph.nodes}
    rest, parts = native.parts(graph, specs, {})
    rest = without_unread(rest)
    memory = plan_memory(rest, specs, {})
    calls = native.kernels(graph, specs, threads, {})
    found: dict[str, Strategy] = {}
    for node in rest.nodes:
        if (part := parts.get(node.name)) is None:
            found[node.name] = _in_numpy(subject, node, memory, threads)
            continue
        for inner in part.nodes:
            choice = native.candidates(inner, graph, specs, threads)[0]
            renamed = not calls[inner.name] or choice.algorithm == VIEW
            found[inner.name] = Strategy(EXECUTOR, VIEW) if renamed else Strategy.of(choice, threads)
    return found


def _in_numpy(subject: Subject, node: Node, memory: MemoryPlan, threads: int) -> Strategy:
    """Return how the executor runs a node that is in no native segment."""
    if not is_static(node, subject.specs):
        return Strategy(EXECUTOR, DYNAMIC)
    owners, written = memory.owners, node.outputs[0]
    shares = written in owners and bool(node.inputs) and owners[written] == owners.get(node.inputs[0])
    if find(node.op).view and shares:
        return Strategy(EXECUTOR, VIEW)
    kernel = find(node.op).choose([subject.specs[name] if name else None for name in node.inputs], node.attrs)
    return Strategy("numpy", kernel.algorithm, "fp32", threads)
