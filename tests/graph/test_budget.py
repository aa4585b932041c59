from __future__ import annotations

import gc
import threading

import pytest

from graph.budget import ProcessMemory, RunBudget
from graph.errors import LimitError
from kernels.errors import OutOfMemoryError


class Owner:
    """Something whose memory is counted while it lives."""


def test_the_process_counts_what_is_taken_and_given() -> None:
    process = ProcessMemory(100)
    process.take(60, "a")
    with pytest.raises(OutOfMemoryError, match=r"^b: needs 41 bytes, .* take 60 of 100; .*EDGEWISE_MAX_MEMORY_BYTES"):
        process.take(41, "b")
    assert process.taken_bytes == 60
    process.give(60)
    process.take(100, "c")
    assert process.free_bytes == 0


def test_the_process_counts_an_owner_once_and_while_it_lives() -> None:
    process, owner = ProcessMemory(100), Owner()
    process.take_for(owner, 70, "a")
    process.take_for(owner, 70, "a")
    assert process.taken_bytes == 70
    del owner
    gc.collect()
    assert process.taken_bytes == 0


def test_a_block_gives_back_after_an_error() -> None:
    process = ProcessMemory(100)
    with pytest.raises(KeyError), process.holding(100, "a"):
        raise KeyError
    assert process.taken_bytes == 0


def test_many_threads_never_take_more_than_the_limit() -> None:
    process, seen, refused = ProcessMemory(5), [], []

    def work() -> None:
        for _ in range(300):
            try:
                with process.holding(2, "a"):
                    seen.append(process.taken_bytes)
            except OutOfMemoryError:
                refused.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) + len(refused) == 8 * 300
    assert max(seen) <= 4
    assert process.taken_bytes == 0


def test_a_run_budget_counts_what_is_kept_against_runs() -> None:
    budget = RunBudget(100)
    budget.keep(30, "arena")
    budget.share(Owner(), 20, "weights")
    assert (budget.kept_bytes, budget.free_bytes) == (50, 50)
    budget.require(50, "x")
    with pytest.raises(
        LimitError, match=r"^Op: y \(node 'n'\): its run needs 51 bytes beside 50 that are kept, the limit is 100; "
    ):
        budget.require(51, "Op: y (node 'n')")


def test_a_run_budget_is_part_of_the_process() -> None:
    process, owner = ProcessMemory(100), Owner()
    first, second = RunBudget(80, process), RunBudget(80, process)
    for budget in (first, second):
        budget.keep(20, "arena")
        budget.share(owner, 30, "weights")
    assert process.taken_bytes == 70
    with pytest.raises(OutOfMemoryError), first.running(31, "run"):
        pytest.fail("it was let in")
    with first.running(30, "run"):
        assert process.free_bytes == 0
    first.release()
    assert process.taken_bytes == 50
