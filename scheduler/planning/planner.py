"""Choose how a device should run a model, and say why.

Every kernel of every node is a candidate; those that cannot take the node's shapes are kept with the reason. At each thread count
the candidate of least time is chosen for each step, conversions of its input included: by measurement where the store has a fresh
one, by prediction elsewhere. The objective then picks the thread count. Equal inputs give equal plans: ties go to the first name
and are reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import onnx

from graph.formats.registry import read
from graph.ir import Model
from graph.memory import plan_memory
from graph.wide import half_of
from kernels.errors import AttributeValueError
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
    EXECUTOR,
    Candidate,
    Constraints,
    InfeasibleError,
    Objective,
    Plan,
    PlanStep,
    State,
    ThreadOption,
    all_measured,
)
from scheduler.planning.accuracy import Feeds, Reference
from scheduler.planning.ranking import Timing, ranked
from scheduler.planning.rounding import keep_within, rounding_error
from scheduler.planning.steps import Evidence, choose_step
from scheduler.planning.subject import Subject
from scheduler.store import Here, Store
from scheduler.strategy import Strategy, WantedBackend, WantedPrecision

AUTO_ERROR = 0.01  # that a plan of any precision may have where nothing else is asked for
MARGIN = 0.8  # of the allowed error, that samples may have
SAMPLES = 2  # random ones, where none are given
ROUNDS = 4  # of composing a plan and running it on samples
LEAST_ROUNDING, NO_ROUNDING = 1e-3, 1e9  # factors on what a rounded step adds to the error
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
    precision: WantedPrecision = "fp32",
    store: Store | None = None,
    samples: Sequence[Feeds] | None = None,
) -> Plan:
    """Plan a model for a device.

    Args:    device: a profile, of this machine or another. objective: latency, throughput or memory. shapes, dims: of inputs and
             dynamic dimensions, None = as declared. max_…: limits that the plan must keep. precision: of products of float32;
             "auto" = for each step what is fastest, within `max_error`, by default AUTO_ERROR. store: holds measurements; those
             of this device, engine build and kernel source are used. samples: inputs to measure the error of rounded products on,
             which runs the model here; none in it = random ones; None = estimate the error.
    Returns: the plan; its state is `predicted` when the device is not this machine.
    Raises:  FeedError for open dimensions, UnsupportedError for what this build cannot do, InfeasibleError with the closest plan
             when a constraint cannot be met.
    """
    _check(objective, backend)
    constraints = Constraints(
        max_latency_ms=max_latency_ms,
        max_memory_bytes=max_memory_bytes,
        max_error=allowed_error(max_error, precision),
        max_threads=max_threads,
        backend=backend,
        precision=precision,
    )
    subject = Subject.of(model, shapes, dims, backend=backend, precision=precision, max_error=max_error)
    evidence = evidence_of(subject, device, store)
    return compose_measured(
        subject, device, objective, constraints, evidence, None if samples is None else reference_of(subject, samples)
    )


def allowed_error(max_error: float | None, precision: WantedPrecision) -> float | None:
    """Return the error that a plan may have: what was asked for, or AUTO_ERROR where the precision is left to the plan."""
    return AUTO_ERROR if max_error is None and precision == "auto" else max_error


def reference_of(subject: Subject, samples: Sequence[Feeds] = ()) -> Reference | None:
    """Return what plans are compared with on this machine, random samples where none are given; None where all are in fp32."""
    return None if subject.precision == "fp32" else Reference(subject, samples or subject.samples(SAMPLES))


def compose_measured(
    subject: Subject,
    device: DeviceProfile,
    objective: Objective,
    constraints: Constraints,
    evidence: Evidence,
    reference: Reference | None,
) -> Plan:
    """Compose the best plan whose error on samples, which are run here, keeps the constraint.

    What rounding adds to the output differs from model to model. It is taken from the error of the plan composed last, until one
    keeps the limit; MARGIN is left for inputs that are no samples.

    Args:   reference: the samples with their outputs; None = the error is that which is estimated.
    Raises: InfeasibleError with the closest plan when a constraint cannot be met.
    """
    if reference is None:
        return compose(subject, device, objective, constraints, evidence)
    limit = constraints.max_error
    best: Plan | None = None
    for _ in range(ROUNDS):
        plan = compose(subject, device, objective, constraints, evidence)
        rounded = rounding_error(plan.steps, evidence)
        if not rounded or (best is not None and plan.choices == best.choices):
            return best or plan
        error = reference.error_of(plan)
        plan = plan.model_copy(update={"measured_error": error})
        if limit is None:
            return plan
        if error <= limit and (best is None or plan.predicted_ns < best.predicted_ns):
            best = plan
        evidence = replace(evidence, rounding=max(evidence.rounding * error / (MARGIN * rounded), LEAST_ROUNDING))
    return best or compose(subject, device, objective, constraints, replace(evidence, rounding=NO_ROUNDING))


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
    plans = [_at(subject, threads, objective, constraints, evidence, (given or {}).get(threads, {})) for threads in counts]
    options = [_option(draft, cores, objective, constraints) for draft in plans]
    order = sorted(range(len(plans)), key=lambda i: _rank(options[i], objective))
    if objective == "latency":
        order = ranked(order, lambda i: plans[i].timing)
    best = min(order, key=lambda i: options[i].verdict == "over_limit")
    options = [
        option if index == best or option.verdict == "over_limit" else _lost(option, plans[index], plans[best])
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
        precision=_precision(draft.steps),
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
            f"plan of {subject.model.source}: {option.reason}; the closest plan takes {plan.predicted_ns / 1e6:.3f} ms and"
            f" {plan.memory_bytes} bytes, with an error estimate of {plan.error_estimate:.1e}",
            option.reason,
            plan,
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
    precision: WantedPrecision = "fp32",
    samples: Sequence[Feeds] = (),
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
             max_error: the largest difference from outputs in fp32 that is allowed, relative to the output's largest number.
             max_threads: the most threads to use. backend: "auto", "native" or "numpy".
             precision: of products of float32: "fp32", "bf16", or "auto" for what is fastest for each op within `max_error`, by
             default 0.01.
             samples: inputs by name, of which the error is measured on this machine; without any, random ones are made.
             db: database URL; None = that in EDGEWISE_DB, else
             SQLite in the user's data directory.
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
            precision=precision,
            store=store,
            samples=samples if device == "local" else None,
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

    @property
    def timing(self) -> Timing:
        """What is known of its time: measured where every step was that runs a kernel."""
        return Timing(
            self.predicted_ns, all_measured(self.steps), sum(s.predicted_ns if s.measured else s.high_ns for s in self.steps)
        )


def _check(objective: str, backend: str) -> None:
    if objective not in ("latency", "throughput", "memory"):
        raise AttributeValueError(f"plan: unknown objective {objective!r}, need latency, throughput or memory")
    if backend not in get_args(WantedBackend):
        raise AttributeValueError(f"plan: unknown backend {backend!r}, need one of {', '.join(get_args(WantedBackend))}")


def _at(
    subject: Subject, threads: int, objective: Objective, constraints: Constraints, evidence: Evidence, given: Given
) -> _Draft:
    """Choose every step at one thread count."""
    nodes = subject.graph.nodes
    steps = tuple(
        choose_step(subject, index, threads, evidence, objective, given.get(node.name)) for index, node in enumerate(nodes)
    )
    error = sum(error_of(node, subject.specs) for node in nodes) + _added(subject, steps, threads)
    if constraints.max_error is not None and not given:
        steps = keep_within(constraints.max_error - error, steps, subject, threads, evidence, objective)
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
        error=error + rounding_error(steps, evidence),
        ties=tuple(f"{step.node}: {c.strategy}" for step in steps for c in step.candidates if c.verdict == "tie"),
    )


def _precision(steps: Sequence[PlanStep]) -> Precision | Literal["mixed"]:
    """Return the precision of the steps with products; "mixed" where there are several."""
    found = {step.strategy.precision for step in steps if step.macs and step.strategy.backend != EXECUTOR}
    return next(iter(found)) if len(found) == 1 else "mixed" if found else "fp32"


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


def _lost(option: ThreadOption, draft: _Draft, best: _Draft) -> ThreadOption:
    """Return a thread count that was not chosen with its verdict."""
    untried = best.timing.measured and not draft.timing.measured
    return option.model_copy(update={"verdict": "unmeasured" if untried else "slower"})


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
