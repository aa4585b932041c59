"""The service's side of one engine process: start, calls, tensors in shared memory, watchdog and end.

A link whose process has died is not used again; `app.engine.hosts` starts a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.engine.messages import (
    CancelRun,
    Done,
    DropModel,
    Failed,
    Frames,
    FreeReplies,
    Order,
    Reply,
    RunBatch,
    RunResult,
    error_of,
    frame,
)
from app.engine.requests import Batch, Ran
from app.engine.slab import Slab, Space, anonymous_file, layout, view, write
from app.errors import RequestError
from kernels.errors import DeviceLostError, EdgewiseError
from kernels.spec import Array

ROOT = Path(__file__).parents[2]
START_S = 60.0  # a process that has not answered by then is given up
STOP_S = 0.5  # for a run to end at its deadline by itself, before its process is killed
EXIT_S = 0.2  # how long to wait for the exit status of a process whose socket closed
FLUSH_S = 0.02  # how long freed reply space may wait for the next run to report it
FLUSH_BYTES = 4 * 2**20  # how much freed reply space may wait
INLINE_BYTES = 2 * 2**20  # larger tensors are copied off the event loop
CONTROL_THREADS = 4  # for loading, proving and preparing, beside those that run


@dataclass(slots=True, eq=False)
class _Call:
    answer: asyncio.Future[Reply]
    model: int
    watchdog: asyncio.TimerHandle | None


class ProcessLink:
    """One engine process.

    Args: size_bytes: of shared memory in each direction. threads: of runs. on_lost: called once when the process has died, with
          the reason and the models whose work it held.
    """

    def __init__(self, size_bytes: int, threads: int, on_lost: Callable[[ProcessLink, str, set[int]], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._on_lost = on_lost
        self._numbers = itertools.count(1)
        self._calls: dict[int, _Call] = {}
        self._frames, self._unsent = Frames(), bytearray()
        self._space = Space(size_bytes)
        self._queue = asyncio.Lock()  # requests that wait for space, in order
        self._room = asyncio.Event()
        self._freed: list[int] = []
        self._freed_bytes = 0
        self._held_bytes = 0  # of replies that are still referenced by arrays
        self._flush: asyncio.TimerHandle | None = None
        self.lost = ""
        self._dying = False
        with contextlib.ExitStack() as stack:
            descriptors = [anonymous_file(size_bytes) for _ in range(2)]
            for descriptor in descriptors:
                stack.callback(os.close, descriptor)
            self._requests, self._replies = (Slab(descriptor, size_bytes) for descriptor in descriptors)
            self._socket, theirs = socket.socketpair()
            stack.enter_context(theirs)
            self._socket.setblocking(False)
            passed = [theirs.fileno(), *descriptors]
            self.process = subprocess.Popen(  # noqa: S603  this interpreter and numbers
                [
                    sys.executable,
                    "-P",  # a file `app.py` in the working directory is not this package
                    "-m",
                    "app.engine.worker",
                    *map(str, passed),
                    str(size_bytes),
                    str(threads + CONTROL_THREADS + 1),
                ],
                pass_fds=passed,
                stdin=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))},
                process_group=0,
            )
        self._loop.add_reader(self._socket, self._readable)

    @property
    def in_flight(self) -> int:
        """Number of calls without a reply."""
        return len(self._calls)

    @property
    def shared_bytes(self) -> int:
        """Bytes of shared memory that requests take."""
        return self._space.taken_bytes

    async def hello(self) -> None:
        """Wait until the process has started. Raises DeviceLostError when it does not."""
        await self._reply(0, -1, START_S)

    async def ask(self, model: int, timeout_s: float, order: Callable[[int], Order]) -> Done:
        """Send an order and wait until it is done. order: makes it from its number.

        Raises: the error of the order; DeviceLostError when the process dies or does not answer within `timeout_s`.
        """
        number = next(self._numbers)
        self._send(order(number))
        reply = await self._reply(number, model, timeout_s)
        if not isinstance(reply, Done):
            raise DeviceLostError("engine: the reply is not of the kind that the order expects")
        return reply

    async def run(self, model: int, batch: Batch, timeout_s: float) -> Ran:
        """Run a batch. Its tensors are copied into shared memory once; the outputs are views of shared memory.

        Raises: DeviceLostError when the process dies or hangs; the error of the run.
        """
        names = list(batch.requests[0].feeds)
        groups = [[request.feeds[name] for request in batch.requests] for name in names]
        tensors, texts, nbytes = layout(groups)
        region = await self._take(nbytes)
        number = next(self._numbers)
        try:
            if nbytes > INLINE_BYTES:
                await asyncio.to_thread(write, self._requests, region, tensors, texts, groups)
            else:
                write(self._requests, region, tensors, texts, groups)
            inputs = dict(zip(names, tensors, strict=True))
            self._send(RunBatch(number, model, region, nbytes, inputs, batch.ends_ns, batch.build, self._take_freed()))
            with batch.stoppable(lambda reason: self._send(CancelRun(number, reason))):
                reply = await self._reply(number, model, timeout_s)
        finally:
            self._give(region)
        if not isinstance(reply, RunResult):
            raise DeviceLostError("engine: the reply to a run is not a result")
        return Ran(self._outputs(reply, [request.rows for request in batch.requests]), reply.compute_ns, reply.plan_id)

    def drop(self, model: int) -> None:
        """Unload a model in the process."""
        self._send(DropModel(model))

    def kill(self, reason: str) -> None:
        """Kill the process at once; its calls fail with `reason`."""
        self._lose(reason)

    def close(self) -> None:
        """End the process without calling `on_lost`."""
        self._on_lost = _ignore
        self._lose("engine: it was closed")

    async def _reply(self, number: int, model: int, timeout_s: float) -> Reply:
        """Wait for a reply. A process that does not reply in time, and within STOP_S after that, is killed."""
        if self.lost:
            raise DeviceLostError(self.lost)
        hangs = f"engine: no answer within {timeout_s:g} s, the process was killed (EDGEWISE_RUN_TIMEOUT_S)"
        watchdog = self._loop.call_later(timeout_s + STOP_S, self._lose, hangs)
        call = _Call(self._loop.create_future(), model, watchdog)
        self._calls[number] = call
        reply = await call.answer
        if isinstance(reply, Failed):
            raise error_of(reply)
        return reply

    async def _take(self, size_bytes: int) -> int:
        """Wait for space for a request; first come, first served. Raises RequestError 413 for more than the whole memory."""
        if size_bytes > self._space.size_bytes:
            raise RequestError(413, f"inputs: {size_bytes} bytes, the limit is {self._space.size_bytes} (EDGEWISE_SHARED_BYTES)")
        async with self._queue:
            while (region := self._space.take(size_bytes)) is None:
                self._room.clear()
                await self._room.wait()
                if self.lost:
                    raise DeviceLostError(self.lost)
            return region

    def _give(self, region: int) -> None:
        self._space.give(region)
        self._room.set()

    def _outputs(self, reply: RunResult, rows: Sequence[int]) -> list[dict[str, Array]]:
        """Return each request's rows of every output, as views whose space is freed with the last of them.

        They are copied if views hold half of the slab already: a caller that keeps answers must not block the process.
        """
        region = self._replies.bytes_at(reply.region, reply.nbytes)
        if self._held_bytes + reply.nbytes > self._space.size_bytes // 2:
            region = region.copy()
            self._free(reply.region, reply.nbytes)
        else:
            self._held_bytes += reply.nbytes
            weakref.finalize(region, _let_go, weakref.ref(self), reply.region, reply.nbytes).atexit = False
        return split({name: view(region, tensor) for name, tensor in reply.outputs.items()}, rows)

    def free_later(self, region: int, size_bytes: int) -> None:
        """Free a reply's space. Called by the finalizer of its last array, on any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, and so is the process
            here = threading.get_ident() == self._thread
            call = self._loop.call_soon if here else self._loop.call_soon_threadsafe
            call(self._let_go, region, size_bytes)

    def _let_go(self, region: int, size_bytes: int) -> None:
        self._held_bytes -= size_bytes
        self._free(region, size_bytes)

    def _free(self, region: int, size_bytes: int) -> None:
        self._freed.append(region)
        self._freed_bytes += size_bytes
        if self._freed_bytes >= FLUSH_BYTES:
            self._flush_freed()
        elif self._flush is None and not self.lost:
            self._flush = self._loop.call_later(FLUSH_S, self._flush_freed)

    def _flush_freed(self) -> None:
        if regions := self._take_freed():
            self._send(FreeReplies(regions))

    def _take_freed(self) -> list[int]:
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        freed, self._freed, self._freed_bytes = self._freed, [], 0
        return freed

    def _send(self, order: Order) -> None:
        if self.lost or self._dying:
            return
        if not self._unsent:
            self._unsent += frame(order)
            self._writable()
        else:
            self._unsent += frame(order)

    def _writable(self) -> None:
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._died()
            return
        del self._unsent[:sent]
        if self._unsent:
            self._loop.add_writer(self._socket, self._writable)
        else:
            self._loop.remove_writer(self._socket)

    def _readable(self) -> None:
        try:
            data = self._socket.recv(1 << 18)
            replies = self._frames.feed(data)
        except BlockingIOError:
            return
        except (OSError, DeviceLostError):
            data, replies = b"", []
        for reply in replies:
            call = self._calls.pop(reply.id, None)
            if call is None:
                self._lose("engine: a reply with an unknown number")
                return
            if call.watchdog is not None:
                call.watchdog.cancel()
            if not call.answer.cancelled():
                call.answer.set_result(reply)
            elif isinstance(reply, RunResult):  # the caller has left
                self._free(reply.region, reply.nbytes)
        if not data:
            self._died()

    def _died(self) -> None:
        """Handle the end of the socket, and so of the process. A thread waits for its exit status."""
        if not self._dying:
            self._dying = True
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            threading.Thread(target=self._tell_how, name="edgewise-reaper", daemon=True).start()

    def _tell_how(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(EXIT_S)
        code = self.process.returncode
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        with contextlib.suppress(RuntimeError):  # the loop is closed, no caller waits
            self._loop.call_soon_threadsafe(self._lose, f"engine: the process that held the request ended by {how}, try again")

    def _lose(self, reason: str) -> None:
        """End the link: kill the process, fail all calls, release all memory."""
        if self.lost:
            return
        self.lost = reason
        self._take_freed()
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        self.process.kill()
        threading.Thread(target=self.process.wait, name="edgewise-reaper", daemon=True).start()
        suspects = {call.model for call in self._calls.values() if call.model >= 0}
        for call in self._calls.values():
            if call.watchdog is not None:
                call.watchdog.cancel()
            if not call.answer.cancelled():
                call.answer.set_exception(DeviceLostError(reason))
        self._calls.clear()
        self._room.set()
        self._requests.close()
        self._replies.close()
        self._on_lost(self, reason, suspects)


def split(arrays: dict[str, Array], rows: Sequence[int]) -> list[dict[str, Array]]:
    """Split outputs along axis 0 into each request's rows. Raises EdgewiseError if an output does not have sum(rows) rows."""
    if len(rows) == 1:
        return [arrays]
    for name, array in arrays.items():
        if array.shape[:1] != (sum(rows),):
            raise EdgewiseError(f"output {name!r}: shape is {array.shape}, a batch of {sum(rows)} rows needs that many")
    ends = list(itertools.accumulate(rows))
    return [{name: array[end - count : end] for name, array in arrays.items()} for count, end in zip(rows, ends, strict=True)]


def _let_go(link: weakref.ref[ProcessLink], region: int, size_bytes: int) -> None:
    """Free a reply's space. A weak reference, since a finalizer that held the link would keep alive all that it can reach."""
    if (found := link()) is not None:
        found.free_later(region, size_bytes)


def _ignore(_link: ProcessLink, _reason: str, _suspects: set[int]) -> None:
    pass
