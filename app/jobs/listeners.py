"""The number of clients that follow the events of jobs, and its limit."""

from __future__ import annotations

from app.errors import RequestError


class Listeners:
    """Counts clients that follow events. Event loop only."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 0

    def join(self) -> None:
        """Add a client. Raises RequestError 503 at the limit."""
        if self._count >= self._limit:
            raise RequestError(
                503, f"events: {self._count} clients are following jobs, the limit; try again", {"Retry-After": "5"}
            )
        self._count += 1

    def leave(self) -> None:
        """Remove a client."""
        self._count -= 1
