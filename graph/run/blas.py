"""Control of the number of BLAS threads while executors run. BLAS has one number for the whole process."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any


@dataclass(slots=True)
class _Process:
    """BLAS in this process: what open contexts ask for, and the numbers set before the first of them. Guarded by `lock`."""

    wanted: list[int] = field(default_factory=list)
    before: list[int] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def apply(self) -> None:
        """Set the least number that an open context asks for; without one, the numbers from before."""
        libraries = _libraries()
        _set(libraries, [min(self.wanted)] * len(libraries) if self.wanted else self.before)


_process = _Process()


class BlasThreads:
    """A context in which BLAS uses at most `count` threads, on whichever thread it is entered; None leaves the number as it is.

    BLAS sums in another order on another number of threads, so results may differ by rounding. Where contexts overlap, the least
    of their numbers holds for all, so that none uses more cores than it was given. When the last one is left, the numbers that
    were set before the first one are restored.
    """

    def __init__(self, count: int | None) -> None:
        self.count = count

    def __enter__(self) -> None:
        if self.count is None:
            return
        with _process.lock:
            if not _process.wanted:
                _process.before = [library.num_threads for library in _libraries()]
            _process.wanted.append(self.count)
            _process.apply()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.count is None:
            return
        with _process.lock:
            _process.wanted.remove(self.count)
            _process.apply()


def _set(libraries: Sequence[Any], counts: Sequence[int]) -> None:
    """Set the number of threads of every library that has another one."""
    for library, count in zip(libraries, counts, strict=True):
        if library.num_threads != count:
            _release(library)
            library.set_num_threads(count)
            _release(library)


def _release(library: Any) -> None:
    """Let any thread set the number of threads: threadpoolctl ignores all but the one that set OpenBLAS's number first."""
    if hasattr(library, "clear_controlling_thread"):
        library.clear_controlling_thread(force=True)


@functools.cache
def _libraries() -> tuple[Any, ...]:
    """The BLAS libraries of this process, cached: finding them takes milliseconds, reading a number of threads a microsecond."""
    import threadpoolctl  # noqa: PLC0415  only where numpy computes

    return tuple(library for library in threadpoolctl.ThreadpoolController().lib_controllers if library.user_api == "blas")
