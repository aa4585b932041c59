"""/v1: models, devices, plans and strategies as typed JSON. Lists come in bounded pages, the newest first."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Annotated, Any, Generic, Literal, TypeVar

import orjson
from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from app.auth import Scope, needs
from app.repository import Served
from app.state import Service, Serving
from scheduler.compare import PlanDiff, WhatIf, diff, explain, what_if
from scheduler.drift import ServedPlan
from scheduler.errors import NotFoundError
from scheduler.pareto import Tradeoff, tradeoffs
from scheduler.plan import Candidate, Plan
from scheduler.planner import make_plan, tuned
from scheduler.store import Found, Here, Page, StoredDevice, StoredPlan

router = APIRouter()
T = TypeVar("T")

Size = Annotated[int, Field(ge=0, le=2**40)]
Name = Annotated[str, Field(max_length=256)]
Key = Annotated[str, Query(pattern=r"^[0-9a-f]{8,64}$")]
Limit = Annotated[int, Query(ge=1, le=500, description="Rows of this page.")]
Cursor = Annotated[str | None, Query(max_length=64, description="`next` of the page before.")]


class TensorOut(BaseModel):
    """An input or output as the model declares it; an open dimension is its name, or null."""

    name: str
    dtype: str
    shape: list[int | str | None] | None


class RunPlanOut(BaseModel):
    """A stored plan that runs of these input shapes follow."""

    plan_id: str
    inputs: dict[str, list[int]]
    threads: int


class ModelOut(BaseModel):
    """One version of a served model. plans: what its runs follow; runs of other shapes are labelled "default"."""

    name: str
    version: str
    state: str
    reason: str
    description: str
    digest: str | None
    inputs: list[TensorOut]
    outputs: list[TensorOut]
    plans: list[RunPlanOut]


class ModelsOut(BaseModel):
    """Every served model."""

    models: list[ModelOut]


class PageOut(BaseModel, Generic[T]):
    """Part of a list; `next` is the cursor of the following part, null at the end."""

    items: list[T]
    next: str | None


class DeviceOut(BaseModel):
    """A known device. profile: what was measured on it; only of a single device."""

    fingerprint: str
    name: str
    created_us: int
    updated_us: int
    profile: dict[str, Any] | None = None


class Work(BaseModel):
    """A served model at certain shapes. shapes: input -> shape; dims: dynamic dimension -> size."""

    model_config = ConfigDict(extra="forbid")

    model: Name
    version: Annotated[str, Field(max_length=20)] | None = None
    shapes: Annotated[dict[Name, Annotated[list[Size], Field(max_length=64)]], Field(max_length=64)] = {}
    dims: Annotated[dict[Name, Size], Field(max_length=64)] = {}

    def bound(self) -> dict[str, tuple[int, ...]]:
        """The shapes as the graph takes them."""
        return {name: tuple(shape) for name, shape in self.shapes.items()}


class PlanIn(Work):
    """What to plan, for which device ("local" or a stored fingerprint), to what end and within what bounds."""

    device: Annotated[str, Field(pattern=r"^(local|[0-9a-f]{16})$")] = "local"
    objective: Literal["latency", "throughput", "memory"] = "latency"
    max_latency_ms: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)] | None = None
    max_memory_bytes: Size | None = None
    max_error: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    max_threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    precision: Literal["fp32", "bf16", "int8", "auto"] = "fp32"
    backend: Literal["auto", "native", "numpy"] = "auto"


class PlanOut(BaseModel):
    """A plan, its id, and whether it is true of what runs here (`plan.state`)."""

    id: str
    created_us: int | None
    plan: Plan


class WindowOut(BaseModel):
    """Latencies of `count` runs in a row."""

    count: int
    p50_ns: float
    p90_ns: float


class ServedPlanOut(BaseModel):
    """How a plan serves. ratio: median of the last window ÷ expected; drifted: it stays outside low_ns…high_ns."""

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
    """A stored plan, and what is to run otherwise: a strategy, or the beginning of one ("numpy", "native/winograd")."""

    model_config = ConfigDict(extra="forbid")

    plan_id: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    nodes: Annotated[
        dict[Annotated[str, Field(max_length=1024)], Annotated[str, Field(min_length=1, max_length=512)]],
        Field(max_length=10_000),
    ] = {}
    everywhere: Annotated[str, Field(max_length=512)] = ""


class StrategyOut(BaseModel):
    """A measurement of one strategy for one op signature. fresh: true of this device and build; else `reason`."""

    device: str
    op: str
    signature: str
    signature_key: str
    strategy: str
    samples: int
    min_ns: float
    p50_ns: float
    p90_ns: float
    fresh: bool
    reason: str
    measured_us: int


async def page_of(service: Service, model: str | None, device: str | None, asked: Awaitable[Page[T]]) -> Page[T]:
    """What was asked of a model and a device; nothing of a model that is served and that the database has not met yet."""
    try:
        return await asked
    except NotFoundError:
        if device is not None or not service.serves(model):
            raise
        return Page((), None)


def describe(served: Served) -> ModelOut:
    """A served model for the reply."""
    session = served.session
    ports = {"inputs": session.inputs, "outputs": session.outputs} if session else {"inputs": (), "outputs": ()}
    tensors: dict[str, Any] = {
        role: [TensorOut(name=p.name, dtype=p.dtype.name, shape=None if p.dims is None else list(p.dims)) for p in found]
        for role, found in ports.items()
    }
    return ModelOut(
        name=served.name,
        version=served.version,
        state=served.state,
        reason=served.reason,
        description=served.card.description,
        digest=session.model.digest if session else None,
        plans=[_run_plan(plan_id, plan) for plan_id, plan in session.plans.items()] if session else [],
        **tensors,
    )


def _run_plan(plan_id: str, plan: Plan) -> RunPlanOut:
    return RunPlanOut(plan_id=plan_id, inputs={item.name: list(item.shape) for item in plan.inputs}, threads=plan.threads)


@router.get("/models")
@needs(Scope.READ)
async def list_models(service: Serving) -> ModelsOut:
    """The served models with their states."""
    return ModelsOut(models=[describe(served) for served in service.repository.models])


@router.get("/models/{name}")
@needs(Scope.READ)
async def get_model(service: Serving, name: str, version: str | None = None) -> ModelOut:
    """One model; its highest ready version unless one is asked for."""
    return describe(service.repository.find(name, version))


@router.get("/devices")
@needs(Scope.READ)
async def list_devices(service: Serving, limit: Limit = 50, cursor: Cursor = None) -> PageOut[DeviceOut]:
    """Devices whose profiles are stored."""
    page = await service.engine.call(lambda: service.store.devices.page(limit, cursor))
    return PageOut(items=[describe_device(item) for item in page.items], next=page.next)


@router.get("/devices/{fingerprint}")
@needs(Scope.READ)
async def get_device(service: Serving, fingerprint: str) -> DeviceOut:
    """One device with what was measured; "local" is this machine, measured now when it is new."""

    def work() -> DeviceOut:
        key = service.device(fingerprint).fingerprint if fingerprint == "local" else fingerprint
        stored = service.store.devices.get(key)
        return describe_device(stored).model_copy(update={"profile": orjson.loads(stored.profile)})

    return await service.engine.call(work)


def describe_device(stored: StoredDevice) -> DeviceOut:
    """A stored device for the reply, without its profile."""
    times = {"created_us": stored.created_us, "updated_us": stored.updated_us}
    return DeviceOut(fingerprint=stored.fingerprint, name=stored.name, **times)


@router.post("/plans")
@needs(Scope.ADMIN)
async def create_plan(service: Serving, asked: PlanIn) -> PlanOut:
    """Choose how a device should run a served model, and store the plan. What was tuned stays the answer until it is stale."""
    served, session = service.repository.ready(asked.model, asked.version)

    def work() -> PlanOut:
        service.remember(served.name, session.model)
        made = make_plan(
            session.model,
            service.device(asked.device),
            asked.objective,
            asked.bound(),
            asked.dims,
            max_latency_ms=asked.max_latency_ms,
            max_memory_bytes=asked.max_memory_bytes,
            max_error=asked.max_error,
            max_threads=asked.max_threads,
            backend=asked.backend,
            precision=asked.precision,
            store=service.store,
        )
        known = tuned(service.store, made)
        if known is None:
            service.store.plans.save(made)
        return _plan(service.store.plans.get((known or made).id, service.here()))

    return await service.engine.call(work)


@router.get("/plans")
@needs(Scope.READ)
async def list_plans(
    service: Serving,
    model: Key | None = None,
    device: Key | None = None,
    steps: bool = True,
    limit: Limit = 20,
    cursor: Cursor = None,
) -> PageOut[PlanOut]:
    """Stored plans, of a model (its digest), a device, or all. steps=false leaves out each plan's steps, which are most of it."""

    def work() -> Page[StoredPlan]:
        return service.store.plans.page(service.here(), model, device, limit, cursor)

    page = await page_of(service, model, device, service.engine.call(work))
    found = [_plan(stored) for stored in page.items]
    return PageOut(items=found if steps else [_without_steps(item) for item in found], next=page.next)


@router.get("/plans/served")
@needs(Scope.READ)
async def served_plans(service: Serving) -> list[ServedPlanOut]:
    """How plans serve: latencies in windows, beside what each plan says it takes."""
    return [_served_plan(served) for served in service.observed.served()]


@router.get("/plans/{plan_id}")
@needs(Scope.READ)
async def get_plan(service: Serving, plan_id: str) -> PlanOut:
    """One plan; its state says whether it is still true of what runs here."""
    return _plan(await service.engine.call(lambda: service.store.plans.get(plan_id, service.here())))


@router.get("/plans/{plan_id}/explain")
@needs(Scope.READ)
async def explain_plan(service: Serving, plan_id: str) -> list[dict[str, Any]]:
    """Why every step runs as it does: what else was possible, and what it would have cost."""
    stored = await service.engine.call(lambda: service.store.plans.get(plan_id, service.here()))
    rows: list[dict[str, Any]] = orjson.loads(orjson.dumps(explain(stored.plan), default=_candidate))
    return rows


def _candidate(value: Candidate) -> dict[str, Any]:
    return value.model_dump(mode="json")


@router.get("/plans/{before}/diff/{after}")
@needs(Scope.READ)
async def diff_plans(service: Serving, before: str, after: str) -> dict[str, Any]:
    """What differs from one plan to another: of two devices, builds, objectives or models."""

    def work() -> PlanDiff:
        here = service.here()
        return diff(service.store.plans.get(before, here).plan, service.store.plans.get(after, here).plan)

    found = await service.engine.call(work)
    reply: dict[str, Any] = orjson.loads(orjson.dumps(found))
    return {**reply, "ratio": found.ratio}


@router.post("/plans/what-if")
@needs(Scope.READ)
async def plan_with(service: Serving, asked: WhatIfIn) -> dict[str, Any]:
    """What a stored plan would cost if nodes ran another way; each time is measured, or predicted and says so."""

    def work() -> WhatIf:
        return what_if(service.store.plans.get(asked.plan_id, service.here()).plan, asked.nodes, asked.everywhere)

    found = await service.engine.call(work)
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


def _plan(stored: StoredPlan) -> PlanOut:
    return PlanOut(id=stored.plan.id, created_us=stored.created_us, plan=stored.plan)


def _without_steps(item: PlanOut) -> PlanOut:
    return item.model_copy(update={"plan": item.plan.model_copy(update={"steps": ()})})


@router.get("/pareto")
@needs(Scope.READ)
async def pareto(service: Serving, model: Key, device: Key | None = None, limit: Limit = 100) -> list[Tradeoff]:
    """The newest plans of a model (its digest) by latency and error estimate, and which of them no other beats in both."""

    def work() -> Page[Tradeoff]:
        return Page(tuple(tradeoffs(service.store.queries.plans(service.here().build, model, device, limit))), None)

    return list((await page_of(service, model, device, service.desk.call(work))).items)


@router.get("/strategies")
@needs(Scope.READ)
async def list_strategies(
    service: Serving,
    device: Key | None = None,
    signature: Key | None = None,
    model: Key | None = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> PageOut[StrategyOut]:
    """What was measured, by device and by op signature or model; each labelled fresh, or why not."""

    def work() -> Page[Found]:
        return service.store.measurements.page(service.here(), device, signature, model, limit, cursor)

    page = await service.engine.call(work)
    return PageOut(items=[_strategy(found) for found in page.items], next=page.next)


@router.get("/strategies/best")
@needs(Scope.READ)
async def best_strategies(
    service: Serving,
    device: Annotated[str, Query(pattern=r"^(local|[0-9a-f]{8,64})$")] = "local",
    signature: Key | None = None,
    model: Key | None = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> PageOut[StrategyOut]:
    """The fastest strategy of an op signature, or of each of a model (its digest), on a device.

    Where none is of this build and kernel source, the fastest of the build measured last, labelled as not fresh.
    """

    def work() -> Page[Found]:
        here = service.here()
        asked = here if device == "local" else Here(device, here.build)
        return service.store.measurements.best(asked, signature, model, limit, cursor)

    page = await service.engine.call(work)
    return PageOut(items=[_strategy(found) for found in page.items], next=page.next)


def _strategy(found: Found) -> StrategyOut:
    item = found.measurement
    return StrategyOut(
        device=item.device_fingerprint,
        op=item.op,
        signature=item.signature,
        signature_key=item.signature_key,
        strategy=str(item.strategy),
        samples=item.samples,
        min_ns=item.min_ns,
        p50_ns=item.p50_ns,
        p90_ns=item.p90_ns,
        fresh=found.fresh,
        reason=found.reason,
        measured_us=item.measured_us,
    )
