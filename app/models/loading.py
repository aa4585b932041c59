"""Loads that are under way: a request for the same as one that runs joins it, so that a client may try again safely."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from app.engine.port import Engine
from app.errors import RequestError
from app.models.repository import Repository

MAX_LOADS = 16


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """What to load. key: equal for requests that ask for the same."""

    name: str
    config: str | None
    files: Mapping[str, bytes]
    key: str


class PendingLoads:
    """Event loop only."""

    def __init__(self, repository: Repository, engine: Engine) -> None:
        self._repository = repository
        self._engine = engine
        self._running: dict[str, asyncio.Task[None]] = {}

    def join(self, asked: LoadRequest) -> asyncio.Task[None]:
        """The load, begun now or earlier. Raises RequestError 503 when too many are under way."""
        task = self._running.get(asked.key)
        if task is None:
            if len(self._running) >= MAX_LOADS:
                raise RequestError(503, f"repository: {len(self._running)} loads are under way, the limit", {"Retry-After": "5"})
            task = asyncio.ensure_future(self._load(asked))
            self._running[asked.key] = task
            task.add_done_callback(lambda done: self._finished(asked.key, done))
        return task

    async def _load(self, asked: LoadRequest) -> None:
        """Ready is what the engine has, too."""
        for served in await self._engine.call(self._repository.load, asked.name, asked.config, asked.files):
            await self._engine.load(served)

    def _finished(self, key: str, done: asyncio.Task[None]) -> None:
        del self._running[key]
        if not done.cancelled():
            done.exception()  # seen, also where nobody waits any more
