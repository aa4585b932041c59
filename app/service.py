"""A running service: the assembly of its parts, and the dependencies by which routes ask for single parts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Protocol

import structlog
from fastapi import Depends, Request

from app.access.audit import AuditTrail
from app.access.auth import Sessions
from app.access.directory import Directory
from app.access.held import HeldBytes
from app.access.journal import Journal
from app.access.rates import Rates
from app.engine.calls import Calls
from app.engine.port import Engine
from app.jobs.listeners import Listeners
from app.jobs.local import LocalJobs
from app.models.loading import PendingLoads
from app.models.planned import PlanFollower
from app.models.repository import ModelLimits, Repository
from app.settings import DEMO_MODELS, Settings
from app.storage import PROBE_S, Storage
from app.watch.drift import DriftWatch
from app.watch.health import Health
from app.watch.metrics import Metrics
from app.watch.recorder import Recorder
from app.watch.spans import Telemetry
from app.watch.statistics import Statistics
from app.watch.traces import TraceSettings
from graph.budget import ProcessMemory
from scheduler.errors import StoreError
from scheduler.jobs import KINDS, Kind
from scheduler.store import Store

log = structlog.get_logger("edgewise.service")

JOB_S = 1.0  # for a job to stop once the service is closed, beside what is left of the drain
QUICK_S = 0.5  # for short questions to the database to be answered


class Transport(Protocol):
    """A server beside that of HTTP, which carries requests to the same service."""

    async def start(self) -> None:
        """Listen. Raises RequestError 500 where it cannot."""

    async def stop(self, seconds: float) -> None:
        """Refuse new requests, let running ones end, and cancel those that have not after that many seconds."""


class Service:
    """The parts of one service, opened and closed together.

    quick_calls: threads for short questions to the database, so that they never wait for slow work, which is `engine.call`.
    kinds: the kinds of jobs that it can run, by name.
    """

    def __init__(self, settings: Settings, telemetry: Telemetry, kinds: Mapping[str, Kind] = KINDS) -> None:
        self.settings, self.kinds, self._telemetry = settings, kinds, telemetry
        self._closes_at = 0.0
        limits = ModelLimits(settings.max_models, settings.max_model_bytes, settings.max_arena_bytes, settings.load_timeout_s)
        self.storage = storage = Storage(
            settings.db,
            # The bundled demo is served by many: it says nothing of one service.
            None if settings.models.resolve() == DEMO_MODELS.resolve() else settings.models,
        )
        self.memory = ProcessMemory(settings.process_limit_bytes)
        self.repository = repository = Repository(settings.models, settings.threads, limits, self.memory)
        self.engine = engine = Engine(settings, storage.forecast, self.memory)
        self.quick_calls = Calls("edgewise-quick")

        self.journal = Journal()
        self.audit = AuditTrail(self.journal)
        self.directory = Directory(
            lambda: engine.call(storage.key_ring),
            self.journal,
            Sessions(settings.session_secret.get_secret_value()),
            settings.loopback and settings.keyless is not False,
            (lambda: None) if settings.keyless else storage.key_mark,
            settings.key_refresh_s,
            settings.key_stale_s,
        )

        self.transports: list[Transport] = []
        self.rates = Rates(settings.rate_per_s)
        self.held = HeldBytes(settings.max_bytes_together)

        self.loads = PendingLoads(repository, engine)
        self.plan_follower = PlanFollower(repository, engine, self.quick_calls, self._open_store, storage.here, settings.plans)
        self.local_jobs = LocalJobs(
            self._open_store,
            settings.db,
            kinds,
            repository.model,
            lease_s=settings.job_lease_s,
            probe_s=PROBE_S,
            threads=settings.threads,
        )
        self.listeners = Listeners(settings.max_listeners)

        self.health = Health(repository, self.journal, engine.overdue, strict=settings.strict_ready)
        self.statistics, self.traces = Statistics(), TraceSettings()
        self.drift = DriftWatch(self._open_store, retune=settings.retune)
        self.metrics = Metrics(self.statistics, repository, engine, self.journal, self.drift)
        self.recorder = Recorder(engine, storage, self.statistics, self.metrics, self.traces, telemetry, self.drift)

    def _open_store(self) -> Store:
        return self.storage.store

    def start(self) -> None:
        """Load every model, then open and migrate the database. Blocks.

        Without a database inference goes on, and what needs one answers 503.
        """
        self.repository.load_all()
        for served in self.repository.models:
            self.engine.preload(served)
        try:
            log.info("database opened", database=self.storage.store.label)
        except StoreError as error:
            log.error("database unavailable", reason=str(error))
        if self.settings.jobs:
            self.local_jobs.start()

    async def keep_journal(self) -> None:
        """Write the journal and look whether the database answers, every second for as long as the service runs."""
        await self.journal.keep(self.quick_calls.call, self._open_store)

    async def stop_transports(self, seconds: float) -> None:
        """Let the requests of transports beside HTTP end, for that long at most."""
        await asyncio.gather(*(transport.stop(seconds) for transport in self.transports))

    def begin_drain(self, seconds: float) -> None:
        """Report not ready, and let loads and the running job stop meanwhile. seconds: until the service is closed, at most."""
        self._closes_at = time.monotonic() + seconds
        self.health.begin_drain()
        self.repository.stop("the server is stopping")
        self.local_jobs.stop()

    def close(self) -> None:
        """Wait for running work, within bounds, then close the database. Blocks."""
        self.local_jobs.close(max(JOB_S, self._closes_at - time.monotonic()))
        self.engine.close()
        self.quick_calls.close(QUICK_S)
        self.repository.close()
        self._telemetry.close()
        if self.storage.opened is not None:
            self.journal.attempt(self._open_store)
        self.storage.close()


def service_of(request: Request) -> Service:
    """Return the service that a request was sent to."""
    service: Service = request.app.state.service
    return service


def _part(choose: Callable[[Service], object]) -> Any:
    """Return a dependency on one part of the service. It is a coroutine, since FastAPI runs plain functions on threads."""

    async def find(request: Request) -> object:
        return choose(service_of(request))

    return Depends(find)


Serving = Annotated[Service, _part(lambda service: service)]
EnginePart = Annotated[Engine, _part(lambda service: service.engine)]
HealthPart = Annotated[Health, _part(lambda service: service.health)]
QuickCallsPart = Annotated[Calls, _part(lambda service: service.quick_calls)]
RepositoryPart = Annotated[Repository, _part(lambda service: service.repository)]
SettingsPart = Annotated[Settings, _part(lambda service: service.settings)]
StoragePart = Annotated[Storage, _part(lambda service: service.storage)]
