"""Drift: plans whose latency while they serve is no longer the one they state.

Latencies are gathered in windows of WINDOW runs. A plan has drifted when the medians of SUSTAINED windows in a row all lie above,
or all below, its bounds: TOLERANCE around a measured time, or the uncertainty of a predicted one. One window outside is noise.
Only runs that had the engine to themselves count, because other runs would slow them down. Memory is bounded: a window and a few
summaries of each plan, and at most MAX_WATCHED plans, those served last.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from kernels.record import record
from scheduler.plan import Plan

WINDOW: Final = 50  # runs
SUSTAINED: Final = 3  # windows
KEPT_WINDOWS: Final = 20
TOLERANCE: Final = 1.3  # factor around a measured time, both ways
MAX_WATCHED: Final = 128


@record
class LatencyWindow:
    """Median and 90th percentile of the latencies of `count` runs in a row."""

    count: int
    p50_ns: float
    p90_ns: float


@record
class Bounds:
    """The latencies that a plan allows. expected_ns: measured where `measured`, else predicted."""

    expected_ns: float
    low_ns: float
    high_ns: float
    measured: bool

    def side(self, nanoseconds: float) -> int:
        """Return -1 for a latency below the bounds, 1 above, 0 within."""
        return (nanoseconds > self.high_ns) - (nanoseconds < self.low_ns)


@record
class ServedPlan:
    """How a plan has served. count: runs. windows: the last ones, the newest last. drifted: whether it has left its bounds."""

    plan_id: str
    model_digest: str
    model_name: str
    count: int
    bounds: Bounds
    windows: tuple[LatencyWindow, ...]
    drifted: bool

    @property
    def ratio(self) -> float:
        """The last window's median ÷ the expected latency; 0 before the first window."""
        return self.windows[-1].p50_ns / self.bounds.expected_ns if self.windows and self.bounds.expected_ns else 0.0

    @property
    def reason(self) -> str:
        """A sentence that says how far the latency is from the expected one."""
        source = "measured" if self.bounds.measured else "predicted"
        return (
            f"the median of the last {WINDOW} runs is {self.windows[-1].p50_ns / 1e6:.3f} ms, {self.ratio:.2f} times the "
            f"{source} {self.bounds.expected_ns / 1e6:.3f} ms; {SUSTAINED} windows in a row lie outside its bounds"
        )


@dataclass(slots=True)
class _Watched:
    plan: Plan
    id: str
    bounds: Bounds
    samples: list[float] = field(default_factory=list)
    windows: deque[LatencyWindow] = field(default_factory=lambda: deque(maxlen=KEPT_WINDOWS))
    count: int = 0
    drifted: bool = False


def bounds_of(plan: Plan) -> Bounds:
    """Return the latencies within which a plan has not drifted."""
    if plan.measured_ns is not None:
        return Bounds(plan.measured_ns, plan.measured_ns / TOLERANCE, plan.measured_ns * TOLERANCE, True)
    low, high = min(plan.low_ns, plan.predicted_ns / TOLERANCE), max(plan.high_ns, plan.predicted_ns * TOLERANCE)
    return Bounds(plan.predicted_ns, low, high, False)


class Alone:
    """Tells which runs had the engine to themselves. Any number of threads may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = self._started = 0

    @contextmanager
    def run(self) -> Iterator[Callable[[], bool]]:
        """Mark a run for the length of a `with` block. Yields a function: whether no other run has overlapped it so far."""
        with self._lock:
            self._running += 1
            self._started += 1
            alone, mine = self._running == 1, self._started
        try:
            yield lambda: alone and self._started == mine
        finally:
            with self._lock:
                self._running -= 1


class Drift:
    """Watches the latencies of plans that serve. Any number of threads may use it.

    Args: on_drift: called once for each plan that drifts, with its record, on the thread that observed it; it must return soon.
    """

    def __init__(self, on_drift: Callable[[Plan, ServedPlan], None]) -> None:
        self._on_drift = on_drift
        self._lock = threading.Lock()
        self._watched: OrderedDict[int, _Watched] = OrderedDict()  # by id() of the plan, which the entry keeps alive

    def observe(self, plan: Plan, latency_ns: float) -> None:
        """Add the latency of one run by a plan."""
        with self._lock:
            watched = self._watched.get(id(plan))
        if watched is None:
            watched = _Watched(plan, plan.id, bounds_of(plan))  # the id hashes the whole plan: not under the lock
        with self._lock:
            watched = self._watched.setdefault(id(plan), watched)
            self._watched.move_to_end(id(plan))
            while len(self._watched) > MAX_WATCHED:
                self._watched.popitem(last=False)
            found = _count(watched, latency_ns)
        if found is not None:
            self._on_drift(plan, found)

    def served(self) -> tuple[ServedPlan, ...]:
        """Return the records of all watched plans, the one served last first."""
        with self._lock:
            return tuple(_served(watched) for watched in reversed(self._watched.values()))


def _count(watched: _Watched, latency_ns: float) -> ServedPlan | None:
    """Add a run. Returns the plan's record where this run made it drift."""
    watched.count += 1
    watched.samples.append(latency_ns)
    if len(watched.samples) < WINDOW:
        return None
    p50, p90 = np.percentile(watched.samples, (50, 90))
    watched.windows.append(LatencyWindow(WINDOW, float(p50), float(p90)))
    watched.samples.clear()
    last = list(watched.windows)[-SUSTAINED:]
    sides = {watched.bounds.side(window.p50_ns) for window in last}
    before, watched.drifted = watched.drifted, len(last) == SUSTAINED and sides in ({1}, {-1})
    return _served(watched) if watched.drifted and not before else None


def _served(watched: _Watched) -> ServedPlan:
    plan = watched.plan
    windows = tuple(watched.windows)
    return ServedPlan(watched.id, plan.model_digest, plan.model_name, watched.count, watched.bounds, windows, watched.drifted)
