"""Traces: the time of every step of a run.

Per run, the times of the steps and `unattributed` (what happens between them) add up to the wall time, to the nanosecond, by
construction. The first run is kept apart: it pays for cold caches, pages and threads. Means are over the measured runs, so that
shares add up to 100 percent like their times.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from graph.ir import CONTROL_FLOW, Graph, Node, Specs
from graph.timing import RunClock, Slice
from kernels.record import record
from kernels.registry import find
from kernels.spec import Array
from profiler.counting.counts import OpProfile, count_nodes
from profiler.errors import MeasurementError

UNATTRIBUTED = "unattributed"


class TimedStep(Protocol):
    """One step of an executor: a node and the algorithm that computes it."""

    @property
    def node(self) -> Node:
        """The node, after optimisation."""

    @property
    def algorithm(self) -> str:
        """The name of its kernel."""

    @property
    def macs(self) -> int | None:
        """MACs of its algorithm, where they differ from those of the op's definition; else None."""


class TimedOutcome(Protocol):
    """One timed run: nanoseconds of every step, and of the whole."""

    @property
    def step_ns(self) -> Sequence[int]:
        """Aligned with the executor's steps."""

    @property
    def wall_ns(self) -> int:
        """From before the first step to after the last."""

    @property
    def clock(self) -> RunClock:
        """The clock readings of the run."""


class TimedExecutor(Protocol):
    """An executor that can be traced: `graph.run.executor.Executor`, or another that times its steps like it."""

    @property
    def graph(self) -> Graph:
        """The graph it runs."""

    @property
    def specs(self) -> Specs:
        """Specs of all its values."""

    @property
    def steps(self) -> Sequence[TimedStep]:
        """In execution order."""

    def run_timed(self, feeds: Mapping[str, Array]) -> TimedOutcome:
        """Run once, timing every step."""


@record
class Durations:
    """Statistics over the measured runs, in nanoseconds. first_ns: of the very first run, which is not one of them."""

    first_ns: int
    min_ns: int
    p50_ns: float
    p90_ns: float
    mean_ns: float
    std_ns: float
    total_ns: int


@record
class OpTrace:
    """One step, or the unattributed rest (op "").

    origins: the ONNX nodes it computes. algorithm: its kernel. cost: its arithmetic and bytes as executed, None for the rest.
    executed_macs: MACs of the algorithm. share_percent: of the wall time. cumulative_percent: of it and all
    rows before it.
    """

    name: str
    op: str
    origins: tuple[str, ...]
    algorithm: str
    cost: OpProfile | None
    executed_macs: int
    durations: Durations
    share_percent: float
    cumulative_percent: float


@record
class OpTypeTrace:
    """All steps of one kind together. mean_ns: per run."""

    op: str
    steps: int
    mean_ns: float
    share_percent: float
    cumulative_percent: float


@record
class RunTimes:
    """One run as it was measured: sum(step_ns) + unattributed_ns == wall_ns."""

    step_ns: tuple[int, ...]
    unattributed_ns: int
    wall_ns: int


@record
class Trace:
    """Measured times of an executor.

    rows: every step in execution order and, last, the unattributed rest; their shares add up to 100. wall: of whole runs.
    first: the very first run. runs: the measured ones. warmup: runs thrown away between them. slices: the activity of every
    thread in the median run.
    """

    rows: tuple[OpTrace, ...]
    wall: Durations
    first: RunTimes
    runs: tuple[RunTimes, ...]
    warmup: int
    slices: tuple[Slice, ...]

    @property
    def ops(self) -> tuple[OpTrace, ...]:
        """The steps."""
        return self.rows[:-1]

    @property
    def unattributed(self) -> OpTrace:
        """The rest of the wall time, which lies between the steps."""
        return self.rows[-1]

    @property
    def median_run(self) -> RunTimes:
        """The run whose wall time is nearest to the median."""
        return self.runs[_nearest(self.runs, self.wall.p50_ns)]

    def ranked(self) -> tuple[OpTrace, ...]:
        """Return the rows, the slowest first, with cumulative shares in that order."""
        rows = sorted(self.rows, key=lambda row: -row.durations.total_ns)
        return _with_shares(rows, self.wall.total_ns)

    def by_op(self) -> tuple[OpTypeTrace, ...]:
        """Return the time by kind of op, the largest first; the unattributed rest is one of them."""
        groups: dict[str, list[OpTrace]] = {}
        for row in self.rows:
            groups.setdefault(row.op or UNATTRIBUTED, []).append(row)
        totals = {op: sum(row.durations.total_ns for row in rows) for op, rows in groups.items()}
        order = sorted(groups, key=lambda op: -totals[op])
        shares = zip(order, _shares([totals[op] for op in order], self.wall.total_ns), strict=True)
        return tuple(
            OpTypeTrace(op, len(groups[op]), totals[op] / len(self.runs), share, cumulative) for op, (share, cumulative) in shares
        )


def trace(executor: TimedExecutor, feeds: Mapping[str, Array], runs: int = 50, warmup: int = 3) -> Trace:
    """Run a model and time every step.

    Args:   feeds: input name -> array. runs: measured runs. warmup: runs thrown away after the first one.
    Raises: FeedError when the feeds do not fit; MeasurementError when runs < 1 or warmup < 0, or when times contradict
            themselves (steps longer than the run they are in).
    """
    if runs < 1 or warmup < 0:
        raise MeasurementError(f"trace: runs is {runs} and warmup {warmup}, need at least 1 and 0")
    first, _ = _run(executor, feeds)
    for _ in range(warmup):
        executor.run_timed(feeds)
    clocked = [_run(executor, feeds) for _ in range(runs)]
    measured = tuple(run for run, _ in clocked)

    by_step = np.array([run.step_ns for run in measured], np.int64).reshape(runs, len(executor.steps))
    nodes = Graph(executor.graph.name, (), (), tuple(step.node for step in executor.steps), executor.graph.constants)
    costs = count_nodes(nodes, executor.specs)
    rows = [
        OpTrace(
            name=step.node.name,
            op=step.node.op,
            origins=_origins(step.node),
            algorithm=step.algorithm,
            cost=cost,
            executed_macs=_executed_macs(step, executor.specs, cost),
            durations=_durations(first.step_ns[i], by_step[:, i]),
            share_percent=0,
            cumulative_percent=0,
        )
        for i, (step, cost) in enumerate(zip(executor.steps, costs, strict=True))
    ]
    rest = _durations(first.unattributed_ns, np.array([run.unattributed_ns for run in measured], np.int64))
    rows.append(OpTrace(UNATTRIBUTED, "", (), "", None, 0, rest, 0, 0))
    wall = _durations(first.wall_ns, np.array([run.wall_ns for run in measured], np.int64))
    _, clock = clocked[_nearest(measured, wall.p50_ns)]
    return Trace(_with_shares(rows, wall.total_ns), wall, first, measured, warmup, tuple(clock.slices()))


def _nearest(runs: Sequence[RunTimes], wall_ns: float) -> int:
    return min(range(len(runs)), key=lambda i: abs(runs[i].wall_ns - wall_ns))


def _run(executor: TimedExecutor, feeds: Mapping[str, Array]) -> tuple[RunTimes, RunClock]:
    outcome = executor.run_timed(feeds)
    step_ns, wall_ns = tuple(outcome.step_ns), outcome.wall_ns
    unattributed_ns = wall_ns - sum(step_ns)
    if len(step_ns) != len(executor.steps) or min(step_ns, default=0) < 0 or unattributed_ns < 0:
        raise MeasurementError(
            f"trace: {len(step_ns)} step times of {sum(step_ns)} ns in a run of {wall_ns} ns with {len(executor.steps)} steps, "
            "steps must lie in their run"
        )
    return RunTimes(step_ns, unattributed_ns, wall_ns), outcome.clock


def _durations(first_ns: int, samples_ns: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Durations:
    p50_ns, p90_ns = np.percentile(samples_ns, (50, 90))
    return Durations(
        first_ns=first_ns,
        min_ns=int(samples_ns.min()),
        p50_ns=float(p50_ns),
        p90_ns=float(p90_ns),
        mean_ns=float(samples_ns.mean()),
        std_ns=float(samples_ns.std()),
        total_ns=int(samples_ns.sum()),
    )


def _with_shares(rows: Sequence[OpTrace], wall_total_ns: int) -> tuple[OpTrace, ...]:
    shares = _shares([row.durations.total_ns for row in rows], wall_total_ns)
    return tuple(
        replace(row, share_percent=share, cumulative_percent=cumulative)
        for row, (share, cumulative) in zip(rows, shares, strict=True)
    )


def _shares(totals_ns: Iterable[int], wall_total_ns: int) -> list[tuple[float, float]]:
    """Share and running share in percent; sums are taken over whole nanoseconds, so the last running share is exactly 100."""
    shares, before_ns = [], 0
    for total_ns in totals_ns:
        before_ns += total_ns
        whole = max(1, wall_total_ns)
        shares.append((100 * total_ns / whole, 100 * before_ns / whole))
    return shares


def _origins(node: Node) -> tuple[str, ...]:
    fused = (epilogue.origin for epilogue in node.epilogue if epilogue.origin)
    return tuple(dict.fromkeys((*(node.origins or (node.name,)), *fused)))


def _executed_macs(step: TimedStep, specs: Specs, cost: OpProfile) -> int:
    """Return the MACs of the step's algorithm, which may be more or less than those of the op's definition."""
    if step.macs is not None or step.node.op in CONTROL_FLOW:
        return cost.macs if step.macs is None else step.macs
    inputs = [specs.get(name) if name else None for name in step.node.inputs]
    for kernel in find(step.node.op).kernels:
        if kernel.algorithm == step.algorithm and kernel.executed_macs is not None:
            return kernel.executed_macs(*inputs, **step.node.attrs)
    return cost.macs
