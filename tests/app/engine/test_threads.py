"""Threads for blocking work: bounded, in order, and nothing waits for them for ever."""

import asyncio
import gc
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import CancelledError

import pytest

from app.engine.threads import WorkThreads
from tests.app.servers import ROOT


class Held:
    """Something that a weak reference can watch."""


def test_work_is_done_on_no_more_threads_than_allowed() -> None:
    pool, gate = WorkThreads(2, "work"), threading.Event()
    names: set[str] = set()

    def work(number: int) -> int:
        names.add(threading.current_thread().name)
        gate.wait(20)
        return number * 2

    futures = [pool.submit(work, number) for number in range(20)]
    gate.set()
    assert [future.result(20) for future in futures] == [number * 2 for number in range(20)]
    assert names == {"work_0", "work_1"}
    pool.shutdown()
    assert pool.join(0)


def test_a_thread_is_started_only_when_all_others_have_work() -> None:
    pool = WorkThreads(5, "work")
    for _ in range(10):
        pool.submit(int).result(20)
        while pool._unfinished:
            time.sleep(0.001)
    assert len(pool._threads) == 1
    pool.shutdown()


def test_an_error_of_work_belongs_to_its_future() -> None:
    pool = WorkThreads(1, "work")
    with pytest.raises(ZeroDivisionError):
        pool.submit(lambda: 1 // 0).result(20)
    assert pool.submit(lambda: 7).result(20) == 7
    pool.shutdown()


def test_shutdown_drops_what_has_not_begun_and_takes_no_more() -> None:
    pool, gate, begun = WorkThreads(1, "work"), threading.Event(), threading.Event()
    running = pool.submit(lambda: (begun.set(), gate.wait(20)))
    waiting = pool.submit(int)
    assert begun.wait(20)
    pool.shutdown(wait=False, cancel_futures=True)
    pool.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(CancelledError):
        waiting.result(20)
    with pytest.raises(RuntimeError, match="work: shut down"):
        pool.submit(int)
    assert not pool.join(0.01)
    gate.set()
    assert running.result(20)
    assert pool.join(20)


def test_an_idle_thread_keeps_no_result() -> None:
    pool = WorkThreads(1, "work")
    held = pool.submit(Held).result(20)
    found = weakref.ref(held)
    del held
    gc.collect()
    while pool._unfinished:
        time.sleep(0.001)
    assert found() is None
    pool.shutdown()


def test_an_event_loop_awaits_it() -> None:
    pool = WorkThreads(1, "work")

    async def work() -> int:
        return await asyncio.get_running_loop().run_in_executor(pool, lambda: 5)

    assert asyncio.run(work()) == 5
    pool.shutdown()


def test_work_does_not_hold_up_the_end_of_the_interpreter() -> None:
    code = "import time; from app.engine.threads import WorkThreads; WorkThreads(1, 'work').submit(time.sleep, 300)"
    subprocess.run([sys.executable, "-P", "-c", code], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, check=True, timeout=60)
