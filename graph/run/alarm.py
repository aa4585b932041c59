"""One thread of a process that tells runs when their deadline passes, so that no step has to read the clock."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from graph.run.bounds import RunBounds

_LONGEST_S = 3600.0  # of one wait: threads cannot wait for any number of seconds


class Alarm:
    """Rings the bounds of runs at their deadlines. Thread-safe.

    Its thread starts with the first deadline. It is woken for a deadline that comes before the next one that it knows, and for no
    other, so that runs which follow one another with the same time limit wake it once in that time.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._runs: set[RunBounds] = set()
        self._next_ns = math.inf  # when the thread looks at the clock again
        self._thread: threading.Thread | None = None

    @contextmanager
    def set_for(self, bounds: RunBounds) -> Iterator[None]:
        """Ring these bounds at their deadline, if it passes during the block."""
        if bounds.deadline_ns is None:
            yield
            return
        with self._changed:
            self._runs.add(bounds)
            if bounds.deadline_ns < self._next_ns:
                self._wake()
        try:
            yield
        finally:
            with self._changed:
                self._runs.discard(bounds)

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="edgewise-alarm", daemon=True)
            self._thread.start()
        self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            while True:
                now_ns = time.monotonic_ns()
                for bounds in [bounds for bounds in self._runs if (bounds.deadline_ns or 0) <= now_ns]:
                    self._runs.discard(bounds)
                    bounds.ring()
                self._next_ns = min((bounds.deadline_ns or 0 for bounds in self._runs), default=math.inf)
                self._changed.wait(min(_LONGEST_S, (self._next_ns - now_ns) / 1e9))


_shared: list[Alarm] = [Alarm()]


def shared_alarm() -> Alarm:
    """Return the alarm of this process."""
    return _shared[0]


def _after_fork() -> None:
    """Replace the parent's alarm, whose thread a forked child does not have."""
    _shared[0] = Alarm()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
