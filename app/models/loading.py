"""Model loads in progress: a request equal to one in progress joins it, so that clients may retry safely."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from app.engine.port import Engine
from app.errors import RequestError
from app.models.repository import Repository
from kernels.record import record

MAX_LOADS = 16


@record
class LoadRequest:
    """A request to load a model. key: equal for equal requests."""

    name: str
    config: str | None
    files: Mapping[str, bytes]
    key: str


class PendingLoads:
    """Starts loads and keeps track of them. Event loop only."""

    def __init__(self, repository: Repository, engine: Engine) -> None:
        self._repository = repository
        self._engine = engine
        self._running: dict[str, asyncio.Task[None]] = {}

    def join(self, asked: LoadRequest) -> asyncio.Task[None]:
        """Return the load's task, started now or earlier. Raises RequestError 503 if MAX_LOADS are in progress."""
        task = self._running.get(asked.key)
        if task is None:
            if len(self._running) >= MAX_LOADS:
                raise RequestError(
                    503, f"repository: {len(self._running)} loads are in progress, the limit; try again", {"Retry-After": "5"}
                )
            task = asyncio.ensure_future(self._load(asked))
            self._running[asked.key] = task
            task.add_done_callback(lambda done: self._finished(asked.key, done))
        return task

    async def _load(self, asked: LoadRequest) -> None:
        """Load into the repository, then into the engine: a load is done when requests can run."""
        for served in await self._engine.call(self._repository.load, asked.name, asked.config, asked.files):
            await self._engine.load(served)

    def _finished(self, key: str, done: asyncio.Task[None]) -> None:
        del self._running[key]
        if not done.cancelled():
            done.exception()  # retrieved, since all clients may have left
