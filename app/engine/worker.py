"""The program of an engine process, started and watched by `app.engine.link`.

    python -P -m app.engine.worker SOCKET REQUESTS REPLIES BYTES THREADS

SOCKET, REQUESTS and REPLIES are inherited file descriptors, BYTES the size of each shared memory. The threads take turns at the
socket: a thread reads one order, lets the next thread read, and carries its order out itself, so that no order is handed from
thread to thread. The process ends when its socket is closed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import socket
import sys
import threading

import structlog

from app import logs
from app.engine.loaded import LoadedModels
from app.engine.messages import (
    CancelRun,
    Done,
    DropModel,
    FollowPlan,
    FreeReplies,
    LoadModel,
    Order,
    PrepareShapes,
    ProveRows,
    Reply,
    RunBatch,
    RunResult,
    failure,
    frame,
    receive,
)
from app.engine.slab import Slab, Space, layout, view, write
from app.engine.threads import share_interpreter
from graph.errors import LimitError
from graph.run.bounds import RunBounds
from kernels.errors import EdgewiseError
from kernels.spec import Array

log = structlog.get_logger("edgewise.engine")


class EngineWorker:
    """Carries out the orders of the service and replies to them."""

    def __init__(self, stream: socket.socket, requests: Slab, replies: Slab) -> None:
        self._stream = stream
        self._requests, self._replies = requests, replies
        self._space = Space(replies.size_bytes)
        self._room = threading.Condition()
        self._models = LoadedModels()
        self._reading, self._writing = threading.Lock(), threading.Lock()
        self._runs: dict[int, RunBounds] = {}  # by the numbers of the runs that are not finished

    def serve(self, threads: int) -> None:
        """Carry out orders on that many threads until the service closes the socket."""
        for _ in range(threads - 1):
            threading.Thread(target=self._follow, daemon=True).start()
        self._follow()

    def _follow(self) -> None:
        while True:
            with self._reading:
                order = receive(self._stream)
                if order is None:
                    os._exit(0)  # the service is gone: no reply of a run can be read
                self._note(order)
            with contextlib.suppress(BrokenPipeError):
                self._obey(order)

    def _note(self, order: Order) -> None:
        """Note what must be known before the next order is read, since later orders refer to it."""
        if isinstance(order, RunBatch):
            self._runs[order.id] = RunBounds(order.ends_ns)
            self._free(order.freed)
        elif isinstance(order, LoadModel):
            self._models.expect(order.model)
        elif isinstance(order, CancelRun):
            if (bounds := self._runs.get(order.id)) is not None:
                bounds.cancel(order.reason)
        elif isinstance(order, FreeReplies):
            self._free(order.regions)

    def _obey(self, order: Order) -> None:
        if isinstance(order, CancelRun | FreeReplies):
            return
        if isinstance(order, DropModel):
            self._models.drop(order.model)
            return
        try:
            reply = self._carry_out(order)
        except Exception as error:
            if not isinstance(error, EdgewiseError):
                log.error("order failed", order=type(order).__name__, exc_info=error)
            reply = failure(order.id, error)
        self._send(reply)

    def _carry_out(self, order: LoadModel | FollowPlan | ProveRows | PrepareShapes | RunBatch) -> Reply:
        if isinstance(order, LoadModel):
            self._models.load(order.model, order.file)
            return Done(order.id)
        if isinstance(order, FollowPlan):
            self._models.follow(order.model, order.plan)
            return Done(order.id)
        if isinstance(order, ProveRows):
            return Done(order.id, self._models.prove(order.model, order.shapes))
        if isinstance(order, PrepareShapes):
            self._models.prepare(order.model, order.shapes)
            return Done(order.id)
        return self._run(order)

    def _run(self, order: RunBatch) -> RunResult:
        try:
            region = self._requests.bytes_at(order.region, order.nbytes)
            feeds = {name: view(region, tensor) for name, tensor in order.inputs.items()}
            computed = self._models.run(order.model, feeds, self._runs[order.id], build=order.build)
            groups = [[output] for output in computed.outputs.values()]
            return self._place(order.id, list(computed.outputs), groups, computed.compute_ns, computed.plan_id)
        finally:
            del self._runs[order.id]

    def _place(self, number: int, names: list[str], groups: list[list[Array]], compute_ns: int, plan_id: str) -> RunResult:
        """Copy the outputs into shared memory, waiting for space. Raises LimitError for outputs larger than all of it."""
        tensors, texts, nbytes = layout(groups)
        if nbytes > self._space.size_bytes:
            raise LimitError(f"outputs: {nbytes} bytes, the limit is {self._space.size_bytes} (EDGEWISE_SHARED_BYTES)")
        with self._room:
            while (base := self._space.take(nbytes)) is None:
                self._room.wait()
        write(self._replies, base, tensors, texts, groups)
        return RunResult(number, base, nbytes, dict(zip(names, tensors, strict=True)), compute_ns, plan_id)

    def _free(self, regions: list[int]) -> None:
        if regions:
            with self._room:
                for region in regions:
                    self._space.give(region)
                self._room.notify_all()

    def _send(self, reply: Reply) -> None:
        with self._writing:
            self._stream.sendall(frame(reply))


def main(descriptor: str, requests: str, replies: str, size_bytes: str, threads: str) -> None:
    """Run the process; see the module's docstring for the arguments."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the service handles Ctrl-C and then closes the socket
    share_interpreter()
    faulthandler.enable()
    logs.configure()
    slabs = [Slab(int(number), int(size_bytes)) for number in (requests, replies)]
    for number in (requests, replies):
        os.close(int(number))
    with socket.socket(fileno=int(descriptor)) as stream:
        worker = EngineWorker(stream, *slabs)
        stream.sendall(frame(Done(0)))
        worker.serve(int(threads))


if __name__ == "__main__":
    main(*sys.argv[1:])
