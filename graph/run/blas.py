"""How many threads BLAS uses while an executor runs. BLAS has one count for the whole process."""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import threadpoolctl


@dataclass(slots=True)
class _Process:
    """Who holds BLAS, what it is set to, and what it was set to before the first of them. Guarded by `lock`."""

    holders: int = 0
    counts: list[int] = field(default_factory=list)
    before: list[int] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def set(self, counts: list[int]) -> None:
        """Tell every library that is set to something else."""
        for library, old, new in zip(_libraries(), self.counts, counts, strict=True):
            if old != new:
                library.set_num_threads(new)
        self.counts = counts


_process = _Process()


class BlasThreads:
    """A context that holds BLAS to `count` threads; None leaves it as it is.

    Results do not depend on it. Of contexts that overlap, the last one entered decides for all of them; when the last is
    left, the process gets back the counts it had before the first.
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
    """The BLAS libraries of this process. Finding them takes milliseconds, asking one for its count a microsecond."""
    return tuple(library for library in threadpoolctl.ThreadpoolController().lib_controllers if library.user_api == "blas")
