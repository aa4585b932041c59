"""The port between the service and what computes: `infer` for models, `call` for other work that blocks.

Every served model has a lane: its queue, which groups requests by shape, and a place in one of the engine processes. All lanes
lease cores from one budget. A lane belongs to a session and ends with it, so that a reloaded model gets a lane of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import time
import weakref
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

import structlog

from app.engine.batching import Batch, Batcher, Bucket, InferOptions, Outcome, Ran, Timer
from app.engine.budget import Account, CoreBudget
from app.engine.policy import AUTOMATIC, ladder
from app.engine.supervisor import Engines, InProcess, Process
from app.engine.wire import ModelFile
from app.errors import RequestError
from app.repository import Served
from app.settings import Settings
from graph.feeds import check_feeds
from kernels.errors import DeviceLostError, EdgewiseError
from kernels.spec import Array
from scheduler.session import Session, available_cores

log = structlog.get_logger("edgewise.engine")
T = TypeVar("T")

CONTROL_CALLS = 4  # at once
MAX_BUCKETS = 64  # sets of shapes that a lane remembers
MAX_PREPARED_BYTES = 2**30  # of inputs: larger batches are not built ahead

__all__ = ["Engine", "InferOptions", "Outcome"]


class LoopClock:
    """The running loop's time."""

    def now_ns(self) -> int:
        """Nanoseconds of the monotonic clock."""
        return time.monotonic_ns()

    def call_at(self, when_ns: int, work: Callable[[], None]) -> Timer:
        """Call then."""
        return asyncio.get_running_loop().call_at(when_ns / 1e9, work)


class _Lane:
    """One model's way to its engine."""

    def __init__(
        self, served: Served, session: Session, engines: Engines, budget: CoreBudget, number: int, limits: Settings
    ) -> None:
        card = served.card
        self.engines, self.number, self._budget = engines, number, budget
        self.cores, instances = _share(card.instances, session.threads, limits.threads, budget.cores)
        plan = session.held_plan
        text = b"" if plan is None else plan.to_json().encode()
        self.file = ModelFile(served.name, str(served.path), session.model.digest, self.cores, instances, text)
        self.trusted = card.max_batch_size is not None
        self.max_rows = limits.max_batch_size if card.max_batch_size is None else card.max_batch_size
        self.policy = card.dynamic_batching or AUTOMATIC
        self.account = Account(served.name)
        self.batcher = Batcher(served.name, self.policy, LoopClock(), self._lease, self._run, instances)
        self.ladder = ladder(self.max_rows, self.policy.preferred_batch_size) if self.max_rows > 1 else ()
        self._buckets: OrderedDict[tuple[tuple[int, ...], ...], Bucket] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._growing: set[Bucket] = set()
        engines.models[number] = self.file  # at once: the next lane goes where there are fewer
        self.end: weakref.finalize[..., Session] | None = None
        self.loading = self._spawn(self._load())

    @asynccontextmanager
    async def _lease(self, rank: Callable[[], int]) -> AsyncIterator[None]:
        """Cores, once the model can run: who waits for a process holds none. Why it cannot is told to the batch by its run."""
        with contextlib.suppress(EdgewiseError):
            await self.engines.ready(self.number)
        async with self._budget.lease(self.account, self.cores, rank):
            yield

    async def _run(self, batch: Batch) -> Ran:
        return await self.engines.run(self.number, batch)

    async def _load(self) -> None:
        try:
            await self.engines.load(self.number, self.file)
        except EdgewiseError as error:  # tried again, and told, when a request needs it
            log.warning("model not loaded by its engine", model=self.file.name, reason=str(error))

    async def submit(self, feeds: dict[str, Array], options: InferOptions) -> Outcome:
        rows = _rows(feeds)
        if self.trusted and self.max_rows and rows > self.max_rows:
            raise RequestError(400, f"inference request batch-size must be <= {self.max_rows} for '{self.file.name}', got {rows}")
        bucket = Bucket() if rows < 1 or not self.ladder else self._bucket(feeds)
        self._grow(bucket, feeds, bucket.waiting_rows + rows)
        return await self.batcher.submit(feeds, max(rows, 1), bucket, options)

    def _bucket(self, feeds: Mapping[str, Array]) -> Bucket:
        """The bucket of these shapes; a new one runs requests by themselves until its rows are proven to keep apart."""
        key = tuple(feed.shape[1:] for feed in feeds.values())
        if (found := self._buckets.get(key)) is not None:
            self._buckets.move_to_end(key)
            return found
        found = self._buckets[key] = Bucket()
        if len(self._buckets) > MAX_BUCKETS:
            self._buckets.popitem(last=False)
        if self.trusted:
            found.sizes = (1,)
        else:
            self._spawn(self._prove(found, {name: feed.shape[1:] for name, feed in feeds.items()}))
        return found

    async def _prove(self, bucket: Bucket, shapes: dict[str, tuple[int, ...]]) -> None:
        try:
            reason = await self.engines.prove(self.number, shapes)
        except EdgewiseError as error:
            reason = str(error)
        if reason:
            log.info("model is not batched", model=self.file.name, reason=reason)
        else:
            bucket.sizes = (1,)

    def _grow(self, bucket: Bucket, feeds: Mapping[str, Array], waiting_rows: int) -> None:
        """Have the next batch size built when that many rows wait: a batch never waits for its own code.

        Where nobody has asked for the sizes, one that does not pay is given up, and larger ones are not tried.
        """
        if not bucket.sizes or bucket in self._growing:
            return
        if not self.trusted and bucket.sizes[-1] > bucket.paying:
            pays = bucket.curve.gains(*bucket.sizes[-2:])
            if pays is None:
                return
            if not pays:
                self._growing.add(bucket)
                log.info("batch size does not pay", model=self.file.name, rows=bucket.sizes[-1])
                bucket.sizes = bucket.sizes[:-1]
                return
            bucket.paying = bucket.sizes[-1]
        size = next((size for size in self.ladder if size > bucket.sizes[-1]), None)
        if size is None or waiting_rows < size or sum(f[:1].nbytes for f in feeds.values()) * size > MAX_PREPARED_BYTES:
            return
        self._growing.add(bucket)
        self._spawn(self._prepare(bucket, size, {name: (size, *feed.shape[1:]) for name, feed in feeds.items()}))

    async def _prepare(self, bucket: Bucket, size: int, shapes: dict[str, tuple[int, ...]]) -> None:
        try:
            await self.engines.prepare(self.number, shapes)
        except DeviceLostError:
            self._growing.discard(bucket)  # another try, when there is another process
        except EdgewiseError as error:  # it stays among those that grow: no larger size is tried
            log.info("batch size not available", model=self.file.name, rows=size, reason=str(error))
        else:
            bucket.sizes = (*bucket.sizes, size)
            self._growing.discard(bucket)

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def close(self) -> None:
        """Refuse who waits, forget the model."""
        self.batcher.close()
        for task in list(self._tasks):
            task.cancel()
        self.engines.drop(self.number)


class Engine:
    """Runs models and other blocking work off the event loop; bounded everywhere. Used from one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pool = ThreadPoolExecutor(CONTROL_CALLS, "edgewise-control")
        self._engines: list[Engines] = []
        self._lanes: weakref.WeakKeyDictionary[Session, _Lane] = weakref.WeakKeyDictionary()
        self._numbers = itertools.count()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.budget = CoreBudget(available_cores(), time.monotonic_ns)
        self.calls = 0
        self.inferring = 0

    @property
    def pending(self) -> int:
        """Requests and calls that are not answered."""
        return self.calls + self.inferring

    async def infer(self, served: Served, feeds: Mapping[str, Array], options: InferOptions = InferOptions()) -> Outcome:  # noqa: B008
        """Run a model on one request, alone or with others.

        Raises: FeedError; RequestError 503 when the model is not loaded, too many wait, the request's time is over or what ran
                it is lost; whatever the model's ops raise.
        """
        session = served.session
        if session is None:
            raise RequestError(503, f"model '{served.name}' version {served.version} is not ready")
        if self.inferring >= self._settings.queue_limit:
            raise RequestError(503, f"engine: {self.inferring} requests are waiting, the limit; try again", {"Retry-After": "1"})
        arrays = check_feeds(session.inputs, feeds)
        self.inferring += 1
        try:
            return await self._lane(served, session).submit(arrays, options)
        except DeviceLostError as error:
            raise RequestError(503, str(error), {"Retry-After": "1"}) from None
        finally:
            self.inferring -= 1

    async def call(self, work: Callable[..., T], *arguments: object, **keywords: object) -> T:
        """Await work(*arguments, **keywords) on a thread. Raises RequestError 503 when too many calls wait already."""
        if self.calls >= self._settings.queue_limit:
            raise RequestError(503, f"engine: {self.calls} calls are waiting, the limit; try again", {"Retry-After": "1"})
        self.calls += 1
        future = asyncio.get_running_loop().run_in_executor(self._pool, functools.partial(work, *arguments, **keywords))
        future.add_done_callback(self._finished)
        return await future

    def _finished(self, _: object) -> None:
        self.calls -= 1

    def bind(self) -> None:
        """Belong to the running loop, so that `preload` may be called from other threads."""
        self._loop = asyncio.get_running_loop()

    def preload(self, served: Served) -> None:
        """Have a model loaded by its engine before a request asks for it. From any thread, and without waiting."""
        session = served.session
        if session is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._lane, served, session)

    async def load(self, served: Served) -> None:
        """The same from the loop, waiting until it is loaded or has failed, which then `infer` tells."""
        if served.session is not None:
            await asyncio.shield(self._lane(served, served.session).loading)

    def _lane(self, served: Served, session: Session) -> _Lane:
        lane = self._lanes.get(session)
        if lane is not None:
            return lane
        loop = asyncio.get_running_loop()
        if not self._engines:
            self._engines = self._made()
        place = min(self._engines, key=lambda engines: len(engines.models))
        lane = self._lanes[session] = _Lane(served, session, place, self.budget, next(self._numbers), self._settings)
        lane.end = weakref.finalize(session, _from_any_thread, loop, lane.close)
        lane.end.atexit = False
        return lane

    def _made(self) -> list[Engines]:
        settings, cores = self._settings, self.budget.cores
        if not settings.workers:
            return [InProcess(cores)]
        return [Process(cores, settings.shared_bytes, settings.run_timeout_s) for _ in range(settings.workers)]

    def close(self) -> None:
        """Finish the calls that run, drop what waits, end the processes. On the loop's thread."""
        for lane in list(self._lanes.values()):
            if lane.end is not None:
                lane.end.detach()
            lane.close()
        self._lanes.clear()
        for engines in self._engines:
            engines.close()
        self._pool.shutdown(wait=True, cancel_futures=True)


def _share(instances: int | None, threads: int, wanted: int | None, cores: int) -> tuple[int, int]:
    """Threads of a run and runs side by side. Instances that are asked for share the cores, where threads are not asked for."""
    if instances is not None and wanted is None:
        return max(1, min(threads, cores // instances)), instances
    each = min(threads, cores)
    return each, instances or max(1, cores // each)


def _rows(feeds: Mapping[str, Array]) -> int:
    """Rows of a request: what all of its inputs lead with; 0 where they do not agree."""
    found = {feed.shape[0] if feed.ndim else 0 for feed in feeds.values()}
    return found.pop() if len(found) == 1 else 0


def _from_any_thread(loop: asyncio.AbstractEventLoop, work: Callable[[], None]) -> None:
    """Where a session's last reference goes is anybody's guess."""
    with contextlib.suppress(RuntimeError):  # the loop is closed, and everything with it
        loop.call_soon_threadsafe(work)
