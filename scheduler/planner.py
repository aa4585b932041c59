"""Choose how a device should run a model, and say why.

Every kernel of every node is a candidate; those that cannot take the node's shapes are kept with their reason. At each thread
count the cheapest candidate of each step wins, by measurement where the store has a fresh one and by prediction elsewhere; the
objective then picks the thread count. The same inputs give the same plan: ties go to the first name, and are reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import onnx

from graph.executor import DYNAMIC, VIEW
from graph.ir import Graph, Model, Node, Specs
from graph.memory import is_static, plan_memory
from graph.native.engine import Native, find_native
from graph.optimise import optimise
from graph.reader import read
from graph.shapes import bind
from kernels.errors import AttributeValueError, UnsupportedError
from kernels.registry import find
from profiler.counts import OpProfile, count_nodes
from profiler.device import FULL_S, DeviceProfile, thread_counts
from scheduler.build import Build, current_build
from scheduler.costs import UNCERTAINTY, Estimate, error_of, estimate, estimate_native
from scheduler.errors import InfeasibleError
from scheduler.local import local_device, local_fingerprint
from scheduler.plan import (
    EXECUTOR,
    Candidate,
    Constraints,
    InputShape,
    Objective,
    Plan,
    State,
    Step,
    ThreadOption,
)
from scheduler.signature import Signature, signature
from scheduler.store import Here, Measurement, Store
from scheduler.strategy import Precision, Strategy, WantedBackend

MODEL_ERROR = 1e-3  # that algorithms may add to a model's output, relative to its largest, where no limit is asked for
TIE = 1.01  # candidates within one percent of each other are a tie

Known = Mapping[str, Mapping[Strategy, Measurement]]


@dataclass(frozen=True, slots=True)
class _Work:
    """What a plan is made for: the optimised graph, what each node costs, and what was measured.

    error_budget: what the algorithm of one convolution or product may add, relative to its largest output.
    """

    graph: Graph
    specs: Specs
    costs: Sequence[OpProfile]
    signatures: Sequence[Signature]
    known: Known
    device: DeviceProfile
    build: Build
    native: Native | None
    backend: WantedBackend
    error_budget: float


def make_plan(
    model: Model,
    device: DeviceProfile,
    objective: Objective = "latency",
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    dims: Mapping[str, int] | None = None,
    *,
    max_latency_ms: float | None = None,
    max_memory_bytes: int | None = None,
    max_error: float | None = None,
    max_threads: int | None = None,
    backend: WantedBackend = "auto",
    precision: Precision | str = "fp32",
    store: Store | None = None,
) -> Plan:
    """Plan a model for a device.

    Args:    device: a profile, of this machine or another. objective: latency, throughput or memory. store: where measurements
             are looked up; only those of this very device, build and kernel source count.
    Returns: the plan; its state is `predicted` when the device is not this machine.
    Raises:  FeedError for open dimensions, UnsupportedError for what this build cannot do, InfeasibleError with the closest plan
             when a constraint cannot be met.
    """
    _check(objective, backend, precision)
    inputs = bind(model.graph, shapes, dims)
    ready = optimise(model.graph, inputs)
    graph, specs, build = ready.graph, ready.specs, current_build()
    signatures = [signature(node, specs, graph.constants) for node in graph.nodes]
    known = store.measurements.fresh(Here(device.fingerprint, build), {s.key: s.op for s in signatures}) if store else {}
    native = None if backend == "numpy" else find_native(backend)
    costs = count_nodes(graph, specs)
    budget = (MODEL_ERROR if max_error is None else max_error) / max(1, sum(cost.macs > 0 for cost in costs))
    work = _Work(graph, specs, costs, signatures, known, device, build, native, backend, budget)
    cores = min(device.usable_cores, max_threads or device.usable_cores)
    plans = [_at(work, threads, objective) for threads in thread_counts(cores)]
    constraints = Constraints(
        max_latency_ms=max_latency_ms,
        max_memory_bytes=max_memory_bytes,
        max_error=max_error,
        max_threads=max_threads,
        backend=backend,
        precision="fp32",
    )
    ports = tuple(InputShape(name=name, dtype=spec.dtype.name, shape=spec.shape) for name, spec in inputs.items())
    options = [_option(draft, cores, objective, constraints) for draft in plans]
    order = sorted(range(len(plans)), key=lambda i: (options[i].verdict == "over_limit", *_rank(options[i], objective)))
    best = order[0]
    options = [
        option if index == best or option.verdict == "over_limit" else option.model_copy(update={"verdict": "slower"})
        for index, option in enumerate(options)
    ]
    draft, option = plans[best], options[best]
    plan = Plan(
        model_digest=model.digest,
        model_name=model.source,
        device_fingerprint=device.fingerprint,
        device_name=device.name,
        engine_build=build.id,
        objective=objective,
        constraints=constraints,
        inputs=ports,
        threads=draft.threads,
        replicas=option.replicas,
        precision="fp32",
        steps=draft.steps,
        predicted_ns=draft.predicted_ns,
        low_ns=sum(step.low_ns for step in draft.steps),
        high_ns=sum(step.high_ns for step in draft.steps),
        memory_bytes=draft.memory_bytes,
        arena_bytes=draft.arena_bytes,
        param_bytes=draft.param_bytes,
        error_estimate=draft.error,
        thread_options=tuple(options),
        ties=draft.ties,
        why=_why(draft, option, options, objective),
        state=State() if device.fingerprint == local_fingerprint() else State(status="predicted", reason="not this machine"),
    )
    if option.verdict == "over_limit":
        raise InfeasibleError(f"plan of {model.source}: {option.reason}, the closest plan is attached", option.reason, plan)
    return plan


def plan(
    model: str | Path | bytes | onnx.ModelProto | Model,
    device: str = "local",
    objective: Objective = "latency",
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    dims: Mapping[str, int] | None = None,
    *,
    max_latency_ms: float | None = None,
    max_memory_bytes: int | None = None,
    max_error: float | None = None,
    max_threads: int | None = None,
    backend: WantedBackend = "auto",
    db: str | None = None,
) -> Plan:
    """Plan a model for this machine ("local") or a device stored under its fingerprint, and store the plan.

    db: database URL, None = SQLite in the user's data directory. A new machine is measured first, which takes seconds.
    """
    loaded = model if isinstance(model, Model) else read(model)
    with Store(db) as store:
        known = local_device(store, FULL_S) if device == "local" else DeviceProfile.from_json(store.devices.get(device).profile)
        made = make_plan(
            loaded,
            known,
            objective,
            shapes,
            dims,
            max_latency_ms=max_latency_ms,
            max_memory_bytes=max_memory_bytes,
            max_error=max_error,
            max_threads=max_threads,
            backend=backend,
            store=store,
        )
        store.models.save(loaded.digest, loaded.source, loaded.nbytes)
        store.plans.save(made)
    return made


@dataclass(frozen=True, slots=True)
class _Draft:
    """The best steps at one thread count."""

    threads: int
    steps: tuple[Step, ...]
    predicted_ns: float
    memory_bytes: int
    arena_bytes: int
    param_bytes: int
    error: float
    ties: tuple[str, ...]


def _check(objective: str, backend: str, precision: str) -> None:
    if objective not in ("latency", "throughput", "memory"):
        raise AttributeValueError(f"plan: objective is {objective!r}, need latency, throughput or memory")
    if backend not in get_args(WantedBackend):
        raise AttributeValueError(f"plan: backend is {backend!r}, need one of {', '.join(get_args(WantedBackend))}")
    if precision not in ("fp32", "auto"):
        raise UnsupportedError(f"plan: precision {precision} has no kernels in this build, it has fp32")


def _at(work: _Work, threads: int, objective: Objective) -> _Draft:
    """Choose every step at one thread count."""
    steps = tuple(
        _step(work, node, cost, text, threads, objective)
        for node, cost, text in zip(work.graph.nodes, work.costs, work.signatures, strict=True)
    )
    scratch = {step.node: next((c.workspace_bytes for c in step.candidates if c.verdict == "chosen"), 0) for step in steps}
    memory = plan_memory(work.graph, work.specs, scratch)
    param_bytes = sum(array.nbytes for array in work.graph.constants.values())
    ports = {port.name for port in (*work.graph.inputs, *work.graph.outputs)}
    port_bytes = sum(spec.nbytes for name in ports if (spec := work.specs.get(name)) is not None)
    ties = tuple(f"{step.node}: {c.strategy}" for step in steps for c in step.candidates if c.verdict == "tie")
    return _Draft(
        threads=threads,
        steps=steps,
        predicted_ns=sum(step.predicted_ns for step in steps),
        memory_bytes=memory.arena_bytes + param_bytes + port_bytes,
        arena_bytes=memory.arena_bytes,
        param_bytes=param_bytes,
        error=sum(
            error_of(node, work.specs) + _added(work, node, step) for node, step in zip(work.graph.nodes, steps, strict=True)
        ),
        ties=ties,
    )


def _added(work: _Work, node: Node, step: Step) -> float:
    """What the algorithm that was chosen adds to rounding."""
    if work.native is None or step.strategy.backend != "native":
        return 0.0
    found = work.native.transformed(node, work.graph, work.specs, step.strategy.choice)
    return 0.0 if found is None else found.error


def _step(work: _Work, node: Node, cost: OpProfile, text: Signature, threads: int, objective: Objective) -> Step:
    """One node: its candidates, the one chosen, and why."""
    shared: dict[str, Any] = {
        "node": node.name,
        "op": node.op,
        "signature": text.text,
        "signature_key": text.key,
        "kernel_source": work.build.kernel_source(node.op),
        "macs": cost.macs,
        "other_flops": cost.other_flops,
        "moved_bytes": cost.read_bytes + cost.write_bytes,
    }
    static = is_static(node, work.specs)
    if not static or (find(node.op).view and not node.epilogue):
        algorithm, why = (VIEW, "another name for memory") if static else (DYNAMIC, "its shapes are only known at run time")
        strategy = Strategy(EXECUTOR, algorithm)
        return Step(
            **shared,
            strategy=strategy,
            executed_macs=0 if static else cost.macs,
            level="",
            predicted_ns=0,
            low_ns=0,
            high_ns=0,
            measured=False,
            bound_by="unknown",
            candidates=(Candidate(strategy=strategy, predicted_ns=0, low_ns=0, high_ns=0, verdict="chosen"),),
            why=why,
        )
    candidates, estimates = _candidates(work, node, cost, text, threads)
    able = [c for c in candidates if c.verdict != "refused"]
    if work.backend == "native":  # numpy only where there is nothing else
        able = [c for c in able if c.strategy.backend == "native"] or able
    chosen = min(able, key=lambda c: (c.workspace_bytes if objective == "memory" else 0, c.expected_ns or 0, str(c.strategy)))
    judged = tuple(sorted((_judged(c, chosen) for c in candidates), key=_listing))
    found = estimates[chosen.strategy]
    return Step(
        **shared,
        strategy=chosen.strategy,
        executed_macs=found.executed_macs,
        level=found.level,
        predicted_ns=chosen.expected_ns or 0,
        low_ns=chosen.low_ns or 0,
        high_ns=chosen.high_ns or 0,
        measured=chosen.measured_ns is not None,
        bound_by=found.bound_by,
        candidates=judged,
        why=_reason(chosen, [c for c in able if c is not chosen], found) + _not_native(chosen, candidates),
    )


def _candidates(
    work: _Work, node: Node, cost: OpProfile, text: Signature, threads: int
) -> tuple[list[Candidate], dict[Strategy, Estimate]]:
    """Every native candidate and every numpy kernel of the op, refused ones with their reason; and what the others take."""
    candidates: list[Candidate] = []
    estimates: dict[Strategy, Estimate] = {}
    inputs = [work.specs[name] if name else None for name in node.inputs]
    if work.native is not None:
        reason = work.native.refusal(node, work.graph, work.specs)
        if reason is not None:
            refused = Strategy("native", "any", "fp32", threads)
            candidates.append(Candidate(strategy=refused, verdict="refused", reason=reason))
        else:
            for rank, choice in enumerate(work.native.candidates(node, work.graph, work.specs, threads)):
                strategy = Strategy.of(choice, threads)
                found = estimate_native(
                    cost, rank, work.device, threads, work.native.transformed(node, work.graph, work.specs, choice)
                )
                if found.error > work.error_budget:
                    reason = f"its error estimate is {found.error:.1e}, each product of the model may add {work.error_budget:.1e}"
                    candidates.append(Candidate(strategy=strategy, verdict="refused", reason=reason))
                else:
                    estimates[strategy] = found
    for kernel in find(node.op).kernels:
        strategy = Strategy("numpy", kernel.algorithm, "fp32", threads)
        refusal = kernel.refuses(*inputs, **node.attrs) if kernel.refuses else None
        if refusal is not None:
            candidates.append(Candidate(strategy=strategy, verdict="refused", reason=refusal))
            continue
        estimates[strategy] = estimate(node, cost, kernel, work.specs, work.device, threads)
    measured = work.known.get(text.key, {})
    for strategy, found in estimates.items():
        evidence = measured.get(strategy)
        low, high = (evidence.min_ns, evidence.p90_ns) if evidence else (found.ns / UNCERTAINTY, found.ns * UNCERTAINTY)
        candidates.append(
            Candidate(
                strategy=strategy,
                predicted_ns=found.ns,
                low_ns=low,
                high_ns=high,
                measured_ns=evidence.p50_ns if evidence else None,
                workspace_bytes=found.workspace_bytes,
                verdict="slower",
            )
        )
    if cost.macs:
        for other in ("bf16", "int8"):
            strategy = Strategy("numpy", find(node.op).kernels[0].algorithm, other, threads)
            candidates.append(Candidate(strategy=strategy, verdict="refused", reason=f"numpy has no {other} kernels"))
    return candidates, estimates


def _judged(candidate: Candidate, chosen: Candidate) -> Candidate:
    if candidate.verdict == "refused":
        return candidate
    if candidate is chosen:
        return candidate.model_copy(update={"verdict": "chosen"})
    ratio = (candidate.expected_ns or 0) / max(chosen.expected_ns or 0, 1e-9)
    tie = 1 / TIE <= ratio <= TIE
    return candidate.model_copy(update={"verdict": "tie" if tie else "slower", "reason": f"{ratio:.2f} times the chosen one"})


def _listing(candidate: Candidate) -> tuple[bool, bool, float, str]:
    expected = candidate.expected_ns
    return candidate.verdict != "chosen", expected is None, expected or 0.0, str(candidate.strategy)


def _reason(chosen: Candidate, others: list[Candidate], found: Estimate) -> str:
    source = "measured" if chosen.measured_ns is not None else "predicted"
    text = f"{source} {(chosen.expected_ns or 0) / 1e3:.1f} µs, bound by {found.bound_by}"
    if others:
        next_best = min(others, key=lambda c: c.expected_ns or 0)
        return f"{text}; {next_best.strategy.choice} would take {(next_best.expected_ns or 0) / 1e3:.1f} µs"
    return f"{text}; the only kernel that takes it"


def _not_native(chosen: Candidate, candidates: list[Candidate]) -> str:
    """Why a step that runs in numpy does not run natively, where that was refused."""
    refused = (c.reason for c in candidates if c.strategy.backend == "native" and c.verdict == "refused")
    reason = next(refused, "") if chosen.strategy.backend == "numpy" else ""
    return f"; not native: {reason}" if reason else ""


def _option(draft: _Draft, cores: int, objective: Objective, constraints: Constraints) -> ThreadOption:
    """A thread count with its verdict against the constraints; the caller marks those that were merely slower."""
    replicas = max(1, cores // draft.threads) if objective == "throughput" else 1
    broken = []
    if constraints.max_latency_ms is not None and draft.predicted_ns > constraints.max_latency_ms * 1e6:
        broken.append(f"latency is {draft.predicted_ns / 1e6:.3f} ms, the limit is {constraints.max_latency_ms} ms")
    if constraints.max_memory_bytes is not None and draft.memory_bytes > constraints.max_memory_bytes:
        broken.append(f"memory is {draft.memory_bytes} bytes, the limit is {constraints.max_memory_bytes}")
    if constraints.max_error is not None and draft.error > constraints.max_error:
        broken.append(f"error estimate is {draft.error:.1e}, the limit is {constraints.max_error:.1e}")
    return ThreadOption(
        threads=draft.threads,
        replicas=replicas,
        predicted_ns=draft.predicted_ns,
        memory_bytes=draft.memory_bytes,
        throughput_per_s=replicas * 1e9 / draft.predicted_ns if draft.predicted_ns else 0.0,
        verdict="over_limit" if broken else "chosen",
        reason="; ".join(broken),
    )


def _rank(option: ThreadOption, objective: Objective) -> tuple[float, float, int]:
    if objective == "throughput":
        return -option.throughput_per_s, option.predicted_ns, option.threads
    if objective == "memory":
        return option.memory_bytes, option.predicted_ns, option.threads
    return option.predicted_ns, option.memory_bytes, option.threads


def _why(draft: _Draft, option: ThreadOption, options: Sequence[ThreadOption], objective: Objective) -> str:
    measured = sum(step.measured for step in draft.steps)
    others = ", ".join(f"{o.predicted_ns / 1e6:.2f} ms on {o.threads}" for o in options if o.threads != option.threads)
    beside = f"; {others}" if others else ""
    return (
        f"{objective}: {draft.predicted_ns / 1e6:.2f} ms on {draft.threads} threads{beside}; "
        f"{measured} of {len(draft.steps)} steps measured, the others predicted within a factor of {UNCERTAINTY}"
    )
