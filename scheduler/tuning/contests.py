"""Contests: finding the fastest candidate of one signature from noisy samples, by successive elimination.

A contest is a best-arm identification problem of multi-armed bandits: its arms are the candidates. Each arm has a lower and an
upper bound on its time, from its samples, from stored measurements, or from a prediction where it never ran. An arm whose lower
bound lies above another's upper bound is eliminated (Even-Dar, Mannor and Mansour 2006, JMLR 7). A contest is settled when one
arm is left, or when all that are left lie within one percent of each other: a tie.

The time of an arm is that of its fastest run, because neighbours, caches and clocks only make runs longer. On two shared cores,
two halves of the same runs agree on the order of the minima (Spearman 0.92) far better than on that of the medians (0.75). The
bounds follow from exponential delays (`floor_error_ns`); they carry no guarantee over a whole contest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from kernels.record import record
from scheduler.cost.fitting import Prediction, floor_error_ns
from scheduler.plan import TIE
from scheduler.store import Measurement
from scheduler.strategy import Strategy
from scheduler.workload import Workload

MIN_SAMPLES: Final = 5
MAX_SAMPLES: Final = 400  # of an arm; arms that these do not tell apart stay undecided
_CONFIDENT = 3.0  # standard errors of an exponential distribution within which 95 % of it lie
_LEAST_ERROR = 0.003  # of the fastest run, least relative error: clocks are no finer


@record
class Summary:
    """Statistics of the runs of an arm."""

    samples: int
    min_ns: float
    p50_ns: float
    p90_ns: float
    mean_ns: float
    std_ns: float

    @staticmethod
    def of(samples: Sequence[float]) -> Summary:
        """Summarise at least one run, in nanoseconds."""
        array = np.asarray(samples, np.float64)
        p50, p90 = np.percentile(array, (50, 90))
        return Summary(len(array), float(array.min()), float(p50), float(p90), float(array.mean()), float(array.std()))

    @staticmethod
    def stored(found: Measurement) -> Summary:
        """Return the summary of a stored measurement."""
        return Summary(found.samples, found.min_ns, found.p50_ns, found.p90_ns, found.mean_ns, found.std_ns)

    def with_more(self, more: Summary) -> Summary:
        """Merge two summaries. Percentiles cannot be merged without the runs: their weighted means stand for them."""
        n = self.samples + more.samples
        a, b = self.samples / n, more.samples / n
        mean = a * self.mean_ns + b * more.mean_ns
        square = a * (self.std_ns**2 + self.mean_ns**2) + b * (more.std_ns**2 + more.mean_ns**2)
        return Summary(
            samples=n,
            min_ns=min(self.min_ns, more.min_ns),
            p50_ns=a * self.p50_ns + b * more.p50_ns,
            p90_ns=a * self.p90_ns + b * more.p90_ns,
            mean_ns=mean,
            std_ns=math.sqrt(max(square - mean**2, 0.0)),
        )

    @property
    def error_ns(self) -> float:
        """How far the undisturbed time may lie below the fastest run, in at least nine of ten cases."""
        few = 1 + 4 / self.samples  # few runs say little about their spread
        return max(_CONFIDENT * few * floor_error_ns(self.samples, self.min_ns, self.p50_ns), _LEAST_ERROR * self.min_ns)


@dataclass(slots=True)
class Arm:
    """A candidate in a contest. before: its stored measurement when the contest began. out: why it was eliminated, else ""."""

    strategy: Strategy
    load: Workload
    predicted: Prediction
    before: Measurement | None = None
    samples: list[int] = field(default_factory=list)
    out: str = ""
    _summary: Summary | None = None

    @property
    def summary(self) -> Summary | None:
        """Statistics of all its runs, stored ones included; None before any."""
        if self._summary is None and (self.samples or self.before):
            new = Summary.of(self.samples) if self.samples else None
            old = Summary.stored(self.before) if self.before else None
            self._summary = old.with_more(new) if old and new else old or new
        return self._summary

    def add(self, ns: Sequence[int]) -> None:
        """Add runs, in nanoseconds."""
        self.samples += ns
        self._summary = None

    @property
    def ns(self) -> float:
        """Its time: measured where it ran, else predicted."""
        return self.summary.min_ns if self.summary else self.predicted.ns

    @property
    def low_ns(self) -> float:
        """Lower bound of its time."""
        return self.summary.min_ns - self.summary.error_ns if self.summary else self.predicted.low_ns

    @property
    def high_ns(self) -> float:
        """Upper bound of its time."""
        return self.summary.min_ns if self.summary else self.predicted.high_ns

    @property
    def runs(self) -> int:
        """The number of its runs, stored ones included."""
        return self.summary.samples if self.summary else 0


@dataclass(slots=True)
class Contest:
    """The arms of one signature. key: of the signature. nodes: of the model, that have it."""

    key: str
    op: str
    nodes: tuple[str, ...]
    arms: list[Arm]

    @property
    def active(self) -> list[Arm]:
        """Arms that are not eliminated, in the order of the rule that listed them."""
        return [arm for arm in self.arms if not arm.out]

    @property
    def best(self) -> Arm:
        """The arm of least time, among the measured ones where there are any."""
        return min(self.active, key=lambda arm: (arm.summary is None, arm.ns, str(arm.strategy)))

    def field(self, most: int) -> list[Arm]:
        """Return at most that many arms to run next: the best, then those with too few runs, then those of lowest bound."""
        best = self.best
        others = [arm for arm in self.active if arm is not best]
        others.sort(key=lambda arm: (arm.runs >= MIN_SAMPLES, arm.low_ns if arm.runs else arm.ns))
        return [best, *others[: most - 1]]

    @property
    def settled(self) -> bool:
        """Whether more runs would change nothing."""
        active = self.active
        if len(active) == 1:
            return True
        if any(arm.runs < MIN_SAMPLES for arm in active):
            return False
        return all(arm.runs >= MAX_SAMPLES for arm in active) or self.tied

    @property
    def tied(self) -> bool:
        """Whether several arms are left, and even their bounds lie within one percent of the best."""
        best, active = self.best, self.active
        close = all(arm.ns <= best.ns * TIE for arm in active)
        return len(active) > 1 and close and all(arm.high_ns <= TIE * arm.low_ns for arm in active)

    @property
    def gain_ns(self) -> float:
        """The most that a better arm could still save the model, by the bounds, in nanoseconds."""
        if self.settled:
            return 0.0
        best = self.best
        lowest = min(arm.low_ns for arm in self.active if arm is not best)
        return len(self.nodes) * max(0.0, best.ns - max(lowest, 0.0))

    @property
    def total_ns(self) -> float:
        """The time of all its nodes together by the best arm."""
        return len(self.nodes) * self.best.ns

    def eliminate(self) -> None:
        """Eliminate every arm whose lower bound lies above another's upper bound."""
        active = self.active
        known = [arm for arm in active if arm.runs >= MIN_SAMPLES]
        if not known:
            fitted = [arm for arm in active if arm.predicted.fitted]
            known = fitted if len(fitted) == len(active) else []
        if not known:
            return
        leader = min(known, key=lambda arm: (arm.high_ns, str(arm.strategy)))
        for arm in active:
            doubtful = 0 < arm.runs < MIN_SAMPLES or (arm.runs == 0 and not arm.predicted.fitted)
            if arm is not leader and not doubtful and arm.low_ns > leader.high_ns:
                source = "measured" if arm.runs else "predicted"
                arm.out = f"{source} {arm.ns / 1e3:.1f} µs, {leader.strategy.choice} takes {leader.ns / 1e3:.1f} µs"

    def drop(self, strategy: Strategy, why: str) -> None:
        """Eliminate the arm of a strategy, unless it is the last one."""
        if len(self.active) > 1:
            for arm in self.active:
                if arm.strategy == strategy:
                    arm.out = why


def model_ns(contests: Sequence[Contest]) -> float:
    """Return the time of the model by the best arms of all contests, in nanoseconds."""
    return sum(contest.total_ns for contest in contests)
