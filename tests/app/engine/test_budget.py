"""Cores are leased to runs, never more than there are, and first to the model that has used the least time."""

import asyncio
import contextlib
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.budget import Account, CoreBudget
from tests.app.engine.virtual import World


class Shop:
    def __init__(self, cores: int) -> None:
        self.world = World()
        self.budget = CoreBudget(cores, self.world.clock.now_ns)
        self.log: list[str] = []

    def hold(self, account: Account, cores: int, rank: int = 1) -> tuple[asyncio.Task[None], asyncio.Event]:
        end = asyncio.Event()

        async def work() -> None:
            async with self.budget.lease(account, cores, lambda: rank):
                self.log.append(account.name)
                await end.wait()

        return self.world.start(work()), end

    def close(self) -> None:
        self.world.close()


@contextlib.contextmanager
def shop(cores: int) -> Any:
    made = Shop(cores)
    try:
        yield made
    finally:
        made.close()


def test_priority_comes_first_then_who_spent_least() -> None:
    with shop(1) as s:
        a, b = Account("a"), Account("b")
        ends = [s.hold(a, 1)[1]]
        s.world.advance(10)
        ends += [s.hold(who, 1, rank)[1] for who, rank in ((a, 2), (a, 1), (b, 2))]
        for end in ends:
            end.set()
        s.world.settle()
        assert s.log == ["a", "a", "b", "a"]


def test_a_long_run_does_not_starve_a_small_model() -> None:
    with shop(2) as s:
        big, small = Account("big"), Account("small")
        ends = [s.hold(big, 2)[1] for _ in range(4)]
        ends += [s.hold(small, 1)[1] for _ in range(6)]
        for _ in range(20):
            s.world.advance(100 if s.log[-1] == "big" else 1)
            ends[0].set()
            s.world.settle()
            ends = ends[1:] if len(ends) > 1 else ends
            for end in ends:
                end.set()
        assert s.log[:3] == ["big", "small", "small"]
        assert s.budget.free == 2


def test_an_idle_model_saves_up_no_credit() -> None:
    with shop(1) as s:
        busy, idle = Account("busy", spent_ns=1000), Account("idle")
        _, end = s.hold(busy, 1)
        _, other = s.hold(idle, 1)
        assert idle.spent_ns == 1000
        end.set()
        other.set()


def test_a_lease_larger_than_the_budget_takes_all_of_it() -> None:
    with shop(2) as s:
        _, end = s.hold(Account("a"), 9)
        assert s.budget.free == 0
        end.set()
        s.world.settle()
        assert s.budget.free == 2


@settings(max_examples=60, deadline=None)
@given(cores=st.integers(1, 4), steps=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 5), st.integers(0, 2)), max_size=40))
def test_threads_never_outnumber_cores_and_everything_comes_back(cores: int, steps: list[tuple[int, int, int]]) -> None:
    with shop(cores) as s:
        accounts = [Account(name) for name in "abc"]
        held: list[tuple[asyncio.Task[None], asyncio.Event]] = []
        for which, wanted, action in steps:
            if action == 0 and held:
                held.pop(which % len(held))[0].cancel()
            elif action == 1 and held:
                held.pop(which % len(held))[1].set()
            else:
                held.append(s.hold(accounts[which], wanted))
            s.world.advance(7)
            assert 0 <= s.budget.free <= cores
        for _, end in held:
            end.set()
        for _ in range(50):
            s.world.settle()
        assert (s.budget.free, s.budget.waiting, [a.active for a in accounts]) == (cores, 0, [0, 0, 0])
