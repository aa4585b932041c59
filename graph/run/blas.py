"""Control of the number of BLAS threads while executors run. BLAS has one number for the whole process."""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import threadpoolctl


@dataclass(slots=True)
class _Process:
    """BLAS in this process: open contexts, the number set now, the numbers set before the first. Guarded by `lock`."""

    holders: int = 0
    counts: list[int] = field(default_factory=list)
    before: list[int] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def set(self, counts: list[int]) -> None:
        """Set the number of threads of every library that has another one."""
        for library, old, new in zip(_libraries(), self.counts, counts, strict=True):
            if old != new:
                library.set_num_threads(new)
        self.counts = counts


_process = _Process()


class BlasThreads:
    """A context in which BLAS uses `count` threads; None leaves the number as it is.

    Results do not depend on it. Where contexts overlap, the one entered last decides for all. When the last one is left, the
    numbers that were set before the first one are restored.
    """

    def __init__(self, count: int | None) -> None:
        self.count = count

    def __enter__(self) -> None:
        if self.count is None:
            return
        with _process.lock:
            if not _process.holders:
                _process.before = _process.counts = [library.num_threads for library in _libraries()]
            _process.holders += 1
            _process.set([self.count] * len(_process.counts))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.count is None:
            return
        with _process.lock:
            _process.holders -= 1
            if not _process.holders:
                _process.set(_process.before)


@functools.cache
def _libraries() -> tuple[Any, ...]:
    """The BLAS libraries of this process, cached: finding them takes milliseconds, reading a number of threads a microsecond."""
    return tuple(library for library in threadpoolctl.ThreadpoolController().lib_controllers if library.user_api == "blas")
