"""Requests for inference and the batches that they share, from the queue to the answer, and the clock that they are timed by."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from app.engine.curve import BatchCurve
from kernels.record import record
from kernels.spec import Array


class Timer(Protocol):
    """A scheduled call, as returned by `Clock.call_at`."""

    def cancel(self) -> None:
        """Cancel the call."""


class Clock(Protocol):
    """Monotonic time, and calls scheduled on it."""

    def now_ns(self) -> int:
        """Return the monotonic time in nanoseconds."""

    def call_at(self, when_ns: int, work: Callable[[], None]) -> Timer:
        """Call `work` at that time."""


@record
class InferOptions:
    """Options of one request. priority: 0 = the model's default, 1 = the highest. deadline_ns: on the monotonic clock."""

    priority: int = 0
    deadline_ns: int | None = None
    request_id: str = ""


@record
class Outcome:
    """A request's own rows of its batch's outputs, and how the run went.

    batch_rows: rows of the whole batch. plan_id: the plan that the run followed; "default" = each op's default strategy.
    alone: the request shared neither its run nor the cores.
    """

    outputs: dict[str, Array]
    queue_ns: int
    compute_ns: int
    batch_rows: int
    plan_id: str
    alone: bool = False


@record
class Ran:
    """Result of running a batch: the outputs of each request, in order. alone: nothing else was computed meanwhile."""

    outputs: Sequence[dict[str, Array]]
    compute_ns: int
    plan_id: str = "default"
    alone: bool = False


@dataclass(slots=True, eq=False)
class Bucket:
    """Requests that may share a run: every input has the same dtype and, but for the rows (axis 0), the same shape.

    sizes: the batch sizes that may be run, ascending; empty = each request runs by itself. paying: the largest size that has
    proven faster per row. waiting_rows: rows of the requests in the queue. building: batch sizes whose code is being built, each
    with the requests that wait for it. built: batch sizes whose code was built. Should that code be evicted before the next run,
    the run builds it itself, so that every shape gets its turn where more shapes are in use than a model keeps.
    """

    sizes: tuple[int, ...] = ()
    paying: int = 1
    curve: BatchCurve = field(default_factory=BatchCurve)
    waiting_rows: int = 0
    building: dict[int, list[Request]] = field(default_factory=dict)
    built: set[int] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class Request:
    """A request in the queue or in a run.

    expires_ns: when it leaves the queue. deadline_ns: when its run must have ended; None where its client set none that counts.
    answer: resolved exactly once, with an Outcome or an error.
    """

    feeds: dict[str, Array]
    rows: int
    bucket: Bucket
    level: int
    arrived_ns: int
    expires_ns: int | None
    rejects: bool  # on expiry the request is refused; else it moves behind the others
    deadline_ns: int | None
    answer: asyncio.Future[Outcome]
    started_ns: int = 0
    parked: bool = False  # waits until its code is built
    timer: Timer | None = None
    ready: Outcome | BaseException | None = None  # the result, held back until earlier requests have theirs

    @property
    def gone(self) -> bool:
        """Whether its client no longer waits: answered or cancelled."""
        return self.answer.done()

    @property
    def runnable(self) -> bool:
        """Whether it can run now: no code that it needs is being built."""
        return not self.parked and self.rows not in self.bucket.building


class Batch:
    """Requests that share one run, which is stopped when no client waits for any of them."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.build = False  # build missing code within the run
        self.ends_ns: int | None = None  # when its run must have ended, on the monotonic clock
        self._stop: Callable[[str], None] | None = None
        self._reason = ""

    @property
    def rows(self) -> int:
        """Number of rows of all its requests together."""
        return sum(request.rows for request in self.requests)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the batch's inputs, by name; axis 0 has the rows of all its requests."""
        feeds = self.requests[0].feeds
        if len(self.requests) == 1:
            return {name: feed.shape for name, feed in feeds.items()}
        return {name: (self.rows, *feed.shape[1:]) for name, feed in feeds.items()}

    @property
    def deadline_ns(self) -> int | None:
        """The latest of its requests' deadlines on the monotonic clock; None where one of them has none."""
        found = [request.deadline_ns for request in self.requests if request.deadline_ns is not None]
        return max(found) if len(found) == len(self.requests) else None

    @contextmanager
    def stoppable(self, stop: Callable[[str], None]) -> Iterator[None]:
        """Let `stop`, given the reason, end the run, which lasts for the block. It is called at once if the run is in vain."""
        self._stop = stop
        if self._reason:
            stop(self._reason)
        self.check()
        try:
            yield
        finally:
            self._stop = None

    def stop(self, reason: str) -> None:
        """End the run before it is done. reason: why. Only the first call counts."""
        if not self._reason:
            self._reason = reason
            if self._stop is not None:
                self._stop(reason)

    def check(self) -> None:
        """Stop the run where no client waits any more."""
        if all(request.gone for request in self.requests):
            self.stop("no client waits for it any more")

    def answer(self, error: Exception) -> None:
        """Answer all its clients that still wait, though the run goes on."""
        for request in self.requests:
            if not request.gone:
                request.answer.set_exception(error)
