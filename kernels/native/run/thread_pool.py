"""Native worker threads that run emitted programs without the GIL and without Python between operators.

A worker is a Python thread that enters native code once, through ctypes, and stays there until the pool closes. The pool is a
budget of threads that the sessions of a process share: a run takes as many as it wants, in the order of asking, and waits while
they are in use. Runs that fit beside one another run at once, each with a team of its own.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import struct
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.confinement import usable_cpus
from kernels.native.code.cache import CodeCache, Source
from kernels.native.code.farm import compile_all
from kernels.native.code.library import Library
from kernels.native.errors import PoolError
from kernels.native.memory.buffers import aligned
from kernels.native.run.runtime import MAILBOX, MAILBOX_BYTES, TEAM, TEAM_BYTES, runtime_ir
from kernels.native.target.isa import Isa, host_isa
from kernels.spec import Array

BARRIER_SPINS = 20_000  # pauses before a thread that waits for others sleeps: about 0.5 ms on Zen 5
IDLE_SPINS = 2_000  # the same for a worker without work: about 50 µs


def _runtime_code(isa: Isa) -> bytes:
    return compile_all([Source.of(runtime_ir(isa))], isa, cache=CodeCache.default())[0].code


class ThreadPool:
    """A pool of `threads` threads, the caller's own included: a pool of one starts no worker. Workers start when needed."""

    def __init__(self, threads: int) -> None:
        self._pid = os.getpid()
        isa = host_isa()
        self._runtime = Library([_runtime_code(isa)], list(_SIGNATURES))
        self._call = {
            name: ctypes.CFUNCTYPE(None, *kinds)(self._runtime.address(name)) for name, kinds in _SIGNATURES.items()
        }  # fmt: skip
        self.threads = 0
        self._lock = threading.Lock()
        self._waiting: deque[tuple[int, threading.Event]] = deque()  # runs that wait: threads wanted, in the order of asking
        self._free_threads = 0
        self._teams: list[Array] = []
        self._idle_teams: list[int] = []
        self._boxes: list[Array] = []
        self._idle_boxes: list[int] = []
        self._workers: list[threading.Thread] = []
        self._closed = False
        self._finalizer = weakref.finalize(self, _stop, self._boxes, self._workers, self._call["edgewise_post"], self._runtime)
        self._finalizer.atexit = False  # _close_all does it, after the runs under way
        _pools.add(self)
        self.grow(threads)

    def grow(self, threads: int) -> None:
        """Grow the pool to at least that many threads. Raises PoolError for fewer than one."""
        if threads < 1:
            raise PoolError(f"pool: {threads} threads asked for, need at least 1")
        with self._lock:
            for _ in range(self.threads, threads):
                self._idle_teams.append(len(self._teams))
                self._teams.append(aligned(TEAM_BYTES))
                self._free_threads += 1
            for _ in range(len(self._boxes), threads - 1):
                self._idle_boxes.append(len(self._boxes))
                self._boxes.append(aligned(MAILBOX_BYTES))
            self.threads = max(self.threads, threads)
            crowded = usable_cpus() < self.threads  # spinning would then take the core from the thread that is waited for
            self._barrier_spins = 50 if crowded else BARRIER_SPINS
            for box in self._boxes:
                _set(box, MAILBOX["spins"], np.int32, 0 if crowded else IDLE_SPINS)
            self._admit()

    def run(self, program: int, arguments: int, threads: int, counters: Array | None = None) -> None:
        """Run a program to its end on this thread and `threads - 1` workers.

        program: address of a `void (ptr arguments, i64 thread, i64 threads, ptr team)`. counters: memory zeroed before the start.
        Raises PoolError when the pool is closed, forked away from its workers, or smaller than `threads`.
        """
        if not 1 <= threads <= self.threads:
            raise PoolError(f"pool: {threads} threads asked for, it has {self.threads}")
        if os.getpid() != self._pid:
            raise PoolError("pool: this process was forked and has none of its workers, use shared_thread_pool()")
        boxes, team = self._take(threads)
        try:
            state = self._teams[team]
            _TASK.pack_into(state.data, TEAM["program"], program, arguments, threads, self._barrier_spins)
            addresses = (ctypes.c_void_p * max(len(boxes), 1))(*(self._boxes[box].ctypes.data for box in boxes))
            counted = (counters.ctypes.data, counters.nbytes) if counters is not None else (None, 0)
            self._call["edgewise_run"](state.ctypes.data, addresses, len(boxes), *counted)
        finally:
            self._give_back(boxes, team, threads)

    def close(self, patience_s: float | None = None) -> None:
        """Wait for the runs under way, then end the workers. A closed pool refuses to run.

        patience_s: how long to wait; a pool that is still running then is left as it is. None = for ever.
        """
        with self._lock:
            if self._closed or os.getpid() != self._pid:
                return
        if not self._await_turn(self.threads, patience_s):
            return
        self._closed = True
        self._finalizer()
        with self._lock:
            self._free_threads += self.threads
            self._admit()

    def _await_turn(self, threads: int, patience_s: float | None = None) -> bool:
        """Take that many threads out of the budget, first come, first served; False where `patience_s` ran out first."""
        with self._lock:
            if not self._waiting and self._free_threads >= threads:
                self._free_threads -= threads
                return True
            turn = threading.Event()
            ticket = (threads, turn)
            self._waiting.append(ticket)
        try:
            if turn.wait(patience_s):
                return True
        except BaseException:  # interrupted from the keyboard
            self._leave_queue(ticket)
            raise
        self._leave_queue(ticket)
        return False

    def _leave_queue(self, ticket: tuple[int, threading.Event]) -> None:
        """Give up a place in the queue, or return threads that were granted meanwhile."""
        with self._lock:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
            else:
                self._free_threads += ticket[0]
            self._admit()

    def _take(self, threads: int) -> tuple[list[int], int]:
        self._await_turn(threads)
        with self._lock:
            if self._closed:
                self._free_threads += threads
                self._admit()
                raise PoolError("pool: it is closed, and runs nothing any more")
            boxes, self._idle_boxes = self._idle_boxes[: threads - 1], self._idle_boxes[threads - 1 :]
            for box in range(len(self._workers), max(boxes, default=-1) + 1):
                self._start_worker(box)
            return boxes, self._idle_teams.pop()

    def _give_back(self, boxes: list[int], team: int, threads: int) -> None:
        with self._lock:
            self._idle_boxes = sorted(self._idle_boxes + boxes)  # the same few workers stay warm
            self._idle_teams.append(team)
            self._free_threads += threads
            self._admit()

    def _admit(self) -> None:
        """Admit waiting runs, in order, while their threads are free."""
        while self._waiting and self._waiting[0][0] <= self._free_threads:
            threads, turn = self._waiting.popleft()
            self._free_threads -= threads
            turn.set()

    def _start_worker(self, box: int) -> None:
        address = self._boxes[box].ctypes.data
        work = self._call["edgewise_worker"]
        worker = threading.Thread(target=work, args=(address,), name=f"edgewise-{box + 1}", daemon=True)
        worker.start()
        self._workers.append(worker)


_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "edgewise_run": (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64),
    "edgewise_worker": (ctypes.c_void_p,),
    "edgewise_post": (ctypes.c_void_p,),
}


_TASK = struct.Struct("=qqqi")  # program, arguments, threads and spins of a team, which follow one another


def _set(record: Array, offset: int, kind: type, value: int) -> None:
    record[offset : offset + np.dtype(kind).itemsize].view(kind)[0] = value


def _stop(boxes: list[Array], workers: list[threading.Thread], post: Callable[[int], None], runtime: Library) -> None:
    """End the workers and then unmap their code, when a pool closes or is collected. No run may be under way."""
    for box, _ in zip(boxes, workers, strict=False):  # mailboxes without a worker yet follow
        _set(box, MAILBOX["stop"], np.int32, 1)
        post(int(box.ctypes.data))
    for worker in workers:
        worker.join()
    runtime.close()


_pools: weakref.WeakSet[ThreadPool] = weakref.WeakSet()
_shared: list[ThreadPool] = []
_forked_away: list[ThreadPool] = []  # never touched again: their workers are the parent's
_shared_lock = threading.Lock()


def shared_thread_pool(threads: int = 1) -> ThreadPool:
    """Return the pool of this process: as many threads as cores, or the largest number ever asked for."""
    with _shared_lock:
        if not _shared:
            _shared.append(ThreadPool(usable_cpus()))
        _shared[0].grow(threads)
        return _shared[0]


@atexit.register
def _close_all() -> None:
    """Close every pool before the interpreter ends: no thread may be in native code when it is unmapped."""
    for pool in list(_pools):
        pool.close(patience_s=10)


def _after_fork() -> None:
    """Forget the parent's pools in a forked child, which has their memory but none of their threads; make another when needed."""
    global _shared_lock  # noqa: PLW0603  another thread of the parent may have held it
    _shared_lock = threading.Lock()
    for pool in list(_pools):
        pool._finalizer.detach()
        _forked_away.append(pool)
    _pools.clear()
    _shared.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
