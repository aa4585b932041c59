"""What the routes share: settings, models, engine, database and this machine's profile, opened and closed together."""

from __future__ import annotations

import threading
from typing import Annotated

import structlog
from fastapi import Depends, Request

from app.engine import Engine
from app.errors import RequestError
from app.repository import Repository
from app.settings import Settings
from graph.ir import Model
from profiler.device import DeviceProfile
from scheduler.build import current_build
from scheduler.errors import StoreError
from scheduler.local import local_device, local_fingerprint
from scheduler.store import Here, Store

log = structlog.get_logger("edgewise.service")

SERVICE_PROBE_S = 2.0  # a new device is measured this long when a plan first asks for it; `edgewise device` measures longer


class Service:
    """The parts of a running service. `start` blocks: it loads the models, then opens the database."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.repository = Repository(settings.models, settings.threads, settings.max_models)
        self.engine = Engine(settings)
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

    def remember(self, name: str, model: Model) -> None:
        """Store what a model is, which its plans and profiles refer to. Raises StoreError."""
        self.store.models.save(model.digest, name, model.nbytes)

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
        self.engine.close()
        if self._store is not None:
            self._store.close()


def service_of(request: Request) -> Service:
    """The service behind a request."""
    service: Service = request.app.state.service
    return service


Serving = Annotated[Service, Depends(service_of)]
