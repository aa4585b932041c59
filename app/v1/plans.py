"""/v1/plans and /v1/pareto: make, list, explain and compare plans."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from app.access.auth import Scope, needs
from app.models.repository import Repository
from app.service import EnginePart, QuickCallsPart, RepositoryPart, Serving, StoragePart
from app.v1.models import AtShapes
from app.v1.paging import Cursor, Key, Limit, PageOut, Size, page_of
from scheduler.drift import ServedPlan
from scheduler.plan import Candidate, Plan
from scheduler.planning.compare import PlanDiff, WhatIf, diff, explain, what_if
from scheduler.planning.pareto import Tradeoff, tradeoffs
from scheduler.planning.planner import make_plan, tuned
from scheduler.store import Page, StoredPlan
from scheduler.strategy import WantedPrecision

router = APIRouter()


class PlanIn(AtShapes):
    """A request for a plan: a model, a device ("local" or a stored fingerprint), an objective, and constraints."""

    device: Annotated[str, Field(pattern=r"^(local|[0-9a-f]{16})$")] = "local"
    objective: Literal["latency", "throughput", "memory"] = "latency"
    max_latency_ms: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)] | None = None
    max_memory_bytes: Size | None = None
    max_error: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    max_threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    precision: WantedPrecision = "fp32"
    backend: Literal["auto", "native", "numpy"] = "auto"


class PlanOut(BaseModel):
    """A plan with its id. `plan.state` tells whether it is valid for this device and build. served: models that run it now."""

    id: str
    created_us: int | None
    served: list[str] = []
    plan: Plan


class WindowOut(BaseModel):
    """Latencies of `count` consecutive runs."""

    count: int
    p50_ns: float
    p90_ns: float


class ServedPlanOut(BaseModel):
    """Latencies of a plan in service. ratio: last window's median ÷ expected_ns. drifted: medians stay outside low_ns…high_ns.

    measured: whether expected_ns was measured; otherwise it is predicted.
    """

    plan_id: str
    model_digest: str
    model_name: str
    count: int
    expected_ns: float
    low_ns: float
    high_ns: float
    measured: bool
    ratio: float
    drifted: bool
    windows: list[WindowOut]


class WhatIfIn(BaseModel):
    """A stored plan and changes to it. nodes: node name -> a strategy, or a prefix of one ("numpy", "native/winograd").

    everywhere: a strategy, or a prefix of one, for all other nodes; "" leaves them as planned.
    """

    model_config = ConfigDict(extra="forbid")

    plan_id: Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")]
    nodes: Annotated[
        dict[Annotated[str, Field(max_length=1024)], Annotated[str, Field(min_length=1, max_length=512)]],
        Field(max_length=10_000),
    ] = {}
    everywhere: Annotated[str, Field(max_length=512)] = ""


@router.post("/plans")
@needs(Scope.ADMIN)
async def create_plan(repository: RepositoryPart, storage: StoragePart, engine: EnginePart, asked: PlanIn) -> PlanOut:
    """Plan how a device should run a served model, and store the plan. A tuned plan stays the answer until it is stale."""
    served, session = repository.ready(asked.model, asked.version)

    def work() -> PlanOut:
        storage.remember(served.name, session.model)
        made = make_plan(
            session.model,
            storage.device(asked.device),
            asked.objective,
            asked.bound(),
            asked.dims,
            max_latency_ms=asked.max_latency_ms,
            max_memory_bytes=asked.max_memory_bytes,
            max_error=asked.max_error,
            max_threads=asked.max_threads,
            backend=asked.backend,
            precision=asked.precision,
            store=storage.store,
        )
        known = tuned(storage.store, made)
        if known is None:
            storage.store.plans.save(made)
        return _plan(storage.store.plans.get((known or made).id, storage.here()), repository)

    return await engine.call(work)


@router.get("/plans")
@needs(Scope.READ)
async def list_plans(
    repository: RepositoryPart,
    storage: StoragePart,
    engine: EnginePart,
    model: Key | None = None,
    device: Key | None = None,
    steps: bool = True,
    limit: Limit = 20,
    cursor: Cursor = None,
) -> PageOut[PlanOut]:
    """List stored plans, optionally of a model (its digest) or a device. steps=false leaves out the steps, most of a plan."""

    def work() -> Page[StoredPlan]:
        return storage.store.plans.page(storage.here(), model, device, limit, cursor)

    page = await page_of(repository, model, device, engine.call(work))
    found = [_plan(stored, repository) for stored in page.items]
    return PageOut(items=found if steps else [_without_steps(item) for item in found], next=page.next)


@router.get("/plans/served")
@needs(Scope.READ)
async def served_plans(service: Serving) -> list[ServedPlanOut]:
    """Return the latencies of plans in service, in windows, beside the latency that each plan expects."""
    return [_served_plan(served) for served in service.drift.served()]


@router.get("/plans/{plan_id}")
@needs(Scope.READ)
async def get_plan(repository: RepositoryPart, storage: StoragePart, engine: EnginePart, plan_id: str) -> PlanOut:
    """Return one plan, by its id or its first digits. Its state tells whether it is still valid for this device and build."""
    return _plan(await engine.call(lambda: storage.store.plans.get(plan_id, storage.here())), repository)


@router.get("/plans/{plan_id}/explain")
@needs(Scope.READ)
async def explain_plan(storage: StoragePart, engine: EnginePart, plan_id: str) -> list[dict[str, Any]]:
    """Explain every step of a plan: the chosen strategy, its alternatives, and the cost of each."""
    stored = await engine.call(lambda: storage.store.plans.get(plan_id, storage.here()))
    rows: list[dict[str, Any]] = orjson.loads(orjson.dumps(explain(stored.plan), default=_candidate))
    return rows


def _candidate(value: Candidate) -> dict[str, Any]:
    return value.model_dump(mode="json")


@router.get("/plans/{before}/diff/{after}")
@needs(Scope.READ)
async def diff_plans(storage: StoragePart, engine: EnginePart, before: str, after: str) -> dict[str, Any]:
    """Return the differences between two plans, which may be of different devices, builds, objectives or models."""

    def work() -> PlanDiff:
        here = storage.here()
        return diff(storage.store.plans.get(before, here).plan, storage.store.plans.get(after, here).plan)

    found = await engine.call(work)
    reply: dict[str, Any] = orjson.loads(orjson.dumps(found))
    return {**reply, "ratio": found.ratio}


@router.post("/plans/what-if")
@needs(Scope.READ)
async def plan_with(storage: StoragePart, engine: EnginePart, asked: WhatIfIn) -> dict[str, Any]:
    """Return the cost of a stored plan if nodes ran other strategies. Each time is marked as measured or predicted."""

    def work() -> WhatIf:
        return what_if(storage.store.plans.get(asked.plan_id, storage.here()).plan, asked.nodes, asked.everywhere)

    found = await engine.call(work)
    reply: dict[str, Any] = orjson.loads(orjson.dumps(found))
    return {**reply, "ratio": found.ratio}


def _served_plan(served: ServedPlan) -> ServedPlanOut:
    bounds = served.bounds
    return ServedPlanOut(
        plan_id=served.plan_id,
        model_digest=served.model_digest,
        model_name=served.model_name,
        count=served.count,
        expected_ns=bounds.expected_ns,
        low_ns=bounds.low_ns,
        high_ns=bounds.high_ns,
        measured=bounds.measured,
        ratio=served.ratio,
        drifted=served.drifted,
        windows=[WindowOut(count=w.count, p50_ns=w.p50_ns, p90_ns=w.p90_ns) for w in served.windows],
    )


def _plan(stored: StoredPlan, repository: Repository) -> PlanOut:
    plan = stored.plan
    served = {model.name for model in repository.models if model.session is not None and plan.id in model.session.plans}
    return PlanOut(id=plan.id, created_us=stored.created_us, served=sorted(served), plan=plan)


def _without_steps(item: PlanOut) -> PlanOut:
    return item.model_copy(update={"plan": item.plan.model_copy(update={"steps": ()})})


@router.get("/pareto")
@needs(Scope.READ)
async def pareto(
    repository: RepositoryPart,
    storage: StoragePart,
    quick_calls: QuickCallsPart,
    model: Key,
    device: Key | None = None,
    limit: Limit = 100,
) -> list[Tradeoff]:
    """Return the newest plans of a model (its digest) with latency and error estimate, and which are Pareto-optimal in both.

    Plans of one device are compared with one another, this one's first; a measured latency is better than any predicted one.
    """

    def work() -> Page[Tradeoff]:
        here = storage.here()
        cards = storage.store.queries.plans(here.build, model, device, limit)
        return Page(tuple(tradeoffs(cards, here.device_fingerprint)), None)

    return list((await page_of(repository, model, device, quick_calls.call(work))).items)
