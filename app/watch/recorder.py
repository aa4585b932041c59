"""Records an inference wherever its times are needed: statistics, metrics, traces, spans, drift and FLOPs."""

from __future__ import annotations

import asyncio
import contextlib

from app.engine.port import Engine
from app.errors import RequestError
from app.models.repository import Served
from app.storage import Storage
from app.watch.drift import DriftWatch
from app.watch.flops import RunCosts, Shapes, count
from app.watch.metrics import Metrics
from app.watch.spans import Telemetry
from app.watch.statistics import Statistics, Timed
from app.watch.traces import TraceSettings
from scheduler.session import Session


class Recorder:
    """Records inferences that were answered. Event loop only."""

    def __init__(
        self,
        engine: Engine,
        storage: Storage,
        statistics: Statistics,
        metrics: Metrics,
        traces: TraceSettings,
        telemetry: Telemetry,
        drift: DriftWatch,
    ) -> None:
        self._engine, self._storage = engine, storage
        self._statistics, self._metrics, self._traces, self._telemetry, self._drift = (
            statistics,
            metrics,
            traces,
            telemetry,
            drift,
        )
        self._costs = RunCosts()
        self._counting: set[asyncio.Task[None]] = set()

    def record(self, served: Served, session: Session, shapes: Shapes, timed: Timed, request_id: str) -> None:
        """Record one inference. shapes: of its inputs, by name."""
        labels, outcome = (served.name, served.version), timed.outcome
        self._statistics.of(*labels).succeeded(timed)
        self._metrics.record(*labels, timed)
        self._traces.record(*labels, timed)
        self._telemetry.record(*labels, request_id, timed)
        self._drift.ran(session, outcome)
        cost = self._costs.find(session, shapes)
        if cost is None:
            task = asyncio.ensure_future(self._count(session, shapes))
            self._counting.add(task)  # the event loop itself keeps no reference
            task.add_done_callback(self._counting.discard)
        elif cost.flops:
            share = timed.rows / outcome.batch_rows if outcome.batch_rows else 1.0
            self._statistics.of(*labels).worked(cost.flops, outcome.compute_ns * share, cost.roof_ns)

    async def _count(self, session: Session, shapes: Shapes) -> None:
        """Count a model's FLOPs at new shapes; while too much other work waits they stay uncounted."""
        with contextlib.suppress(RequestError):
            found = await self._engine.call(lambda: count(session, dict(shapes), self._storage.measured_device()))
            self._costs.keep(session, shapes, found)
