"""The port between the service and what computes: bounded, off the event loop, replaceable by a remote engine.

`Engine.infer` is the one way to compute a request; everything that is known about it afterwards is in its `Outcome`.
"""

from __future__ import annotations

import asyncio
import functools
import heapq
import itertools
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

from app.errors import RequestError
from kernels.spec import Array
from scheduler.session import Session

T = TypeVar("T")
Run = Callable[[Mapping[str, Array]], dict[str, Array]]

PRIORITIES = 9  # 1 is the highest; a request that asks for none, or for one beyond, gets the one in the middle
WORK_THREADS = 2  # for what is no inference: profiles, plans, large bodies
WORK_LIMIT = 256


class Servable(Protocol):
    """What `infer` needs of a served model."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def session(self) -> Session | None:
        """What runs it; None where it is not ready."""


@dataclass(frozen=True, slots=True)
class InferOptions:
    """How one request is to be treated. deadline_ns: of time.monotonic_ns, by which it must have left the queue."""

    priority: int = 0
    deadline_ns: int | None = None
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an inference gave and took. batch_rows: of the whole batch it ran in. plan_id: "default" = each op's default."""

    outputs: dict[str, Array]
    queue_ns: int
    compute_ns: int
    batch_rows: int
    plan_id: str


def rows_of(feeds: Mapping[str, Array]) -> int:
    """Rows of a request: the first dimension of its first input, 1 where it has none."""
    first = next(iter(feeds.values()), None)
    return int(first.shape[0]) if first is not None and first.ndim else 1


class Engine:
    """Computes on threads of its own (kernels release the GIL), `workers` requests side by side.

    At most `queue_limit` requests wait: the highest priority first, then the oldest. Belongs to one event loop.
    run: how to run a session, where it is to be watched.
    """

    def __init__(self, workers: int, queue_limit: int, run: Callable[[Session], Run] = lambda session: session.run) -> None:
        self._pool = ThreadPoolExecutor(workers, "edgewise-engine")
        self._side = ThreadPoolExecutor(WORK_THREADS, "edgewise-work")
        self._free = workers
        self._limit = queue_limit
        self._run = run
        self._order = itertools.count()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self.running = 0
        self.working = 0

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return sum(not future.done() for _, _, future in self._waiting)

    @property
    def pending(self) -> int:
        """Requests that wait or run."""
        return self.running + self.waiting

    async def infer(self, served: Servable, feeds: Mapping[str, Array], options: InferOptions) -> Outcome:
        """Run a model once. Raises RequestError 503 when the queue is full or the deadline passes in it; what a run raises."""
        session = served.session
        if session is None:
            raise RequestError(503, f"model '{served.name}' is not ready")
        asked_ns = time.monotonic_ns()
        await self._take(options)
        started_ns = time.monotonic_ns()
        try:
            future = asyncio.get_running_loop().run_in_executor(self._pool, _timed, self._run(session), feeds)
        except RuntimeError:  # shut down
            self._pass_on()
            raise RequestError(503, "Server is stopping, its engine takes no more work") from None
        self.running += 1
        future.add_done_callback(self._give)  # not when the caller stops waiting: the thread is busy until the run ends
        outputs, compute_ns = await asyncio.shield(future)
        return Outcome(outputs, started_ns - asked_ns, compute_ns, rows_of(feeds), session.plan_id)

    async def _take(self, options: InferOptions) -> None:
        """Wait for a free worker."""
        if self._free:
            self._free -= 1
            return
        if (waiting := self.waiting) >= self._limit:
            message = f"Exceeds maximum queue size: {waiting} requests are waiting, the limit; try again"
            raise RequestError(503, message, {"Retry-After": "1"})
        priority = options.priority if 0 < options.priority <= PRIORITIES else (PRIORITIES + 1) // 2
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (priority, next(self._order), turn))
        left = None if options.deadline_ns is None else max(0, options.deadline_ns - time.monotonic_ns()) / 1e9
        try:
            await asyncio.wait_for(turn, left)
        except TimeoutError:
            raise RequestError(503, "Request timeout expired in the queue", {"Retry-After": "1"}) from None
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # its turn came at the very moment when the caller went
                self._pass_on()
            raise

    def _give(self, future: asyncio.Future[tuple[dict[str, Array], int]]) -> None:
        self.running -= 1
        if not future.cancelled():
            future.exception()  # seen, also where nobody waits any more
        self._pass_on()

    def _pass_on(self) -> None:
        """Hand a free worker to the first that waits."""
        while self._waiting:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    async def call(self, work: Callable[..., T], *arguments: object, **keywords: object) -> T:
        """Await other blocking work, beside the inferences. Raises RequestError 503 when too much of it waits already."""
        if self.working >= WORK_LIMIT:
            raise RequestError(503, f"server: {self.working} calls are waiting, the limit; try again", {"Retry-After": "1"})
        self.working += 1
        future = asyncio.get_running_loop().run_in_executor(self._side, functools.partial(work, *arguments, **keywords))
        future.add_done_callback(self._worked)
        return await future

    def _worked(self, _: object) -> None:
        self.working -= 1

    def close(self) -> None:
        """Finish what runs, drop what waits."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._side.shutdown(wait=True, cancel_futures=True)


def _timed(run: Run, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], int]:
    started_ns = time.perf_counter_ns()
    outputs = run(feeds)
    return outputs, time.perf_counter_ns() - started_ns
