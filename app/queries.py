"""/v1: profiles, and what is asked of them: the costliest ops, runs side by side, what got slower, the plan that fits.

Every list is JSON, or CSV with `?format=csv`; numbers are those of the stored documents (`profiler.report`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Path
from pydantic import BaseModel

from app.auth import Scope, needs
from app.control import Cursor, Key, Limit, PageOut, Work
from app.pages import smallest_shapes
from app.state import Serving
from profiler.counts import profile
from profiler.report import Report
from profiler.reporting import static_report
from scheduler.store import ProfileRun

router = APIRouter()
Number = Annotated[int, Path(ge=1, lt=1 << 63)]
Kind = Literal["static", "trace"]


class RunOut(BaseModel):
    """The totals of a stored profile. device, threads and times are of traces; what is not known is null.

    problems: ops above their roof. schema_version: of the document; those of version 1 are of an early build, and have no totals.
    """

    id: int
    model_digest: str
    model_name: str
    kind: Kind
    device: str | None
    device_name: str | None
    threads: int | None
    precision: str
    backend: str
    plan_id: str
    engine_build: str
    schema_version: int
    ops: int
    problems: int
    macs: int
    flops: int
    peak_activation_bytes: int | None
    wall_p50_ns: float | None
    wall_p90_ns: float | None
    wall_min_ns: float | None
    first_ns: float | None
    predicted_ns: float | None
    roof_ns: float | None
    wasted_ns: float | None
    created_us: int


class ProfileOut(RunOut):
    """A stored profile with its whole document (`docs/profiling.md`)."""

    profile: dict[str, Any]


@router.post("/profiles")
@needs(Scope.ADMIN)
async def make_profile(service: Serving, asked: Work) -> ProfileOut:
    """Count what a served model costs for these shapes, per op and in total, and store it. A job of kind `trace` times it."""
    served, session = service.repository.ready(asked.model, asked.version)

    def work() -> ProfileOut:
        service.remember(served.name, session.model)
        counted = profile(session.model, asked.bound(), asked.dims)
        number = service.store.profiles.save(static_report(counted), service.here().build.id)
        return _whole(service.store.profiles.get(number))

    return await service.engine.call(work)


@router.get("/models/{name}/count")
@needs(Scope.READ)
async def count_model(service: Serving, name: str, version: str | None = None) -> Report:
    """Count what a served model costs with every open dimension at 1, without storing it. 400 where those shapes do not do."""
    served, session = service.repository.ready(name, version)

    def work() -> Report:
        report = static_report(profile(session.model, smallest_shapes(session)))
        return report.model_copy(update={"model": report.model.model_copy(update={"name": served.name})})

    return await service.engine.call(work)


@router.get("/profiles")
@needs(Scope.READ)
async def list_profiles(
    service: Serving,
    model: Key | None = None,
    device: Key | None = None,
    kind: Kind | None = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> PageOut[RunOut]:
    """Stored profiles, of all models or one (its digest), of a device, or of a kind."""
    page = await service.desk.call(lambda: service.store.profiles.page(model, device, limit, cursor, kind=kind))
    return PageOut(items=[run_out(run) for run in page.items], next=page.next)


@router.get("/profiles/{number}")
@needs(Scope.READ)
async def get_profile(service: Serving, number: Number) -> ProfileOut:
    """One profile with its whole document."""
    return _whole(await service.desk.call(lambda: service.store.profiles.get(number)))


def run_out(run: ProfileRun) -> RunOut:
    """A stored profile for the reply, without its document."""
    return RunOut(**_totals(run))


def _whole(run: ProfileRun) -> ProfileOut:
    return ProfileOut(**_totals(run), profile=orjson.loads(run.payload))


def _totals(run: ProfileRun) -> dict[str, Any]:
    names = [name for name in RunOut.model_fields if name not in ("device", "device_name")]
    of_device = {"device": run.device_fingerprint or None, "device_name": run.device_name or None}
    return {**{name: getattr(run, name) for name in names}, **of_device}
