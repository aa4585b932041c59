"""The database: devices, models, plans, measurements, profile runs, jobs and API keys, on SQLite or PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

from scheduler.errors import StoreVersionError
from scheduler.store.catalogue import Devices, Models
from scheduler.store.database import Database
from scheduler.store.jobs import Jobs
from scheduler.store.keymark import KeyMark
from scheduler.store.keys import Audit, Keys
from scheduler.store.measurements import Measurements
from scheduler.store.plans import Plans
from scheduler.store.profiles import Profiles
from scheduler.store.pruning import Pruned, Pruning
from scheduler.store.queries import Queries
from scheduler.store.records import (
    AuditEntry,
    Claim,
    Here,
    Job,
    JobState,
    JudgedMeasurement,
    KeyRing,
    Measurement,
    Page,
    ProfileRun,
    StoredDevice,
    StoredKey,
    StoredModel,
    StoredPlan,
    StoredProfile,
)
from scheduler.store.urls import checked_url, default_url

__all__ = [
    "AuditEntry",
    "Claim",
    "Here",
    "Job",
    "JobState",
    "JudgedMeasurement",
    "KeyMark",
    "KeyRing",
    "Measurement",
    "Page",
    "ProfileRun",
    "Pruned",
    "Store",
    "StoredDevice",
    "StoredKey",
    "StoredModel",
    "StoredPlan",
    "StoredProfile",
    "checked_url",
    "default_url",
]

T = TypeVar("T")


class Store:
    """An open database. Any number of threads and processes may use it at once.

    Args:   url: sqlite:///path or postgresql://user:password@host/name; None = that in EDGEWISE_DB, else SQLite in the
            user's data directory.
            create: the file where it is missing. upgrade: migrate a schema that is older than this build's.
    Raises: StoreError, by kind; StoreVersionError for a newer schema, or an older one with upgrade=False.
    """

    def __init__(self, url: str | None = None, *, create: bool = True, upgrade: bool = True) -> None:
        self._database = Database(default_url() if url is None else url, create)
        self.devices = Devices(self._database)
        self.models = Models(self._database)
        self.plans = Plans(self._database)
        self.measurements = Measurements(self._database)
        self.profiles = Profiles(self._database)
        self.queries = Queries(self._database)
        self.jobs = Jobs(self._database)
        self.keys = Keys(self._database)
        self.audit = Audit(self._database)
        try:
            if upgrade:
                self.upgrade()
            elif self._database.pending():
                raise self._database.error(StoreVersionError, "schema is older than this build's (run `edgewise db upgrade`)")
        except BaseException:
            self.close()
            raise

    @property
    def label(self) -> str:
        """The URL without its password."""
        return self._database.label

    def together(self, work: Callable[[], T]) -> T:
        """Run `work` with all that it reads and writes here in one transaction (`Database.together`). Returns its result."""
        return self._database.together(work)

    def prune(self, here: Here, older_than_days: float | None = None, *, stale: bool = False) -> Pruned:
        """Delete rows that are old or stale (`Pruning.prune`)."""
        return Pruning(self._database).prune(here, older_than_days, stale=stale)

    def ping(self) -> None:
        """Ask the database for nothing. Raises StoreError where it does not answer, or its file is not the one it opened."""
        self._database.ping()

    def upgrade(self) -> None:
        """Migrate the schema to this build's. Raises StoreVersionError for a newer schema."""
        self._database.upgrade()

    def revision(self) -> str | None:
        """Return the migration that the schema is at; None for an empty database."""
        return self._database.revision()

    def close(self) -> None:
        """Close every connection."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
