"""Prometheus metrics. Labels are routes and served models, never text from a request, so that their number is bounded.

Counters of models are read from their statistics on every scrape, under the names of Triton's metrics (without `_total`), so that
its dashboards work. Latencies are histograms in addition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import psutil
from prometheus_client import CollectorRegistry, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric, UnknownMetricFamily
from prometheus_client.registry import Collector

from app.access.journal import Journal
from app.engine.port import Engine
from app.models.repository import Repository
from app.watch.drift import DriftWatch
from app.watch.statistics import REASONS, ModelStatistics, Statistics, Timed

SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_MODEL: Final = ("model", "version")

Read = Callable[[ModelStatistics], float]
_COUNTERS: Final[tuple[tuple[str, str, Read], ...]] = (
    ("nv_inference_request_success", "Requests answered", lambda m: m.success.count),
    ("nv_inference_count", "Rows inferred, batches counted by their size", lambda m: m.inferences),
    ("nv_inference_exec_count", "Runs of the engine", lambda m: round(m.executions)),
    ("nv_inference_request_duration_us", "Requests, from arrival to reply", lambda m: (m.success.ns + m.fail.ns) // 1000),
    ("nv_inference_queue_duration_us", "Waiting for the engine", lambda m: m.queue.ns // 1000),
    ("nv_inference_compute_input_duration_us", "Reading inputs", lambda m: m.compute_input.ns // 1000),
    ("nv_inference_compute_infer_duration_us", "Computing", lambda m: m.compute_infer.ns // 1000),
    ("nv_inference_compute_output_duration_us", "Writing outputs", lambda m: m.compute_output.ns // 1000),
    ("edgewise_model_flops_total", "Floating point operations of inferences whose shapes are counted", lambda m: m.flops),
)
_GAUGES: Final[tuple[tuple[str, str, Read], ...]] = (
    ("nv_inference_pending_request_count", "Requests that wait or run", lambda m: m.pending),
    ("nv_model_load_duration_secs", "What loading took", lambda m: m.load_ns / 1e9),
    (
        "edgewise_model_achieved_flops_per_second",
        "Model FLOPs per second of computing",
        lambda m: 1e9 * m.flops / (m.flops_ns or 1),
    ),
    (
        "edgewise_model_roof_percent",
        "Least time on this device / time taken, 0 = unknown",
        lambda m: 100 * m.roof_ns / (m.flops_ns or 1),
    ),
)


class Metrics:
    """The metrics of one service, in their own registry."""

    def __init__(
        self, statistics: Statistics, repository: Repository, engine: Engine, journal: Journal, drift: DriftWatch
    ) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.registry.register(_Models(statistics, repository))
        self.registry.register(_Server(engine, journal, drift))
        self.requests = self._histogram("edgewise_request_duration_seconds", "Requests", ("route", "method", "status"))
        self._inferences = self._histogram("edgewise_inference_duration_seconds", "Inferences, from arrival to reply")
        self._queue = self._histogram("edgewise_queue_seconds", "Waiting for the engine")
        self._compute = self._histogram("edgewise_compute_seconds", "Computing, without waiting")
        self._batch_rows = Histogram(
            "edgewise_batch_rows", "Rows of the batch that a request ran in", _MODEL, buckets=ROWS, registry=self.registry
        )

    def record(self, name: str, version: str, timed: Timed) -> None:
        """Add an inference that was answered to the histograms of its model."""
        labels, outcome = (name, version), timed.outcome
        self._inferences.labels(*labels).observe(timed.total_ns / 1e9)
        self._queue.labels(*labels).observe(outcome.queue_ns / 1e9)
        self._compute.labels(*labels).observe(outcome.compute_ns / 1e9)
        self._batch_rows.labels(*labels).observe(outcome.batch_rows)

    def _histogram(self, name: str, about: str, labels: tuple[str, ...] = _MODEL) -> Histogram:
        return Histogram(name, about, labels, buckets=SECONDS, registry=self.registry)


class _Models(Collector):
    """Exports the statistics of the models that are served now."""

    def __init__(self, statistics: Statistics, repository: Repository) -> None:
        self._statistics = statistics
        self._repository = repository

    def collect(self) -> Iterator[Metric]:
        """Yield every metric family, including those that have no model yet."""
        found = [
            ((served.name, served.version), self._statistics.of(served.name, served.version))
            for served in self._repository.models
        ]
        for served in self._repository.models:
            self._statistics.of(served.name, served.version).load_ns = served.load_ns
        for name, about, read in _COUNTERS:
            counter = UnknownMetricFamily(name, about, labels=_MODEL)
            for labels, model in found:
                counter.add_metric(labels, read(model))
            yield counter
        for name, about, read in _GAUGES:
            gauge = GaugeMetricFamily(name, about, labels=_MODEL)
            for labels, model in found:
                gauge.add_metric(labels, read(model))
            yield gauge
        failures = UnknownMetricFamily("nv_inference_request_failure", "Requests that failed", labels=(*_MODEL, "reason"))
        plans = UnknownMetricFamily("edgewise_plan_inferences", "Requests by the plan that ran them", labels=(*_MODEL, "plan"))
        for labels, model in found:
            for reason in REASONS:
                failures.add_metric((*labels, reason), model.failures[reason])
            for plan, count in list(model.plans.items()):
                plans.add_metric((*labels, plan[:12]), count)
        yield failures
        yield plans


class _Server(Collector):
    """Exports the state of the engine, the journal and the host."""

    def __init__(self, engine: Engine, journal: Journal, drift: DriftWatch) -> None:
        self._engine = engine
        self._journal = journal
        self._drift = drift

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges of the service and its host."""
        yield GaugeMetricFamily("edgewise_engine_running", "Requests that run", self._engine.running)
        yield GaugeMetricFamily("edgewise_engine_waiting", "Requests that wait for the engine", self._engine.waiting)
        overdue = len(self._engine.overdue)
        yield GaugeMetricFamily("edgewise_engine_overdue_runs", "Runs that have not ended though their deadline passed", overdue)
        yield GaugeMetricFamily("edgewise_database_up", "Whether the database answered last", float(self._journal.database_up))
        yield GaugeMetricFamily("edgewise_buffered_writes", "Writes that wait for the database", self._journal.buffered)
        yield UnknownMetricFamily(
            "edgewise_dropped_writes_total", "Writes dropped at the limit of buffered ones", self._journal.dropped
        )
        drifts = self._drift.drifts
        yield UnknownMetricFamily("edgewise_plan_drift_total", "Plans whose latency drifted from the expected one", drifts)
        memory = psutil.virtual_memory()
        yield GaugeMetricFamily("nv_cpu_utilization", "Share of this host's cores in use", psutil.cpu_percent() / 100)
        yield GaugeMetricFamily("nv_cpu_memory_total_bytes", "Memory of this host", memory.total)
        yield GaugeMetricFamily("nv_cpu_memory_used_bytes", "Memory of this host in use", memory.used)
