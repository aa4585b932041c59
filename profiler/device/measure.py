"""Timing primitives of the device probe: a number with its provenance, calibrated windows, and a team of pinned threads."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal, Self

from pydantic import AwareDatetime, Field

from kernels.record import record
from profiler.device.topology import Record
from profiler.errors import MeasurementError

Unit = Literal["FLOP/s", "OP/s", "B/s", "ns", "%"]
Statistic = Literal["max", "median", "min"]
Source = Literal["measured", "entered", "derived"]

_STATISTICS: dict[Statistic, Callable[[Sequence[float]], float]] = {"max": max, "median": statistics.median, "min": min}


class Figure(Record):
    """One number and where it comes from.

    source: measured here; entered by a person, `method` says from where; or derived from other numbers of the profile, `method`
    says how. measured_at: when it was measured, entered or derived. statistic: which of the repeats
    `value` is. spread_percent: how far the repeats lie apart, relative to their median: the largest less the smallest, and from
    ten repeats on the 90th percentile less the 10th, so that one interruption is no spread.
    """

    value: float = Field(ge=0)
    unit: Unit
    statistic: Statistic
    repeats: int = Field(ge=1)
    spread_percent: float = Field(ge=0)
    method: str = Field(max_length=1000)
    measured_at: AwareDatetime
    source: Source = "measured"


@record
class Effort:
    """How long to measure: each of `repeats` samples lasts about `window_s` seconds."""

    window_s: float
    repeats: int

    def __str__(self) -> str:
        return f"{self.repeats} × {self.window_s * 1e3:.3g} ms"


def summarise(samples: Sequence[float], unit: Unit, statistic: Statistic, method: str) -> Figure:
    """Summarise repeated samples in one figure."""
    middle = statistics.median(samples)
    low, high = min(samples), max(samples)
    if len(samples) >= 10:
        deciles = statistics.quantiles(samples, n=10, method="inclusive")
        low, high = deciles[0], deciles[-1]
    return Figure(
        value=_STATISTICS[statistic](samples),
        unit=unit,
        statistic=statistic,
        repeats=len(samples),
        spread_percent=100 * (high - low) / middle if middle else 0,
        method=method,
        measured_at=datetime.now(UTC),
    )


class PinnedThreads:
    """Threads that start a piece of work together, each pinned to a core of its own where the system allows it.

    `run` returns the time from the first start to the last end, read by the threads themselves. The cost of waking
    them is not in it, except for the last one's delay, which windows of milliseconds make small.
    """

    def __init__(self, threads: int, cpus: Sequence[int]) -> None:
        self.threads = threads
        self._cpus = cpus
        self._calls: Sequence[Callable[[], object]] = ()
        self._spans: list[tuple[int, int]] = []
        self._failures: list[BaseException] = []
        self._gate = threading.Barrier(threads + 1)
        self._members = [threading.Thread(target=self._work, args=(i,), daemon=True) for i in range(threads)]

    def __enter__(self) -> Self:
        for member in self._members:
            member.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._calls = ()
        self._gate.wait()
        for member in self._members:
            member.join()

    @property
    def pinned(self) -> bool:
        """Whether every thread has a core of its own."""
        return hasattr(os, "sched_setaffinity") and self.threads <= len(self._cpus)

    def run(self, calls: Sequence[Callable[[], object]]) -> int:
        """Run call i on thread i, all at once, and return nanoseconds. Raises the first exception that a call raised."""
        if len(calls) != self.threads:
            raise MeasurementError(f"team: {len(calls)} calls for {self.threads} threads, need one each")
        self._calls, self._spans, self._failures = calls, [(0, 0)] * self.threads, []
        self._gate.wait()
        self._gate.wait()
        if self._failures:
            raise self._failures[0]
        return max(end for _, end in self._spans) - min(start for start, _ in self._spans)

    def _work(self, index: int) -> None:
        if self.pinned:
            os.sched_setaffinity(0, {self._cpus[index]})  # of this thread alone
        while True:
            self._gate.wait()
            if not self._calls:
                return
            start = time.perf_counter_ns()
            try:
                self._calls[index]()
            except BaseException as error:  # noqa: BLE001  handed to the caller of `run`
                self._failures.append(error)
            self._spans[index] = (start, time.perf_counter_ns())
            self._gate.wait()


def calibrate(run_ns: Callable[[int], int], window_s: float) -> int:
    """Return the number of turns that makes `run_ns(turns)` last about `window_s`: doubled up to a tenth of it, then scaled.

    The shortest of three runs counts, because one that was interrupted would end the doubling too early.
    """
    turns, window_ns = 1, window_s * 1e9
    while (elapsed_ns := min(run_ns(turns) for _ in range(3))) < window_ns / 10:
        turns *= 2
    return max(1, round(turns * window_ns / elapsed_ns))


def sample_rates(run_ns: Callable[[int], int], work_per_turn: float, effort: Effort) -> list[float]:
    """Measure work per second in `effort.repeats` calibrated runs."""
    turns = calibrate(run_ns, effort.window_s)
    return [turns * work_per_turn * 1e9 / max(1, run_ns(turns)) for _ in range(effort.repeats)]
