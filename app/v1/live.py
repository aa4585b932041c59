"""/v1/live: the service's present load and health, for the overview page. Cheap: it asks neither the database nor the engine."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from app.access.auth import Scope, needs
from app.errors import RequestError
from app.service import Service, Serving
from app.watch.statistics import RECENT_S, ModelStatistics, traffic

router = APIRouter()


class TrafficOut(BaseModel):
    """Traffic of the last `window_s` seconds: answers per second, percentiles of the latency from arrival to reply, and the mean
    rows of the batch that a request ran in; null without answers."""

    requests_per_s: float
    p50_ns: int | None
    p99_ns: int | None
    batch_rows: float | None


class LiveModel(TrafficOut):
    """Traffic of one version of a model. requests, failures: since the start. last_ms: its last answer, in Unix milliseconds."""

    name: str
    version: str
    state: str
    pending: int
    requests: int
    failures: int
    last_ms: int | None


class EngineProcess(BaseModel):
    """One engine process. up: it is running. models: loaded in it. restarts: how often it has died since the start."""

    up: bool
    models: int
    restarts: int


class HealthOut(BaseModel):
    """Whether requests should be sent to this server, why not, and the state of the database and the engine processes."""

    ready: bool
    reason: str
    database: Literal["ok", "unavailable"]
    buffered_writes: int
    dropped_writes: int
    engine_processes: list[EngineProcess]


class LiveOut(BaseModel):
    """The service's present state. running, waiting: numbers of requests. together: traffic of all models."""

    at_us: int
    window_s: float
    health: HealthOut
    running: int
    waiting: int
    together: TrafficOut
    models: list[LiveModel]


@router.get("/live")
@needs(Scope.READ)
async def live(service: Serving) -> LiveOut:
    """Return the traffic of the last seconds, the queues and the health."""
    now_ns = time.monotonic_ns()
    found = {
        (served.name, served.version): (served.state, service.statistics.of(served.name, served.version))
        for served in service.repository.models
    }
    everything = [statistics.recent for _, statistics in found.values()]
    return LiveOut(
        at_us=time.time_ns() // 1000,
        window_s=RECENT_S,
        health=_health(service),
        running=service.engine.running,
        waiting=service.engine.waiting,
        together=TrafficOut(**asdict(traffic(everything, now_ns))),
        models=[_model(*key, *state, now_ns) for key, state in found.items()],
    )


def _model(name: str, version: str, state: str, statistics: ModelStatistics, now_ns: int) -> LiveModel:
    return LiveModel(
        name=name,
        version=version,
        state=state,
        pending=statistics.pending,
        requests=round(statistics.success.count),
        failures=round(statistics.fail.count),
        last_ms=statistics.last_ms or None,
        **asdict(traffic([statistics.recent], now_ns)),
    )


def _health(service: Service) -> HealthOut:
    reason = ""
    try:
        service.health.require_ready()
    except RequestError as error:
        reason = str(error)
    journal = service.journal
    return HealthOut(
        ready=not reason,
        reason=reason,
        database="ok" if journal.database_up else "unavailable",
        buffered_writes=journal.buffered,
        dropped_writes=journal.dropped,
        engine_processes=[
            EngineProcess(up=process.link is not None, models=len(process.models), restarts=process.restarts)
            for process in service.engine.processes
        ],
    )
