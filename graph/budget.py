"""Budgets of memory: what a model may take, and what all models of a process may take together. Counted before it is allocated.

The defaults are shares of the memory that this process may use (`kernels.confinement`): a model may take half of it for its runs,
all models of a service three quarters of it. `docs/memory.md` says what is counted.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Final
from weakref import WeakSet

from graph.errors import LimitError
from kernels.confinement import usable_memory_bytes
from kernels.errors import OutOfMemoryError

MOST_BYTES: Final = 16 * 2**30  # of one value, on machines of any size: a Tile or Expand past it is an attack or a mistake
_ADVICE = "use smaller shapes, or raise SessionLimits.arena_bytes (EDGEWISE_MAX_ARENA_BYTES)"


def model_share_bytes(usable_bytes: int | None = None) -> int:
    """Return the default limit of one model's runs: half of the memory that this process may use."""
    return (usable_memory_bytes() if usable_bytes is None else usable_bytes) // 2


def process_share_bytes(usable_bytes: int | None = None) -> int:
    """Return the default limit of all models of a service: three quarters of the memory that this process may use."""
    return (usable_memory_bytes() if usable_bytes is None else usable_bytes) // 4 * 3


class ProcessMemory:
    """The memory that all models of a process and their runs take together. Any number of threads may use it.

    Args: limit_bytes: of all that is taken; None = `process_share_bytes()`.
    """

    def __init__(self, limit_bytes: int | None = None) -> None:
        self.limit_bytes = process_share_bytes() if limit_bytes is None else limit_bytes
        self._taken_bytes = 0
        self._given: deque[int] = deque()  # to be subtracted: garbage collection gives while the lock is held
        self._owners: WeakSet[object] = WeakSet()
        self._lock = threading.Lock()

    @property
    def taken_bytes(self) -> int:
        """Bytes taken at this moment."""
        with self._lock:
            return self._settled()

    @property
    def free_bytes(self) -> int:
        """Bytes that may still be taken."""
        return self.limit_bytes - self.taken_bytes

    def take(self, nbytes: int, what: str) -> None:
        """Count bytes until they are given back. Raises OutOfMemoryError, and counts nothing, where they exceed the limit."""
        with self._lock:
            taken_bytes = self._settled()
            if taken_bytes + nbytes > self.limit_bytes:
                raise OutOfMemoryError(
                    f"{what}: needs {nbytes} bytes, models and runs of this process take {taken_bytes} of {self.limit_bytes}; "
                    "try again later, unload a model, or raise EDGEWISE_MAX_MEMORY_BYTES"
                )
            self._taken_bytes += nbytes

    def give(self, nbytes: int) -> None:
        """Count bytes no longer."""
        self._given.append(nbytes)

    def take_for(self, owner: object, nbytes: int, what: str) -> None:
        """Count bytes for as long as `owner` lives, once. Raises OutOfMemoryError like `take`."""
        if owner not in self._owners:
            self.take(nbytes, what)
            self._owners.add(owner)
            weakref.finalize(owner, self.give, nbytes)

    @contextlib.contextmanager
    def holding(self, nbytes: int, what: str) -> Iterator[None]:
        """Take bytes for the block. Raises OutOfMemoryError like `take`."""
        self.take(nbytes, what)
        try:
            yield
        finally:
            self.give(nbytes)

    def _settled(self) -> int:
        while self._given:
            self._taken_bytes -= self._given.popleft()
        return self._taken_bytes


class RunBudget:
    """The memory of one executor: what it keeps between runs, and what each of its runs allocates besides.

    Args: limit_bytes: of both together; None = `model_share_bytes()`. process: where both are counted too, if anywhere.
    """

    def __init__(self, limit_bytes: int | None = None, process: ProcessMemory | None = None) -> None:
        self.limit_bytes = model_share_bytes() if limit_bytes is None else limit_bytes
        self._own_bytes = self._shared_bytes = 0
        self._process = process

    @property
    def kept_bytes(self) -> int:
        """Bytes that stay allocated between runs."""
        return self._own_bytes + self._shared_bytes

    @property
    def free_bytes(self) -> int:
        """Bytes that a run may allocate."""
        return self.limit_bytes - self.kept_bytes

    def require(self, nbytes: int, largest: str) -> None:
        """Raise LimitError unless that much fits beside what is kept. largest: what takes the most of it, and where."""
        if nbytes > self.free_bytes:
            kept = f" beside {self.kept_bytes} that are kept" if self.kept_bytes else ""
            raise LimitError(f"{largest}: its run needs {nbytes} bytes{kept}, the limit is {self.limit_bytes}; {_ADVICE}")

    def keep(self, nbytes: int, what: str) -> None:
        """Count memory that stays until `release`. Raises LimitError, or OutOfMemoryError where the process has no more."""
        self.require(nbytes, what)
        if self._process is not None:
            self._process.take(nbytes, what)
        self._own_bytes += nbytes

    def share(self, owner: object, nbytes: int, what: str) -> None:
        """Count memory that other executors use too: here in full, in the process once and for as long as `owner` lives."""
        self.require(nbytes, what)
        if self._process is not None:
            self._process.take_for(owner, nbytes, what)
        self._shared_bytes += nbytes

    def running(self, nbytes: int, what: str) -> contextlib.AbstractContextManager[None]:
        """Return a context in which a run's memory is counted in the process' budget. Entering it raises OutOfMemoryError."""
        return contextlib.nullcontext() if self._process is None else self._process.holding(nbytes, what)

    def release(self) -> None:
        """Count what was kept no longer: it is freed."""
        if self._process is not None:
            self._process.give(self._own_bytes)
        self._own_bytes = self._shared_bytes = 0
