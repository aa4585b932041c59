"""Request counts and durations of each model since the start, for the protocol's statistics and the metrics.

Updated on the event loop only. A batch of several requests is counted in fractions: each request adds its share of the batch's
rows, so that executions and compute times add up to those of the engine.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from app.engine.requests import Outcome
from kernels.record import record

Reason = Literal["REJECTED", "CANCELED", "BACKEND", "OTHER"]
REASONS: tuple[Reason, ...] = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
MAX_BATCH_SIZES = 256  # entries of `batch_stats`; further sizes are counted in the totals only
RECENT_S = 10.0  # the window of live traffic
MAX_RECENT = 4096  # answers of one model that are kept for live traffic


@dataclass(slots=True)
class Duration:
    """A count and a total time."""

    count: float = 0
    ns: float = 0

    def add(self, ns: float, count: float = 1) -> None:
        """Add one request, or a fraction of one."""
        self.count += count
        self.ns += ns

    def shown(self) -> dict[str, int]:
        """Return it as the protocol's JSON."""
        return {"count": round(self.count), "ns": round(self.ns)}


@dataclass(slots=True)
class BatchDurations:
    """Durations of all batches of one size."""

    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)


@dataclass(slots=True)
class Timed:
    """A request that succeeded. input_ns: decoding. output_ns: encoding. total_ns: from its arrival to its encoded reply."""

    outcome: Outcome
    rows: int
    input_ns: int
    output_ns: int
    total_ns: int


@record
class Answer:
    """A recent answer. at_ns: on the monotonic clock. total_ns: from arrival to reply."""

    at_ns: int
    total_ns: int
    batch_rows: int


@record
class Traffic:
    """Traffic of the last RECENT_S: answers per second, percentiles of the latency from arrival to reply, and the mean rows of
    the batch that a request ran in; None without answers."""

    requests_per_s: float
    p50_ns: int | None
    p99_ns: int | None
    batch_rows: float | None


def traffic(kept: Iterable[Iterable[Answer]], now_ns: int) -> Traffic:
    """Summarise the answers of the last RECENT_S. kept: the recent answers of each model. now_ns: on the monotonic clock."""
    recent = [[answer for answer in answers if now_ns - answer.at_ns <= RECENT_S * 1e9] for answers in kept]
    together = [answer for answers in recent for answer in answers]
    if not together:
        return Traffic(0.0, None, None, None)
    totals = sorted(answer.total_ns for answer in together)
    rows = sum(answer.batch_rows for answer in together) / len(together)
    return Traffic(sum(_per_second(answers, now_ns) for answers in recent), _rank(totals, 0.5), _rank(totals, 0.99), rows)


def _per_second(recent: list[Answer], now_ns: int) -> float:
    """Return answers per second. At MAX_RECENT answers older ones were dropped, so the window begins with the oldest kept."""
    full = len(recent) == MAX_RECENT
    return len(recent) / (max((now_ns - recent[0].at_ns) / 1e9, 1e-3) if full else RECENT_S)


def _rank(ordered: list[int], share: float) -> int:
    """Return the nearest-rank percentile."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass(slots=True)
class ModelStatistics:
    """Statistics of one version of one model; they survive a reload."""

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    failures: dict[Reason, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    plans: dict[str, int] = field(default_factory=dict)
    batches: dict[int, BatchDurations] = field(default_factory=dict)
    inferences: int = 0
    executions: float = 0
    flops: int = 0
    flops_ns: float = 0
    roof_ns: float = 0
    last_ms: int = 0
    pending: int = 0
    load_ns: int = 0
    recent: deque[Answer] = field(default_factory=lambda: deque(maxlen=MAX_RECENT))

    def succeeded(self, done: Timed) -> None:
        """Count a request that succeeded."""
        outcome = done.outcome
        share = done.rows / outcome.batch_rows if outcome.batch_rows else 1.0
        self.success.add(done.total_ns)
        self.queue.add(outcome.queue_ns)
        self.compute_input.add(done.input_ns)
        self.compute_infer.add(outcome.compute_ns * share)
        self.compute_output.add(done.output_ns)
        self.inferences += done.rows
        self.executions += share
        self.last_ms = time.time_ns() // 1_000_000
        self.recent.append(Answer(time.monotonic_ns(), done.total_ns, outcome.batch_rows))
        if outcome.plan_id in self.plans or len(self.plans) < MAX_BATCH_SIZES:
            self.plans[outcome.plan_id] = self.plans.get(outcome.plan_id, 0) + 1
        if outcome.batch_rows in self.batches or len(self.batches) < MAX_BATCH_SIZES:
            batch = self.batches.setdefault(outcome.batch_rows, BatchDurations())
            batch.compute_input.add(done.input_ns * share, share)
            batch.compute_infer.add(outcome.compute_ns * share, share)
            batch.compute_output.add(done.output_ns * share, share)

    def failed(self, reason: Reason, total_ns: int) -> None:
        """Count a request that failed. total_ns: from its arrival."""
        self.fail.add(total_ns)
        self.failures[reason] += 1

    def worked(self, flops: int, compute_ns: float, roof_ns: float) -> None:
        """Add the FLOPs of a run, the time that it took, and its roofline bound on this device (0 = unknown)."""
        self.flops += flops
        self.flops_ns += compute_ns
        self.roof_ns += roof_ns

    def shown(self, name: str, version: str, memory_bytes: int) -> dict[str, Any]:
        """Return an entry of the protocol's `model_stats`."""
        nothing = Duration().shown()
        return {
            "name": name,
            "version": version,
            "last_inference": self.last_ms,
            "inference_count": self.inferences,
            "execution_count": round(self.executions),
            "inference_stats": {
                "success": self.success.shown(),
                "fail": self.fail.shown(),
                "queue": self.queue.shown(),
                "compute_input": self.compute_input.shown(),
                "compute_infer": self.compute_infer.shown(),
                "compute_output": self.compute_output.shown(),
                "cache_hit": nothing,
                "cache_miss": nothing,
            },
            "response_stats": {},
            "batch_stats": [
                {
                    "batch_size": size,
                    "compute_input": batch.compute_input.shown(),
                    "compute_infer": batch.compute_infer.shown(),
                    "compute_output": batch.compute_output.shown(),
                }
                for size, batch in sorted(self.batches.items())
            ],
            "memory_usage": [{"type": "CPU", "id": 0, "byte_size": memory_bytes}],
        }


class Statistics:
    """Statistics of every version that was ever served. Names come from the repository only, which bounds their number."""

    def __init__(self) -> None:
        self.models: defaultdict[tuple[str, str], ModelStatistics] = defaultdict(ModelStatistics)

    def of(self, name: str, version: str) -> ModelStatistics:
        """Return the statistics of one version."""
        return self.models[name, version]
