"""Choose how a device should run a model, and say why.

Every kernel of every node is a candidate; those that cannot take the node's shapes are kept with the reason. At each thread count
the candidate of least time is chosen for each step, conversions of its input included: by measurement where the store has a fresh
one, by prediction elsewhere. The objective then picks the thread count. Equal inputs give equal plans: ties go to the first name
and are reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import onnx

from graph.formats.registry import read
from graph.ir import Model
from graph.memory import plan_memory
from graph.wide import half_of
from kernels.errors import AttributeValueError, UnsupportedError
from kernels.log import PLAN, debug, debug_level
from kernels.precision import Precision
from kernels.record import record
from profiler.device.profile import FULL_S, DeviceProfile, thread_counts
from scheduler.build import current_build
from scheduler.cost.bounds import UNCERTAINTY, error_of
from scheduler.cost.fitting import CostModel, cost_model
from scheduler.errors import NotFoundError
from scheduler.local import local_device, local_fingerprint
from scheduler.plan import (
    Candidate,
    Constraints,
    InfeasibleError,
    Objective,
    Plan,
    PlanStep,
    State,
    ThreadOption,
)
from scheduler.planning.steps import Evidence, choose_step
from scheduler.planning.subject import Subject
from scheduler.store import Here, Store
from scheduler.strategy import Strategy, WantedBackend

Given = Mapping[str, Strategy]  # node name -> the strategy it must take


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

    Args:    device: a profile, of this machine or another. objective: latency, throughput or memory. shapes, dims: of inputs and
             dynamic dimensions, None = as declared. max_…: limits that the plan must keep. store: holds measurements; those of
             this device, engine build and kernel source are used.
    Returns: the plan; its state is `predicted` when the device is not this machine.
    Raises:  FeedError for open dimensions, UnsupportedError for what this build cannot do, InfeasibleError with the closest plan
             when a constraint cannot be met.
    """
    _check(objective, backend, precision)
    subject = Subject.of(model, shapes, dims, backend=backend, max_error=max_error)
    constraints = Constraints(
        max_latency_ms=max_latency_ms,
        max_memory_bytes=max_memory_bytes,
        max_error=max_error,
        max_threads=max_threads,
        backend=backend,
        precision="fp32",
    )
    return compose(subject, device, objective, constraints, evidence_of(subject, device, store))


def evidence_of(subject: Subject, device: DeviceProfile, store: Store | None) -> Evidence:
    """Return the fresh measurements of the subject's nodes on that device, and the device's cost model."""
    here = Here(device.fingerprint, subject.build)
    known = store.measurements.fresh(here, subject.ops) if store is not None else {}
    return Evidence(known, cost_model(store, here, device))


def compose(
    subject: Subject,
    device: DeviceProfile,
    objective: Objective,
    constraints: Constraints,
    evidence: Evidence,
    given: Mapping[int, Given] | None = None,
) -> Plan:
    """Compose the best plan from evidence.

    Args:   subject: the model made ready. evidence: measurements, and a cost model for all else. given: thread count -> the steps
            that are decided already; other thread counts are then not considered.
    Raises: InfeasibleError with the closest plan when a constraint cannot be met.
    """
    cores = min(device.usable_cores, constraints.max_threads or device.usable_cores)
    counts = thread_counts(cores) if given is None else tuple(sorted(given))
    plans = [_at(subject, threads, objective, evidence, (given or {}).get(threads, {})) for threads in counts]
    options = [_option(draft, cores, objective, constraints) for draft in plans]
    order = sorted(range(len(plans)), key=lambda i: (options[i].verdict == "over_limit", *_rank(options[i], objective)))
    best = order[0]
    options = [
        option if index == best or option.verdict == "over_limit" else option.model_copy(update={"verdict": "slower"})
        for index, option in enumerate(options)
    ]
    draft, option = plans[best], options[best]
    here = device.fingerprint == local_fingerprint()
    plan = Plan(
        model_digest=subject.model.digest,
        model_name=subject.model.source,
        device_fingerprint=device.fingerprint,
        device_name=device.name,
        engine_build=subject.build.id,
        objective=objective,
        constraints=constraints,
        inputs=subject.inputs,
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
        why=_why(draft, option, options, objective, evidence.model),
        state=State() if here else State(status="predicted", reason="not this machine"),
    )
    _show(plan)
    if option.verdict == "over_limit":
        raise InfeasibleError(
            f"plan of {subject.model.source}: {option.reason}, the closest plan is attached", option.reason, plan
        )
    return plan


def _show(plan: Plan) -> None:
    """Log the plan and its steps where EDGEWISE_DEBUG asks for them."""
    if debug_level() < PLAN:
        return
    total = {"expected_ns": round(plan.predicted_ns), "memory_bytes": plan.memory_bytes}
    debug("plan", model=plan.model_name, objective=plan.objective, threads=plan.threads, **total, why=plan.why)
    for step in plan.steps:
        known = {"expected_ns": round(step.predicted_ns), "measured": step.measured}
        debug("step", node=step.node, op=step.op, strategy=str(step.strategy), **known, why=step.why)


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
    """Choose how a device should run a model: kernel, threads and precision of every step, and why. The plan is stored.

    Measured times are used where the database has fresh ones, predictions elsewhere. A plan that `tune` has measured for the same
    request, and that still holds, is returned as it is. A machine that the database does not know is measured first (seconds).

    Args:    model: the path of an ONNX file, its bytes, an onnx.ModelProto, or a model that is read already.
             device: "local" for this machine, or the fingerprint of a device in the database.
             objective: "latency", "throughput" or "memory".
             shapes: the whole shape of an input by its name. dims: the size of a dynamic dimension by its name.
             max_latency_ms: refuse plans slower than this, in milliseconds. max_memory_bytes: refuse plans larger than this.
             max_error: leave out strategies with a larger relative error against fp32. max_threads: the most threads to use.
             backend: "auto", "native" or "numpy". db: database URL; None = SQLite in the user's data directory.
    Raises:  ModelError for a file that is refused; FeedError where a dimension is left open; AttributeValueError for an unknown
             value; NotFoundError for an unknown device; InfeasibleError, with the closest plan, where a limit cannot be met;
             UnsupportedError for what this build cannot do; StoreError for a database that cannot be used.
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
        if (standing := tuned(store, made)) is not None:
            return standing
        store.models.save(loaded.digest, loaded.source, loaded.nbytes)
        store.plans.save(made)
    return made


def tuned(store: Store, made: Plan) -> Plan | None:
    """Return the newest stored plan for the request of `made`, if it was measured as a whole and is current here; else None."""
    here = Here(local_fingerprint(), current_build())
    if made.device_fingerprint != here.device_fingerprint:
        return None
    try:
        found = store.plans.latest(made.model_digest, made.request, here).plan
    except NotFoundError:
        return None
    return found if found.measured_ns is not None and found.state.status == "current" else None


@record
class _Draft:
    """A plan at one thread count, before the thread counts are compared."""

    threads: int
    steps: tuple[PlanStep, ...]
    predicted_ns: float
    memory_bytes: int
    arena_bytes: int
    param_bytes: int
    error: float
    ties: tuple[str, ...]


def _check(objective: str, backend: str, precision: str) -> None:
    if objective not in ("latency", "throughput", "memory"):
        raise AttributeValueError(f"plan: unknown objective {objective!r}, need latency, throughput or memory")
    if backend not in get_args(WantedBackend):
        raise AttributeValueError(f"plan: unknown backend {backend!r}, need one of {', '.join(get_args(WantedBackend))}")
    if precision not in ("fp32", "auto"):
        raise UnsupportedError(f"plan: precision {precision} has no kernels in this build, it has fp32")


def _at(subject: Subject, threads: int, objective: Objective, evidence: Evidence, given: Given) -> _Draft:
    """Choose every step at one thread count."""
    nodes = subject.graph.nodes
    steps = tuple(
        choose_step(subject, index, threads, evidence, objective, given.get(node.name)) for index, node in enumerate(nodes)
    )
    chosen = {step.node: _chosen(step) for step in steps}
    memory = plan_memory(subject.graph, subject.specs, {name: found.workspace_bytes for name, found in chosen.items()})
    packed = {(node.inputs[1:], chosen[node.name].strategy): chosen[node.name].packed_bytes for node in nodes}
    held = [array if (half := half_of(array)) is None else half for array in subject.graph.constants.values()]
    param_bytes = sum(array.nbytes for array in held)
    ports = {port.name for port in (*subject.graph.inputs, *subject.graph.outputs)}
    port_bytes = sum(spec.nbytes for name in ports if (spec := subject.specs.get(name)) is not None)
    return _Draft(
        threads=threads,
        steps=steps,
        predicted_ns=sum(step.predicted_ns for step in steps),
        memory_bytes=memory.arena_bytes + param_bytes + port_bytes + sum(packed.values()),
        arena_bytes=memory.arena_bytes,
        param_bytes=param_bytes,
        error=sum(error_of(node, subject.specs) for node in nodes) + _added(subject, steps, threads),
        ties=tuple(f"{step.node}: {c.strategy}" for step in steps for c in step.candidates if c.verdict == "tie"),
    )


def _chosen(step: PlanStep) -> Candidate:
    return next(candidate for candidate in step.candidates if candidate.verdict == "chosen")


def _added(subject: Subject, steps: Sequence[PlanStep], threads: int) -> float:
    """Sum the error that the chosen algorithms add to rounding."""
    total = 0.0
    for step, options in zip(steps, subject.options(threads), strict=True):
        total += next((o.load.work.error for o in options if o.strategy == step.strategy and o.load is not None), 0.0)
    return total


def _option(draft: _Draft, cores: int, objective: Objective, constraints: Constraints) -> ThreadOption:
    """Judge a thread count by the constraints; the caller marks the slower ones."""
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


def _why(draft: _Draft, option: ThreadOption, options: Sequence[ThreadOption], objective: Objective, model: CostModel) -> str:
    measured = sum(step.measured for step in draft.steps)
    rest = "predicted from measurements of other work" if model.fits else f"estimated within a factor of {UNCERTAINTY}"
    others = ", ".join(f"{o.predicted_ns / 1e6:.2f} ms on {o.threads}" for o in options if o.threads != option.threads)
    beside = f"; {others}" if others else ""
    return (
        f"{objective}: {draft.predicted_ns / 1e6:.2f} ms on {draft.threads} threads{beside}; "
        f"{measured} of {len(draft.steps)} steps measured, the others {rest}"
    )
