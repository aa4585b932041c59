"""/v1: profiles, and what is asked of them: the costliest ops, runs side by side, what got slower, the plan that fits.

Every list is JSON, or CSV with `?format=csv`; numbers are those of the stored documents (`profiler.report`).
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal, get_args

import orjson
from fastapi import APIRouter, Path, Query
from pydantic import BaseModel
from starlette.responses import Response

from app.auth import Scope, needs
from app.control import Cursor, Key, Limit, PageOut, Work
from app.errors import RequestError
from app.state import Serving
from profiler.counts import profile
from profiler.exports import chrome_trace, to_csv
from profiler.matching import Match, match
from profiler.report import Value
from profiler.reporting import static_report
from scheduler.store import Page, ProfileRun
from scheduler.store.queries import Group, OpFilter, OpGroup, OpRow, PlanCost, Regression, Sort

router = APIRouter()
Number = Annotated[int, Path(ge=1, lt=1 << 63)]
Kind = Literal["static", "trace"]
Format = Literal["json", "csv"]
Text = Annotated[str | None, Query(max_length=512)]
SORTS = "|".join(get_args(Sort))
DELTAS = ("wall_p50_ns", "first_ns", "macs", "flops", "peak_activation_bytes", "roof_ns", "wasted_ns")


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


class OpsOut(BaseModel):
    """Ops of the runs that were looked at, the newest first; older: there are more runs, name them to ask them."""

    items: list[OpRow]
    next: str | None
    runs: list[int]
    older: bool


class GroupsOut(BaseModel):
    """Ops by what they have in common, over the runs that were looked at."""

    items: list[OpGroup]
    runs: list[int]
    older: bool


class MemoryOut(BaseModel):
    """What is alive while an op runs, the largest first."""

    at: int
    name: str
    op: str
    live_bytes: int
    values: list[Value]


class CompareRowOut(BaseModel):
    """The same work in every run. steps: how many do it there, 0 = none. delta_ns, ratio: the last run against the first."""

    key: str
    op: str
    name: str
    p50_ns: list[float | None]
    flops: list[int | None]
    strategy: list[str]
    steps: list[int]
    delta_ns: float | None
    ratio: float | None


class CompareOut(BaseModel):
    """Runs side by side, the largest differences first. deltas: of totals, the last run against the first."""

    runs: list[RunOut]
    rows: list[CompareRowOut]
    deltas: dict[str, float | None]


class GrowthOut(BaseModel):
    """Work that takes more time than in the run before."""

    name: str
    op: str
    before_ns: float
    after_ns: float
    before_strategy: str
    after_strategy: str


class RegressionOut(BaseModel):
    """A run slower than the one before it, and the ops that grew most."""

    before: RunOut
    after: RunOut
    growth_percent: float
    ops: list[GrowthOut]


class SeriesOut(BaseModel):
    """Runs of one device, thread count and precision, the oldest first."""

    device: str | None
    device_name: str | None
    threads: int | None
    precision: str
    runs: list[RunOut]


class HistoryOut(BaseModel):
    """A model's runs over time."""

    series: list[SeriesOut]


class BestPlanOut(BaseModel):
    """A stored plan. fits: it is within the bounds and true of what runs here; `reasons` say why not."""

    id: str
    device_fingerprint: str
    device_name: str
    objective: str
    threads: int
    precision: str
    latency_ns: float
    measured: bool
    memory_bytes: int
    error_estimate: float
    stale: str
    created_us: int
    fits: bool
    reasons: list[str]


class BestOut(BaseModel):
    """Plans, those that fit first."""

    plans: list[BestPlanOut]


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


@router.get("/profiles")
@needs(Scope.READ)
async def list_profiles(
    service: Serving,
    model: Key | None = None,
    device: Key | None = None,
    kind: Kind | None = None,
    limit: Limit = 50,
    cursor: Cursor = None,
    format: Format = "json",
) -> Any:
    """Stored profiles, of all models or one (its digest), of a device, or of a kind."""
    page = await service.desk.call(lambda: service.store.profiles.page(model, device, limit, cursor, kind=kind))
    items = [run_out(run) for run in page.items]
    return PageOut(items=items, next=page.next) if format == "json" else _csv([item.model_dump() for item in items])


@router.get("/profiles/query")
@needs(Scope.READ)
async def query_ops(
    service: Serving,
    run: Annotated[str | None, Query(pattern=r"^[0-9]{1,18}(,[0-9]{1,18}){0,31}$", description="Runs, as in 3 or 3,7.")] = None,
    model: Key | None = None,
    device: Key | None = None,
    kind: Kind | None = None,
    op: Text = None,
    bound: Literal["compute", "memory", ""] | None = None,
    backend: Literal["native", "numpy", "view", ""] | None = None,
    strategy: Text = None,
    name: Text = None,
    min_p50_ns: Annotated[float | None, Query(ge=0, le=1e18, allow_inf_nan=False)] = None,
    sort: Annotated[str, Query(pattern=f"^-?({SORTS})$", description="A column; - before it = the largest first.")] = "-p50_ns",
    group: Group | None = None,
    limit: Limit = 50,
    cursor: Cursor = None,
    format: Format = "json",
) -> Any:
    """Ops of runs, filtered and sorted, or grouped: of the runs named, or of the newest ones of a model, a device or a kind."""
    runs = () if run is None else tuple(map(int, run.split(",")))
    asked = OpFilter(runs, model, device, kind, op, bound, backend, strategy, name, min_p50_ns)
    if group is not None:
        groups, window = await service.desk.call(lambda: service.store.queries.groups(asked, group))
        if format == "csv":
            return _csv([asdict(item) for item in groups])
        return GroupsOut(items=groups, runs=list(window.runs), older=window.older)
    column: Any = sort.removeprefix("-")
    rising = not sort.startswith("-")
    page, window = await service.desk.call(lambda: service.store.queries.ops(asked, column, limit, cursor, rising=rising))
    if format == "csv":
        return _csv([asdict(item) for item in page.items])
    return OpsOut(items=list(page.items), next=page.next, runs=list(window.runs), older=window.older)


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


@router.get("/profiles/{number}/trace")
@needs(Scope.READ)
async def get_trace(service: Serving, number: Number) -> Response:
    """The median run of a trace, thread by thread, as events for chrome://tracing or ui.perfetto.dev."""

    def work() -> bytes:
        return chrome_trace(service.store.profiles.get(number).report)

    headers = {"Content-Disposition": f'attachment; filename="edgewise-{number}.trace.json"'}
    return Response(await service.desk.call(work), media_type="application/json", headers=headers)


@router.get("/profiles/{number}/memory")
@needs(Scope.READ)
async def get_memory(service: Serving, number: Number, at: Annotated[int | None, Query(ge=0)] = None) -> MemoryOut:
    """The tensors alive while an op runs: the one with the most, or that at an index."""

    def work() -> MemoryOut:
        report = service.store.profiles.get(number).report
        if not report.ops or (at is not None and at >= len(report.ops)):
            raise RequestError(404, f"profile {number}: there is no op {at}, it has {len(report.ops)}")
        op = max(report.ops, key=lambda op: op.live_bytes) if at is None else report.ops[at]
        return MemoryOut(at=op.index, name=op.name, op=op.op, live_bytes=op.live_bytes, values=list(report.alive(op.index)))

    return await service.desk.call(work)


@router.get("/compare")
@needs(Scope.READ)
async def compare_runs(
    service: Serving,
    runs: Annotated[str, Query(pattern=r"^[0-9]{1,18}(,[0-9]{1,18}){1,7}$", description="Two to eight numbers: 3,7")],
    format: Format = "json",
) -> Any:
    """Runs side by side: what each takes for the same work, however it is fused; the last is compared with the first."""

    def work() -> CompareOut:
        found = [service.store.profiles.get(int(number)) for number in runs.split(",")]
        rows = [_compared(pair) for pair in match([run.report for run in found])]
        rows.sort(key=lambda row: -abs(row.delta_ns or 0))
        totals = [run_out(run) for run in found]
        deltas = {name: _delta(getattr(totals[0], name), getattr(totals[-1], name)) for name in DELTAS}
        return CompareOut(runs=totals, rows=rows, deltas=deltas)

    compared = await service.desk.call(work)
    return compared if format == "json" else _csv([row.model_dump() for row in compared.rows])


@router.get("/regressions")
@needs(Scope.READ)
async def list_regressions(
    service: Serving,
    model: Key | None = None,
    device: Key | None = None,
    threshold_percent: Annotated[float, Query(ge=0, le=1e6, allow_inf_nan=False)] = 5.0,
    limit: Limit = 20,
    cursor: Cursor = None,
    format: Format = "json",
) -> Any:
    """Traces slower than the one before of the same model, device, threads, precision and shapes, beyond their noise."""

    def work() -> Page[Regression]:
        return service.store.queries.regressions(model, device, threshold_percent, limit, cursor)

    page = await service.desk.call(work)
    items = [
        RegressionOut(
            before=run_out(found.before),
            after=run_out(found.after),
            growth_percent=found.growth_percent,
            ops=[GrowthOut(**asdict(op)) for op in found.ops],
        )
        for found in page.items
    ]
    if format == "csv":
        return _csv([{"growth_percent": item.growth_percent, **item.after.model_dump()} for item in items])
    return PageOut(items=items, next=page.next)


@router.get("/history")
@needs(Scope.READ)
async def get_history(service: Serving, model: Key, device: Key | None = None, format: Format = "json") -> Any:
    """A model's newest traces over time, by device, threads and precision: cold (first_ns) and warm, by which build and plan."""
    runs = await service.desk.call(lambda: service.store.queries.history(model, device))
    rows = [run_out(run) for run in runs]
    if format == "csv":
        return _csv([row.model_dump() for row in rows])
    series: dict[tuple[Any, ...], list[RunOut]] = {}
    for row in rows:
        series.setdefault((row.device, row.device_name, row.threads, row.precision), []).append(row)
    names = ("device", "device_name", "threads", "precision")
    return HistoryOut(series=[SeriesOut(**dict(zip(names, key, strict=True)), runs=found) for key, found in series.items()])


@router.get("/best")
@needs(Scope.READ)
async def best_plans(
    service: Serving,
    model: Key,
    device: Key | None = None,
    max_latency_ms: Annotated[float | None, Query(gt=0, le=1e9, allow_inf_nan=False)] = None,
    max_memory_bytes: Annotated[int | None, Query(ge=0, lt=1 << 63)] = None,
    max_error: Annotated[float | None, Query(ge=0, le=1, allow_inf_nan=False)] = None,
    format: Format = "json",
) -> Any:
    """A model's newest plans within bounds, the fastest first, then those that are not, each with the reasons."""
    plans = await service.desk.call(lambda: service.store.queries.plans(service.here(), model, device))
    found = [_judged(plan, max_latency_ms, max_memory_bytes, max_error) for plan in plans]
    found.sort(key=lambda plan: (not plan.fits, plan.latency_ns))
    return BestOut(plans=found) if format == "json" else _csv([plan.model_dump() for plan in found])


def _judged(plan: PlanCost, max_latency_ms: float | None, max_memory_bytes: int | None, max_error: float | None) -> BestPlanOut:
    failed = [plan.stale] if plan.stale else []
    if max_latency_ms is not None and plan.latency_ns > 1e6 * max_latency_ms:
        failed.append(f"latency is {plan.latency_ns / 1e6:.3f} ms, the limit is {max_latency_ms:g} ms")
    if max_memory_bytes is not None and plan.memory_bytes > max_memory_bytes:
        failed.append(f"memory is {plan.memory_bytes} bytes, the limit is {max_memory_bytes}")
    if max_error is not None and plan.error_estimate > max_error:
        failed.append(f"error estimate is {plan.error_estimate:.1e}, the limit is {max_error:.1e}")
    return BestPlanOut(**asdict(plan), fits=not failed, reasons=failed)


def _compared(pair: Match) -> CompareRowOut:
    return CompareRowOut(
        key=pair.key,
        op=pair.op,
        name=pair.name,
        p50_ns=list(pair.p50_ns),
        flops=list(pair.flops),
        strategy=list(pair.strategies),
        steps=[len(ops) for ops in pair.steps],
        delta_ns=pair.delta_ns,
        ratio=pair.ratio,
    )


def _delta(first: float | None, last: float | None) -> float | None:
    return None if first is None or last is None else last - first


def _csv(rows: list[dict[str, Any]]) -> Response:
    return Response(to_csv(rows), media_type="text/csv; charset=utf-8")
