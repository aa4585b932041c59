"""The port between the service and what computes: `infer` for models, `call` for other work that blocks.

Every served model has a lane: its queue, which groups requests by shape, and a place in one of the engine processes, or in the
service's own. All lanes lease cores from one budget. A lane belongs to a session and ends with it, so that a reloaded model gets
a lane of its own, and requests of the old one finish in theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from app.engine.batching import InferOptions, Outcome
from app.engine.budget import CoreBudget
from app.engine.calls import Calls
from app.engine.hosts import ModelHost, ProcessHost, ServiceHost
from app.engine.lane import Lane, Servable, Shapes, Shared
from app.errors import RequestError
from app.settings import Settings
from graph.run.feeds import check_feeds
from kernels.errors import DeviceLostError
from kernels.spec import Array
from scheduler.plan import Plan
from scheduler.session import Session, available_cores

T = TypeVar("T")


def _unforeseen(_session: Session, _threads: int, _shapes: Mapping[int, Shapes]) -> Mapping[int, float]:
    return {}


class Engine:
    """Runs models and other blocking work off the event loop; bounded everywhere. Used from one event loop.

    forecast: nanoseconds of a model's runs on that many threads, by rows, before any has run; what is missing is measured.
    """

    def __init__(
        self, settings: Settings, forecast: Callable[[Session, int, Mapping[int, Shapes]], Mapping[int, float]] = _unforeseen
    ) -> None:
        cores = available_cores()
        self._forecast = forecast
        self._shared = Shared(settings, CoreBudget(cores, time.monotonic_ns), self._foresee)
        self._calls = Calls("edgewise-work")
        self._here = ServiceHost(cores)
        self._processes = [ProcessHost(cores, settings.shared_bytes, settings.run_timeout_s) for _ in range(settings.workers)]
        self._lanes: weakref.WeakKeyDictionary[Session, Lane] = weakref.WeakKeyDictionary()
        self._numbers = itertools.count()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._inferring = 0  # requests that are not answered: no fewer than wait, and quicker to know
        self._stopped = False

    @property
    def running(self) -> int:
        """Requests that run."""
        return sum(lane.batcher.running for lane in self._lanes.values())

    @property
    def waiting(self) -> int:
        """Requests in the queues."""
        return sum(lane.batcher.queued for lane in self._lanes.values())

    @property
    def pending(self) -> int:
        """Requests that wait or run."""
        return self.running + self.waiting

    @property
    def working(self) -> int:
        """Calls that wait or run."""
        return self._calls.working

    @property
    def processes(self) -> tuple[ProcessHost, ...]:
        """The engine processes; none where models run in the service's own."""
        return tuple(self._processes)

    async def infer(self, served: Servable, feeds: Mapping[str, Array], options: InferOptions = InferOptions()) -> Outcome:  # noqa: B008
        """Run a model on one request, alone or with others.

        Raises: FeedError; RequestError 503 when the model is not loaded, too many wait, the request's time is over, what ran it
                is lost or the service ends; whatever the model's ops raise.
        """
        session = served.session
        if session is None:
            raise RequestError(503, f"model '{served.name}' version {served.version} is not ready")
        if self._stopped:
            raise RequestError(503, "Server is stopping, its engine takes no more work")
        limit = self._shared.settings.queue_limit
        if self._inferring >= limit and (waiting := self.waiting) >= limit:
            message = f"Exceeds maximum queue size: {waiting} requests are waiting, the limit; try again"
            raise RequestError(503, message, {"Retry-After": "1"})
        arrays = check_feeds(session.inputs, feeds)
        self._inferring += 1
        try:
            return await self._lane(served, session).submit(arrays, options)
        except DeviceLostError as error:
            raise RequestError(503, str(error), {"Retry-After": "1"}) from None
        finally:
            self._inferring -= 1

    async def call(self, work: Callable[..., T], *arguments: object, **keywords: object) -> T:
        """Await other blocking work, beside the inferences. Raises RequestError 503 when too much of it waits already."""
        return await self._calls.call(work, *arguments, **keywords)

    def bind(self) -> None:
        """Belong to the running loop, so that `preload` may be called from other threads."""
        self._loop = asyncio.get_running_loop()

    def preload(self, served: Servable) -> None:
        """Have a model loaded by its engine before a request asks for it. From any thread, and without waiting."""
        session = served.session
        if session is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._lane, served, session)

    async def load(self, served: Servable) -> None:
        """The same from the loop, waiting until it is loaded or has failed, which then `infer` tells."""
        if served.session is not None:
            await asyncio.shield(self._lane(served, served.session).loading)

    def batch_curves(self, session: Session) -> list[dict[str, Any]]:
        """What batches of a served model take; see `Lane.curves`."""
        lane = self._lanes.get(session)
        return [] if lane is None else lane.curves()

    async def _foresee(self, session: Session, threads: int, shapes: Mapping[int, Shapes]) -> Mapping[int, float]:
        return await self.call(self._forecast, session, threads, shapes)

    async def follow(self, served: Servable, session: Session, plan: Plan) -> None:
        """Have a model run a plan from now on, for its shapes, without a run that waits; labels follow when runs do.

        Raises: what `Session.follow` raises; DeviceLostError, RequestError 503.
        """
        await self._lane(served, session).follow(plan)
        await self._calls.call(session.follow, plan)

    def share_of(self, served: Servable, session: Session) -> tuple[int, int]:
        """Threads of a model's runs, and the cores that there are."""
        return self._lane(served, session).cores, self._shared.budget.cores

    def memory_bytes(self, session: Session) -> int:
        """What a served model takes in the service: the model, and the arenas of its runs."""
        lane = self._lanes.get(session)
        return session.memory_bytes + (0 if lane is None else lane.host.arena_bytes(lane.number))

    def _lane(self, served: Servable, session: Session) -> Lane:
        lane = self._lanes.get(session)
        if lane is None:
            lane = self._lanes[session] = Lane(served, session, self._place(served), self._shared, next(self._numbers))
            lane.end = weakref.finalize(session, _from_any_thread, asyncio.get_running_loop(), lane.close)
            lane.end.atexit = False
        return lane

    def _place(self, served: Servable) -> ModelHost:
        """The process with the fewest models; the service's own where there is none, or no file that one could load."""
        if served.file is None or not self._processes:
            return self._here
        return min(self._processes, key=lambda process: len(process.models))

    def stop(self) -> None:
        """Refuse what waits and all that comes, end the processes. On the loop's thread, without waiting."""
        self._stopped = True
        for lane in list(self._lanes.values()):
            if lane.end is not None:
                lane.end.detach()
            lane.close()
        self._lanes.clear()
        self._here.close()
        for process in self._processes:
            process.close()

    def close(self) -> None:
        """Finish what runs, after `stop`. On any thread."""
        self._stopped = True
        self._here.wait()
        self._calls.close()


def _from_any_thread(loop: asyncio.AbstractEventLoop, work: Callable[[], None]) -> None:
    """Where a session's last reference goes is anybody's guess."""
    with contextlib.suppress(RuntimeError):  # the loop is closed, and everything with it
        loop.call_soon_threadsafe(work)
