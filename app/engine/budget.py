"""A budget of cores: every run leases one core per thread, so that running threads never outnumber the cores."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

Clock = Callable[[], int]


@dataclass(slots=True, eq=False)
class Account:
    """Core time that one model has used. spent_ns: among equal priorities, the model that has spent least is next.

    active: leases held or waited for.
    """

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
    """Grants leases of cores by priority, then to the model that has spent least core time, then by order of asking.

    The next lease blocks those behind it, so that a run that wants many cores is not overtaken forever by small ones. A model
    that was idle starts level with the busy model that has spent least: idle time earns no credit.
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
        """Number of leases asked for and not yet granted."""
        return len(self._waiting)

    @asynccontextmanager
    async def lease(self, account: Account, cores: int, rank: Callable[[], int] = lambda: 1) -> AsyncIterator[None]:
        """Hold that many cores, at most all of them. rank: returns the priority when cores are granted; 1 is the highest."""
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
                self.free += cores  # granted and cancelled in the same turn of the loop
            raise

    def _grant(self) -> None:
        while ready := [waiter for waiter in self._waiting if not waiter.turn.done()]:
            best = min(ready, key=lambda waiter: (waiter.rank(), waiter.account.spent_ns, waiter.number))
            if best.cores > self.free:
                return
            self._waiting.remove(best)
            self.free -= best.cores
            best.turn.set_result(None)
