import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from kernels.confinement import usable_cpus
from kernels.native.code.compile import generate
from kernels.native.emit.types import I64
from kernels.native.errors import PoolError
from kernels.native.run.runtime import await_done, finish, runtime_ir, shares
from kernels.native.run.thread_pool import ThreadPool, shared_thread_pool
from kernels.native.target.isa import ISAS
from tests.kernels.native.teams import STOP, WORDS, Program, lockstep, meet


def share_out(steps, cells):
    """Return a body in which the threads share the cells of each step. The thread that takes a cell increases it by one.

    A cell is increased only if all earlier steps increased it.
    """

    def body(k, memory, thread, threads, team):
        def done(step):
            return k.offset(memory, (threads * steps + step) * WORDS, I64)

        for step in range(steps):
            counter = k.offset(memory, step * WORDS, I64)
            with (
                shares(k, counter, 8 * WORDS * steps, thread, threads, cells, 3) as (begin, end),
                k.loop("cell", begin, end) as cell,
            ):
                at = (threads + 1) * (steps * WORDS) + cell
                known = k.load(I64, memory, at)
                k.store(known + k.select(k.compare("eq", known, step), k.const(I64, 1), 0), memory, at)
                finish(k, team, done(step), 1, cells)
            await_done(k, team, done(step), cells, k.offset(memory, STOP, I64))

    return body


@pytest.fixture
def pool():
    made = []

    def make(threads):
        made.append(ThreadPool(threads))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_waiting_for_work_keeps_threads_in_step_even_when_there_are_more_than_cores(pool, threads):
    program, one = lockstep(20, threads), pool(threads)
    for _ in range(15):
        program.run(one, threads)
    assert program.memory[0] == 0
    assert (program.memory[WORDS : (threads + 1) * WORDS : WORDS] == 20).all()


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("cells", [1, 3, 100])
def test_chunks_are_each_taken_once_in_every_run(pool, threads, cells):
    steps = 4
    words = (threads + 1) * steps * WORDS
    program, one = Program(share_out(steps, cells), words + cells, words), pool(threads)
    for _ in range(20):
        program.memory[words:] = 0
        program.run(one, threads)
        assert (program.memory[words:] == steps).all()


def test_thread_numbers_are_all_different_and_complete(pool):
    def body(k, memory, thread, threads, team):
        k.fetch_add(k.offset(memory, (thread + 1) * WORDS, I64), threads)
        meet(k, memory, 0, threads, team)

    program, one = Program(body, 5 * WORDS, 5 * WORDS), pool(4)
    for threads in (4, 2, 3, 1):
        program.run(one, threads)
        assert program.memory[WORDS::WORDS].tolist() == [threads] * threads + [0] * (4 - threads)


def test_many_short_runs_lose_no_wake_up(pool):
    def body(k, memory, thread, threads, team):
        k.fetch_add(k.offset(memory, WORDS, I64), 1)
        meet(k, memory, 0, threads, team)

    program, one = Program(body, 2 * WORDS, WORDS), pool(2)
    for n in range(3000):
        program.run(one, 2)
        if n % 500 == 0:
            time.sleep(0.002)  # long enough for the worker to fall asleep
    assert program.memory[WORDS] == 6000


def test_a_worker_that_comes_late_is_not_waited_for(pool):
    """The caller does all work while the workers sleep; each run counts those that began, and none begins after its end."""

    def body(k, memory, thread, threads, team):
        k.fetch_add(k.offset(memory, thread * WORDS, I64), 1)

    program, one = Program(body, 4 * WORDS), pool(4)
    for n in range(2000):
        program.run(one, 4)
        assert program.memory[0] == n + 1
    began = program.memory[::WORDS].tolist()
    time.sleep(0.02)
    assert program.memory[::WORDS].tolist() == began
    assert all(count <= 2000 for count in began)


def test_sessions_on_many_threads_share_one_budget(pool):
    one = pool(2)

    def body(k, memory, thread, threads, team):
        running = k.fetch_add(memory, 1) + 1
        with k.when(running > 2):
            k.fetch_add(k.offset(memory, WORDS, I64), 1)
        with k.loop("while", 0, 500) as n:
            k.fetch_add(k.offset(memory, 3 * WORDS, I64), n)
        k.fetch_add(memory, -1)
        k.fetch_add(k.offset(memory, 2 * WORDS, I64), 1)

    program = Program(body, 4 * WORDS)
    callers = [threading.Thread(target=lambda n=n: [program.run(one, 1 + n % 2) for _ in range(100)]) for n in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert program.memory[0] == 0
    assert program.memory[WORDS] == 0  # never more than two at once
    assert 100 * 6 <= program.memory[2 * WORDS] <= 100 * (3 * 1 + 3 * 2)  # workers that come late are not waited for


def test_idle_workers_use_no_time(pool):
    program, one = lockstep(1, 4), pool(3)
    program.run(one, 3)
    time.sleep(0.05)
    process = psutil.Process()
    before = sum(process.cpu_times()[:2])
    time.sleep(0.5)
    assert sum(process.cpu_times()[:2]) - before < 0.1


def test_pool_refuses_more_threads_than_it_has_and_can_grow(pool):
    program, one = lockstep(2, 4), pool(2)
    with pytest.raises(PoolError, match="3 threads asked for, it has 2"):
        program.run(one, 3)
    one.grow(4)
    program.run(one, 4)
    assert program.memory[0] == 0


@pytest.mark.parametrize("threads", [0, -1])
def test_pool_of_nobody_is_refused(threads):
    with pytest.raises(PoolError, match="need at least 1"):
        ThreadPool(threads)


def test_closed_pool_refuses_and_its_workers_are_gone():
    program, one = lockstep(1, 4), ThreadPool(3)
    program.run(one, 3)
    workers = list(one._workers)
    one.close()
    one.close()
    assert not any(worker.is_alive() for worker in workers)
    with pytest.raises(PoolError, match="closed"):
        program.run(one, 1)


def test_forgotten_pool_ends_its_workers():
    program, one = lockstep(1, 4), ThreadPool(2)
    program.run(one, 2)
    (worker,) = one._workers
    del one
    worker.join(10)
    assert not worker.is_alive()


def test_interpreter_ends_while_workers_sleep_and_while_they_run(tmp_path):
    script = tmp_path / "user.py"
    script.write_text(
        "import threading, time\nfrom kernels.native.errors import PoolError\n"
        "from kernels.native.run.thread_pool import shared_thread_pool\n"
        "from tests.kernels.native.teams import lockstep\n"
        "program, one = lockstep(1, 4), shared_thread_pool(2)\n"
        "program.run(one, 2)\n"
        "def forever():\n    try:\n        while True: program.run(one, 2)\n    except PoolError: pass\n"
        "threading.Thread(target=forever, daemon=True).start()\ntime.sleep(0.05)\n"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": str(root)}, timeout=60, check=False)
    assert done.returncode == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_forked_child_gets_a_pool_of_its_own():
    program, parent_pool = lockstep(3, 4), shared_thread_pool(2)
    program.run(parent_pool, 2)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            program.run(shared_thread_pool(2), 2)
            try:
                program.run(parent_pool, 2)
            except PoolError:
                status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    program.run(parent_pool, 2)
    assert program.memory[0] == 0


def test_shared_pool_is_one_and_grows():
    first = shared_thread_pool()
    assert shared_thread_pool(first.threads + 1) is first
    assert first.threads >= usable_cpus() + 1


def test_close_that_loses_patience_leaves_the_pool_running(pool):
    program, one = lockstep(1, 4), pool(2)
    assert one._await_turn(1)
    one.close(patience_s=0.01)
    one._give_back([], one._idle_teams.pop(), 1)
    program.run(one, 2)
    assert program.memory[0] == 0


def test_waiter_that_is_interrupted_leaves_the_queue(pool, monkeypatch):
    one = pool(1)
    one._await_turn(1)

    class Interrupted(threading.Event):
        def wait(self, timeout=None):
            raise KeyboardInterrupt

    monkeypatch.setattr("kernels.native.run.thread_pool.threading.Event", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        one._await_turn(1)
    assert not one._waiting
    one._free_threads += 1


@pytest.mark.parametrize("name", ["avx2", "neon"])
def test_runtime_compiles_for_every_architecture(name):
    assert generate(runtime_ir(ISAS[name]), ISAS[name]).code
