"""A lane: one model's queue, its buckets of input shapes, the batch sizes that are ready, and the host that runs it."""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import field, replace
from pathlib import Path
from typing import Any, Protocol

import structlog

from app.engine.batching import Batcher
from app.engine.budget import Account, CoreBudget
from app.engine.hosts import ModelHost
from app.engine.messages import ModelFile
from app.engine.overdue import OverdueRuns
from app.engine.policy import AUTOMATIC, Rules, ladder
from app.engine.requests import Batch, Bucket, InferOptions, Outcome, Ran, Timer
from app.errors import RequestError
from app.settings import Settings
from graph.ir import Model
from kernels.errors import DeviceLostError, EdgewiseError
from kernels.record import record
from kernels.spec import Array
from scheduler.drift import Alone
from scheduler.plan import Plan
from scheduler.session import Session

log = structlog.get_logger("edgewise.engine")

MAX_BUCKETS = 64  # sets of shapes that a lane remembers
MAX_PREPARED_BYTES = 2**30  # input bytes of a batch that is built ahead
MAX_PLANNED_SIZES = 6  # batch sizes that are predicted for a first curve

Shapes = Mapping[str, tuple[int, ...]]
Forecast = Callable[[Session, int, Mapping[int, Shapes]], Awaitable[Mapping[int, float]]]


class Servable(Protocol):
    """The part of a served model that the engine uses."""

    @property
    def name(self) -> str:
        """The model's name."""

    @property
    def version(self) -> str:
        """The model's version."""

    @property
    def session(self) -> Session | None:
        """The loaded model; None while it is not ready."""

    @property
    def file(self) -> Path | None:
        """The file from which an engine process can load it; None if it was not kept."""

    @property
    def rules(self) -> Rules:
        """How requests for the model may be batched."""


@record
class Shared:
    """Settings and resources that all lanes of an engine share.

    forecast: predicts nanoseconds of a run by rows, given a session, threads and input shapes by rows.
    overdue: the runs that do not end. alone: tells whether a run had the machine for itself.
    """

    settings: Settings
    budget: CoreBudget
    forecast: Forecast
    overdue: OverdueRuns
    alone: Alone = field(default_factory=Alone)


class LoopClock:
    """The clock of the running event loop."""

    def now_ns(self) -> int:
        """Return the monotonic time in nanoseconds."""
        return time.monotonic_ns()

    def call_at(self, when_ns: int, work: Callable[[], None]) -> Timer:
        """Call `work` at that time."""
        return asyncio.get_running_loop().call_at(when_ns / 1e9, work)


class Lane:
    """Queues, batches and runs the requests for one model."""

    def __init__(self, served: Servable, session: Session, host: ModelHost, shared: Shared, number: int) -> None:
        rules, limits = served.rules, shared.settings
        self.host, self.number, self._shared = host, number, shared
        self.cores, instances = _share(rules.instances, session.threads, limits.threads, shared.budget.cores)
        self.file = _model_file(served, session, self.cores, instances, limits)
        self.trusted = rules.max_batch_size is not None
        self.max_rows = limits.max_batch_size if rules.max_batch_size is None else rules.max_batch_size
        self.policy = rules.dynamic_batching or AUTOMATIC
        self.account = Account(served.name)
        self.batcher = Batcher(served.name, self.policy, LoopClock(), self._lease, self._run, self._build, instances)
        self.ladder = ladder(self.max_rows, self.policy.preferred_batch_size) if self.max_rows > 1 else ()
        self._buckets: OrderedDict[tuple[bool, tuple[tuple[int, ...], ...]], Bucket] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._growing: set[Bucket] = set()
        self._closed = False
        host.models[number] = self.file  # at once: the next lane is placed on the host with fewer models
        self._session = weakref.ref(session)  # which owns the lane
        self.end: weakref.finalize[..., Session] | None = None
        self.loading = self._spawn(self._load(session.model, tuple(session.plans.values())))

    @asynccontextmanager
    async def _lease(self, rank: Callable[[], int]) -> AsyncIterator[None]:
        """Lease cores once the model can run: none are held while a process starts. If that fails, the run raises why."""
        with contextlib.suppress(EdgewiseError):
            await self.host.ready(self.number)
        async with self._shared.budget.lease(self.account, self.cores, rank):
            yield

    async def _run(self, batch: Batch) -> Ran:
        last_ns = time.monotonic_ns() + round(self._shared.settings.run_timeout_s * 1e9)
        batch.ends_ns = ends_ns = last_ns if batch.deadline_ns is None else min(last_ns, batch.deadline_ns)
        with self._shared.alone.run() as alone, self._shared.overdue.watch(self.file.name, batch, ends_ns):
            ran = await self.host.run(self.number, batch)
            return replace(ran, alone=alone())

    async def _build(self, batch: Batch) -> None:
        with self._shared.alone.run():
            await self.host.prepare(self.number, batch.shapes)

    async def _load(self, model: Model, plans: Sequence[Plan]) -> None:
        try:
            await self.host.load(self.number, self.file, model, {plan.inputs: _text(plan) for plan in plans})
        except EdgewiseError as error:  # the next request tries again, and raises
            log.warning("model not loaded by its engine", model=self.file.name, reason=str(error))

    async def follow(self, plan: Plan) -> None:
        """Run a plan from now on; it is built before the switch, so that no run waits. Raises what `Session.follow` raises."""
        text = await asyncio.to_thread(_text, plan)
        with self._shared.alone.run():
            await self.host.follow(self.number, plan.inputs, text)

    async def submit(self, feeds: dict[str, Array], options: InferOptions) -> Outcome:
        """Run one request, alone or in a batch. Raises what `Batcher.submit` raises, and RequestError 400 for too many rows."""
        rows, together = rows_of(feeds), _leading(feeds) is not None
        if self.trusted and self.max_rows and rows > self.max_rows:
            raise RequestError(400, f"inference request batch-size must be <= {self.max_rows} for '{self.file.name}', got {rows}")
        bucket = self._bucket(feeds, shares=bool(together and rows and self.ladder))
        self._grow(bucket, feeds, bucket.waiting_rows + rows)
        return await self.batcher.submit(feeds, rows, bucket, options)

    def _bucket(self, feeds: Mapping[str, Array], *, shares: bool) -> Bucket:
        """Return the bucket of these shapes. A new bucket runs requests one by one until batching is proven safe.

        shares: whether to try that proof, which shows that no output row depends on another input row.
        """
        key = shares, tuple(feed.shape[1:] if shares else feed.shape for feed in feeds.values())
        if (found := self._buckets.get(key)) is not None:
            self._buckets.move_to_end(key)
            return found
        found = self._buckets[key] = Bucket()
        if len(self._buckets) > MAX_BUCKETS:
            self._buckets.popitem(last=False)
        if shares and self.trusted:
            found.sizes = (1,)
        elif shares:
            self._spawn(self._prove(found, {name: feed.shape[1:] for name, feed in feeds.items()}))
        return found

    async def _prove(self, bucket: Bucket, shapes: dict[str, tuple[int, ...]]) -> None:
        try:
            reason = await self.host.prove(self.number, shapes)
        except EdgewiseError as error:
            reason = str(error)
        if reason:
            log.info("model is not batched", model=self.file.name, reason=reason)
        else:
            bucket.sizes = (1,)

    def _grow(self, bucket: Bucket, feeds: Mapping[str, Array], waiting_rows: int) -> None:
        """Build the next batch size ahead when enough rows wait for it, so that no batch waits for its own code.

        Unless the model's configuration asks for batches, a size that is no faster per row is dropped and no larger one tried.
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
        if bucket.curve.source == "none":
            sizes = self.ladder[:MAX_PLANNED_SIZES]
            shapes = {rows: {name: (rows, *feed.shape[1:]) for name, feed in feeds.items()} for rows in sizes}
            self._spawn(self._foresee(bucket, shapes))
        self._spawn(self._prepare(bucket, size, {name: (size, *feed.shape[1:]) for name, feed in feeds.items()}))

    async def _prepare(self, bucket: Bucket, size: int, shapes: dict[str, tuple[int, ...]]) -> None:
        try:
            with self._shared.alone.run():
                await self.host.prepare(self.number, shapes)
        except DeviceLostError:
            self._growing.discard(bucket)  # tried again with the next process
        except EdgewiseError as error:  # the bucket stays in _growing: no larger size is tried
            log.info("batch size not available", model=self.file.name, rows=size, reason=str(error))
        else:
            bucket.sizes = (*bucket.sizes, size)
            self._growing.discard(bucket)

    async def _foresee(self, bucket: Bucket, shapes: Mapping[int, Shapes]) -> None:
        """Give a bucket its predicted curve. Without one, its curve comes from measured runs."""
        session = self._session()
        if session is None:
            return
        try:
            bucket.curve.planned(await self._shared.forecast(session, self.cores, shapes))
        except EdgewiseError as error:
            log.info("no batch curve by plans", model=self.file.name, reason=str(error))

    def curves(self) -> list[dict[str, Any]]:
        """Return, for every shape whose requests may share runs, the batch sizes, the time of each in ns, and its source."""
        return [
            {
                "shapes": [list(shape) for shape in shapes],
                "source": bucket.curve.source,
                "batch_sizes": list(bucket.sizes),
                "ns": [None if (ns := bucket.curve.predict_ns(rows)) is None else round(ns) for rows in bucket.sizes],
            }
            for (_, shapes), bucket in self._buckets.items()
            if bucket.sizes
        ]

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def close(self, why: str = "It was unloaded") -> None:
        """Refuse the requests that wait, stop the runs, and unload the model. why: see `Batcher.close`."""
        if self._closed:
            return
        self._closed = True
        self.batcher.close(why)
        for task in list(self._tasks):
            task.cancel()
        self.host.drop(self.number)


def _share(instances: int | None, threads: int, wanted: int | None, cores: int) -> tuple[int, int]:
    """Return the threads of a run and how many runs go on side by side.

    Configured instances divide the cores among them, unless a number of threads is configured too.
    """
    if instances is not None and wanted is None:
        return max(1, min(threads, cores // instances)), instances
    each = min(threads, cores)
    return each, instances or max(1, cores // each)


def _text(plan: Plan) -> bytes:
    return plan.to_json().encode()


def _model_file(served: Servable, session: Session, threads: int, instances: int, limits: Settings) -> ModelFile:
    return ModelFile(
        name=served.name,
        path="" if served.file is None else str(served.file),
        digest=session.model.digest,
        threads=threads,
        instances=instances,
        model_bytes=limits.max_model_bytes,
        arena_bytes=limits.arena_limit_bytes,
        process_bytes=limits.process_limit_bytes,
    )


def rows_of(feeds: Mapping[str, Array]) -> int:
    """Return the rows of a request: the common size of axis 0 of all inputs; 1 where they differ."""
    found = _leading(feeds)
    return 1 if found is None else found


def _leading(feeds: Mapping[str, Array]) -> int | None:
    found = {feed.shape[:1] for feed in feeds.values()}
    return found.pop()[0] if len(found) == 1 and () not in found else None
