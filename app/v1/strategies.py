"""/v1/strategies: measurements of each strategy for an op, and the fastest strategy."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel

from app.access.auth import Scope, needs
from app.service import EnginePart, RepositoryPart, StoragePart
from app.v1.paging import Cursor, Key, Limit, PageOut
from scheduler.store import Here, JudgedMeasurement, Page

router = APIRouter()
NameOrDigest = Annotated[
    str, Query(max_length=256, pattern=r"^[^\x00]*$", description="The name of a served model, or a model's digest.")
]


class StrategyOut(BaseModel):
    """A measurement of one strategy for one op signature. fresh: valid for this device and build; reason: why not."""

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


@router.get("/strategies")
@needs(Scope.READ)
async def list_strategies(
    storage: StoragePart,
    engine: EnginePart,
    device: Key | None = None,
    signature: Key | None = None,
    model: Key | None = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> PageOut[StrategyOut]:
    """List measurements, optionally of one device, op signature or model. Each is marked as fresh, or has the reason why not."""

    def work() -> Page[JudgedMeasurement]:
        return storage.store.measurements.page(storage.here(), device, signature, model, limit, cursor)

    page = await engine.call(work)
    return PageOut(items=[_strategy(found) for found in page.items], next=page.next)


@router.get("/strategies/best")
@needs(Scope.READ)
async def best_strategies(
    repository: RepositoryPart,
    storage: StoragePart,
    engine: EnginePart,
    device: Annotated[str, Query(pattern=r"^(local|[0-9a-f]{8,64})$")] = "local",
    signature: Key | None = None,
    model: NameOrDigest | None = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> PageOut[StrategyOut]:
    """Return the fastest strategy on a device for one op signature, or for each signature of a model (its name or digest).

    Without measurements of this build and kernel source, it is the fastest of the build measured last, marked as not fresh.
    """
    names = {served.name: served.session.model.digest for served in repository.models if served.session is not None}
    digest = None if model is None else names.get(model, model)

    def work() -> Page[JudgedMeasurement]:
        here = storage.here()
        asked = here if device == "local" else Here(device, here.build)
        return storage.store.measurements.best(asked, signature, digest, limit, cursor)

    page = await engine.call(work)
    return PageOut(items=[_strategy(found) for found in page.items], next=page.next)


def _strategy(found: JudgedMeasurement) -> StrategyOut:
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
