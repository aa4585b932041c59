"""Hosts that models run in: engine processes, which are restarted when they die, or the service's own process.

When a process dies, only the calls that it held fail. It restarts after a pause that doubles with every death in a row; after
`BREAKER_DEATHS` of them, requests are refused at once until it stays up. A model that was running at too many deaths is set aside
for a while, so that it cannot take down the other models of its process again and again.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
import structlog

from app.engine.link import CONTROL_THREADS, ProcessLink, split
from app.engine.loaded import LoadedModels
from app.engine.messages import Done, FollowPlan, LoadModel, ModelFile, Order, PrepareShapes, ProveRows, Shapes
from app.engine.requests import Batch, Ran
from app.engine.threads import WorkThreads
from app.errors import RequestError
from graph.budget import ProcessMemory
from graph.ir import Model
from graph.run.bounds import RunBounds
from kernels.errors import DeviceLostError, EdgewiseError, InvalidError, UnsupportedError
from kernels.spec import Array
from scheduler.plan import InputShape
from scheduler.session import MAX_PLANS

log = structlog.get_logger("edgewise.engine")
T = TypeVar("T")
Plans = Mapping[tuple[InputShape, ...], bytes]  # plans as JSON, by the input shapes that they are for

FIRST_PAUSE_S, LAST_PAUSE_S = 0.1, 30.0
STEADY_S = 10.0  # after this time the deaths in a row start again from one
BREAKER_DEATHS = 5  # deaths in a row after which requests are refused instead of waiting
STRIKES, STRIKE_WINDOW_S, ASIDE_S = 3, 60.0, 30.0
CONTROL_TIMEOUT_S = 900.0  # loading or compiling a large model


class ModelHost(Protocol):
    """Runs models: `ProcessHost` in an engine process, `ServiceHost` in the service's own."""

    models: dict[int, ModelFile]

    async def load(self, number: int, file: ModelFile, model: Model, plans: Plans, /) -> None:
        """Load a model under that number with the plans that it follows. model: as the service has read it."""

    async def follow(self, number: int, inputs: tuple[InputShape, ...], plan: bytes, /) -> None:
        """Run a plan for these inputs from now on; it is built before the switch. Raises what `Session.follow` raises."""

    async def ready(self, number: int) -> None:
        """Wait until the process has started and the model is loaded. Raises the error that prevents it."""

    async def prove(self, number: int, shapes: Shapes) -> str:
        """Return why rows of these shapes (without axis 0) may not share a run; "" if they may."""

    async def prepare(self, number: int, shapes: Shapes) -> None:
        """Build the code for these input shapes."""

    async def run(self, number: int, batch: Batch) -> Ran:
        """Run a batch until its end or `batch.ends_ns`.

        Raises: DeviceLostError when the process that ran it has died; RunStoppedError when the run was stopped.
        """

    def arena_bytes(self, number: int, /) -> int:
        """Return the bytes of activations that a model keeps in the service's process."""

    def drop(self, number: int) -> None:
        """Unload a model. Its runs are stopped already."""

    def close(self) -> None:
        """Stop, on the event loop and without waiting."""

    def wait(self, timeout_s: float) -> bool:
        """Block until it has stopped, at most that long. Returns whether it has. On any thread."""


class ProcessHost:
    """One engine process at a time: started with the first model, restarted when it dies, ended with the last model."""

    def __init__(self, threads: int, shared_bytes: int, run_timeout_s: float) -> None:
        self.models: dict[int, ModelFile] = {}
        self.restarts = 0
        self._threads, self._shared_bytes, self._run_timeout_s = threads, shared_bytes, run_timeout_s
        self._starting: asyncio.Task[ProcessLink] | None = None
        self._link: ProcessLink | None = None
        self._loads: dict[int, asyncio.Task[None]] = {}  # loads in the running process
        self._plans: dict[int, Plans] = {}  # plans of each model, for the next process
        self._deaths = 0  # in a row
        self._up_at = 0.0
        self._again_at = 0.0
        self._strikes: dict[int, deque[float]] = {}
        self._aside: dict[int, float] = {}
        self._control = asyncio.Semaphore(CONTROL_THREADS)
        self._closed = False

    @property
    def link(self) -> ProcessLink | None:
        """The running process; None while there is none."""
        return self._link

    async def load(self, number: int, file: ModelFile, _model: Model, plans: Plans, /) -> None:
        """Load a model from its file, starting the process if there is none."""
        self.models[number], self._plans[number] = file, plans
        await self._loaded(await self._up(), number)

    async def follow(self, number: int, inputs: tuple[InputShape, ...], plan: bytes, /) -> None:
        """See `ModelHost`."""
        link = await self._ready(number)
        await self._ask(link, number, partial(_follow, number, plan))
        if number in self.models:
            others = [(shapes, kept) for shapes, kept in self._plans[number].items() if shapes != inputs]
            self._plans[number] = dict([*others[1 - MAX_PLANS :], (inputs, plan)])

    async def ready(self, number: int) -> None:
        """See `ModelHost`."""
        await self._ready(number)

    async def prove(self, number: int, shapes: Shapes) -> str:
        """See `ModelHost`."""
        link = await self._ready(number)
        return (await self._ask(link, number, lambda call: ProveRows(call, number, shapes))).reason

    async def prepare(self, number: int, shapes: Shapes) -> None:
        """See `ModelHost`."""
        link = await self._ready(number)
        await self._ask(link, number, lambda call: PrepareShapes(call, number, shapes))

    async def run(self, number: int, batch: Batch) -> Ran:
        """See `ModelHost`."""
        link = await self._ready(number)
        return await link.run(number, batch, self._run_timeout_s)

    def arena_bytes(self, _number: int, /) -> int:
        """Return 0: the activations are in the engine process."""
        return 0

    def drop(self, number: int) -> None:
        """Unload a model. Without any other model the process is ended, and what it still runs with it."""
        self.models.pop(number, None)
        self._loads.pop(number, None)
        self._plans.pop(number, None)
        self._strikes.pop(number, None)
        self._aside.pop(number, None)
        if self._link is None:
            return
        if self.models:
            self._link.drop(number)
        else:  # gives all of its memory back
            self._link.close()
            self._link, self._starting, self._loads = None, None, {}

    def close(self) -> None:
        """End the process."""
        self._closed = True
        for task in (self._starting, *self._loads.values()):
            if task is not None:
                task.cancel()
        if self._link is not None:
            self._link.close()
        self._link, self._starting, self._loads = None, None, {}

    def wait(self, _timeout_s: float) -> bool:
        """Return at once: `close` has killed the process."""
        return True

    async def _ask(self, link: ProcessLink, number: int, order: Callable[[int], Order]) -> Done:
        """Send slow work, at most CONTROL_THREADS at once. It goes on when the caller is cancelled."""

        async def ask() -> Done:
            async with self._control:
                return await link.ask(number, CONTROL_TIMEOUT_S, order)

        task = asyncio.get_running_loop().create_task(ask())
        task.add_done_callback(_retrieved)
        return await asyncio.shield(task)

    async def _ready(self, number: int) -> ProcessLink:
        """Return the running process once it has the model. Raises RequestError 503 while either is set aside."""
        now = time.monotonic()
        if (until := self._aside.get(number, 0.0)) > now:
            raise _later(
                until - now, f"model '{self.models[number].name}' ended its engine process {STRIKES} times, it is set aside"
            )
        link = self._link
        if link is None:
            if self._deaths >= BREAKER_DEATHS and self._again_at > now:
                raise _later(self._again_at - now, f"engine: its process ended {self._deaths} times in a row")
            link = await self._up()
        await self._loaded(link, number)
        return link

    async def _up(self) -> ProcessLink:
        if self._closed:
            raise _later(1, "engine: the service is stopping")
        if self._starting is None:
            self._starting = asyncio.get_running_loop().create_task(self._start())
            self._starting.add_done_callback(_retrieved)
        return await asyncio.shield(self._starting)

    async def _start(self) -> ProcessLink:
        if (pause_s := self._again_at - time.monotonic()) > 0:
            await asyncio.sleep(pause_s)
        try:
            link = ProcessLink(self._shared_bytes, self._threads, self._lost)
        except OSError as error:
            self._count_death(0.0)
            self._starting = None
            raise DeviceLostError(f"engine: its process cannot be started, {error.strerror}") from None
        try:
            await link.hello()
        except asyncio.CancelledError:
            link.close()
            raise
        self._link, self._loads, self._up_at = link, {}, time.monotonic()
        log.info("engine process started", pid=link.process.pid, restarts=self.restarts)
        return link

    async def _loaded(self, link: ProcessLink, number: int) -> None:
        """Wait until the model is loaded in this process. The next call tries a failed load again."""
        task = self._loads.get(number)
        if task is None:
            if number not in self.models:
                raise DeviceLostError("engine: the model was unloaded")
            task = self._loads[number] = asyncio.get_running_loop().create_task(self._load(link, number))
            task.add_done_callback(_retrieved)
        if not task.done():
            await asyncio.shield(task)
        elif not task.cancelled() and (error := task.exception()) is not None:
            self._loads.pop(number, None)
            raise error

    async def _load(self, link: ProcessLink, number: int) -> None:
        file = self.models[number]
        try:
            await self._ask(link, number, lambda call: LoadModel(call, number, file))
        except (InvalidError, UnsupportedError) as error:  # not the fault of the request that waits for it
            raise RequestError(503, f"model '{file.name}' cannot be loaded again, {error}") from None
        for plan in self._plans[number].values():
            await self._ask(link, number, partial(_follow, number, plan))

    def _lost(self, link: ProcessLink, reason: str, suspects: set[int]) -> None:
        now = time.monotonic()
        self._count_death(now - self._up_at if self._link is link else 0.0)
        self._link, self._starting, self._loads = None, None, {}
        log.error("engine process lost", reason=reason, models=[self.models[n].name for n in suspects & self.models.keys()])
        for number in suspects & self.models.keys():
            strikes = self._strikes.setdefault(number, deque(maxlen=STRIKES))
            strikes.append(now)
            if len(strikes) == STRIKES and now - strikes[0] < STRIKE_WINDOW_S:
                self._aside[number] = now + ASIDE_S
                strikes.clear()
        if self.models and not self._closed:
            task = asyncio.get_running_loop().create_task(self._come_back())
            task.add_done_callback(_retrieved)

    def _count_death(self, lived_s: float) -> None:
        self.restarts += 1
        self._deaths = 1 if lived_s >= STEADY_S else self._deaths + 1
        self._again_at = time.monotonic() + min(FIRST_PAUSE_S * 2 ** (self._deaths - 1), LAST_PAUSE_S)

    async def _come_back(self) -> None:
        """Restart the process and load its models, except those that are set aside, without waiting for a request."""
        link = await self._up()
        for number in list(self.models):
            if self._aside.get(number, 0.0) <= time.monotonic():
                with contextlib.suppress(EdgewiseError):  # the next request for the model raises it
                    await self._loaded(link, number)


class ServiceHost:
    """Runs models on threads of the service's own process: no isolation, no copies, and a debugger sees everything."""

    def __init__(self, threads: int, memory: ProcessMemory) -> None:
        self.models: dict[int, ModelFile] = {}
        self._loaded_models = LoadedModels(memory)
        self._loads: dict[int, asyncio.Future[None]] = {}
        self._control = asyncio.Semaphore(CONTROL_THREADS)
        self._closed = False
        self._threads = WorkThreads(threads + CONTROL_THREADS, "edgewise-engine")

    async def load(self, number: int, file: ModelFile, model: Model, plans: Plans, /) -> None:
        """Run the model as the service has read it."""

        def work() -> None:
            self._loaded_models.adopt(number, file, model)
            for plan in plans.values():
                self._loaded_models.follow(number, plan)

        self.models[number] = file
        self._loaded_models.expect(number)
        self._loads[number] = asyncio.ensure_future(self._slowly(work))
        await self._loads[number]

    async def follow(self, number: int, _inputs: tuple[InputShape, ...], plan: bytes, /) -> None:
        """See `ModelHost`."""
        await self.ready(number)
        await self._slowly(lambda: self._loaded_models.follow(number, plan))

    async def ready(self, number: int) -> None:
        """See `ModelHost`."""
        load = self._loads.get(number)
        if load is None:
            raise DeviceLostError("engine: the model was unloaded")
        await asyncio.shield(load)

    async def prove(self, number: int, shapes: Shapes) -> str:
        """See `ModelHost`."""
        await self.ready(number)
        return await self._slowly(lambda: self._loaded_models.prove(number, shapes))

    async def prepare(self, number: int, shapes: Shapes) -> None:
        """See `ModelHost`."""
        await self._slowly(lambda: self._loaded_models.prepare(number, shapes))

    async def run(self, number: int, batch: Batch) -> Ran:
        """See `ModelHost`."""
        parts, bounds = [request.feeds for request in batch.requests], RunBounds(batch.ends_ns)
        await self.ready(number)
        with batch.stoppable(bounds.cancel):
            computed = await self._call(lambda: self._loaded_models.run(number, _joined(parts), bounds, build=batch.build))
        return Ran(split(computed.outputs, [request.rows for request in batch.requests]), computed.compute_ns, computed.plan_id)

    def arena_bytes(self, number: int, /) -> int:
        """See `ModelHost`."""
        return self._loaded_models.arena_bytes(number)

    def drop(self, number: int) -> None:
        """Unload a model."""
        self.models.pop(number, None)
        self._loads.pop(number, None)
        if not self._closed:
            self._threads.submit(self._loaded_models.drop, number)  # giving memory back takes a while

    def close(self) -> None:
        """Start no more work; `wait` waits for running work."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)

    def wait(self, timeout_s: float) -> bool:
        """See `ModelHost`. What has not ended then is left behind, on threads that hold nothing up."""
        return self._threads.join(timeout_s)

    async def _slowly(self, work: Callable[[], T]) -> T:
        """See `ProcessHost._ask`."""

        async def call() -> T:
            async with self._control:
                return await self._call(work)

        task = asyncio.get_running_loop().create_task(call())
        task.add_done_callback(_retrieved)
        return await asyncio.shield(task)

    async def _call(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def _joined(parts: Sequence[dict[str, Array]]) -> dict[str, Array]:
    """Concatenate the rows of all requests, input by input."""
    return parts[0] if len(parts) == 1 else {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _follow(number: int, plan: bytes, call: int) -> FollowPlan:
    return FollowPlan(call, number, plan)


def _later(seconds: float, message: str) -> RequestError:
    return RequestError(503, f"{message}; try again later", {"Retry-After": str(max(1, math.ceil(seconds)))})


def _retrieved(task: asyncio.Task[object]) -> None:
    """Mark a task's exception as retrieved, where no caller waits for it."""
    if not task.cancelled():
        task.exception()
