"""Clients that follow the events of jobs: a bounded number."""

from __future__ import annotations

from app.errors import RequestError


class Listeners:
    """Counts the clients that listen. Event loop only."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 0

    def join(self) -> None:
        """Count one client more. Raises RequestError 503 at the limit."""
        if self._count >= self._limit:
            raise RequestError(503, f"events: {self._count} clients listen, the limit; try again", {"Retry-After": "5"})
        self._count += 1

    def leave(self) -> None:
        """Count one client less."""
        self._count -= 1
