"""/v1/profiles: counting a model's cost, and listing, reading and downloading stored profiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Path, Query
from pydantic import BaseModel
from starlette.responses import Response

from app.access.auth import Scope, needs
from app.errors import RequestError
from app.service import EnginePart, QuickCallsPart, RepositoryPart, StoragePart
from app.v1.models import AtShapes
from app.v1.paging import Cursor, Key, Limit, PageOut, page_of
from kernels.record import record
from profiler.counting.counts import profile
from profiler.report.document import Report, Value
from profiler.report.exports import chrome_trace, to_csv
from profiler.report.makers import static_report
from scheduler.store import Page, ProfileRun, StoredProfile

router = APIRouter()
Number = Annotated[int, Path(ge=1, lt=1 << 63)]
Kind = Literal["static", "trace"]
Format = Annotated[Literal["json", "csv"], Query(description="Format of the reply: JSON or CSV.")]


@record
class ProfileOut(ProfileRun):
    """A stored profile with its whole document (`docs/profiling.md`)."""

    profile: dict[str, Any]


@router.post("/profiles")
@needs(Scope.ADMIN)
async def make_profile(repository: RepositoryPart, storage: StoragePart, engine: EnginePart, asked: AtShapes) -> ProfileOut:
    """Count the cost of a served model with these shapes, per op and in total, and store it. To time it, queue a `trace` job."""
    served, session = repository.ready(asked.model, asked.version)

    def work() -> ProfileOut:
        storage.remember(served.name, session.model)
        counted = profile(session.model, asked.bound(), asked.dims)
        number = storage.store.profiles.save(static_report(counted), storage.here().build.id)
        return _whole(storage.store.profiles.get(number))

    return await engine.call(work)


@router.get("/models/{name}/count")
@needs(Scope.READ)
async def count_model(repository: RepositoryPart, engine: EnginePart, name: str, version: str | None = None) -> Report:
    """Count the cost of a served model at batch 1, without storing it. 400 where other dimensions are open."""
    served, session = repository.ready(name, version)

    def work() -> Report:
        report = static_report(profile(session.model))
        return report.model_copy(update={"model": report.model.model_copy(update={"name": served.name})})

    return await engine.call(work)


@router.get("/profiles", response_model=PageOut[ProfileRun])
@needs(Scope.READ)
async def list_profiles(
    repository: RepositoryPart,
    storage: StoragePart,
    quick_calls: QuickCallsPart,
    model: Key | None = None,
    device: Key | None = None,
    kind: Kind | None = None,
    limit: Limit = 50,
    cursor: Cursor = None,
    format: Format = "json",
) -> Any:
    """List stored profiles, optionally of one model (its digest), one device, or one kind."""
    asked = quick_calls.call(lambda: storage.store.profiles.page(model, device, limit, cursor, kind=kind))
    page = await page_of(repository, model, device, asked)
    return written(page, format)


@router.get("/profiles/{number}/trace", response_class=Response, responses={200: {"content": {"application/json": {}}}})
@needs(Scope.READ)
async def download_trace(storage: StoragePart, engine: EnginePart, number: Number) -> Response:
    """Download a measured run as trace events, to open in ui.perfetto.dev or chrome://tracing."""

    def work() -> bytes:
        report = storage.store.profiles.get(number).report
        if report.timeline is None:
            raise RequestError(404, f"profile {number}: it was counted, not measured, so it has no trace")
        return chrome_trace(report)

    body = await engine.call(work)
    named = {"Content-Disposition": f'attachment; filename="edgewise-run-{number}.trace.json"'}
    return Response(body, media_type="application/json", headers=named)


class MemoryOut(BaseModel):
    """Tensors in memory while an op runs. at: the op's index. peak: the index with the most bytes. values: the largest first."""

    at: int
    peak: int
    live_bytes: int
    values: list[Value]


@router.get("/profiles/{number}/memory")
@needs(Scope.READ)
async def memory_at(
    storage: StoragePart, engine: EnginePart, number: Number, at: Annotated[int, Query(ge=0, lt=1 << 31)] | None = None
) -> MemoryOut:
    """Return the tensors alive while op `at` runs; without `at`, while the op at the memory peak runs."""

    def work() -> MemoryOut:
        report = storage.store.profiles.get(number).report
        peak = max(report.ops, key=lambda op: op.live_bytes).index if report.ops else 0
        index = peak if at is None else at
        if index >= max(len(report.ops), 1):
            raise RequestError(404, f"profile {number}: at is {index}, it has {len(report.ops)} ops")
        values = report.alive(index)
        return MemoryOut(at=index, peak=peak, live_bytes=sum(value.nbytes for value in values), values=list(values))

    return await engine.call(work)


@router.get("/profiles/{number}")
@needs(Scope.READ)
async def get_profile(storage: StoragePart, quick_calls: QuickCallsPart, number: Number) -> ProfileOut:
    """Return one profile with its whole document."""
    return _whole(await quick_calls.call(lambda: storage.store.profiles.get(number)))


def _whole(stored: StoredProfile) -> ProfileOut:
    return ProfileOut(**asdict(stored.run), profile=orjson.loads(stored.payload))


def written(page: Page[Any], form: str) -> Any:
    """Return a page of records as JSON or CSV. With CSV, the cursor of the next page is the header X-Next-Cursor."""
    rows = [asdict(item) for item in page.items]
    if form == "json":
        return {"items": rows, "next": page.next}
    return as_csv(rows, {} if page.next is None else {"X-Next-Cursor": page.next})


def as_csv(rows: Sequence[dict[str, Any]], headers: dict[str, str] | None = None) -> Response:
    """Return rows as a CSV reply."""
    return Response(to_csv(rows), media_type="text/csv; charset=utf-8", headers=headers)
