"""Tune a model: measure its candidates on this machine within a time budget, store the measurements, and plan by them.

Fresh stored measurements are not taken again. New ones are stored every few seconds, so that a killed run loses only the last of
them, and the next run continues from there. At the end the composed plan and the untuned plan run as whole models against each
other, and the faster one is returned, with the time that it takes by itself. Times that were taken while other work used the
machine count for nothing (`profiler.device.quiet`).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from graph.formats.registry import read
from graph.ir import Model
from graph.order import without_unread
from graph.run.executor import Executor
from kernels.errors import AttributeValueError
from kernels.record import record
from profiler.device.profile import FULL_S, DeviceProfile, thread_counts
from profiler.device.quiet import Quietness, Watch, refused, require_quiet
from profiler.errors import MeasurementError
from scheduler.cost.fitting import CostModel
from scheduler.errors import StoppedError
from scheduler.exclusive import measuring
from scheduler.local import local_device
from scheduler.plan import Constraints, Plan, all_measured
from scheduler.planning.accuracy import Feeds, Reference
from scheduler.planning.planner import allowed_error, compose, compose_measured, evidence_of, reference_of
from scheduler.planning.steps import Evidence, predictions
from scheduler.planning.subject import Option, Subject
from scheduler.store import Measurement, Store
from scheduler.store.records import now_us
from scheduler.strategy import Strategy, WantedBackend, WantedPrecision
from scheduler.tuning.contests import Arm, Contest, Summary, model_ns
from scheduler.tuning.in_place import InPlaceBuilder, executor_of, race
from scheduler.tuning.search import Limits, Search

MAX_BUDGET_S: Final = 86_400.0
RACE_SHARE: Final = 0.1  # of the budget, to run the plans against each other
RACE_S: Final = 5.0  # at most, and at most as long to compile kernels that only the composed plan has
LEAST_RUNS: Final = 5  # of each plan
ALONE_SHARE: Final = 0.4  # of the time for whole models, for the faster plan by itself


@record
class Latency:
    """The time of whole runs, one after another. low_ns, high_ns: the 10th and the 90th percentile."""

    median_ns: float
    low_ns: float
    high_ns: float
    runs: int

    @staticmethod
    def of(runs_ns: Sequence[int]) -> Latency:
        """Summarise at least one run."""
        low_ns, median_ns, high_ns = np.percentile(runs_ns, (10, 50, 90))
        return Latency(float(median_ns), float(low_ns), float(high_ns), len(runs_ns))

    @property
    def text(self) -> str:
        """The median with the interval that eight of ten runs lie in."""
        median, low, high = (f"{ns / 1e6:.3f}" for ns in (self.median_ns, self.low_ns, self.high_ns))
        return f"{median} ms, the median of {self.runs} runs, of which 8 in 10 took {low} to {high} ms"


@record
class TuneProgress:
    """How far a tuning run is.

    measured: candidates measured so far, of `planned`. spent_s: seconds used of budget_s. best_ns: estimated latency of
    the model with the best candidates so far, in nanoseconds; 0 before the first is measured. now: what is being measured.
    """

    measured: int
    planned: int
    spent_s: float
    budget_s: float
    best_ns: float
    now: str


def tune(
    model: str | Path | bytes | onnx.ModelProto | Model,
    budget_s: float = 60.0,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    dims: Mapping[str, int] | None = None,
    *,
    threads: int | None = None,
    max_error: float | None = None,
    backend: WantedBackend = "auto",
    precision: WantedPrecision = "fp32",
    samples: Sequence[Feeds] = (),
    db: str | None = None,
    progress: Callable[[TuneProgress], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Plan:
    """Measure the strategies that this machine could run a model with, store the results, and return the plan made of them.

    Args:    model: the path of an ONNX file, its bytes, an onnx.ModelProto, or a model that is read already.
             budget_s: seconds to measure for, on top of loading the model and of measuring a machine that is new (seconds).
             shapes: the whole shape of an input by its name. dims: the size of a dynamic dimension by its name.
             threads: the most threads to use; None = one for each physical core.
             max_error: the largest error that is allowed. precision: of products. samples: inputs to measure the error on; all
             three as for `plan`.
             backend: "auto", "native" or "numpy". db: database URL; None = that in EDGEWISE_DB, else
             SQLite in the user's data directory.
             progress: called often with a TuneProgress.
             stop: called between measurements; once it returns True, tuning ends early with what was measured until then.
    Returns: the stored plan; its `measured_ns` is the median latency of the whole model in nanoseconds, None if stopped early,
             and where the machine was too busy at the end.
    Raises:  MachineBusyError, MeasurementError where nothing could be measured, since the machine was busy all the time, or the
             budget too short to compile a candidate; StoppedError where it was stopped before; no plan is stored then.
             AttributeValueError for a budget or a number of threads out of range; else the errors of `plan`.
    """
    if not 0 < budget_s <= MAX_BUDGET_S:
        raise AttributeValueError(f"tune: budget_s is {budget_s}, need more than 0 and at most {MAX_BUDGET_S:.0f}")
    if threads is not None and threads < 1:
        raise AttributeValueError(f"tune: threads is {threads}, need at least 1 or None")
    loaded = model if isinstance(model, Model) else read(model)
    with Store(db) as store:
        device = local_device(store, FULL_S)
        store.models.save(loaded.digest, loaded.source, loaded.nbytes)
        subject = Subject.of(loaded, shapes, dims, backend=backend, precision=precision, max_error=max_error)
        allowed = allowed_error(max_error, precision)
        constraints = Constraints(max_error=allowed, max_threads=threads, backend=backend, precision=precision)
        reference = reference_of(subject, samples)
        run = _Run(
            subject,
            device,
            store,
            constraints,
            reference,
            budget_s,
            progress or (lambda _progress: None),
            stop or (lambda: False),
        )
        plan = run.plan()
        store.plans.save(plan)
        if plan.measured_ns is not None:
            store.plans.measured(plan.id, plan.measured_ns)
    return plan


@dataclass(slots=True)
class _Run:
    """One tuning run. contests: by thread count."""

    subject: Subject
    device: DeviceProfile
    store: Store
    constraints: Constraints
    reference: Reference | None
    budget_s: float
    progress: Callable[[TuneProgress], None]
    stop: Callable[[], bool]
    contests: dict[int, list[Contest]] = field(default_factory=dict)
    began_s: float = field(default_factory=time.monotonic)
    _saved: dict[tuple[str, Strategy], int] = field(default_factory=dict)
    _refused: list[Quietness] = field(default_factory=list)
    _watching: Watch | None = None

    def plan(self) -> Plan:
        """Search at every thread count, then compose a plan and race it against the untuned one."""
        evidence = evidence_of(self.subject, self.device, self.store)
        cores = min(self.device.usable_cores, self.constraints.max_threads or self.device.usable_cores)
        counts = thread_counts(cores)
        self.contests = {count: make_contests(self.subject, count, evidence) for count in counts}
        with measuring(self._say, self.stop) as alone:
            self.began_s = time.monotonic()
            reasons = [self._search(count, len(counts) - at) for at, count in enumerate(reversed(counts))] if alone else []
            composed = self._composed()
            why = reasons[0] if len(set(reasons)) == 1 else "; ".join(dict.fromkeys(reasons))
            self._require_results(composed)
            if not alone or self.stop():
                return composed.model_copy(update={"why": f"{composed.why}; not measured as a whole: stopped on request"})
            return self._raced(composed, why)

    def _require_results(self, composed: Plan) -> None:
        """Raise an error that says why, where nothing that the plan runs was measured, now or before."""
        if any(step.measured for step in composed.steps) or not any(self.contests.values()):
            return
        if self.stop():
            raise StoppedError(f"tune {self.subject.model.source}: stopped before anything was measured")
        what = f"tune {self.subject.model.source}: nothing was measured in {self.budget_s:g} s"
        if self._refused:
            worst = functools.reduce(Quietness.or_worse, self._refused)
            require_quiet(what, worst)
        raise MeasurementError(
            f"{what}, which were spent on preparing; nothing was stored, give a larger budget (what was compiled is kept)"
        )

    def _search(self, threads: int, left: int) -> str:
        """Search at one thread count, in an equal share of the time for the `left` remaining ones. Returns why it ended."""
        self._say(f"{threads} threads")
        race_s = min(RACE_SHARE * self.budget_s, RACE_S)
        left_s = self.budget_s - race_s - (time.monotonic() - self.began_s)
        limits = Limits(time.monotonic, time.monotonic() + left_s / left, self.stop)
        contests = self.contests[threads]
        builder = InPlaceBuilder(self.subject, threads, limits.fits)
        search = Search(
            contests,
            builder,
            limits,
            save=lambda: self._save(contests),
            learn=self._learn,
            say=lambda now: self._say(f"{threads} threads: {now}"),
            watch=lambda: self._watch(threads),
        )
        why = search.run()
        self._refused += search.refused
        return why

    def _watch(self, threads: int) -> Callable[[], Quietness]:
        """Begin to watch the machine. Returns the function that says what was seen since."""
        self._watching = Watch(threads, loop=False, after=self._watching)
        return self._watching.seen

    def _learn(self) -> None:
        """Renew the predictions of all arms from the measurements stored so far."""
        model = evidence_of(self.subject, self.device, self.store).model
        for contest in (contest for contests in self.contests.values() for contest in contests):
            predicted = predictions([Option(arm.strategy, arm.load) for arm in contest.arms], model)
            for arm in contest.arms:
                arm.predicted = predicted[arm.strategy]

    def _save(self, contests: Sequence[Contest]) -> None:
        """Store the arms that ran since they were stored last."""
        rows = []
        for contest in contests:
            for arm in contest.arms:
                key = (contest.key, arm.strategy)
                if len(arm.samples) > self._saved.get(key, 0):
                    self._saved[key] = len(arm.samples)
                    rows.append(measurement(self.subject, self.device, contest, arm))
        self.store.measurements.save(rows)

    def _composed(self) -> Plan:
        """Compose the best plan from all measurements and predictions."""
        evidence = evidence_of(self.subject, self.device, self.store)
        dropped = {
            (contest.key, arm.strategy): arm.out
            for contests in self.contests.values()
            for contest in contests
            for arm in contest.arms
            if arm.out and arm.summary is None
        }
        return self._compose(replace(evidence, dropped=dropped))

    def _compose(self, evidence: Evidence) -> Plan:
        return compose_measured(self.subject, self.device, "latency", self.constraints, evidence, self.reference)

    def _raced(self, composed: Plan, why: str) -> Plan:
        """Run the composed and the untuned plan as whole models. Returns the faster one; its `why` gives both times."""
        untuned = self._compose(Evidence({}, CostModel(self.device)))
        plans = [composed] if untuned.choices == composed.choices and untuned.threads == composed.threads else [composed, untuned]
        limits = Limits(time.monotonic, time.monotonic() + RACE_S, self.stop)
        for plan in plans:
            InPlaceBuilder(self.subject, plan.threads, limits.fits).screen(_strategies(plan))  # compiles
        if limits.reached:
            why = f"no time was left to compile it; {why}"
            return composed.model_copy(update={"why": f"{composed.why}; not measured as a whole: {why}"})
        self._say("running whole models")
        executors = [executor_of(self.subject, plan.threads, _strategies(plan)) for plan in plans]
        won, text, executor = composed, "tuning chose the same strategies as the untuned plan", executors[0]
        if len(plans) == 2:
            first, text = self._compared(executors, max(plan.threads for plan in plans))
            if not first:
                evidence = evidence_of(self.subject, self.device, self.store)
                given = {untuned.threads: _strategies(untuned)}
                won, executor = compose(self.subject, self.device, "latency", self.constraints, evidence, given), executors[1]
                won = won.model_copy(update={"measured_error": untuned.measured_error})
        latency, seen = self._alone(executor, won.threads)
        marked = f" ({seen.text})" if seen.reasons else ""
        parts = [f"not measured as a whole: {seen.text}" if latency is None else f"measured as a whole: {latency.text}{marked}"]
        if all_measured(won.steps):
            total = f"{won.predicted_ns / 1e6:.3f} ms"
            parts.append(f"its steps add up to {total}: the fastest run of each, without what lies between them")
        self._say("done")
        measured_ns = None if latency is None else latency.median_ns
        return won.model_copy(update={"why": "; ".join([won.why, *parts, text, why]), "measured_ns": measured_ns})

    def _compared(self, executors: Sequence[Executor], threads: int) -> tuple[bool, str]:
        """Run the tuned and the untuned plan in turns. Returns whether the tuned one is kept, and why."""
        watch = Watch(threads)
        fastest = [min(runs) for runs in race(executors, self.subject.feeds(), self._race_s(1 - ALONE_SHARE), LEAST_RUNS)]
        times = f"fastest run {fastest[0] / 1e6:.3f} ms against {fastest[1] / 1e6:.3f} ms untuned, in turns"
        if refused(seen := watch.seen()):
            return True, f"kept the tuned plan by its steps: whole models could not be compared, {seen.text}"
        if fastest[1] <= fastest[0]:
            return False, f"kept the untuned plan: the tuned one was not faster as a whole, {times}"
        return True, f"kept the tuned plan: it was faster as a whole, {times}"

    def _race_s(self, share: float) -> float:
        """Return a share of the seconds that whole models may run for."""
        return share * max(0.0, min(RACE_S, self.began_s + self.budget_s - time.monotonic()))

    def _alone(self, executor: Executor, threads: int) -> tuple[Latency | None, Quietness]:
        """Run a plan by itself, one run after another, twice where the machine was busy.

        Returns: its latency, None where the machine was too busy to tell; and what was seen meanwhile.
        """
        seconds, seen = self._race_s(0.5), Quietness()
        for _ in range(2):
            watch = Watch(threads)
            (runs,) = race([executor], self.subject.feeds(), seconds, LEAST_RUNS)
            if not refused(seen := watch.seen(runs)):
                return Latency.of(runs), seen
        return None, seen

    def _say(self, now: str) -> None:
        arms = [arm for contests in self.contests.values() for contest in contests for arm in contest.arms]
        totals = [model_ns(contests) for contests in self.contests.values() if all(contest.best.summary for contest in contests)]
        self.progress(
            TuneProgress(
                measured=sum(arm.summary is not None for arm in arms),
                planned=sum(arm.summary is not None or not arm.out for arm in arms),
                spent_s=time.monotonic() - self.began_s,
                budget_s=self.budget_s,
                best_ns=min(totals, default=0.0),
                now=now,
            )
        )


def make_contests(subject: Subject, threads: int, evidence: Evidence) -> list[Contest]:
    """Make a contest for every signature of the model with candidates that can run: native ones where there are any."""
    running = {node.name for node in without_unread(subject.graph).nodes}
    contests: dict[str, Contest] = {}
    for index, (node, options) in enumerate(zip(subject.graph.nodes, subject.options(threads), strict=True)):
        able = [option for option in options if option.load is not None]
        native = [option for option in able if option.strategy.backend == "native"]
        able = native or able
        if not able or node.name not in running:
            continue
        text = subject.signatures[index]
        if (found := contests.get(text.key)) is not None:
            contests[text.key] = replace(found, nodes=(*found.nodes, node.name))
            continue
        predicted, known = predictions(able, evidence.model), evidence.known.get(text.key, {})
        arms = [
            Arm(option.strategy, option.load, predicted[option.strategy], known.get(option.strategy))
            for option in able
            if option.load is not None
        ]
        contests[text.key] = Contest(text.key, text.op, (node.name,), arms)
    return list(contests.values())


def measurement(subject: Subject, device: DeviceProfile, contest: Contest, arm: Arm) -> Measurement:
    """Return the measurement to store of an arm that has run: all its runs, earlier ones included."""
    index = next(index for index, node in enumerate(subject.graph.nodes) if node.name == contest.nodes[0])
    summary, work = arm.summary or Summary.of([0]), arm.load.work
    cost = subject.costs[index]
    return Measurement(
        signature=subject.signatures[index].text,
        signature_key=contest.key,
        other_flops=cost.other_flops,
        moved_bytes=cost.moved_bytes,
        device_fingerprint=device.fingerprint,
        engine_build=subject.build.id,
        kernel_source=subject.build.kernel_source(contest.op),
        op=contest.op,
        strategy=arm.strategy,
        executed_macs=cost.macs if work.macs is None else work.macs,
        samples=summary.samples,
        min_ns=summary.min_ns,
        p50_ns=summary.p50_ns,
        p90_ns=summary.p90_ns,
        mean_ns=summary.mean_ns,
        std_ns=summary.std_ns,
        measured_us=now_us(),
        load=arm.load.to_text(),
    )


def _strategies(plan: Plan) -> dict[str, Strategy]:
    return {step.node: step.strategy for step in plan.steps if step.node in plan.choices}
