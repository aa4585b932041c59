"""Which plans served models run: of each set of input shapes the newest stored one of the model's own request.

The database is looked at every few seconds, so a plan comes into service whoever made it: a job, an agent, a client, the command
line. It is built beside the runs that go on and replaces what they follow between two of them. One that is stale, of another
device, or asked for on other terms than the model's is left alone; a model without any runs each op's default.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from app.engine.calls import Calls
from app.engine.policy import Rules
from app.engine.port import Engine
from app.errors import RequestError
from app.models.repository import Repository, Served
from kernels.errors import EdgewiseError
from scheduler.errors import StoreError
from scheduler.plan import Constraints, Plan
from scheduler.session import Session
from scheduler.store import Here, Store

log = structlog.get_logger("edgewise.plans")


@dataclass(frozen=True, slots=True)
class Terms:
    """What a plan must have been asked for to run a model. threads: of its runs. cores: of this device, what no limit means."""

    rules: Rules
    threads: int
    cores: int

    def met(self, plan: Plan) -> bool:
        """Whether the plan answers the model's own request and is true of what runs here."""
        limits = {self.threads, None} if self.threads == self.cores else {self.threads}
        asked = [Constraints(max_threads=limit, max_error=self.rules.max_error) for limit in limits]
        true = plan.state.status in ("current", "drifted")
        return true and plan.objective == (self.rules.objective or "latency") and plan.constraints in asked


class PlanFollower:
    """Event loop only. looked: up to which stored plan each session's were looked at; it goes with the session."""

    def __init__(
        self, repository: Repository, engine: Engine, desk: Calls, open_store: Callable[[], Store], here: Callable[[], Here]
    ) -> None:
        self._repository, self._engine, self._desk = repository, engine, desk
        self._open_store, self._here = open_store, here
        self._looked: weakref.WeakKeyDictionary[Session, int] = weakref.WeakKeyDictionary()
        self._looking = asyncio.Lock()
        self._lost = False

    async def keep(self, every_s: float) -> None:
        """Look again and again, for as long as the service runs."""
        while True:
            try:
                await self.refresh()
                self._lost = False
            except StoreError as error:
                if not self._lost:
                    log.warning("plans are not looked for", reason=str(error))
                self._lost = True
            except RequestError as error:  # too much other work waits: the next look will do
                log.info("plans are looked for later", reason=str(error))
            await asyncio.sleep(every_s)

    async def refresh(self) -> None:
        """Have every served model run its newest plans; back when they do. Raises StoreError, RequestError 503."""
        async with self._looking:
            newest = await self._desk.call(self._newest)
            for served in self._repository.models:
                session = served.session
                if session is not None and self._looked.get(session, 0) < newest:
                    await self._serve(served, session)
                    self._looked[session] = newest

    def _newest(self) -> int:
        return self._open_store().plans.newest()

    async def _serve(self, served: Served, session: Session) -> None:
        """Have one model run the plans that came since it was looked at."""
        terms = Terms(served.rules, *self._engine.share_of(served, session))
        after = self._looked.get(session, 0)

        def find() -> list[Plan]:
            stored = self._open_store().plans.standing(session.model.digest, self._here(), after)
            known = session.plans
            return [found.plan for found in stored if terms.met(found.plan) and found.plan.id not in known]

        for plan in reversed(_first_of_shapes(await self._desk.call(find))):
            try:
                await self._engine.follow(served, session, plan)
            except RequestError:
                raise
            except EdgewiseError as error:  # it serves on as it did; a plan is not tried twice
                log.warning("plan not taken into service", model=served.name, plan=plan.id, reason=str(error))
            else:
                log.info("plan in service", model=served.name, version=served.version, plan=plan.id, threads=plan.threads)


def _first_of_shapes(plans: list[Plan]) -> list[Plan]:
    """Of each set of input shapes the first."""
    return list({plan.inputs: plan for plan in reversed(plans)}.values())[::-1]
