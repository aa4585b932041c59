"""Runs that are past their deadline and have not ended: who is told, and until when."""

import asyncio

import numpy as np
import pytest

from app.engine.overdue import PATIENCE_S, OverdueRuns
from app.engine.requests import Batch, Bucket, Outcome, Request
from graph.errors import RunTimeoutError
from tests.app.engine.virtual import World

S = 1_000_000_000
PATIENCE_NS = round(PATIENCE_S * S)


def request(world: World, deadline_ns: int | None = None) -> Request:
    answer: asyncio.Future[Outcome] = world.loop.create_future()
    return Request({"x": np.zeros(1)}, 1, Bucket(), 1, 0, None, True, deadline_ns, answer)


def test_an_overdue_run_is_named_until_it_ends_and_its_clients_are_answered() -> None:
    world = World()
    overdue, batch = OverdueRuns(world.clock), Batch([request(world), request(world)])
    batch.requests[0].answer.set_result(Outcome({}, 0, 0, 1, "default"))
    with overdue.watch("m", batch, 5 * S):
        world.advance(5 * S + PATIENCE_NS - 1)
        assert (len(overdue), overdue.reason(), batch.requests[1].gone) == (0, "", False)
        world.advance(1)
        assert len(overdue) == 1
        assert overdue.reason() == overdue.reason("m") == "a run of model 'm' has not ended 1 s after its deadline"
        assert overdue.reason("other") == ""
        with pytest.raises(RunTimeoutError, match=r"run: not done at its deadline, .*model 'm'"):
            batch.requests[1].answer.result()
    assert (len(overdue), overdue.reason()) == (0, "")
    world.close()


def test_a_run_that_ends_in_time_is_forgotten() -> None:
    world = World()
    overdue = OverdueRuns(world.clock)
    with overdue.watch("m", Batch([request(world)]), 5 * S):
        world.advance(4 * S)
    world.advance(10 * S)
    assert len(overdue) == 0
    world.close()


def test_the_deadline_of_a_batch_is_the_latest_of_its_requests() -> None:
    world = World()
    assert Batch([request(world, 3), request(world, 7)]).deadline_ns == 7
    assert Batch([request(world, 3), request(world)]).deadline_ns is None
    world.close()
