"""Served models follow stored plans: for each set of input shapes, the newest plan made on the model's own terms.

The database is polled every few seconds, so that a plan comes into service wherever it was made: by a job, an agent, a client or
the command line. It is built while runs go on, and takes over between two of them. A plan is ignored if it is stale, of another
device, or made on other terms than the model's; without a plan, each op of a model runs its default strategy. A plan that is
pinned, by `serve --plan` or in the model's file of rules, is run whatever it was made for, and no other for its shapes.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Sequence

import structlog

from app.engine.calls import Calls
from app.engine.policy import Rules
from app.engine.port import Engine
from app.errors import RequestError
from app.models.repository import Repository, Served
from kernels.errors import EdgewiseError
from kernels.record import record
from scheduler.errors import NotFoundError, StoreError
from scheduler.plan import Constraints, Plan
from scheduler.session import Session
from scheduler.store import Here, Store

log = structlog.get_logger("edgewise.plans")


@record
class Terms:
    """The request that a plan must answer to run a model.

    rules: the model's, with objective and max_error. threads: of its runs. cores: of this device; a plan without a thread limit
    is made for all of them.
    """

    rules: Rules
    threads: int
    cores: int

    def met(self, plan: Plan) -> bool:
        """Whether a plan answers this request and is valid for this device and build."""
        limits = {self.threads, None} if self.threads == self.cores else {self.threads}
        asked = [Constraints(max_threads=limit, max_error=self.rules.max_error) for limit in limits]
        true = plan.state.status in ("current", "drifted")
        return true and plan.objective == (self.rules.objective or "latency") and plan.constraints in asked


class PlanFollower:
    """Brings stored plans into service. Event loop only.

    desk: threads for short questions to the database. here: returns this device and build. pins: ids of plans that are run
    whatever they were made for.
    """

    def __init__(
        self,
        repository: Repository,
        engine: Engine,
        desk: Calls,
        open_store: Callable[[], Store],
        here: Callable[[], Here],
        pins: Sequence[str] = (),
    ) -> None:
        self._pins = pins
        self._repository, self._engine, self._desk = repository, engine, desk
        self._open_store, self._here = open_store, here
        self._looked: weakref.WeakKeyDictionary[Session, int] = weakref.WeakKeyDictionary()
        self._looking = asyncio.Lock()
        self._lost = False

    async def keep(self, every_s: float) -> None:
        """Poll the database, for as long as the service runs."""
        while True:
            try:
                await self.refresh()
                self._lost = False
            except StoreError as error:
                if not self._lost:
                    log.warning("stored plans could not be read", reason=str(error))
                self._lost = True
            except RequestError as error:  # too much other work waits: the next poll will do
                log.info("stored plans are read later", reason=str(error))
            await asyncio.sleep(every_s)

    async def refresh(self) -> None:
        """Bring new plans of every served model into service, and return when they run. Raises StoreError, RequestError 503."""
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
        """Bring the plans that were stored since the last poll into service for one model."""
        terms = Terms(served.rules, *self._engine.share_of(served, session))
        after = self._looked.get(session, 0)

        def find() -> list[Plan]:
            stored = self._open_store().plans.standing(session.model.digest, self._here(), after)
            pinned = self._pinned(served, session)
            taken = {plan.inputs for plan in pinned}
            fitting = [found.plan for found in stored if terms.met(found.plan) and found.plan.inputs not in taken]
            return [plan for plan in (*pinned, *fitting) if plan.id not in session.plans]

        for plan in reversed(_first_of_shapes(await self._desk.call(find))):
            try:
                await self._engine.follow(served, session, plan)
            except RequestError:
                raise
            except EdgewiseError as error:  # the model runs as before; a plan is not tried twice
                log.warning("plan not taken into service", model=served.name, plan=plan.id, reason=str(error))
            else:
                log.info("plan in service", model=served.name, version=served.version, plan=plan.id, threads=plan.threads)

    def _pinned(self, served: Served, session: Session) -> list[Plan]:
        """Return the pinned plans of a model that hold for this device and build."""
        found: list[Plan] = []
        for pin in (*filter(None, [served.rules.plan]), *self._pins):
            try:
                plan = self._open_store().plans.get(pin, self._here()).plan
            except NotFoundError as error:
                log.warning("pinned plan not found", model=served.name, reason=str(error))
                continue
            if plan.model_digest != session.model.digest:
                continue
            if plan.state.status == "stale":
                log.warning("pinned plan not taken into service", model=served.name, plan=plan.id, reason=plan.state.reason)
            else:
                found.append(plan)
        return found


def _first_of_shapes(plans: list[Plan]) -> list[Plan]:
    """Return the first plan for each set of input shapes, in order."""
    return list({plan.inputs: plan for plan in reversed(plans)}.values())[::-1]
