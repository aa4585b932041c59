"""Dynamic batching for one model: requests wait in levels of priority, and those of one shape share a run.

The rules are those of Triton's dynamic batcher. A batch is formed when cores are free, not before, so that it grows while it has
to wait anyway. A request is never split. A request that was cancelled or has expired is not computed. When a run fails because of
its data, its requests run again one by one, so that a bad request harms no other; when the run was stopped, or its engine process
lost, all requests of the batch fail. A batch whose shapes have no compiled code yet returns to the queue until they have it,
while other batches run. Nothing here knows of HTTP, models or processes: the clock, the cores and the run function are passed in.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager

from app.engine.policy import NS_PER_US, DynamicBatching
from app.engine.requests import Batch, Bucket, Clock, InferOptions, Outcome, Ran, Request, Timer
from app.errors import RequestError, UnbuiltError
from graph.errors import RunStoppedError
from kernels.errors import DeviceLostError, EdgewiseError
from kernels.spec import Array

MAX_AUTOMATIC_DELAY_NS = 10_000_000  # a measured curve alone holds a batch no longer than this


Lease = Callable[[Callable[[], int]], AbstractAsyncContextManager[None]]
Run = Callable[[Batch], Awaitable[Ran]]
Build = Callable[[Batch], Awaitable[None]]


class Batcher:
    """The queue of one model.

    lease: holds the cores of one run; its argument returns the priority of the next request. run: runs a batch, or raises
    UnbuiltError where `build` has to be called first. instances: how many runs may go on at once.
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
        self._order: deque[Request] = deque()  # unanswered requests by arrival, where replies keep that order
        self._turns: set[asyncio.Task[None]] = set()
        self._builds: set[asyncio.Task[None]] = set()
        self._claimed = False  # a turn waits for cores and takes a batch when it has them
        self._running: dict[Batch, asyncio.Task[None] | None] = {}  # each with its turn
        self._hold: Timer | None = None
        self._closed = ""  # why no more requests are taken

    @property
    def queued(self) -> int:
        """Number of requests that wait."""
        return sum(map(len, itertools.chain(self._levels.values(), self._delayed.values())))

    @property
    def running(self) -> int:
        """Number of requests in runs under way, including those whose clients have left."""
        return sum(len(batch.requests) for batch in self._running)

    async def submit(self, feeds: dict[str, Array], rows: int, bucket: Bucket, options: InferOptions) -> Outcome:
        """Queue a request and return its outcome.

        Raises: RequestError 503 when the queue is full, the request has expired or the service stops; the error of the run.
        """
        request = self._admit(feeds, rows, bucket, options)
        self._pump()
        try:
            return await request.answer
        except asyncio.CancelledError:
            self._withdraw(request)
            for batch in self._running:
                batch.check()
            self._pump()
            raise
        finally:
            self._deliver_in_order()
            del request  # an error holds this frame, and a request its error: together they would wait for the garbage collector

    def close(self, why: str) -> None:
        """Refuse all requests that wait and all that come, answer those that run, and stop their runs, which keep their cores.

        why: the beginning of the message, as in "Server is stopping".
        """
        self._closed = why
        error = self._refusal("takes no requests")
        for request in list(self._waiting()):
            self._withdraw(request)
            self._answer(request, error)
        for batch in self._running:
            self._fail(batch, self._refusal("was interrupted"))
            batch.stop(why)
        for task in self._turns - set(self._running.values()) | self._builds:
            task.cancel()
        if self._hold is not None:
            self._hold.cancel()

    def _refusal(self, what: str) -> RequestError:
        return RequestError(503, f"{self._closed}, model '{self.name}' {what}", {"Retry-After": "1"})

    async def drained(self) -> None:
        """Wait until all runs and builds under way have ended."""
        while self._turns or self._builds:
            await asyncio.wait(self._turns | self._builds)

    def _admit(self, feeds: dict[str, Array], rows: int, bucket: Bucket, options: InferOptions) -> Request:
        now_ns = self._clock.now_ns()
        level = self.policy.level(options.priority)
        limits = self.policy.queue_policy(level)
        if self._closed:
            raise self._refusal("takes no requests")
        if limits.max_queue_size and len(self._levels[level]) + len(self._delayed[level]) >= limits.max_queue_size:
            raise RequestError(
                503, f"Exceeds maximum queue size of {limits.max_queue_size} for model '{self.name}'", {"Retry-After": "1"}
            )
        expires_ns = limits.expires_ns(now_ns, options.deadline_ns)
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        rejects, deadline_ns = limits.timeout_action == "REJECT", limits.run_deadline_ns(options.deadline_ns)
        request = Request(feeds, rows, bucket, level, now_ns, expires_ns, rejects, deadline_ns, answer)
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
        """Set the timer of a waiting request that can expire."""
        if request.expires_ns is not None:
            request.timer = self._clock.call_at(request.expires_ns, lambda: self._expire(request))

    def _late(self, request: Request) -> RequestError:
        waited_us = (self._clock.now_ns() - request.arrived_ns) // NS_PER_US
        return RequestError(
            503, f"Request timeout expired: model '{self.name}', {waited_us} µs in the queue", {"Retry-After": "1"}
        )

    def _expire(self, request: Request) -> None:
        """Handle the expiry of a waiting request: refuse it, or move it behind all others of its level."""
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
        """Yield the waiting requests in the order in which they run."""
        for level in self.policy.levels:
            yield from self._levels[level]
            yield from self._delayed[level]

    def _next(self) -> Request | None:
        """Return the first waiting request that can run now."""
        return next((request for request in self._waiting() if request.runnable), None)

    def _withdraw(self, request: Request) -> None:
        """Remove a request from the queue, if it is still there."""
        if request.timer is not None:
            request.timer.cancel()
            request.timer = None
        for queue in (self._levels[request.level], self._delayed[request.level]):
            if request in queue:
                queue.remove(request)
                request.bucket.waiting_rows -= request.rows

    def _rank(self) -> int:
        """Return the priority level of the next request."""
        head = self._next()
        return len(self.policy.levels) if head is None else head.level

    def _pump(self) -> None:
        """Start a turn if a request can run; if the next one is held for more, come back when its time is up."""
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
        """Return when the head's batch should start: now if it cannot grow, else when it has been held long enough."""
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
        """Return the head and the requests that may run with it, in order, up to the first that does not fit."""
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
        """Return the longest prefix whose rows add up to a preferred size; empty if there is none."""
        sums = itertools.accumulate(request.rows for request in mates)
        counts = [index for index, rows in enumerate(sums, 1) if rows in self.policy.preferred_batch_size]
        return list(mates[: counts[-1]]) if counts and mates[0].bucket.sizes else []

    def _take(self) -> Batch | None:
        """Take the next batch out of the queue; None if no request waits or the next one is still held."""
        while (head := self._next()) is not None and self._due_ns(head) <= self._clock.now_ns():
            chosen = self._choose(head)
            now_ns = self._clock.now_ns()
            late = [request for request in chosen if request.timer is not None and (request.expires_ns or 0) <= now_ns]
            for request in late:  # expired, but its timer has not fired yet
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
        """Return the longest prefix whose rows add up to a batch size that may be run; the head alone if there is none."""
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
        self._running[batch] = asyncio.current_task()
        for request in batch.requests:
            request.started_ns = self._clock.now_ns()
        try:
            ran = await self._run(batch)
            if len(ran.outputs) != len(batch.requests):
                raise EdgewiseError(f"batch: outputs of {len(ran.outputs)} requests, it had {len(batch.requests)}")
        except asyncio.CancelledError:
            self._closed = self._closed or "Server is stopping"
            self._fail(batch, self._refusal("was interrupted"))
            raise
        except UnbuiltError:
            self._put_back(batch)
        except (DeviceLostError, RunStoppedError) as error:
            self._fail(batch, type(error)(str(error)))  # without the frames that it came through, which hold tensors
        except Exception as error:  # noqa: BLE001  any error of a run is its requests' answer
            await self._run_singly(batch, error)
        else:
            batch.requests[0].bucket.curve.ran(batch.rows, ran.compute_ns)
            for request, outputs in zip(batch.requests, ran.outputs, strict=True):
                queue_ns = request.started_ns - request.arrived_ns
                alone = ran.alone and len(batch.requests) == 1
                self._answer(request, Outcome(outputs, queue_ns, ran.compute_ns, batch.rows, ran.plan_id, alone))
        finally:
            self._running.pop(batch, None)

    def _put_back(self, batch: Batch) -> None:
        """Return a batch to the front of the queue until its code is built."""
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
        except Exception as raised:  # noqa: BLE001  as for a run
            error = raised
        finally:
            for request in bucket.building.pop(batch.rows):
                request.parked = False
                if error is not None:
                    self._withdraw(request)
                    self._answer(request, error)
            self._pump()

    async def _run_singly(self, batch: Batch, error: Exception) -> None:
        """Run each request alone, to find the one that makes the batch fail."""
        self._running.pop(batch, None)
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
    """Return the latest start of a held request: early enough for its run, and within the first half of its timeout."""
    if request.expires_ns is None:
        return math.inf
    return request.expires_ns - max(expected_ns, (request.expires_ns - request.arrived_ns) // 2)
