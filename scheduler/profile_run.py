"""Profile runs: a model is timed on this machine, and each step reported with its prediction and the roofline of the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from graph.ir import Model
from graph.run.executor import DYNAMIC, VIEW, Executor
from graph.run.feeds import random_feeds
from graph.shapes import bind
from kernels.spec import Array
from profiler.counting.counts import profile
from profiler.device.profile import DeviceProfile
from profiler.device.quiet import Quietness, Watch, refused
from profiler.report.document import Report, Setup
from profiler.report.makers import ran_as, trace_report
from profiler.run.trace import Trace
from scheduler.build import current_build
from scheduler.errors import StalePlanError, StoppedError
from scheduler.exclusive import measuring
from scheduler.local import local_fingerprint
from scheduler.plan import Plan
from scheduler.planning.planner import evidence_of
from scheduler.planning.steps import predictions
from scheduler.planning.subject import Subject
from scheduler.session import Session
from scheduler.store import Store
from scheduler.store.records import now_us

ATTEMPTS: Final = 2  # to time a model on a quiet machine
Shapes = Mapping[str, tuple[int, ...]]


def measure_model(
    model: Model,
    device: DeviceProfile,
    store: Store,
    shapes: Shapes | None = None,
    dims: Mapping[str, int] | None = None,
    *,
    runs: int = 50,
    threads: int | None = None,
    plan: Plan | None = None,
    say: Callable[[str], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> Report:
    """Time a model on random inputs and report every step.

    Args:   device: this machine. store: holds the measurements that predictions are made from. runs: to time. threads: None = all
            usable cores. plan: the plan to run, at its own shapes where none are given; None = every op's first candidate.
            say: called with the phase that begins. stop: asked until timing begins; True ends the call.
    Raises: StalePlanError for a plan of other shapes, model, device or build; FeedError for open dimensions; MeasurementError;
            StoppedError where `stop` said True.
    """
    if plan is not None and not shapes and not dims:
        shapes = {port.name: port.shape for port in plan.inputs}
    specs = bind(model.graph, shapes, dims)
    bound = {name: spec.shape for name, spec in specs.items()}
    session = Session(model, threads=threads, plan=plan)
    if plan is not None and session.plan_in_use(bound) is None:
        made_for = {port.name: list(port.shape) for port in plan.inputs}
        raise StalePlanError(f"plan {plan.id[:12]}: it is made for {made_for}, the run has {bound}, plan again")
    say("building")
    feeds = random_feeds(specs)
    executor = session.executor(feeds)
    with measuring(say, stop) as alone:
        if not alone or stop():
            raise StoppedError(f"measuring {model.source}: stopped before timing began")
        traced, seen = _timed(session, feeds, runs, say)
    say("predicting")
    predicted = _planned(plan) if plan is not None else _predicted(model, bound, session, executor, device, store)
    return _report(session, executor, bound, traced, device, predicted, seen)


def _timed(session: Session, feeds: Mapping[str, Array], runs: int, say: Callable[[str], None]) -> tuple[Trace, Quietness]:
    """Time the runs, and once more where the machine was busy. Returns the less disturbed times, and what was seen."""
    found: list[tuple[Trace, Quietness]] = []
    for attempt in range(ATTEMPTS):
        say("timing again, the machine was busy" if attempt else "timing")
        watch = Watch(session.threads)
        traced = session.trace(feeds, runs)
        found.append((traced, watch.seen([run.wall_ns for run in traced.runs])))
        if not refused(found[-1][1]):
            break
    return min(found, key=lambda each: each[1].lost)


def time_session(session: Session, feeds: Mapping[str, Array], runs: int) -> Report:
    """Time a session on these feeds and report every step, without predictions and without a roofline."""
    traced = session.trace(feeds, runs)
    return _report(session, session.executor(feeds), {name: array.shape for name, array in feeds.items()}, traced, None, {})


def _report(
    session: Session,
    executor: Executor,
    shapes: Shapes,
    traced: Trace,
    device: DeviceProfile | None,
    predicted: Mapping[str, float],
    seen: Quietness | None = None,
) -> Report:
    setup = Setup(
        device=local_fingerprint(),
        device_name="" if device is None else device.name,
        threads=session.threads,
        precision=session.precision_in_use(shapes),
        backend=session.backend,
        plan_id=session.plan_id,
        engine_build=current_build().id,
        runs=len(traced.runs),
        warmup=traced.warmup,
        measured_us=now_us(),
    )
    return trace_report(profile(session.model, shapes), executor, traced, setup, device, predicted, seen)


def _planned(plan: Plan) -> dict[str, float]:
    return {step.node: step.predicted_ns for step in plan.steps}


def _predicted(
    model: Model, shapes: Shapes, session: Session, executor: Executor, device: DeviceProfile, store: Store
) -> dict[str, float]:
    """Predict the time of each step as it ran, by node name; a view takes none. Dynamic steps and GPUs have no prediction."""
    if (backend := session.planned_backend) is None:
        return {}
    subject = Subject.of(model, shapes, backend=backend)
    options = dict(zip((node.name for node in subject.graph.nodes), subject.options(session.threads), strict=True))
    known = evidence_of(subject, device, store).model
    found: dict[str, float] = {}
    for step in executor.steps:
        if step.algorithm == VIEW:
            found[step.node.name] = 0.0
        elif step.algorithm != DYNAMIC:
            _, ran = ran_as(step.algorithm)
            said = {str(strategy.choice): of.ns for strategy, of in predictions(options[step.node.name], known).items()}
            if ran in said:
                found[step.node.name] = said[ran]
    return found
