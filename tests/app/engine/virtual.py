"""A clock that only tests move, and an event loop that runs until no more work is due at the clock's time."""

import asyncio
import heapq
import itertools
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class VirtualTimer:
    work: Callable[[], None] | None

    def cancel(self) -> None:
        self.work = None


@dataclass
class VirtualClock:
    time_ns: int = 0
    timers: list[tuple[int, int, VirtualTimer]] = field(default_factory=list)
    numbers: Any = field(default_factory=itertools.count)

    def now_ns(self) -> int:
        return self.time_ns

    def call_at(self, when_ns: int, work: Callable[[], None]) -> VirtualTimer:
        timer = VirtualTimer(work)
        heapq.heappush(self.timers, (when_ns, next(self.numbers), timer))
        return timer


class World:
    """An event loop whose time is virtual. problems: errors that no task handled."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.clock = VirtualClock()
        self.problems: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.problems.append(context))

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self.loop.create_task(work)
        self.settle()
        return task

    def settle(self) -> None:
        """Run the callbacks that are ready, and those that they make ready."""
        self.loop.run_until_complete(_turns(20))

    def advance(self, duration_ns: int) -> None:
        """Move the clock by that time and run every timer that becomes due, in order."""
        end_ns = self.clock.time_ns + duration_ns
        while self.clock.timers and self.clock.timers[0][0] <= end_ns:
            when_ns, _, timer = heapq.heappop(self.clock.timers)
            self.clock.time_ns = max(self.clock.time_ns, when_ns)
            if timer.work is not None:
                self.loop.call_soon(timer.work)
                self.settle()
        self.clock.time_ns = end_ns
        self.settle()

    def close(self) -> None:
        self.settle()
        self.loop.close()
        assert not self.problems, self.problems


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)
