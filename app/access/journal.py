"""Database writes for which no request waits: kept in memory, within a bound, while the database does not answer."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable

import structlog

from app.errors import RequestError
from scheduler.errors import StoreError, StoreUnreachableError
from scheduler.store import AuditEntry, Store

log = structlog.get_logger("edgewise.journal")

MAX_ENTRIES = 10_000
FLUSH_S = 1.0
ANSWER_S = 5.0


class Journal:
    """Audit entries and times of the last use of keys, until they are written. Thread-safe."""

    def __init__(self, max_entries: int = MAX_ENTRIES) -> None:
        self._max_entries = max_entries
        self._entries: deque[AuditEntry] = deque()
        self._used_us: dict[str, int] = {}
        self._lock = threading.Lock()
        self.dropped = 0
        self.lost: StoreError | None = None  # why the database did not answer last

    @property
    def database_up(self) -> bool:
        """Whether the database answered last."""
        return self.lost is None

    @property
    def buffered(self) -> int:
        """Number of writes that wait."""
        return len(self._entries) + len(self._used_us)

    def add(self, entry: AuditEntry) -> None:
        """Keep an entry. At the bound the oldest one is dropped and counted."""
        with self._lock:
            if len(self._entries) >= self._max_entries:
                self._entries.popleft()
                self.dropped += 1
            self._entries.append(entry)

    def touch(self, prefix: str) -> None:
        """Note that a key was used now. Only keys of the database are noted, which bounds their number."""
        with self._lock:
            self._used_us[prefix] = time.time_ns() // 1000

    def flush(self, store: Store) -> None:
        """Write all that waits. Raises StoreError, and keeps what was not written."""
        with self._lock:
            entries, used_us = list(self._entries), dict(self._used_us)
        if entries:
            store.audit.add(entries)
        with self._lock:
            for entry in entries:
                if self._entries and self._entries[0] is entry:  # entries dropped meanwhile are gone already
                    self._entries.popleft()
        if used_us:
            store.keys.touch(used_us)
        with self._lock:
            for prefix, moment in used_us.items():
                if self._used_us.get(prefix) == moment:
                    del self._used_us[prefix]

    async def keep(self, call: Callable[..., Awaitable[None]], open_store: Callable[[], Store]) -> None:
        """Write, and look whether the database answers, every FLUSH_S for as long as the service runs.

        call: awaits a function on a thread.
        """
        while True:
            await asyncio.sleep(FLUSH_S)
            attempt = asyncio.ensure_future(call(self.attempt, open_store))
            try:
                done, _ = await asyncio.wait({attempt}, timeout=ANSWER_S)
                if not done:
                    self._lose(StoreUnreachableError(f"database: no answer within {ANSWER_S:g} s (check that its server runs)"))
                await attempt
            except RequestError:  # too much other work waits: the next second will do
                continue

    def attempt(self, open_store: Callable[[], Store]) -> None:
        """Write all that waits, or note and log that the database does not answer. Blocks."""
        try:
            store = open_store()
            self.flush(store)
            store.ping()
        except StoreError as error:
            self._lose(error)
            return
        if self.lost is not None:
            log.info("database back", buffered=self.buffered)
        self.lost = None

    def _lose(self, error: StoreError) -> None:
        if self.lost is None:
            log.error("database lost", reason=str(error), buffered=self.buffered)
        self.lost = error
