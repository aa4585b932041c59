"""A bound of the memory that requests take together, over all transports."""

from __future__ import annotations

from app.errors import RequestError


class HeldBytes:
    """Bytes of all requests that are being answered, at most `limit_bytes`. Event loop only."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.now = 0

    def take(self, nbytes: int) -> None:
        """Count bytes that arrived; `give` them back when their request is answered, also where this raises.

        Raises: RequestError 503 beyond the limit.
        """
        self.now += nbytes
        if self.now > self._limit_bytes:
            raise RequestError(
                503,
                f"body: requests being answered hold more than {self._limit_bytes} bytes, the limit; try again",
                {"Retry-After": "1", "Connection": "close"},
            )

    def give(self, nbytes: int) -> None:
        """Take bytes off the count."""
        self.now -= nbytes
