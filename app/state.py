"""What the routes share: settings, models, engine, database and this machine's profile, opened and closed together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Annotated

import structlog
from fastapi import Depends, Request

from app.engine import Engine
from app.errors import RequestError
from app.observed import Observed
from app.repository import Repository, Served
from app.runner import Runner
from app.settings import Settings
from graph.ir import Model
from profiler.device import DeviceProfile
from scheduler.build import current_build
from scheduler.errors import NotFoundError, StoreError
from scheduler.jobs import KINDS, Kind
from scheduler.local import local_device, local_fingerprint
from scheduler.store import Here, Store

log = structlog.get_logger("edgewise.service")

SERVICE_PROBE_S = 2.0  # a new device is measured this long when a plan first asks for it; `edgewise device` measures longer


class Service:
    """The parts of a running service. `start` blocks: it loads the models, then opens the database."""

    def __init__(self, settings: Settings, kinds: Mapping[str, Kind] = KINDS) -> None:
        self.settings = settings
        self.repository = Repository(settings.models, settings.threads, settings.max_models)
        self.engine = Engine(settings.workers, settings.queue_limit)
        self.desk = Engine(2, 4096)  # short questions to the database that never wait for an inference
        self.observed = Observed(lambda: self.store, retune=settings.retune)
        self.listeners = 0
        self.leaving: Callable[[], bool] = lambda: False  # whether the server is to end: those who wait are answered now
        self.kinds = kinds
        self.runner = Runner(
            lambda: self.store, settings.db, kinds, self.model, lease_s=settings.job_lease_s, probe_s=SERVICE_PROBE_S
        )
        self._store: Store | None = None
        self._opening = threading.Lock()

    def start(self) -> None:
        """Load every model and migrate the database. Without one inference goes on, and what needs it answers 503."""
        self.repository.load_all()
        try:
            log.info("database opened", database=self.store.label)
        except StoreError as error:
            log.error("database unavailable", reason=str(error))
        if self.settings.jobs:
            self.runner.start()

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

    def require_ready(self) -> None:
        """Raise RequestError 503 while the first models load."""
        if not self.repository.loaded.is_set():
            raise RequestError(503, "server: models are loading")

    def close(self) -> None:
        """Finish what runs, then close the database."""
        self.runner.close()
        self.engine.close()
        self.desk.close()
        if self._store is not None:
            self._store.close()


def service_of(request: Request) -> Service:
    """The service behind a request."""
    service: Service = request.app.state.service
    return service


Serving = Annotated[Service, Depends(service_of)]
