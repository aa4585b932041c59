"""Health of the service: whether requests should be sent to it, and problems that it has."""

from __future__ import annotations

from typing import Any

from app.access.journal import Journal
from app.engine.overdue import OverdueRuns
from app.errors import RequestError
from app.models.repository import Repository
from scheduler.errors import StoreMovedError


class Health:
    """Readiness of one service.

    Args: overdue: the engine's runs that do not end. strict: a model that failed to load makes the server not ready.
    """

    def __init__(self, repository: Repository, journal: Journal, overdue: OverdueRuns, *, strict: bool) -> None:
        self._repository, self._journal, self._overdue, self._strict = repository, journal, overdue, strict
        self.draining = False

    def begin_drain(self) -> None:
        """Report not ready from now on. Requests that still arrive are served."""
        self.draining = True

    def require_running(self) -> None:
        """Raise RequestError 503 while the first models load, and once the server is stopping."""
        if self.draining:
            raise RequestError(503, "Server is stopping, send requests elsewhere")
        if not self._repository.loaded.is_set():
            raise RequestError(503, "server: models are loading")

    def require_ready(self) -> None:
        """Raise RequestError 503 if requests should be sent elsewhere; see `docs/serving.md`."""
        self.require_running()
        if isinstance(lost := self._journal.lost, StoreMovedError):
            raise RequestError(503, lost.told)
        if reason := self._overdue.reason():
            raise RequestError(503, f"server: {reason}")
        if self._strict and (failed := self._repository.failed):
            raise RequestError(503, f"server: model '{failed[0].name}' version {failed[0].version} failed to load")

    def require_model_ready(self, name: str) -> None:
        """Raise RequestError 503 while a run of that model has not ended though its deadline has passed."""
        if reason := self._overdue.reason(name):
            raise RequestError(503, f"model '{name}' is not ready: {reason}")

    def detail(self) -> dict[str, Any]:
        """Return problems that are no reason to send requests elsewhere; empty without any."""
        journal = self._journal
        if journal.database_up and not journal.dropped:
            return {}
        state = "ok" if journal.database_up else "unavailable"
        return {"database": state, "buffered_writes": journal.buffered, "dropped_writes": journal.dropped}
