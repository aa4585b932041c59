"""What each model was asked and what it took, cumulative since the start: the protocol's statistics, and the metrics from them.

Fed from Outcomes, on the event loop only. A batch that served several requests is counted by shares: each adds its rows divided
by the batch's, so that executions and compute times add up to the engine's.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Literal

from app.engine import Outcome

Reason = Literal["REJECTED", "CANCELED", "BACKEND", "OTHER"]
REASONS: tuple[Reason, ...] = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
MAX_BATCH_SIZES = 256  # rows of `batch_stats`; larger batches beyond them are counted in the totals only


@dataclass(slots=True)
class Duration:
    """How often, and how long altogether."""

    count: float = 0
    ns: float = 0

    def add(self, ns: float, count: float = 1) -> None:
        """One more, or a share of one."""
        self.count += count
        self.ns += ns

    def shown(self) -> dict[str, int]:
        """As the protocol has it."""
        return {"count": round(self.count), "ns": round(self.ns)}


@dataclass(slots=True)
class BatchDurations:
    """Of all batches of one size."""

    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)


@dataclass(slots=True)
class Timed:
    """One request that succeeded. total_ns: from its arrival to its encoded reply."""

    outcome: Outcome
    rows: int
    input_ns: int
    output_ns: int
    total_ns: int


@dataclass(slots=True)
class ModelStatistics:
    """Of one version of one model; kept while it is reloaded."""

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

    def succeeded(self, done: Timed) -> None:
        """Count a request that was answered."""
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
        if outcome.plan_id in self.plans or len(self.plans) < MAX_BATCH_SIZES:
            self.plans[outcome.plan_id] = self.plans.get(outcome.plan_id, 0) + 1
        if outcome.batch_rows in self.batches or len(self.batches) < MAX_BATCH_SIZES:
            batch = self.batches.setdefault(outcome.batch_rows, BatchDurations())
            batch.compute_input.add(done.input_ns * share, share)
            batch.compute_infer.add(outcome.compute_ns * share, share)
            batch.compute_output.add(done.output_ns * share, share)

    def failed(self, reason: Reason, total_ns: int) -> None:
        """Count a request that was not."""
        self.fail.add(total_ns)
        self.failures[reason] += 1

    def worked(self, flops: int, compute_ns: float, roof_ns: float) -> None:
        """Add arithmetic whose amount is known, the time it took, and the least it could take on this device (0 = unknown)."""
        self.flops += flops
        self.flops_ns += compute_ns
        self.roof_ns += roof_ns

    def shown(self, name: str, version: str, memory_bytes: int) -> dict[str, Any]:
        """One entry of the protocol's `model_stats`."""
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
    """Of every version that was ever served; names come from the repository only, so they are bounded by it."""

    def __init__(self) -> None:
        self.models: defaultdict[tuple[str, str], ModelStatistics] = defaultdict(ModelStatistics)

    def of(self, name: str, version: str) -> ModelStatistics:
        """Those of one version."""
        return self.models[name, version]
