"""The port between the service and what computes: bounded, off the event loop, replaceable by a remote engine."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from app.errors import RequestError

T = TypeVar("T")


class Engine:
    """Runs blocking work on threads of its own; kernels release the GIL. At most `queue_limit` calls wait."""

    def __init__(self, workers: int, queue_limit: int) -> None:
        self._pool = ThreadPoolExecutor(workers, "edgewise-engine")
        self._capacity = workers + queue_limit
        self.pending = 0

    async def call(self, work: Callable[..., T], *arguments: object, **keywords: object) -> T:
        """Await work(*arguments, **keywords). Raises RequestError 503 when too many calls wait already."""
        if self.pending >= self._capacity:
            raise RequestError(503, f"engine: {self.pending} requests are waiting, the limit; try again", {"Retry-After": "1"})
        self.pending += 1
        future = asyncio.get_running_loop().run_in_executor(self._pool, functools.partial(work, *arguments, **keywords))
        future.add_done_callback(self._finished)
        return await future

    def _finished(self, _: object) -> None:
        self.pending -= 1

    def close(self) -> None:
        """Finish what runs, drop what waits."""
        self._pool.shutdown(wait=True, cancel_futures=True)
