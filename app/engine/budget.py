"""The cores as one budget: every run leases as many as it has threads, so that running threads never outnumber them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

Clock = Callable[[], int]


@dataclass(slots=True, eq=False)
class Account:
    """What one model has used. spent_ns: core-time; the one that spent least is next among equals."""

    name: str = ""
    spent_ns: int = 0
    active: int = 0


@dataclass(slots=True, eq=False)
class _Waiter:
    account: Account
    cores: int
    rank: Callable[[], int]
    number: int
    turn: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class CoreBudget:
    """Leases of cores. The next is the highest priority, then the model that spent least, then who asked first.

    Whoever is next is waited for: a run that wants many cores is not overtaken for ever by small ones. A model that was idle
    starts level with the busy model that spent least, and saves up no credit.
    """

    def __init__(self, cores: int, clock_ns: Clock) -> None:
        self.cores = cores
        self.free = cores
        self._clock_ns = clock_ns
        self._waiting: list[_Waiter] = []
        self._active: set[Account] = set()
        self._numbers = itertools.count()

    @property
    def waiting(self) -> int:
        """Leases asked for and not granted."""
        return len(self._waiting)

    @asynccontextmanager
    async def lease(self, account: Account, cores: int, rank: Callable[[], int] = lambda: 1) -> AsyncIterator[None]:
        """Hold that many cores, all of them at most. rank: the priority, asked for when cores are given out; 1 is the highest."""
        cores = min(cores, self.cores)
        self._join(account)
        try:
            await self._acquire(account, cores, rank)
            began_ns = self._clock_ns()
            try:
                yield
            finally:
                account.spent_ns += cores * (self._clock_ns() - began_ns)
                self.free += cores
        finally:
            self._leave(account)
            self._grant()

    def _join(self, account: Account) -> None:
        if not account.active:
            account.spent_ns = max(account.spent_ns, min((other.spent_ns for other in self._active), default=0))
            self._active.add(account)
        account.active += 1

    def _leave(self, account: Account) -> None:
        account.active -= 1
        if not account.active:
            self._active.discard(account)

    async def _acquire(self, account: Account, cores: int, rank: Callable[[], int]) -> None:
        waiter = _Waiter(account, cores, rank, next(self._numbers))
        self._waiting.append(waiter)
        self._grant()
        try:
            await waiter.turn
        except asyncio.CancelledError:
            if waiter.turn.cancelled():
                self._waiting.remove(waiter)
            else:
                self.free += cores  # granted and cancelled in one turn of the loop
            raise

    def _grant(self) -> None:
        while ready := [waiter for waiter in self._waiting if not waiter.turn.done()]:
            best = min(ready, key=lambda waiter: (waiter.rank(), waiter.account.spent_ns, waiter.number))
            if best.cores > self.free:
                return
            self._waiting.remove(best)
            self.free -= best.cores
            best.turn.set_result(None)
