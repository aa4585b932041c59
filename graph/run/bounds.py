"""What bounds one run: its deadline, the rounds of its loops, the memory it allocates, and cancelling from another thread.

A run asks its bounds between two steps and between two rounds of a loop, and a native segment looks at their stop word between
two kernels. A kernel that has begun, native or of numpy, is not interrupted.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from graph.errors import LimitError, RunCancelledError, RunTimeoutError
from kernels.containers import held_bytes
from kernels.spec import Array, Spec, dtype_name

MAX_ROUNDS = 10_000_000  # of one run: a loop without an end must end. A round takes 10 µs at least
ARRAY_BYTES = 128  # that numpy takes for an array beside its elements


class RunBounds:
    """The bounds of one run, shared by all that computes for it: its steps, and the bodies of If, Loop and Scan at any depth.

    Any thread may call `cancel`, `ring`, `take` and `give`; the other methods belong to the thread of the run.

    watched: whether `check` may raise now; a step reads it and nothing else. stop: int32[1], not 0 once the run is to end, which
    native segments read.

    Args: deadline_ns: when the run must have ended, on the clock of `time.monotonic_ns`; None = it may take any time.
          rounds: that all loops of the run may make together, nested ones included.
          memory_bytes: that values whose shapes only the run knows, stacked outputs of loops, graph outputs and scratch memory of
          steps may take at a time, all together; None = no limit but the one of a single value (`graph.shapes.MAX_VALUE_BYTES`).
    """

    __slots__ = (
        "_began_ns",
        "_held_bytes",
        "_lock",
        "_reason",
        "_rounds",
        "deadline_ns",
        "memory_bytes",
        "rounds",
        "stop",
        "watched",
    )

    def __init__(self, deadline_ns: int | None = None, *, rounds: int = MAX_ROUNDS, memory_bytes: int | None = None) -> None:
        self.deadline_ns = deadline_ns
        self.rounds = rounds
        self.memory_bytes = memory_bytes
        self.watched = False
        self.stop: Array = np.zeros(1, np.int32)
        self._began_ns = time.monotonic_ns()
        self._reason = ""
        self._rounds = 0
        self._held_bytes = 0
        self._lock = threading.RLock()  # re-entrant: a collection inside `take` may free arrays, which calls `give`

    def allow(self, nbytes: int) -> None:
        """Bound the memory that the run takes, unless it is bounded more tightly. Before the run begins."""
        self.memory_bytes = nbytes if self.memory_bytes is None else min(self.memory_bytes, nbytes)

    @property
    def held_bytes(self) -> int:
        """Bytes that the run holds now; 0 where `memory_bytes` is None, since nothing is counted then."""
        return self._held_bytes

    def cancel(self, reason: str) -> None:
        """End the run before its next step. reason: why, for the error that the run raises; the first one counts."""
        self._reason = self._reason or reason
        self.ring()

    def ring(self) -> None:
        """Make the run `check` before its next step. `graph.run.alarm` calls it at the deadline."""
        self.watched = True
        self.stop[0] = 1

    def check(self) -> None:
        """Raise RunCancelledError if the run was cancelled, RunTimeoutError if its deadline has passed."""
        if self._reason:
            raise RunCancelledError(f"run: cancelled, {self._reason}")
        if self.deadline_ns is not None and (now_ns := time.monotonic_ns()) >= self.deadline_ns:
            seconds = (now_ns - self._began_ns) / 1e9
            raise RunTimeoutError(
                f"run: not done at its deadline, {seconds:.3g} s after it began; allow more time or compute less"
            )

    def start_round(self, op: str) -> None:
        """Count one more round of a loop and `check`. Raises LimitError after `rounds` of them."""
        if self._rounds >= self.rounds:
            raise LimitError(
                f"{op}: not done after {self._rounds} rounds of all loops of the run together, the limit is {self.rounds}"
            )
        self._rounds += 1
        if self.watched:
            self.check()

    def take(self, nbytes: int, what: str) -> None:
        """Count memory that the run is about to allocate. what: it is for. Raises LimitError past `memory_bytes`."""
        if self.memory_bytes is None:
            return
        with self._lock:
            held_bytes = self._held_bytes + nbytes
            if held_bytes > self.memory_bytes:
                raise LimitError(
                    f"{what}: {nbytes} bytes beside the {self._held_bytes} that the run holds, its limit is {self.memory_bytes}"
                )
            self._held_bytes = held_bytes

    def give(self, nbytes: int) -> None:
        """Count memory that the run has freed."""
        if self.memory_bytes is not None:
            with self._lock:
                self._held_bytes -= nbytes

    @contextmanager
    def scratch(self, nbytes: int, what: str) -> Iterator[None]:
        """Count memory that is freed at the end of the block. Raises LimitError as `take` does."""
        self.take(nbytes, what)
        try:
            yield
        finally:
            self.give(nbytes)

    def hold(self, container: Array) -> Array:
        """Count the tensors that a sequence or an optional holds until it is freed, those that others hold too once for each.

        Returns the container. Raises LimitError as `take` does.
        """
        if self.memory_bytes is not None:
            nbytes = held_bytes(container)
            self.take(nbytes, dtype_name(container.dtype))
            weakref.finalize(container, self.give, nbytes).atexit = False
        return container

    def empty(self, spec: Spec, what: str) -> Array:
        """Allocate an array that counts until its memory is freed, however long that is. Raises LimitError as `take` does."""
        if self.memory_bytes is None:
            return np.empty(spec.shape, spec.dtype)
        nbytes = spec.nbytes + ARRAY_BYTES
        self.take(nbytes, what)
        try:
            array = np.empty(spec.shape, spec.dtype)
        except MemoryError:
            self.give(nbytes)
            raise
        weakref.finalize(array, self.give, nbytes).atexit = False
        return array
