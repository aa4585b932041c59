"""Jobs in the database: taken once, kept by a worker that renews its lease, and not lost with one that dies."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import pytest

from scheduler.errors import CallerQueueFullError, LeaseLostError, NotFoundError, QueueFullError, RecordFormatError
from scheduler.store import Store, jobs
from scheduler.store.jobs import MAX_ATTEMPTS, MAX_LEASE_S, MAX_TEXT_BYTES
from tests.processes import CONTEXT, start

D = "0123456789abcdef"


def test_a_job_goes_from_queued_to_done(store):
    added = store.jobs.add("trace", D, '{"runs":3}', "feedfeed")
    assert (added.state, added.revision, added.attempts) == ("queued", 1, 0)
    claim = store.jobs.claim(D, "w", 30)
    assert (claim.job.id, claim.job.state, claim.job.owner, claim.job.attempts) == (added.id, "running", "w", 1)
    assert store.jobs.claim(D, "w", 30) is None
    assert store.jobs.beat(added.id, claim.lease, 30, '{"done":1}') is False
    assert store.jobs.get(added.id).progress == '{"done":1}'
    done = store.jobs.finish(added.id, claim.lease, "done", '{"plan_id":"x"}')
    assert (done.state, done.result, done.ended, done.revision) == ("done", '{"plan_id":"x"}', True, 4)
    assert store.jobs.finish(added.id, claim.lease, "done") == done  # the first reply may have been lost
    with pytest.raises(LeaseLostError, match="is done"):
        store.jobs.beat(added.id, claim.lease, 30)


def test_jobs_are_taken_in_order_and_by_their_device_only(store):
    numbers = [store.jobs.add("probe", D).id for _ in range(3)]
    store.jobs.add("probe", "f" * 16)
    assert [store.jobs.claim(D, "w", 30).job.id for _ in numbers] == numbers
    assert store.jobs.claim(D, "w", 30) is None


def test_another_lease_says_nothing(store):
    number = store.jobs.add("probe", D).id
    claim = store.jobs.claim(D, "w", 30)
    for lease in ("", "0" * 32, claim.lease.upper() + "x"):
        with pytest.raises(LeaseLostError):
            store.jobs.beat(number, lease, 30)
        with pytest.raises(LeaseLostError):
            store.jobs.finish(number, lease, "done")
    with pytest.raises(NotFoundError, match="job 99"):
        store.jobs.beat(99, claim.lease, 30)


def test_no_lease_says_nothing_of_a_job_that_waits(store):
    number = store.jobs.add("probe", D).id
    with pytest.raises(LeaseLostError):
        store.jobs.finish(number, "", "done")
    assert store.jobs.get(number).state == "queued"


def test_who_ends_a_job_has_to_hold_it(store):
    number = store.jobs.add("probe", D).id
    first = store.jobs.claim(D, "first", 0.0)
    assert store.jobs.held(number, first.lease, "done").id == number
    second = store.jobs.claim(D, "second", 30)
    with pytest.raises(LeaseLostError):
        store.jobs.held(number, first.lease, "done")
    store.jobs.finish(number, second.lease, "done")
    assert store.jobs.held(number, second.lease, "done") is None
    for lease, state in ((second.lease, "failed"), (first.lease, "done"), ("", "done")):
        with pytest.raises(LeaseLostError):
            store.jobs.held(number, lease, state)


def test_a_silent_worker_loses_its_job_to_the_next(store):
    number = store.jobs.add("probe", D).id
    first = store.jobs.claim(D, "first", 0.0)
    second = store.jobs.claim(D, "second", 30)
    assert (second.job.id, second.job.owner, second.job.attempts) == (number, "second", 2)
    with pytest.raises(LeaseLostError):
        store.jobs.finish(number, first.lease, "done")
    store.jobs.finish(number, second.lease, "done")


def test_a_silent_worker_keeps_a_job_that_no_other_took(store):
    number = store.jobs.add("probe", D).id
    claim = store.jobs.claim(D, "w", 0.0)
    store.jobs.sweep()
    assert store.jobs.get(number).state == "queued"
    store.jobs.beat(number, claim.lease, 30)
    assert (store.jobs.get(number).state, store.jobs.get(number).attempts) == ("running", 1)
    store.jobs.finish(number, claim.lease, "done")


class Clock:
    """The clock of the machine, which an administrator or a time server sets."""

    def __init__(self, monkeypatch):
        self.moved_s = 0.0
        monkeypatch.setattr(jobs, "now_us", lambda: time.time_ns() // 1000 + round(self.moved_s * 1e6))


HOUR = 3600


@pytest.mark.parametrize("moved_s", [-HOUR, -24 * HOUR, HOUR])
def test_clock_that_is_set_keeps_no_job_from_the_next_worker(store, monkeypatch, moved_s):
    clock = Clock(monkeypatch)
    number = store.jobs.add("probe", D).id
    store.jobs.claim(D, "died", 30)
    clock.moved_s = moved_s
    assert store.jobs.claim(D, "next", 30).job.id == number


def test_clock_that_is_set_back_a_little_keeps_a_job_for_no_longer_than_the_longest_lease(store, monkeypatch):
    clock = Clock(monkeypatch)
    store.jobs.add("probe", D)
    store.jobs.claim(D, "died", 30)
    clock.moved_s = 31 - MAX_LEASE_S
    assert store.jobs.claim(D, "next", 30) is None
    clock.moved_s += MAX_LEASE_S
    assert store.jobs.claim(D, "next", 30) is not None


@pytest.mark.parametrize("moved_s", [-HOUR, HOUR])
def test_worker_keeps_its_job_over_a_clock_that_is_set(store, monkeypatch, moved_s):
    clock = Clock(monkeypatch)
    number = store.jobs.add("probe", D).id
    claim = store.jobs.claim(D, "w", 30)
    clock.moved_s = moved_s
    store.jobs.sweep()
    store.jobs.beat(number, claim.lease, 30)
    store.jobs.sweep()
    assert store.jobs.claim(D, "other", 30) is None
    assert store.jobs.finish(number, claim.lease, "done").attempts == 1


@pytest.mark.parametrize("lease_s", [MAX_LEASE_S + 1, -1])
def test_lease_of_a_length_that_no_lease_has_is_refused(store, lease_s):
    number = store.jobs.add("probe", D).id
    with pytest.raises(RecordFormatError, match=r"need 0\.\.600"):
        store.jobs.claim(D, "w", lease_s)
    claim = store.jobs.claim(D, "w", 30)
    with pytest.raises(RecordFormatError, match=r"need 0\.\.600"):
        store.jobs.beat(number, claim.lease, lease_s)


def test_attempts_are_bounded(store):
    number = store.jobs.add("probe", D).id
    for _ in range(MAX_ATTEMPTS):
        assert store.jobs.claim(D, "w", 0.0) is not None
    assert store.jobs.claim(D, "w", 0.0) is None
    assert store.jobs.get(number).state == "failed"
    assert "lost in each of" in store.jobs.get(number).error


def test_a_released_job_is_taken_again_and_counts_once(store):
    number = store.jobs.add("probe", D).id
    claim = store.jobs.claim(D, "w", 30)
    store.jobs.release(number, claim.lease)
    with pytest.raises(LeaseLostError):
        store.jobs.beat(number, claim.lease, 30)
    assert store.jobs.claim(D, "w", 30).job.attempts == 1


def test_cancel(store):
    waiting, running, ended = (store.jobs.add("probe", D).id for _ in range(3))
    claim = store.jobs.claim(D, "w", 30)
    assert claim.job.id == waiting
    assert store.jobs.cancel(waiting).state == "running"
    assert store.jobs.beat(waiting, claim.lease, 30) is True
    assert store.jobs.finish(waiting, claim.lease, "cancelled").state == "cancelled"
    assert store.jobs.cancel(running).state == "cancelled"
    claim = store.jobs.claim(D, "w", 30)
    assert claim.job.id == ended
    done = store.jobs.finish(ended, claim.lease, "done")
    assert store.jobs.cancel(ended) == done


def test_a_cancelled_job_of_a_lost_worker_is_not_run_again(store):
    number = store.jobs.add("probe", D).id
    store.jobs.claim(D, "w", 0.0)
    store.jobs.cancel(number)
    assert store.jobs.claim(D, "w", 0.0) is None
    assert store.jobs.get(number).state == "cancelled"


def test_pages_by_device_state_and_model(store):
    numbers = [store.jobs.add("probe", D, model="feed" * 16 if n % 2 else "").id for n in range(5)]
    store.jobs.cancel(numbers[0])
    assert [job.id for job in store.jobs.page(state="queued").items] == numbers[:0:-1]
    assert [job.id for job in store.jobs.page(device=D, state="cancelled").items] == numbers[:1]
    assert [job.id for job in store.jobs.page(model="feed" * 16).items] == [numbers[3], numbers[1]]
    assert [job.id for job in store.jobs.page(limit=2, cursor=store.jobs.page(limit=2).next).items] == [numbers[2], numbers[1]]
    with pytest.raises(RecordFormatError, match="one or the other"):
        store.jobs.page(device=D, model="feed" * 16)


def test_limits(store, monkeypatch):
    with pytest.raises(RecordFormatError, match=f"at most {MAX_TEXT_BYTES}"):
        store.jobs.add("probe", D, "x" * (MAX_TEXT_BYTES + 1))
    monkeypatch.setattr(jobs, "MAX_JOBS", 2)
    store.jobs.add("probe", D)
    store.jobs.add("probe", D, caller="k")
    store.jobs.claim(D, "w", 30)
    with pytest.raises(QueueFullError, match="2 are queued or running, the limit is 2"):
        store.jobs.add("probe", D, caller="other")


def test_each_caller_has_a_limit_of_jobs_that_wait_or_run(store):
    first, second = (store.jobs.add("probe", D, caller="k", caller_jobs=2).id for _ in range(2))
    store.jobs.claim(D, "w", 30)
    with pytest.raises(CallerQueueFullError, match="2 of this caller are queued or running, the limit is 2"):
        store.jobs.add("probe", D, caller="k", caller_jobs=2)
    store.jobs.add("probe", D, caller="other", caller_jobs=2)
    store.jobs.cancel(second)
    store.jobs.add("probe", D, caller="k", caller_jobs=2)
    assert store.jobs.get(first).state == "running"


def _flood(url: str, ready, made) -> None:
    with Store(url) as store:
        ready.wait(60)
        with contextlib.suppress(CallerQueueFullError):
            for _ in range(20):
                made.put(store.jobs.add("probe", D, caller="k", caller_jobs=25).id)


def test_a_caller_who_asks_from_many_places_meets_the_limit(store, url):
    """Six processes add jobs at once, twenty each: together they get as many as one may have, on either database."""
    ready, made = CONTEXT.Event(), CONTEXT.Queue()
    processes = [start(_flood, url, ready, made) for _ in range(6)]
    ready.set()
    numbers = [made.get(timeout=120) for _ in range(25)]
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert made.empty()
    assert len(set(numbers)) == 25


def _worker(url: str, name: str, ready, log) -> None:
    """Take jobs until none is left, and log when each begins and ends."""
    with Store(url) as store:
        ready.wait(60)
        while (claim := store.jobs.claim(D, name, 30)) is not None:
            log.put(("begin", claim.job.id, name))
            store.jobs.beat(claim.job.id, claim.lease, 30, f'{{"by":"{name}"}}')
            log.put(("end", claim.job.id, name))
            store.jobs.finish(claim.job.id, claim.lease, "done", f'{{"by":"{name}"}}')


def test_processes_that_take_jobs_at_once_take_each_once(url):
    with Store(url) as store:
        numbers = [store.jobs.add("probe", D).id for _ in range(40)]
        ready, log = CONTEXT.Barrier(4), CONTEXT.Queue()
        workers = [CONTEXT.Process(target=_worker, args=(url, f"w{n}", ready, log)) for n in range(4)]
        for worker in workers:
            worker.start()
        events = [log.get(timeout=60) for _ in range(2 * len(numbers))]
        for worker in workers:
            worker.join(60)
        assert [worker.exitcode for worker in workers] == [0] * 4
        assert sorted(number for what, number, _ in events if what == "begin") == numbers
        found = [store.jobs.get(number) for number in numbers]
    assert {(job.state, job.attempts) for job in found} == {("done", 1)}
    assert all(f'"by":"{job.owner}"' in job.result for job in found)


def _dies(url: str, taken) -> None:
    with Store(url) as store:
        claim = store.jobs.claim(D, "victim", 1.0)
        taken.put(claim.job.id)
        time.sleep(60)


def test_the_job_of_a_killed_process_is_finished_by_another(url):
    with Store(url) as store:
        numbers = [store.jobs.add("probe", D).id for _ in range(6)]
        taken = CONTEXT.Queue()
        victims = [CONTEXT.Process(target=_dies, args=(url, taken)) for _ in range(2)]
        for victim in victims:
            victim.start()
        lost = {taken.get(timeout=60) for _ in victims}
        assert len(lost) == 2
        for victim in victims:
            assert victim.pid is not None
            os.kill(victim.pid, signal.SIGKILL)
            victim.join(30)
        ready, log = CONTEXT.Barrier(2), CONTEXT.Queue()
        for wave in range(2):  # the first finds what waits; the second, after the leases, what the killed ones had
            workers = [CONTEXT.Process(target=_worker, args=(url, f"w{wave}{n}", ready, log)) for n in range(2)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join(60)
            time.sleep(1.1)
        found = {number: store.jobs.get(number) for number in numbers}
    assert {job.state for job in found.values()} == {"done"}
    assert {number for number, job in found.items() if job.attempts == 2} == lost
