"""Loops of requests with clients that answer as the tests say; none of them connects anywhere."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

from app.load.generator import Bounds, Generator, Load, Sample
from app.load.server import CONNECTION, FailedError


class Fake:
    """A client whose n-th request does what `answer(n)` does."""

    def __init__(self, answer: Callable[[int], Awaitable[None]]) -> None:
        self.sent, self.answer = 0, answer

    async def send(self) -> None:
        self.sent += 1
        await self.answer(self.sent)

    async def close(self) -> None:
        raise AssertionError("the generator closed a client that is not its own")


def generate(load: Load, bounds: Bounds, answer, stop_s: float | None = None) -> tuple[Sample, list[Fake]]:
    clients = [Fake(answer) for _ in range(load.clients)]

    async def run() -> Sample:
        stop = asyncio.Event()
        if stop_s is not None:
            asyncio.get_running_loop().call_later(stop_s, stop.set)
        return await Generator(clients, load, bounds, stop).run()

    return asyncio.run(run()), clients


async def at_once(_: int) -> None:
    await asyncio.sleep(0)


async def after_10_ms(_: int) -> None:
    await asyncio.sleep(0.01)


def test_closed_loop_sends_when_answered():
    found, clients = generate(Load(3), Bounds(0.3), after_10_ms)
    assert len(found.latencies_ns) == found.due == sum(client.sent for client in clients)
    assert all(3 < client.sent <= 30 for client in clients)
    assert min(found.latencies_ns) >= 10e6
    assert found.elapsed_s == pytest.approx(0.3)
    assert not found.late_ns


def test_closed_loop_answers_after_the_end_count_for_latency_only():
    found, _ = generate(Load(1), Bounds(0.05), lambda _: asyncio.sleep(0.2))
    assert (len(found.latencies_ns), found.in_time, found.due) == (1, 0, 1)


@pytest.mark.parametrize("load", [Load(4), Load(4, 1000.0), Load(4, 1000.0, even=True)], ids=["closed", "random", "even"])
def test_requests_are_bounded(load):
    found, _ = generate(load, Bounds(30, requests=17), at_once)
    assert (found.due, len(found.latencies_ns), found.in_time) == (17, 17, 17)
    assert found.elapsed_s < 15


def test_open_loop_sends_at_its_rate_however_slow_the_answers_are():
    found, _ = generate(Load(64, 200.0, even=True), Bounds(0.5), lambda _: asyncio.sleep(0.1))
    assert found.due == 100
    assert len(found.latencies_ns) == 100
    assert len(found.late_ns) == 100


def test_open_loop_arrivals_are_random_and_of_the_rate():
    first, _ = generate(Load(64, 500.0), Bounds(0.4), at_once)
    again, _ = generate(Load(64, 500.0), Bounds(0.4), at_once)
    assert first.due == again.due
    assert 140 < first.due < 260
    assert first.elapsed_s == pytest.approx(0.4)


def test_latency_counts_from_when_a_request_was_due():
    """One answer takes 0.3 s on the only connection. A loop that counts from sending would see one slow request of thirty."""

    async def stall_once(number: int) -> None:
        await asyncio.sleep(0.3 if number == 1 else 0)

    found, _ = generate(Load(1, 100.0, even=True), Bounds(0.3), stall_once)
    latencies = np.sort(np.array(found.latencies_ns))
    assert latencies.size == 30
    assert np.median(latencies) > 0.1e9


def test_requests_beyond_the_timeout_fail_wherever_they_wait():
    async def never(_: int) -> None:
        await asyncio.sleep(60)

    began = time.monotonic()
    found, _ = generate(Load(1, 100.0, even=True), Bounds(0.2, timeout_s=0.1), never)
    assert found.failures["timeout"].count == found.due == 20
    assert found.failures["timeout"].example == "no answer within 0.1 s"
    assert time.monotonic() - began < 10


def test_failures_are_counted_by_kind_with_the_first_message():
    async def refuse(number: int) -> None:
        if number % 2:
            raise FailedError("503", f"queue full at {number}")
        await asyncio.sleep(0)

    found, _ = generate(Load(1), Bounds(30, requests=10), refuse)
    assert {kind: (each.count, each.example) for kind, each in found.failures.items()} == {"503": (5, "queue full at 1")}
    assert len(found.latencies_ns) == 5


def test_a_client_pauses_before_it_connects_again():
    async def unreachable(_: int) -> None:
        raise FailedError(CONNECTION, "refused")

    found, _ = generate(Load(1), Bounds(0.35), unreachable)
    assert 1 <= found.failures[CONNECTION].count <= 4


@pytest.mark.parametrize("load", [Load(2), Load(2, 50.0)], ids=["closed", "open"])
def test_stopping_gives_what_there_is(load):
    async def slow_third(number: int) -> None:
        await asyncio.sleep(60 if number >= 3 else 0.01)

    began = time.monotonic()
    found, _ = generate(load, Bounds(60), slow_third, stop_s=0.4)
    assert found.interrupted
    assert time.monotonic() - began < 20
    assert len(found.latencies_ns) == 4
    assert found.due > 4
    assert 0.3 < found.elapsed_s < 20


def test_errors_of_the_generator_itself_are_raised():
    async def broken(_: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as caught:
        generate(Load(1), Bounds(1), broken)
    assert isinstance(caught.value.exceptions[0], ZeroDivisionError)
