"""Closed and open loops of requests, and what became of each.

In a closed loop every client sends its next request as soon as it has an answer, so a slow server is sent fewer: its latencies
are those of clients that wait. In an open loop requests are due at set times, whether or not earlier ones were answered. Latency
counts from when a request was due, so that neither a server that falls behind nor this generator hides a wait ("coordinated
omission").
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from app.load.server import CONNECTION, Client, FailedError
from kernels.record import record

RECONNECT_S = 0.1  # before a client of a closed loop tries again a server that it could not reach


@record
class Load:
    """What to send. clients: of a closed loop. rate_per_s: of an open loop, which then has at most `clients` requests under way.

    even: requests of an open loop are due at even intervals; otherwise at random ones, as of many clients (a Poisson process).
    """

    clients: int
    rate_per_s: float | None = None
    even: bool = False


@record
class Bounds:
    """When to end. requests: at most that many, or None. timeout_s: for one answer, from when the request was due."""

    seconds: float
    requests: int | None = None
    timeout_s: float = 10.0


@dataclass(slots=True)
class Failures:
    """Failures of one kind. example: the message of the first."""

    count: int
    example: str


@dataclass(slots=True)
class Sample:
    """What became of the requests that were due within the bounds.

    latencies_ns: of answers, from when the request was due. in_time: answers before the end. elapsed_s: from the start to the
    end, which is that of the bounds, the last answer if the number of requests ended it, or Ctrl-C. late_ns: how long after each
    request of an open loop was due this process turned to it. busy_share: processor time of this process, of one core.
    interrupted: by Ctrl-C.
    """

    latencies_ns: array[int] = field(default_factory=lambda: array("q"))
    late_ns: array[int] = field(default_factory=lambda: array("q"))
    failures: dict[str, Failures] = field(default_factory=dict)
    due: int = 0
    in_time: int = 0
    elapsed_s: float = 0.0
    busy_share: float = 0.0
    interrupted: bool = False


class Generator:
    """Sends one load. clients: as many as the load says. stop: set to end it early; requests under way are then given up."""

    def __init__(self, clients: Sequence[Client], load: Load, bounds: Bounds, stop: asyncio.Event) -> None:
        self._clients, self._load, self._bounds, self._stop = clients, load, bounds, stop
        self._sample = Sample()
        self._end_ns = 0

    async def run(self) -> Sample:
        """Send the load, wait for the answers, and return what was found."""
        sample = self._sample
        cpu_s, began_ns = time.process_time(), time.monotonic_ns()
        self._end_ns = began_ns + round(self._bounds.seconds * 1e9)
        sending = asyncio.ensure_future(self._closed() if self._load.rate_per_s is None else self._open(began_ns))
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({sending, stopping}, return_when=asyncio.FIRST_COMPLETED)
            sample.interrupted = not sending.done()
            ended_ns = time.monotonic_ns()
        finally:
            stopping.cancel()
            sending.cancel()
            await asyncio.wait({sending, stopping})
        if not sending.cancelled():
            sending.result()  # raises what went wrong
        early = sample.interrupted or sample.due == self._bounds.requests
        sample.elapsed_s = ((min(self._end_ns, ended_ns) if early else self._end_ns) - began_ns) / 1e9
        sample.busy_share = (time.process_time() - cpu_s) / max(1e-9, (time.monotonic_ns() - began_ns) / 1e9)
        return sample

    def _counts(self) -> bool:
        """Count a request that is due, unless enough were."""
        limit = self._bounds.requests
        if limit is not None and self._sample.due >= limit:
            return False
        self._sample.due += 1
        return True

    async def _closed(self) -> None:
        async with asyncio.TaskGroup() as group:
            for client in self._clients:
                group.create_task(self._repeat(client))

    async def _repeat(self, client: Client) -> None:
        """Be one client of a closed loop."""
        while (due_ns := time.monotonic_ns()) < self._end_ns and self._counts():
            try:
                async with asyncio.timeout(self._bounds.timeout_s):
                    await client.send()
                self._answered(due_ns)
            except TimeoutError:
                self._timed_out()
            except FailedError as error:
                self._failed(error)
                if error.kind == CONNECTION:
                    await asyncio.sleep(RECONNECT_S)

    async def _open(self, began_ns: int) -> None:
        loop, ended = asyncio.get_running_loop(), threading.Event()
        free, idle = asyncio.Semaphore(len(self._clients)), list(self._clients)
        async with asyncio.TaskGroup() as group:

            def begin(due_ns: int) -> None:
                if not ended.is_set():
                    group.create_task(self._one(due_ns, free, idle))

            try:
                await asyncio.to_thread(_pace, self._dues(began_ns), begin, loop, ended)
            except asyncio.CancelledError:
                ended.set()
                raise

    def _dues(self, began_ns: int) -> Iterator[int]:
        """Yield when requests are due, until the end."""
        rate, gaps = self._load.rate_per_s or 1.0, random.Random(0)  # noqa: S311  equal in every run, guards nothing
        due_ns: float = began_ns
        while due_ns < self._end_ns and self._counts():
            yield round(due_ns)
            due_ns += 1e9 / rate if self._load.even else gaps.expovariate(rate) * 1e9

    async def _one(self, due_ns: int, free: asyncio.Semaphore, idle: list[Client]) -> None:
        """Send one request of an open loop by an idle client, as soon as there is one."""
        late_ns = time.monotonic_ns() - due_ns
        self._sample.late_ns.append(late_ns)
        try:
            async with asyncio.timeout(self._bounds.timeout_s - late_ns / 1e9), free:
                client = idle.pop()
                try:
                    await client.send()
                finally:
                    idle.append(client)
            self._answered(due_ns)
        except TimeoutError:
            self._timed_out()
        except FailedError as error:
            self._failed(error)

    def _answered(self, due_ns: int) -> None:
        now_ns = time.monotonic_ns()
        self._sample.latencies_ns.append(now_ns - due_ns)
        self._sample.in_time += now_ns <= self._end_ns

    def _timed_out(self) -> None:
        self._failed(FailedError("timeout", f"no answer within {self._bounds.timeout_s:g} s"))

    def _failed(self, error: FailedError) -> None:
        self._sample.failures.setdefault(error.kind, Failures(0, str(error))).count += 1


def _pace(dues: Iterator[int], begin: Callable[[int], None], loop: asyncio.AbstractEventLoop, ended: threading.Event) -> None:
    """Call `begin` on the loop at every due time. It has a thread, since timers of event loops are a millisecond coarse."""
    for due_ns in dues:
        if ended.wait(max(0, due_ns - time.monotonic_ns()) / 1e9):
            return
        loop.call_soon_threadsafe(begin, due_ns)
