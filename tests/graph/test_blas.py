"""The number of BLAS threads is the one asked for, on whichever thread a run is, and nobody's setting is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import psutil
import pytest
import threadpoolctl

from graph.run.blas import BlasThreads
from tests.graph.oracle import build, make, node, port

SIDE = 1024  # of the factors of a product that takes 5 ms or so of a core
T = TypeVar("T")


def counts() -> list[int]:
    """The number of threads that each BLAS library has now."""
    return [library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """Two BLAS threads to begin with, set on this thread, so that it is the one that threadpoolctl listens to."""
    if not counts() or max(counts()) < 2:
        pytest.skip("numpy's BLAS has one thread here, or a number that nobody controls")
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        yield


def on_a_thread(work: Callable[[], T]) -> T:
    """What the function returns on a thread of its own."""
    found: list[T] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def within(count: int | None) -> list[int]:
    """The numbers of threads in a context."""
    with BlasThreads(count):
        return counts()


@pytest.mark.parametrize("count", [1, 2])
def test_a_context_counts_on_any_thread_whoever_was_first(count):
    for run in (lambda work: work(), on_a_thread, on_a_thread, lambda work: work()):
        assert set(run(lambda: within(count))) == {count}
        assert set(counts()) == {2}


def test_none_leaves_the_number_as_it_is():
    assert within(None) == on_a_thread(lambda: within(None)) == counts()


def test_the_least_of_the_contexts_that_are_open_holds_for_all():
    with BlasThreads(1):
        assert set(on_a_thread(lambda: within(2))) == {1}
        assert set(counts()) == {1}
    with BlasThreads(2):
        assert set(on_a_thread(lambda: within(1))) == {1}
        assert set(counts()) == {2}
    assert set(counts()) == {2}


def test_another_thread_may_set_the_number_afterwards():
    within(1)

    def limited() -> list[int]:
        with threadpoolctl.threadpool_limits(1, user_api="blas"):
            return counts()

    assert set(on_a_thread(limited)) == {1}


def cpu_seconds() -> dict[int, float]:
    """The processor time that each thread of this process has used."""
    return {thread.id: thread.user_time + thread.system_time for thread in psutil.Process().threads()}


@pytest.mark.parametrize("threads", [1, 2])
def test_a_run_on_a_worker_thread_takes_as_many_cores_as_it_was_given(threads):
    x = np.random.default_rng(0).standard_normal((SIDE, SIDE)).astype(np.float32)
    nodes = [node("MatMul", ["x", "x"], ["a"]), node("MatMul", ["a", "x"], ["y"])]
    executor = build(make(nodes, ["y"], [], [port("x", [SIDE, SIDE])]), threads=threads)

    def took() -> dict[int, float]:
        before, used = cpu_seconds(), dict[int, float]()
        while sum(used.values()) < 0.5:
            executor.run({"x": x})
            used = {thread: spent - before.get(thread, 0.0) for thread, spent in cpu_seconds().items()}
        return used

    used = sorted(on_a_thread(took).values(), reverse=True)
    assert sum(share > 0.1 for share in used) == threads
