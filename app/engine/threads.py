"""Threads for blocking work that hold up neither the end of the service nor that of the interpreter."""

from __future__ import annotations

import functools
import queue
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


SWITCH_S = 0.0005  # after which a thread that computes in Python lets another one go on


def share_interpreter() -> None:
    """Let threads of this process take turns more often than Python does by default.

    A run and a request take the interpreter a dozen times. Beside a thread that builds code, or a model whose loops run op by op,
    waits of 5 ms each would make them many times slower.
    """
    sys.setswitchinterval(SWITCH_S)


class WorkThreads(Executor):
    """A bounded number of daemon threads, started as they are needed.

    `ThreadPoolExecutor` waits at the end of the interpreter until all of its work is done, however long that takes. These threads
    are left behind then.

    Args: most: threads. name: the beginning of their names.
    """

    def __init__(self, most: int, name: str) -> None:
        self._most, self._name = most, name
        self._lock = threading.Lock()
        self._tasks: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._unfinished = 0
        self._closed = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Do work on a thread, in the order of asking. Raises RuntimeError after `shutdown`, as every executor does."""
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError(f"{self._name}: shut down, it takes no more work")
            self._tasks.put((future, functools.partial(fn, *args, **kwargs)))
            self._unfinished += 1
            if len(self._threads) < min(self._unfinished, self._most):
                thread = threading.Thread(target=self._follow, name=f"{self._name}_{len(self._threads)}", daemon=True)
                self._threads.append(thread)
                thread.start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work. wait: until all that was taken is done. cancel_futures: drop what has not begun."""
        with self._lock:
            if cancel_futures:
                self._drop_waiting()
            if not self._closed:
                self._closed = True
                for _ in self._threads:
                    self._tasks.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def join(self, timeout_s: float) -> bool:
        """Wait, at most that long, until the work of an executor that was shut down is done. Returns whether it is."""
        ends = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, ends - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _drop_waiting(self) -> None:
        ends = 0  # marks of an earlier shutdown
        while True:
            try:
                task = self._tasks.get_nowait()
            except queue.Empty:
                break
            if task is None:
                ends += 1
            else:
                task[0].cancel()
                self._unfinished -= 1
        for _ in range(ends):
            self._tasks.put(None)

    def _follow(self) -> None:
        while self._do_next():
            with self._lock:
                self._unfinished -= 1

    def _do_next(self) -> bool:
        """Do the next work, or return False at the end. A function of its own: an idle thread keeps no result alive."""
        task = self._tasks.get()
        if task is None:
            return False
        future, work = task
        if future.set_running_or_notify_cancel():
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001  it belongs to the caller
                future.set_exception(error)
            else:
                future.set_result(result)
        return True
