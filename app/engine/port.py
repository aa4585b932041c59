"""The interface between the service and its engine: `infer` runs models, `call` runs other blocking work.

Every served model has a lane: its queue, which groups requests by shape, and a host, which is one of the engine processes or the
service's own. All lanes lease cores from one budget. A lane belongs to a session and ends with it: a reloaded model gets its own
lane, and requests of the old session finish in the old lane.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import structlog

from app.engine.budget import CoreBudget
from app.engine.calls import Calls
from app.engine.hosts import ModelHost, ProcessHost, ServiceHost
from app.engine.lane import Lane, LoopClock, Servable, Shapes, Shared
from app.engine.overdue import OverdueRuns
from app.engine.requests import InferOptions, Outcome
from app.errors import RequestError
from app.settings import Settings
from graph.budget import ProcessMemory
from graph.errors import RunCancelledError
from graph.run.feeds import check_feeds
from kernels.confinement import usable_cores
from kernels.errors import DeviceLostError
from kernels.spec import Array
from scheduler.plan import Plan
from scheduler.session import Session

log = structlog.get_logger("edgewise.engine")
T = TypeVar("T")

CLOSE_S = 1.0  # for running work to end once it was told to


def _unforeseen(_session: Session, _threads: int, _shapes: Mapping[int, Shapes]) -> Mapping[int, float]:
    return {}


class Engine:
    """Runs models and other blocking work off the event loop, all within bounds. Used from one event loop.

    forecast: predicts nanoseconds of a model's run by rows, given its session, threads and input shapes by rows; rows that are
    missing in its result are measured as they run. memory: that models and runs of the service's own process take.
    """

    def __init__(
        self,
        settings: Settings,
        forecast: Callable[[Session, int, Mapping[int, Shapes]], Mapping[int, float]] = _unforeseen,
        memory: ProcessMemory | None = None,
    ) -> None:
        cores = usable_cores()
        self._forecast = forecast
        self._shared = Shared(settings, CoreBudget(cores, time.monotonic_ns), self._foresee, OverdueRuns(LoopClock()))
        self._calls = Calls("edgewise-work")
        self._here = ServiceHost(cores, memory or ProcessMemory(settings.process_limit_bytes))
        self._processes = [ProcessHost(cores, settings.shared_bytes, settings.run_timeout_s) for _ in range(settings.workers)]
        self._lanes: weakref.WeakKeyDictionary[Session, Lane] = weakref.WeakKeyDictionary()
        self._numbers = itertools.count()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._inferring = 0  # unanswered requests: an upper bound of those that wait, at no cost
        self._stopped = False

    @property
    def running(self) -> int:
        """Number of requests that run."""
        return sum(lane.batcher.running for lane in self._lanes.values())

    @property
    def waiting(self) -> int:
        """Number of requests in the queues."""
        return sum(lane.batcher.queued for lane in self._lanes.values())

    @property
    def pending(self) -> int:
        """Number of requests that wait or run."""
        return self.running + self.waiting

    @property
    def working(self) -> int:
        """Number of blocking calls that wait or run."""
        return self._calls.working

    @property
    def processes(self) -> tuple[ProcessHost, ...]:
        """The engine processes; empty if models run in the service's own process."""
        return tuple(self._processes)

    async def infer(self, served: Servable, feeds: Mapping[str, Array], options: InferOptions = InferOptions()) -> Outcome:  # noqa: B008
        """Run a model on one request, alone or in a batch.

        Args:   feeds: every input by name.
        Raises: FeedError for feeds that are not the model's inputs; RequestError 503 if the model is not loaded, the queue is
                full, the request has expired, its process died, the model was unloaded or the service stops; RunTimeoutError
                where its run is not done in time; errors of the model's operators.
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
        except (DeviceLostError, RunCancelledError) as error:
            raise RequestError(503, str(error), {"Retry-After": "1"}) from None
        finally:
            self._inferring -= 1

    async def call(self, work: Callable[..., T], *arguments: object, **keywords: object) -> T:
        """Await other blocking work on a thread. Raises RequestError 503 when too much of it waits already."""
        return await self._calls.call(work, *arguments, **keywords)

    def bind(self) -> None:
        """Remember the running event loop, so that `preload` may be called from other threads."""
        self._loop = asyncio.get_running_loop()

    def preload(self, served: Servable) -> None:
        """Start loading a model before a request needs it. From any thread, without waiting."""
        session = served.session
        if session is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._preload, served, session)

    def _preload(self, served: Servable, session: Session) -> None:
        if not self._stopped:
            self._lane(served, session)

    async def load(self, served: Servable) -> None:
        """Load a model and wait until its host has it or has failed to; `infer` then raises the error."""
        if served.session is not None:
            await asyncio.shield(self._lane(served, served.session).loading)

    def batch_curves(self, session: Session) -> list[dict[str, Any]]:
        """Return the batch curves of a model, as JSON; see `Lane.curves`."""
        lane = self._lanes.get(session)
        return [] if lane is None else lane.curves()

    async def _foresee(self, session: Session, threads: int, shapes: Mapping[int, Shapes]) -> Mapping[int, float]:
        return await self.call(self._forecast, session, threads, shapes)

    async def follow(self, served: Servable, session: Session, plan: Plan) -> None:
        """Run a plan from now on, for the shapes that it was made for. No run waits for the switch.

        The service's own session follows once the host does, so that replies and pages name the plan that runs.
        Raises: what `Session.follow` raises; DeviceLostError; RequestError 503.
        """
        await self._lane(served, session).follow(plan)
        await self._calls.call(session.follow, plan)

    def share_of(self, served: Servable, session: Session) -> tuple[int, int]:
        """Return the threads of a model's runs, and the number of cores."""
        return self._lane(served, session).cores, self._shared.budget.cores

    def memory_bytes(self, session: Session) -> int:
        """Return the bytes that a model takes in the service's process: its weights, and the arenas of its runs."""
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
        """Return the engine process with the fewest models; the service's own if there is none, or no file to load from."""
        if served.file is None or not self._processes:
            return self._here
        return min(self._processes, key=lambda process: len(process.models))

    def retire(self, sessions: Iterable[Session]) -> None:
        """Give the requests of models that were unloaded `drain_s` to end, then stop their runs. On the event loop."""
        for session in sessions:
            if (lane := self._lanes.get(session)) is not None:
                asyncio.get_running_loop().call_later(self._shared.settings.drain_s, lane.close)

    @property
    def overdue(self) -> OverdueRuns:
        """The runs that have not ended though their deadline has passed."""
        return self._shared.overdue

    def stop(self) -> None:
        """Refuse all requests, stop what runs, and end the engine processes. On the event loop, without waiting."""
        self._stopped = True
        for lane in list(self._lanes.values()):
            if lane.end is not None:
                lane.end.detach()
            lane.close("Server is stopping")
        self._lanes.clear()
        self._here.close()
        for process in self._processes:
            process.close()

    def close(self) -> None:
        """Wait for running work, after `stop`, but not longer than CLOSE_S. On any thread."""
        self._stopped = True
        ended = [self._here.wait(CLOSE_S / 2), self._calls.close(CLOSE_S / 2)]
        if not all(ended):
            log.warning("work left behind", reason=f"it has not ended within {CLOSE_S:g} s")


def _from_any_thread(loop: asyncio.AbstractEventLoop, work: Callable[[], None]) -> None:
    """Call on the loop, from the thread that dropped a session's last reference, which may be any."""
    with contextlib.suppress(RuntimeError):  # the loop is closed, and everything with it
        loop.call_soon_threadsafe(work)
