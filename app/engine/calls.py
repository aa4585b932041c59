"""Blocking work other than inference, on its own threads, away from the event loop."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import TypeVar

from app.engine.threads import WorkThreads
from app.errors import RequestError

T = TypeVar("T")

THREADS = 2
LIMIT = 256  # calls that wait or run


class Calls:
    """A bounded thread pool, used from one event loop. Slow and quick work get one each, so that neither waits for the other."""

    def __init__(self, name: str, threads: int = THREADS, limit: int = LIMIT) -> None:
        self._pool = WorkThreads(threads, name)
        self._limit = limit
        self.working = 0

    async def call(self, work: Callable[..., T], *arguments: object, **keywords: object) -> T:
        """Await work(*arguments, **keywords) on a thread. Raises RequestError 503 when `limit` calls wait or run already."""
        if self.working >= self._limit:
            raise RequestError(503, f"server: {self.working} calls are waiting, the limit; try again", {"Retry-After": "1"})
        self.working += 1
        future = asyncio.get_running_loop().run_in_executor(self._pool, functools.partial(work, *arguments, **keywords))
        future.add_done_callback(self._worked)
        return await future

    def _worked(self, _: object) -> None:
        self.working -= 1

    def close(self, timeout_s: float) -> bool:
        """Drop the calls that wait and wait for running ones, at most that long. Returns whether they have ended."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        return self._pool.join(timeout_s)
