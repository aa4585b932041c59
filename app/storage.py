"""The service's database, opened when it is first needed, with what it knows about this machine."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

from graph.ir import Model
from profiler.device.profile import DeviceProfile
from scheduler.build import current_build
from scheduler.errors import NotFoundError, StoreError
from scheduler.local import local_device, local_fingerprint
from scheduler.planning.forecast import forecast
from scheduler.session import Session
from scheduler.store import Here, KeyMark, KeyRing, Store, checked_url, default_url

PROBE_S = 2.0  # a new device is measured this long when a plan first asks for it; `edgewise device` measures longer


class Storage:
    """Access to one database. Every method blocks and runs on any thread.

    Args: url: of the database; None = SQLite in the user's data directory. models: the folder that the service serves, which
          helps to remember that keys were made; None where it says nothing of the service.
    """

    def __init__(self, url: str | None, models: Path | None = None) -> None:
        self.url = url
        self._models = models
        self._marked = False
        self._store: Store | None = None
        self._opening = threading.Lock()

    @property
    def store(self) -> Store:
        """The open database; the first call opens and migrates it. Raises StoreError."""
        with self._opening:
            if self._store is None:
                self._store = Store(self.url)
            return self._store

    @property
    def opened(self) -> Store | None:
        """The database where it has been opened, else None."""
        return self._store

    def close(self) -> None:
        """Close the database where it has been opened."""
        if self._store is not None:
            self._store.close()

    def here(self) -> Here:
        """Return this device and build: what a measurement or a plan must be of to be fresh here."""
        return Here(local_fingerprint(), current_build())

    def device(self, fingerprint: str) -> DeviceProfile:
        """Return a stored device, or this one ("local"), which is measured first when it is new. Raises NotFoundError."""
        if fingerprint == "local":
            return local_device(self.store, PROBE_S)
        return DeviceProfile.from_json(self.store.devices.get(fingerprint).profile)

    def measured_device(self) -> DeviceProfile | None:
        """Return this device where its profile is stored, else None: a request is no reason to measure it."""
        try:
            return DeviceProfile.from_json(self.store.devices.get(local_fingerprint()).profile)
        except (NotFoundError, StoreError):
            return None

    def forecast(self, session: Session, threads: int, shapes: Mapping[int, Mapping[str, tuple[int, ...]]]) -> dict[int, float]:
        """Predict the time of a model's runs in nanoseconds, by rows; empty for GPUs and where this device was never measured.

        shapes: rows -> the shape of every input.
        """
        device, backend = self.measured_device(), session.planned_backend
        if device is None or backend is None:
            return {}
        return forecast(session.model, shapes, threads, device, self.store, backend)

    def remember(self, name: str, model: Model) -> None:
        """Store a model's name and size, which its plans and profiles refer to. Raises StoreError."""
        self.store.models.save(model.digest, name, model.nbytes)

    def key_ring(self) -> KeyRing:
        """Return the API keys, and leave the mark that some were made. Raises StoreError."""
        ring = self.store.keys.ring()
        if ring.made and not self._marked:
            self._key_mark().leave()
            self._marked = True
        return ring

    def key_mark(self) -> Path | None:
        """Return the file which says that keys were made for this database or these models; None where there is none.

        It needs no database. Raises StoreError for a URL that names none.
        """
        return self._key_mark().found()

    def _key_mark(self) -> KeyMark:
        of_database = KeyMark.of_database(checked_url(self.url or default_url()))
        return of_database if self._models is None else of_database | KeyMark.of_models(self._models)
