"""The executors that a session keeps ready: one for each set of input shapes, a bounded number of them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from graph.run.executor import Executor
from kernels.record import record

Shapes = tuple[Any, ...]  # of a model's inputs, in order; a caller's unchecked values until `check_feeds` has seen the feeds


@record
class Ready:
    """The executor of one set of input shapes. plan_id: of the plan it follows, "default" where it follows none."""

    executor: Executor
    plan_id: str


class ExecutorCache:
    """Executors by input shapes; the one unused for longest is dropped first. Any number of threads may use it.

    A dropped executor that is running ends its run: its arena lives until then.

    Args: most: executors to keep. arena_bytes: memory that all their arenas and packed weights may take together.
    """

    def __init__(self, most: int, arena_bytes: int) -> None:
        self._most, self._limit_bytes = most, arena_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[Shapes, Ready] = OrderedDict()  # the last used one at the end

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def arena_bytes(self) -> int:
        """Memory of all arenas, and of the packed weights that they share."""
        with self._lock:
            return self._sum_bytes()

    @property
    def last_used(self) -> Shapes | None:
        """The input shapes that were used last; None before any."""
        with self._lock:
            return next(reversed(self._kept), None)

    def find(self, shapes: Shapes) -> Ready | None:
        """Return the executor of these shapes, as used now; None where there is none."""
        with self._lock:
            if (found := self._kept.get(shapes)) is not None:
                self._kept.move_to_end(shapes)
            return found

    def keep(self, shapes: Shapes, made: Ready) -> None:
        """Keep an executor, whose own budget is within the limit, dropping others until both limits hold."""
        with self._lock:
            self._kept[shapes] = made
            while len(self._kept) > max(self._most, 1) or (len(self._kept) > 1 and self._sum_bytes() > self._limit_bytes):
                self._kept.popitem(last=False)

    def _sum_bytes(self) -> int:
        executors = [ready.executor for ready in self._kept.values()]
        packed = frozenset().union(*(executor.packed for executor in executors))
        return sum(executor.memory.arena_bytes for executor in executors) + sum(constant.array.nbytes for constant in packed)
