"""What the routes share: settings, models, engine, database and this machine's profile, opened and closed together."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Mapping
from typing import Annotated, Any

import structlog
from fastapi import Depends, Request

from app.access.auth import Sessions
from app.access.directory import Directory
from app.access.journal import Journal
from app.engine.calls import Calls
from app.engine.port import Engine
from app.errors import RequestError
from app.jobs.local import LocalJobs
from app.logs import SETTINGS as LOG_SETTINGS
from app.models.loading import PendingLoads
from app.models.planned import PlanFollower
from app.models.repository import ModelLimits, Repository, Served
from app.oip.codec import CodecLimits
from app.settings import Settings
from app.watch.drift import DriftWatch
from app.watch.flops import RunCosts, Shapes, count
from app.watch.metrics import Metrics
from app.watch.spans import Telemetry
from app.watch.statistics import Statistics, Timed
from app.watch.traces import TraceSettings
from graph.ir import Model
from profiler.device.profile import DeviceProfile
from scheduler.build import current_build
from scheduler.errors import NotFoundError, StoreError
from scheduler.jobs import KINDS, Kind
from scheduler.local import local_device, local_fingerprint
from scheduler.planning.forecast import forecast
from scheduler.session import Session
from scheduler.store import AuditEntry, Here, KeyRing, Store

log = structlog.get_logger("edgewise.service")

FLUSH_S = 1.0
SERVICE_PROBE_S = 2.0  # a new device is measured this long when a plan first asks for it; `edgewise device` measures longer


class Service:
    """The parts of a running service. `start` blocks: it loads the models, then opens the database."""

    def __init__(self, settings: Settings, telemetry: Telemetry, kinds: Mapping[str, Kind] = KINDS) -> None:
        self.settings = settings
        limits = ModelLimits(settings.max_models, settings.max_model_bytes, settings.max_arena_bytes)
        self.repository = Repository(settings.models, settings.threads, limits)
        self.observed = DriftWatch(lambda: self.store, retune=settings.retune)
        self.engine = Engine(settings, self._forecast)
        self.desk = Calls("edgewise-desk")  # short questions to the database that never wait for other work
        self.plan_follower = PlanFollower(self.repository, self.engine, self.desk, lambda: self.store, self.here)
        self.listeners = 0
        self.kinds = kinds
        self.runner = LocalJobs(
            lambda: self.store, settings.db, kinds, self.model, lease_s=settings.job_lease_s, probe_s=SERVICE_PROBE_S
        )
        self.loads = PendingLoads(self.repository, self.engine)
        self.statistics = Statistics()
        self.traces = TraceSettings()
        self.telemetry = telemetry
        self.work = RunCosts()
        self._counting: set[asyncio.Task[None]] = set()
        self.logging = LOG_SETTINGS
        self.codec_limits = CodecLimits(
            settings.max_body_bytes,
            settings.max_tensor_elements,
            settings.max_inputs,
            json_bytes=settings.max_json_bytes,
            outputs=settings.max_outputs,
        )
        self.draining = False
        self.journal = Journal()
        self.metrics = Metrics(self.statistics, self.repository, self.engine, self.journal, self.observed)
        self.directory = Directory(
            lambda: self.engine.call(self._ring),
            self.journal,
            Sessions(settings.session_secret.get_secret_value()),
            settings.loopback,
            settings.key_refresh_s,
            settings.key_stale_s,
        )
        self._store: Store | None = None
        self._opening = threading.Lock()

    def start(self) -> None:
        """Load every model and migrate the database. Without one inference goes on, and what needs it answers 503."""
        self.repository.load_all()
        for served in self.repository.models:
            self.engine.preload(served)
        try:
            log.info("database opened", database=self.store.label)
        except StoreError as error:
            log.error("database unavailable", reason=str(error))
        if self.settings.jobs:
            self.runner.start()

    def serves(self, digest: str | None) -> bool:
        """Whether a model of that digest is served, so that a database that lacks it holds nothing of it yet."""
        return any(served.session is not None and served.session.model.digest == digest for served in self.repository.models)

    def observe(self, served: Served, session: Session, shapes: Shapes, timed: Timed, request_id: str) -> None:
        """Record what an inference took."""
        labels, outcome = (served.name, served.version), timed.outcome
        self.metrics.inferences.labels(*labels).observe(timed.total_ns / 1e9)
        self.metrics.queue.labels(*labels).observe(outcome.queue_ns / 1e9)
        self.metrics.compute.labels(*labels).observe(outcome.compute_ns / 1e9)
        self.metrics.batch_rows.labels(*labels).observe(outcome.batch_rows)
        self.traces.record(*labels, timed)
        self.telemetry.record(*labels, request_id, timed)
        self.observed.ran(session, outcome)
        work = self.work.find(session, shapes)
        if work is None:
            task = asyncio.ensure_future(self._count(session, shapes))
            self._counting.add(task)  # the loop itself keeps no reference
            task.add_done_callback(self._counting.discard)
        elif work.flops:
            share = timed.rows / outcome.batch_rows if outcome.batch_rows else 1.0
            self.statistics.of(*labels).worked(work.flops, outcome.compute_ns * share, work.roof_ns)

    async def _count(self, session: Session, shapes: Shapes) -> None:
        """Count a model at shapes that are new; while too much other work waits it stays uncounted."""
        with contextlib.suppress(RequestError):
            self.work.keep(session, shapes, await self.engine.call(lambda: count(session, dict(shapes), self._measured_device())))

    def _forecast(self, session: Session, threads: int, shapes: Mapping[int, Mapping[str, tuple[int, ...]]]) -> dict[int, float]:
        """What plans say of a model's batches, where this device was measured."""
        device = self._measured_device()
        return {} if device is None else forecast(session.model, shapes, threads, device, self.store, session.backend)

    def _measured_device(self) -> DeviceProfile | None:
        """This device, if it was ever measured; a request is no reason to measure it."""
        try:
            return DeviceProfile.from_json(self.store.devices.get(local_fingerprint()).profile)
        except (NotFoundError, StoreError):
            return None

    def audit(self, request: Request, action: str, target: str) -> None:
        """Record what an administrator did: in the log at once, in the database soon."""
        actor: str = request.state.principal.name if hasattr(request.state, "principal") else "login"
        entry = AuditEntry(time.time_ns() // 1000, actor, action, target[:1024], request.state.request_id)
        log.info("audit", actor=entry.actor, action=action, target=target[:128])
        self.journal.add(entry)

    async def keep_journal(self) -> None:
        """Write the journal every second, for as long as the service runs."""
        while True:
            await asyncio.sleep(FLUSH_S)
            if self.journal.buffered or not self.journal.database_up:
                with contextlib.suppress(RequestError):  # too much other work waits: the next second will do
                    await self.engine.call(self._flush)

    def _ring(self) -> KeyRing:
        return self.store.keys.ring()

    def _flush(self) -> None:
        try:
            self.journal.attempt(self.store)
        except StoreError as error:
            self.journal.lost(error)

    def remember(self, name: str, model: Model) -> None:
        """Store what a model is, which its plans and profiles refer to. Raises StoreError."""
        self.store.models.save(model.digest, name, model.nbytes)

    def served(self, digest: str) -> Served:
        """A served model by its digest. Raises NotFoundError."""
        for served in self.repository.models:
            if served.session is not None and served.session.model.digest == digest:
                return served
        raise NotFoundError(f"model {digest[:64]}: not served")

    def model(self, digest: str) -> Model:
        """The model itself. Raises NotFoundError."""
        session = self.served(digest).session
        assert session is not None, "served() found it by its session"  # noqa: S101
        return session.model

    @property
    def store(self) -> Store:
        """The database, opened when it is first needed. Raises StoreError."""
        with self._opening:
            if self._store is None:
                self._store = Store(self.settings.db)
            return self._store

    def device(self, fingerprint: str) -> DeviceProfile:
        """A stored device, or this one ("local"), which is measured when it is new. Raises NotFoundError."""
        if fingerprint == "local":
            return local_device(self.store, SERVICE_PROBE_S)
        return DeviceProfile.from_json(self.store.devices.get(fingerprint).profile)

    def here(self) -> Here:
        """What a measurement must match to be fresh here."""
        return Here(local_fingerprint(), current_build())

    def begin_drain(self) -> None:
        """Be not ready from now on; what comes is still served."""
        self.draining = True

    def require_ready(self) -> None:
        """Raise RequestError 503 where requests should go elsewhere: see `docs/serving.md`."""
        self.require_running()
        if self.settings.strict_ready and (failed := self.repository.failed):
            raise RequestError(503, f"server: model '{failed[0].name}' version {failed[0].version} failed to load")

    def health_detail(self) -> dict[str, Any]:
        """What is wrong and yet no reason to send requests elsewhere."""
        journal = self.journal
        if journal.database_up and not journal.dropped:
            return {}
        state = "ok" if journal.database_up else "unavailable"
        return {"database": state, "buffered_writes": journal.buffered, "dropped_writes": journal.dropped}

    def require_running(self) -> None:
        """Raise RequestError 503 while the first models load, and once the server is stopping."""
        if self.draining:
            raise RequestError(503, "Server is stopping, send requests elsewhere")
        if not self.repository.loaded.is_set():
            raise RequestError(503, "server: models are loading")

    def close(self) -> None:
        """Finish what runs, then close the database."""
        self.runner.close()
        self.engine.close()
        self.desk.close()
        self.repository.close()
        self.telemetry.close()
        if self._store is not None:
            self.journal.attempt(self._store)
            self._store.close()


def service_of(request: Request) -> Service:
    """The service behind a request."""
    service: Service = request.app.state.service
    return service


Serving = Annotated[Service, Depends(service_of)]
