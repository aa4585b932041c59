"""Dynamic batching for one model: requests wait in levels of priority, and those of one shape share a run.

Triton's rules. A batch is formed when cores are free, not before, so that it grows as long as it has to wait anyway; a request
is never split; whoever is cancelled or too late is not computed. When a run fails by its data, its requests run again one by
one, so that a bad one harms no other; when what runs it is lost, all of them fail and may be tried again. A batch whose shapes
have no code yet goes back to the queue until they have it, and others run meanwhile.
Nothing here knows of HTTP, models or processes: the clock, the cores and what runs a batch are given.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from app.engine.curve import BatchCurve
from app.engine.policy import NS_PER_US, DynamicBatching
from app.errors import RequestError, UnbuiltError
from kernels.errors import DeviceLostError, EdgewiseError
from kernels.spec import Array

MAX_AUTOMATIC_DELAY_NS = 10_000_000  # a batch is held no longer than this on the word of a measured curve


@dataclass(frozen=True, slots=True)
class InferOptions:
    """What a request asks for itself. priority: 0 = the model's default, 1 = the highest. deadline_ns: on the monotonic clock."""

    priority: int = 0
    deadline_ns: int | None = None
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A request's own rows of what its batch gave, and how it went.

    batch_rows: of the whole batch. plan_id: "default" = each op's default. alone: it shared neither the run nor the cores.
    """

    outputs: dict[str, Array]
    queue_ns: int
    compute_ns: int
    batch_rows: int
    plan_id: str
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Ran:
    """What running a batch gave: the outputs of each request, in order. alone: nothing else was computed meanwhile."""

    outputs: Sequence[dict[str, Array]]
    compute_ns: int
    plan_id: str = "default"
    alone: bool = False


@dataclass(slots=True, eq=False)
class Bucket:
    """Requests that may share a run: one dtype and shape for every input, but for the rows.

    sizes: the batch sizes that may be run, ascending; empty = each request by itself. paying: the largest of them that was seen
    to be worth it. waiting_rows: of those in the queue. building: rows whose code is being built, and who was put back for it.
    built: rows for which it was, and which the next run builds itself should that be gone: with more shapes in use than a model
    keeps, each gets its turn.
    """

    sizes: tuple[int, ...] = ()
    paying: int = 1
    curve: BatchCurve = field(default_factory=BatchCurve)
    waiting_rows: int = 0
    building: dict[int, list[Request]] = field(default_factory=dict)
    built: set[int] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class Request:
    """A request on its way. answer: resolved once, with an Outcome or an error, whatever happens."""

    feeds: dict[str, Array]
    rows: int
    bucket: Bucket
    level: int
    arrived_ns: int
    expires_ns: int | None
    rejects: bool  # when it expires; else it goes on, behind the others
    answer: asyncio.Future[Outcome]
    started_ns: int = 0
    parked: bool = False  # until its code is built
    timer: Timer | None = None
    ready: Outcome | BaseException | None = None  # decided, and held back until those before it are

    @property
    def gone(self) -> bool:
        """Nobody waits for it any more."""
        return self.answer.done()

    @property
    def runnable(self) -> bool:
        """Whether nothing that it needs is being built."""
        return not self.parked and self.rows not in self.bucket.building


class Batch:
    """Requests in one run. `on_abandoned` is called when the last of them is gone before the run ends."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.build = False  # what it needs, in the run
        self.on_abandoned: Callable[[], None] | None = None

    @property
    def rows(self) -> int:
        """Rows of all requests."""
        return sum(request.rows for request in self.requests)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of its inputs, with the rows of all requests."""
        feeds = self.requests[0].feeds
        if len(self.requests) == 1:
            return {name: feed.shape for name, feed in feeds.items()}
        return {name: (self.rows, *feed.shape[1:]) for name, feed in feeds.items()}

    @property
    def deadline_ns(self) -> int | None:
        """When nobody wants its result any more; None where that never happens."""
        found = [r.expires_ns for r in self.requests if r.expires_ns is not None and r.rejects]
        return max(found) if len(found) == len(self.requests) else None

    def check(self) -> None:
        """Tell whoever runs it when nobody waits any more."""
        abandoned = self.on_abandoned
        if abandoned is not None and all(request.gone for request in self.requests):
            self.on_abandoned = None
            abandoned()


class Timer(Protocol):
    """What `Clock.call_at` gives."""

    def cancel(self) -> None:
        """Do not call."""


class Clock(Protocol):
    """Monotonic time, and calls at a time."""

    def now_ns(self) -> int:
        """Nanoseconds of a monotonic clock."""

    def call_at(self, when_ns: int, work: Callable[[], None]) -> Timer:
        """Call then."""


Lease = Callable[[Callable[[], int]], AbstractAsyncContextManager[None]]
Run = Callable[[Batch], Awaitable[Ran]]
Build = Callable[[Batch], Awaitable[None]]


class Batcher:
    """The queue of one model.

    lease: holds the cores of one run, given the priority of who is next. run: raises UnbuiltError for what `build` has to make
    ready. instances: runs at once.
    """

    def __init__(
        self, name: str, policy: DynamicBatching, clock: Clock, lease: Lease, run: Run, build: Build, instances: int = 1
    ) -> None:
        self.name = name
        self.policy = policy
        self.instances = instances
        self._clock, self._lease, self._run, self._build = clock, lease, run, build
        self._levels = {level: deque[Request]() for level in policy.levels}
        self._delayed = {level: deque[Request]() for level in policy.levels}
        self._order: deque[Request] = deque()  # unanswered ones as they came, where replies keep that order
        self._turns: set[asyncio.Task[None]] = set()
        self._builds: set[asyncio.Task[None]] = set()
        self._claimed = False  # a turn waits for cores, and will take what is waiting when it has them
        self._running: set[Batch] = set()
        self._hold: Timer | None = None
        self._closed = False

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return sum(map(len, itertools.chain(self._levels.values(), self._delayed.values())))

    @property
    def running(self) -> int:
        """Requests in runs under way, also where nobody waits for them any more."""
        return sum(len(batch.requests) for batch in self._running)

    async def submit(self, feeds: dict[str, Array], rows: int, bucket: Bucket, options: InferOptions) -> Outcome:
        """Wait for the request's turn and its run.

        Raises: RequestError 503 when the queue is full, the request's time is over or the service ends; what the run raised.
        """
        request = self._admit(feeds, rows, bucket, options)
        self._pump()
        try:
            return await request.answer
        except asyncio.CancelledError:
            self._withdraw(request)
            for batch in self._running:
                batch.check()
            self._deliver_in_order()
            self._pump()
            raise

    def close(self) -> None:
        """Refuse everybody who waits, and all who come."""
        self._closed = True
        error = RequestError(503, f"Server is stopping, model '{self.name}' takes no requests", {"Retry-After": "1"})
        for request in list(self._waiting()):
            self._withdraw(request)
            self._answer(request, error)
        for task in [*self._turns, *self._builds]:
            task.cancel()
        if self._hold is not None:
            self._hold.cancel()

    async def drained(self) -> None:
        """Wait for the runs and builds under way."""
        while self._turns or self._builds:
            await asyncio.wait(self._turns | self._builds)

    def _admit(self, feeds: dict[str, Array], rows: int, bucket: Bucket, options: InferOptions) -> Request:
        now_ns = self._clock.now_ns()
        level = self.policy.level(options.priority)
        limits = self.policy.queue_policy(level)
        if self._closed:
            raise RequestError(503, f"Server is stopping, model '{self.name}' takes no requests", {"Retry-After": "1"})
        if limits.max_queue_size and len(self._levels[level]) + len(self._delayed[level]) >= limits.max_queue_size:
            raise RequestError(
                503, f"Exceeds maximum queue size of {limits.max_queue_size} for model '{self.name}'", {"Retry-After": "1"}
            )
        expires_ns = limits.expires_ns(now_ns, options.deadline_ns)
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        request = Request(feeds, rows, bucket, level, now_ns, expires_ns, limits.timeout_action == "REJECT", answer)
        if expires_ns is not None and expires_ns <= now_ns and request.rejects:
            raise self._late(request)
        self._levels[level].append(request)
        bucket.waiting_rows += rows
        bucket.curve.arrived(now_ns, rows)
        if self.policy.preserve_ordering:
            self._order.append(request)
        self._arm(request)
        return request

    def _arm(self, request: Request) -> None:
        """Come back when the time of a request that waits is over."""
        if request.expires_ns is not None:
            request.timer = self._clock.call_at(request.expires_ns, lambda: self._expire(request))

    def _late(self, request: Request) -> RequestError:
        waited_us = (self._clock.now_ns() - request.arrived_ns) // NS_PER_US
        return RequestError(
            503, f"Request timeout expired: model '{self.name}', {waited_us} µs in the queue", {"Retry-After": "1"}
        )

    def _expire(self, request: Request) -> None:
        """Its time is over while it waits: refuse it, or let everybody of its level go first."""
        if request.timer is not None:
            request.timer.cancel()
            request.timer = None
        if request.rejects:
            self._withdraw(request)
            self._answer(request, self._late(request))
        else:
            self._levels[request.level].remove(request)
            self._delayed[request.level].append(request)
        self._pump()

    def _waiting(self) -> Iterator[Request]:
        """Who waits, the next one first."""
        for level in self.policy.levels:
            yield from self._levels[level]
            yield from self._delayed[level]

    def _next(self) -> Request | None:
        """Who is next of those that may run."""
        return next((request for request in self._waiting() if request.runnable), None)

    def _withdraw(self, request: Request) -> None:
        """Take a request out of the queue, where it is still in it."""
        if request.timer is not None:
            request.timer.cancel()
            request.timer = None
        for queue in (self._levels[request.level], self._delayed[request.level]):
            if request in queue:
                queue.remove(request)
                request.bucket.waiting_rows -= request.rows

    def _rank(self) -> int:
        """Priority of who is next."""
        head = self._next()
        return len(self.policy.levels) if head is None else head.level

    def _pump(self) -> None:
        """Start a turn when somebody may run, or come back when the first one has been held long enough."""
        if self._hold is not None:
            self._hold.cancel()
            self._hold = None
        if self._closed or self._claimed or len(self._turns) >= self.instances:
            return
        head = self._next()
        if head is None:
            return
        due_ns = self._due_ns(head)
        if due_ns > self._clock.now_ns():
            self._hold = self._clock.call_at(int(due_ns), self._pump)
            return
        self._claimed = True
        turn = asyncio.get_running_loop().create_task(self._turn())
        self._turns.add(turn)
        turn.add_done_callback(self._ended)

    def _ended(self, turn: asyncio.Task[None]) -> None:
        self._turns.discard(turn)
        if not turn.cancelled() and (error := turn.exception()) is not None:
            asyncio.get_running_loop().call_exception_handler({"message": f"batcher '{self.name}' failed", "exception": error})
        self._pump()

    def _due_ns(self, head: Request) -> float:
        """When the head's batch should start: now when it cannot grow, else when it has been held long enough."""
        mates, target = self._mates(head), head.bucket.sizes[-1] if head.bucket.sizes else 0
        rows = sum(request.rows for request in mates)
        if rows >= target or self._preferred(mates):
            return head.arrived_ns
        aim = next((size for size in head.bucket.sizes if size > rows), target)
        worth_ns = head.bucket.curve.patience_ns(rows, aim)
        if self.policy.max_queue_delay_microseconds is None:
            delay_ns = min(worth_ns or 0, MAX_AUTOMATIC_DELAY_NS)
        else:
            limit_ns = self.policy.max_queue_delay_microseconds * NS_PER_US
            delay_ns = limit_ns if worth_ns is None else min(limit_ns, worth_ns)
        due_ns = min(request.arrived_ns for request in mates) + delay_ns
        expected_ns = int(head.bucket.curve.predict_ns(rows) or 0)
        return min([due_ns, *(_latest_ns(request, expected_ns) for request in mates)])

    def _mates(self, head: Request) -> list[Request]:
        """The head and who may run with it, in order; the first that does not fit ends the list."""
        found = [head]
        rows = head.rows
        if head.bucket.sizes:
            for request in self._waiting():
                if request is not head and request.bucket is head.bucket and request.runnable:
                    rows += request.rows
                    if rows > head.bucket.sizes[-1]:
                        break
                    found.append(request)
        return found

    def _preferred(self, mates: Sequence[Request]) -> list[Request]:
        """The longest run of the first requests that has a preferred size; empty without one."""
        sums = itertools.accumulate(request.rows for request in mates)
        counts = [index for index, rows in enumerate(sums, 1) if rows in self.policy.preferred_batch_size]
        return list(mates[: counts[-1]]) if counts and mates[0].bucket.sizes else []

    def _take(self) -> Batch | None:
        """The next batch, out of the queue; None when nobody waits or the next is better held."""
        while (head := self._next()) is not None and self._due_ns(head) <= self._clock.now_ns():
            chosen = self._choose(head)
            now_ns = self._clock.now_ns()
            late = [request for request in chosen if request.timer is not None and (request.expires_ns or 0) <= now_ns]
            for request in late:  # the clock is past it, and its timer has not come round yet
                self._expire(request)
            if not late:
                for request in chosen:
                    self._withdraw(request)
                batch = Batch(chosen)
                batch.build = batch.rows in head.bucket.built
                head.bucket.built.discard(batch.rows)
                return batch
        return None

    def _choose(self, head: Request) -> list[Request]:
        """The most of the first requests that make a size that is run; the head alone where none does."""
        mates = self._mates(head)
        if preferred := self._preferred(mates):
            return preferred
        sums = itertools.accumulate(request.rows for request in mates)
        counts = [index for index, rows in enumerate(sums, 1) if rows in head.bucket.sizes]
        return mates[: counts[-1]] if counts else mates[:1]

    async def _turn(self) -> None:
        waits = True
        try:
            async with self._lease(self._rank):
                batch = self._take()
                self._claimed = waits = False
                self._pump()
                if batch is not None:
                    await self._run_batch(batch)
        finally:
            if waits:
                self._claimed = False

    async def _run_batch(self, batch: Batch) -> None:
        self._running.add(batch)
        for request in batch.requests:
            request.started_ns = self._clock.now_ns()
        try:
            ran = await self._run(batch)
            if len(ran.outputs) != len(batch.requests):
                raise EdgewiseError(f"batch: outputs of {len(ran.outputs)} requests, it had {len(batch.requests)}")
        except asyncio.CancelledError:
            self._fail(batch, RequestError(503, f"Server is stopping, model '{self.name}' was interrupted", {"Retry-After": "1"}))
            raise
        except UnbuiltError:
            self._put_back(batch)
        except DeviceLostError as error:
            self._fail(batch, error)
        except Exception as error:  # noqa: BLE001  whatever a run raises is its requests' answer
            await self._run_singly(batch, error)
        else:
            batch.requests[0].bucket.curve.ran(batch.rows, ran.compute_ns)
            for request, outputs in zip(batch.requests, ran.outputs, strict=True):
                queue_ns = request.started_ns - request.arrived_ns
                alone = ran.alone and len(batch.requests) == 1
                self._answer(request, Outcome(outputs, queue_ns, ran.compute_ns, batch.rows, ran.plan_id, alone))
        finally:
            self._running.discard(batch)

    def _put_back(self, batch: Batch) -> None:
        """Let a batch wait, before those who wait already, until its code is built."""
        bucket, requests = batch.requests[0].bucket, [request for request in batch.requests if not request.gone]
        for request in reversed(requests):
            late = request.expires_ns is not None and request.expires_ns <= self._clock.now_ns()
            if late and request.rejects:
                self._answer(request, self._late(request))
                continue
            request.parked = True
            (self._delayed if late else self._levels)[request.level].appendleft(request)
            bucket.waiting_rows += request.rows
            if not late:
                self._arm(request)
        if batch.rows in bucket.building:
            bucket.building[batch.rows] += requests
        else:
            bucket.building[batch.rows] = requests
            task = asyncio.get_running_loop().create_task(self._have_built(batch, bucket))
            self._builds.add(task)
            task.add_done_callback(self._builds.discard)

    async def _have_built(self, batch: Batch, bucket: Bucket) -> None:
        error: Exception | None = None
        try:
            await self._build(batch)
            bucket.built.add(batch.rows)
        except Exception as raised:  # noqa: BLE001  as of a run
            error = raised
        finally:
            for request in bucket.building.pop(batch.rows):
                request.parked = False
                if error is not None:
                    self._withdraw(request)
                    self._answer(request, error)
            self._pump()

    async def _run_singly(self, batch: Batch, error: Exception) -> None:
        """One of these requests was refused: find out which by running each alone."""
        self._running.discard(batch)
        if len(batch.requests) == 1:
            self._fail(batch, error)
            return
        for request in batch.requests:
            if not request.gone:
                await self._run_batch(Batch([request]))

    def _fail(self, batch: Batch, error: BaseException) -> None:
        for request in batch.requests:
            self._answer(request, error)

    def _answer(self, request: Request, result: Outcome | BaseException) -> None:
        request.ready = result
        if self.policy.preserve_ordering:
            self._deliver_in_order()
        else:
            _deliver(request)

    def _deliver_in_order(self) -> None:
        while self._order and (self._order[0].ready is not None or self._order[0].gone):
            _deliver(self._order.popleft())


def _deliver(request: Request) -> None:
    if request.gone:
        return
    if isinstance(request.ready, BaseException):
        request.answer.set_exception(request.ready)
    elif request.ready is not None:
        request.answer.set_result(request.ready)


def _latest_ns(request: Request, expected_ns: int) -> float:
    """When a held request has to start: in time for its run, and when half of its patience is over."""
    if request.expires_ns is None:
        return math.inf
    return request.expires_ns - max(expected_ns, (request.expires_ns - request.arrived_ns) // 2)
