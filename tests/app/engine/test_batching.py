"""Tests of the batcher on a virtual clock: each rule by itself, then all rules together against a model."""

import asyncio
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.engine.batching import Batcher
from app.engine.budget import Account, CoreBudget
from app.engine.policy import DynamicBatching, QueuePolicy, ladder
from app.engine.requests import Batch, Bucket, InferOptions, Outcome, Ran
from app.errors import RequestError, UnbuiltError
from kernels.errors import DeviceLostError, InvalidError
from tests.app.engine.virtual import World

MS = 1_000_000
POISON = 13
PLAIN = DynamicBatching()


class Bench:
    """A batcher on a virtual clock, whose builds and runs end when the test ends them."""

    def __init__(self, policy: DynamicBatching = PLAIN, instances: int = 1, cores: int = 1) -> None:
        self.world = World()
        self.budget = CoreBudget(cores, self.world.clock.now_ns)
        self.account = Account("m")
        self.runs: list[tuple[Batch, asyncio.Future[None]]] = []
        self.sizes: list[int] = []
        self.computed: list[int] = []
        self.stopped: list[str] = []  # reasons for which runs were told to stop
        self.unbuilt: set[int] = set()  # rows without code
        self.builds: list[tuple[int, asyncio.Future[None]]] = []
        self.batcher = Batcher("m", policy, self.world.clock, self.lease, self.run, self.build, instances)

    def lease(self, rank: Any) -> Any:
        return self.budget.lease(self.account, 1, rank)

    async def build(self, batch: Batch) -> None:
        done = asyncio.get_running_loop().create_future()
        self.builds.append((batch.rows, done))
        await done

    def finish_build(self, error: BaseException | None = None) -> None:
        rows, done = self.builds.pop(0)
        if error is None:
            self.unbuilt.discard(rows)
            done.set_result(None)
        else:
            done.set_exception(error)
        self.world.settle()

    async def run(self, batch: Batch) -> Ran:
        if batch.rows in self.unbuilt and not batch.build:
            raise UnbuiltError("no code")
        done = asyncio.get_running_loop().create_future()
        self.runs.append((batch, done))
        self.sizes.append(batch.rows)
        values = [request.feeds["x"] for request in batch.requests]
        self.computed += [int(row) for value in values for row in value]
        began = self.world.clock.now_ns()
        with batch.stoppable(self.stopped.append):
            await done
        if any(POISON in value for value in values):
            raise InvalidError("poison")
        return Ran([{"y": value * 2} for value in values], self.world.clock.now_ns() - began)

    def submit(self, bucket: Bucket, *rows: int, **options: Any) -> asyncio.Task[Outcome]:
        feeds = {"x": np.array(rows, np.int64)}
        return self.world.start(self.batcher.submit(feeds, len(rows), bucket, InferOptions(**options)))

    def finish(self, index: int = 0, error: BaseException | None = None) -> None:
        done = self.runs.pop(index)[1]
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)
        self.world.settle()

    def close(self) -> None:
        self.batcher.close("Server is stopping")
        for _, done in self.runs:
            done.cancel()
        self.world.close()


@pytest.fixture
def bench() -> Any:
    made: list[Bench] = []

    def make(*args: Any, **keywords: Any) -> Bench:
        made.append(Bench(*args, **keywords))
        return made[-1]

    yield make
    for each in made:
        each.close()


def values(task: asyncio.Task[Outcome]) -> list[int]:
    return task.result().outputs["y"].tolist()


def test_requests_that_wait_anyway_share_a_run(bench: Any) -> None:
    b, bucket = bench(), Bucket(ladder(8))
    first = b.submit(bucket, 1)
    others = [b.submit(bucket, number) for number in (2, 3, 4, 5, 6)]
    b.finish()
    assert b.sizes == [1, 4]
    b.finish()
    b.finish()
    assert [values(task) for task in (first, *others)] == [[2], [4], [6], [8], [10], [12]]
    assert others[0].result().batch_rows == 4
    assert (b.batcher.queued, b.batcher.running, bucket.waiting_rows, b.budget.free) == (0, 0, 0, 1)


def test_a_request_is_never_split_and_one_that_does_not_fit_ends_the_batch(bench: Any) -> None:
    b, bucket = bench(), Bucket(tuple(range(1, 5)))
    for rows in ((1,), (1, 2, 3), (4, 5), (6,)):
        b.submit(bucket, *rows)
    for _ in range(3):
        b.finish()
    assert b.sizes == [1, 3, 3]


def test_only_one_shape_shares_a_run(bench: Any) -> None:
    b, one, other = bench(), Bucket(ladder(8)), Bucket(ladder(8))
    for bucket, value in ((one, 1), (one, 2), (other, 3), (one, 4)):
        b.submit(bucket, value)
    for _ in range(3):
        b.finish()
    assert b.computed == [1, 2, 4, 3]


def test_a_batch_is_held_for_the_configured_delay_and_not_longer(bench: Any) -> None:
    b, bucket = bench(DynamicBatching(max_queue_delay_microseconds=2000)), Bucket(ladder(4))
    b.submit(bucket, 1)
    b.world.advance(1 * MS)
    b.submit(bucket, 2)
    assert b.sizes == []
    b.world.advance(1 * MS)
    assert b.sizes == [2]
    b.finish()
    for value in range(4):
        b.submit(bucket, value)
    assert b.sizes == [2, 4]
    b.finish()


def test_the_largest_preferred_size_is_sent_at_once(bench: Any) -> None:
    policy = DynamicBatching(preferred_batch_size=(2, 3), max_queue_delay_microseconds=9000)
    b, bucket = bench(policy), Bucket(ladder(8, (2, 3)))
    b.submit(bucket, 1)
    b.submit(bucket, 2)
    for value in (3, 4, 5, 6):
        b.submit(bucket, value)
    b.finish()
    assert b.sizes == [2, 3]
    b.finish()
    b.world.advance(9 * MS)
    assert b.sizes == [2, 3, 1]
    b.finish()


def test_the_measured_curve_decides_whether_waiting_pays(bench: Any) -> None:
    b, cheap, dear = bench(), Bucket((1, 2)), Bucket((1, 2))
    for bucket, a, slope in ((cheap, 8 * MS, MS), (dear, 0, 8 * MS)):
        for rows in (1, 2):
            bucket.curve.ran(rows, a + slope * rows)
        for arrival in range(0, 5 * MS, MS):
            bucket.curve.arrived(arrival - 5 * MS, 1)
    assert cheap.curve.patience_ns(1, 2) == 4 * MS
    assert dear.curve.patience_ns(1, 2) == 0
    b.submit(dear, 1)
    assert b.sizes == [1]
    b.finish()
    b.submit(cheap, 1)
    assert b.sizes == [1]
    b.world.advance(MS)
    b.submit(cheap, 2)
    assert b.sizes == [1, 2]
    b.finish()


def test_priorities_go_first(bench: Any) -> None:
    b, alone = bench(DynamicBatching(priority_levels=2, default_priority_level=2)), Bucket()
    for value, priority in ((1, 0), (2, 0), (3, 1), (4, 9), (5, 1)):
        b.submit(alone, value, priority=priority)
    for _ in range(5):
        b.finish()
    assert b.computed == [1, 3, 5, 2, 4]


def test_a_full_queue_refuses(bench: Any) -> None:
    b, alone = bench(DynamicBatching(default_queue_policy=QueuePolicy(max_queue_size=1))), Bucket()
    b.submit(alone, 1)
    kept, refused = b.submit(alone, 2), b.submit(alone, 3)
    error = refused.exception()
    assert isinstance(error, RequestError)
    assert (error.status, error.headers) == (503, {"Retry-After": "1"})
    assert "Exceeds maximum queue size" in str(error)
    b.finish()
    b.finish()
    assert values(kept) == [4]


@pytest.mark.parametrize("allowed", [True, False])
def test_a_late_request_is_refused_and_not_computed(bench: Any, allowed: bool) -> None:
    policy = QueuePolicy(default_timeout_microseconds=5000, allow_timeout_override=allowed)
    b, alone = bench(DynamicBatching(default_queue_policy=policy)), Bucket()
    b.submit(alone, 1)
    late = b.submit(alone, 2, deadline_ns=2 * MS)
    longer = b.submit(alone, 3, deadline_ns=99 * MS)
    b.world.advance(2 * MS)
    assert late.done() is allowed
    b.world.advance(3 * MS)
    for task in (late, longer):
        assert "Request timeout expired" in str(task.exception())
    b.finish()
    assert b.computed == [1]


def test_a_late_request_may_be_delayed_instead(bench: Any) -> None:
    policy = QueuePolicy(default_timeout_microseconds=1000, timeout_action="DELAY")
    b, alone = bench(DynamicBatching(default_queue_policy=policy)), Bucket()
    for value in (1, 2):
        b.submit(alone, value)
    b.world.advance(1 * MS)
    b.submit(alone, 3)
    for _ in range(3):
        b.finish()
    assert b.computed == [1, 3, 2]


def test_a_deadline_cuts_the_holding_short(bench: Any) -> None:
    policy = DynamicBatching(max_queue_delay_microseconds=9000, default_queue_policy=QueuePolicy(allow_timeout_override=True))
    b, bucket = bench(policy), Bucket((1, 2))
    task = b.submit(bucket, 1, deadline_ns=3 * MS)
    b.world.advance(2 * MS)
    assert b.computed == [1]
    b.finish()
    assert task.result().queue_ns == 1_500_000


def test_a_cancelled_request_is_not_computed_and_one_in_a_run_is_dropped(bench: Any) -> None:
    b, bucket = bench(), Bucket(ladder(4))
    running, waiting, mate = b.submit(bucket, 1), b.submit(bucket, 2), b.submit(bucket, 3)
    waiting.cancel()
    running.cancel()
    b.world.settle()
    assert b.stopped == ["no client waits for it any more"]
    assert (b.batcher.queued, b.batcher.running) == (1, 1)  # the core is busy though nobody waits for it
    b.finish()
    b.finish()
    assert b.computed == [1, 3]
    assert values(mate) == [6]


def test_a_bad_request_fails_alone(bench: Any) -> None:
    b, bucket = bench(), Bucket(ladder(4))
    tasks = [b.submit(bucket, value) for value in (1, 2, POISON, 3, 4)]
    for _ in range(6):
        b.finish()
    assert b.sizes == [1, 4, 1, 1, 1, 1]
    assert [task.exception() is None for task in tasks] == [True, True, False, True, True]
    assert values(tasks[3]) == [6]


def test_a_lost_worker_fails_the_batch(bench: Any) -> None:
    b, bucket = bench(), Bucket(ladder(4))
    tasks = [b.submit(bucket, value) for value in (1, 2, 3)]
    b.finish()
    b.finish(error=DeviceLostError("gone"))
    assert [type(task.exception()) for task in tasks[1:]] == [DeviceLostError] * 2
    assert b.batcher.running == 0


def test_others_run_while_a_shape_is_built(bench: Any) -> None:
    b, new, known = bench(), Bucket(), Bucket()
    b.unbuilt = {3}
    first, second = b.submit(new, 1, 2, 3), b.submit(new, 4, 5, 6)
    others = [b.submit(known, 7), b.submit(new, 8)]
    assert (b.budget.free, b.sizes, [rows for rows, _ in b.builds]) == (0, [1], [3])
    for _ in others:
        b.finish()
    assert [values(task) for task in others] == [[14], [16]]
    assert (b.batcher.queued, b.batcher.running, b.budget.free) == (2, 0, 1)
    b.finish_build()
    for _ in range(2):
        b.finish()
    assert [values(task) for task in (first, second)] == [[2, 4, 6], [8, 10, 12]]


def test_a_batch_whose_code_is_gone_waits_before_those_who_came_later(bench: Any) -> None:
    b, bucket = bench(), Bucket(ladder(4))
    blocker = b.submit(bucket, 1)
    pair = [b.submit(bucket, value) for value in (2, 3)]
    b.unbuilt = {2}
    b.finish()
    later = b.submit(bucket, 4)
    assert b.computed == [1, 4]
    b.finish_build()
    b.finish()
    b.finish()
    assert b.computed == [1, 4, 2, 3]
    assert [values(task) for task in (blocker, *pair, later)] == [[2], [4], [6], [8]]
    assert bucket.waiting_rows == 0


def test_who_waits_for_code_may_leave_be_late_or_be_told_that_there_is_none(bench: Any) -> None:
    b, new = bench(DynamicBatching(default_queue_policy=QueuePolicy(allow_timeout_override=True))), Bucket()
    b.unbuilt = {2}
    leaving, late, failing = b.submit(new, 1, 2), b.submit(new, 3, 4, deadline_ns=5 * MS), b.submit(new, 5, 6)
    leaving.cancel()
    b.world.advance(5 * MS)
    assert "Request timeout expired" in str(late.exception())
    assert b.batcher.queued == 1
    b.finish_build(InvalidError("cannot be built"))
    assert not failing.done()  # it was not put back, and is told by its own build
    b.finish_build(InvalidError("cannot be built"))
    assert "cannot be built" in str(failing.exception())
    assert (b.computed, b.batcher.queued, b.budget.free) == ([], 0, 1)


def test_with_more_shapes_than_are_kept_each_gets_its_turn(bench: Any) -> None:
    b, new = bench(), Bucket()
    b.unbuilt = {2}
    task = b.submit(new, 1, 2)
    b.finish_build()
    b.finish()
    b.unbuilt = {2}
    task = b.submit(new, 3, 4)
    rows, done = b.builds.pop()
    done.set_result(None)  # and it was thrown away again at once
    b.world.settle()
    b.finish()
    assert (rows, values(task)) == (2, [6, 8])


def test_replies_keep_the_order_where_asked(bench: Any) -> None:
    b = bench(DynamicBatching(preserve_ordering=True), instances=2, cores=2)
    one, other = Bucket(), Bucket()
    first, second = b.submit(one, 1), b.submit(other, 2)
    b.finish(1)
    assert not second.done()
    b.finish(0)
    assert (values(first), values(second)) == ([2], [4])


def test_closing_answers_everybody(bench: Any) -> None:
    b, bucket = bench(), Bucket(ladder(4))
    tasks = [b.submit(bucket, value) for value in (1, 2)]
    b.batcher.close("Server is stopping")
    b.world.settle()
    assert all("Server is stopping" in str(task.exception()) for task in tasks)
    assert "Server is stopping" in str(b.submit(bucket, 3).exception())
    b.runs.clear()


@dataclass(eq=False)
class Sent:
    task: asyncio.Task[Outcome]
    rows: tuple[int, ...]
    level: int
    number: int
    shape: int
    cancelled: bool = False


class BatcherMachine(RuleBasedStateMachine):
    """Drives a batcher through arrivals, cancellations, deadlines, failures and crashes in any order."""

    @initialize(
        instances=st.integers(1, 3),
        cores=st.integers(1, 3),
        ordering=st.booleans(),
        delay=st.sampled_from([None, 0, 3000]),
        action=st.sampled_from(["REJECT", "DELAY"]),
        preferred=st.sampled_from([(), (2,), (3, 4)]),
        queue=st.sampled_from([0, 4]),
    )
    def start(self, instances: int, cores: int, ordering: bool, delay: Any, action: Any, preferred: Any, queue: int) -> None:
        limits = QueuePolicy(timeout_action=action, allow_timeout_override=True, max_queue_size=queue)
        self.action = action
        self.bench = Bench(DynamicBatching(preferred, delay, ordering, 2, 2, limits), instances, cores)
        self.buckets = [Bucket(ladder(4, preferred)), Bucket(tuple(range(1, 7))), Bucket()]
        self.sent: list[Sent] = []
        self.next_value = 100
        self.seen_runs = 0
        self.ordering = ordering

    @rule(
        rows=st.integers(0, 5),
        shape=st.integers(0, 2),
        priority=st.integers(0, 3),
        due=st.sampled_from([None, 0, 2, 10]),
        poison=st.integers(0, 9),
    )
    def submit(self, rows: int, shape: int, priority: int, due: int | None, poison: int) -> None:
        found = tuple(range(self.next_value, self.next_value + rows))
        self.next_value += rows
        if poison == 0 and rows:
            found = (POISON, *found[1:])
        deadline_ns = None if due is None else self.bench.world.clock.now_ns() + due * MS
        task = self.bench.submit(self.buckets[shape], *found, priority=priority, deadline_ns=deadline_ns)
        level = priority if priority in (1, 2) else 2
        self.sent.append(Sent(task, found, level, len(self.sent), shape))

    @rule(microseconds=st.integers(1, 5000))
    def pass_time(self, microseconds: int) -> None:
        self.bench.world.advance(microseconds * 1000)

    @precondition(lambda self: self.bench.runs)
    @rule(which=st.integers(0, 5), crash=st.integers(0, 5))
    def finish(self, which: int, crash: int) -> None:
        self.bench.finish(which % len(self.bench.runs), DeviceLostError("gone") if crash == 0 else None)

    @precondition(lambda self: self.sent)
    @rule(which=st.integers(0, 50))
    def cancel(self, which: int) -> None:
        found = self.sent[which % len(self.sent)]
        if not found.task.done():
            found.cancelled = True
            found.task.cancel()
            self.bench.world.settle()

    @rule(rows=st.integers(1, 5))
    def lose_code(self, rows: int) -> None:
        self.bench.unbuilt.add(rows)

    @precondition(lambda self: self.bench.builds)
    @rule(fails=st.booleans())
    def finish_build(self, fails: bool) -> None:
        self.bench.finish_build(DeviceLostError("gone") if fails else None)

    @invariant()
    def runs_keep_the_limits(self) -> None:
        assert len(self.bench.runs) <= min(self.bench.batcher.instances, self.bench.budget.cores)
        for batch, _ in self.bench.runs:
            bucket = batch.requests[0].bucket
            assert all(request.bucket is bucket for request in batch.requests)
            assert len(batch.requests) == 1 or batch.rows in bucket.sizes
            order = [(request.level, request.arrived_ns) for request in batch.requests]
            if self.action == "REJECT":
                assert order == sorted(order)

    @invariant()
    def answers_are_their_own(self) -> None:
        for sent in self.sent:
            if sent.task.done() and not sent.task.cancelled() and sent.task.exception() is None:
                assert values(sent.task) == [2 * row for row in sent.rows]
                assert POISON not in sent.rows
            elif sent.task.done() and not sent.task.cancelled():
                error = sent.task.exception()
                assert isinstance(error, (RequestError, DeviceLostError)) or POISON in sent.rows
        plain = [row for row in self.bench.computed if row != POISON]
        assert len(plain) <= 2 * len(set(plain))  # once in a batch, once more alone where a batch-mate was bad

    def teardown(self) -> None:
        if not hasattr(self, "bench"):
            return
        bench = self.bench
        try:
            for _ in range(200):
                if all(sent.task.done() for sent in self.sent) and not bench.runs and not bench.builds:
                    break
                if bench.builds:
                    bench.finish_build()
                if bench.runs:
                    bench.finish()
                bench.world.advance(MS)
            self.answers_are_their_own()
            assert all(sent.task.done() for sent in self.sent)
            assert (bench.batcher.queued, bench.batcher.running, bench.budget.free) == (0, 0, bench.budget.cores)
            assert bench.account.active == 0
            assert [bucket.waiting_rows for bucket in self.buckets] == [0, 0, 0]
        finally:
            bench.close()


BatcherMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestBatcherMachine = BatcherMachine.TestCase
