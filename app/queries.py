"""/v1: profiles, and what is asked of them: the costliest ops, runs side by side, what got slower, the plan that fits.

Every list is JSON, or CSV with `?format=csv`; numbers are those of the stored documents (`profiler.report`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Path, Query
from pydantic import BaseModel
from starlette.responses import Response

from app.auth import Scope, needs
from app.control import Cursor, Key, Limit, PageOut, Size, Work, page_of
from app.errors import RequestError
from app.pages import smallest_shapes
from app.state import Serving
from profiler.counts import profile
from profiler.exports import chrome_trace, to_csv
from profiler.matching import match
from profiler.report import Report, Value
from profiler.reporting import static_report
from scheduler.store import Page, ProfileRun
from scheduler.store.profiles import Growth
from scheduler.store.queries import FoundGroup, FoundOp, GroupBy, PlanCard, Regression, Which

router = APIRouter()
MOST_COMPARED = 8  # runs side by side
MOST_HISTORY = 200  # runs of a history
Number = Annotated[int, Path(ge=1, lt=1 << 63)]
Kind = Literal["static", "trace"]
Format = Annotated[Literal["json", "csv"], Query(description="How the rows are to be written.")]
Text = Annotated[str, Query(max_length=512)]
Runs = Annotated[str, Query(pattern=r"^[0-9]{1,18}(,[0-9]{1,18})*$", max_length=400, description="Numbers of runs, as in 3,7.")]


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


@router.get("/profiles", response_model=PageOut[RunOut])
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
    asked = service.desk.call(lambda: service.store.profiles.page(model, device, limit, cursor, kind=kind))
    page = await page_of(service, model, device, asked)
    return _written(Page(tuple(run_out(run).model_dump() for run in page.items), page.next), format)


@router.get("/profiles/query", response_model=PageOut[FoundOp] | PageOut[FoundGroup])
@needs(Scope.READ)
async def query_ops(
    service: Serving,
    run: Runs | None = None,
    model: Key | None = None,
    device: Key | None = None,
    kind: Kind | None = None,
    op: Text | None = None,
    bound: Literal["compute", "memory", ""] | None = None,
    backend: Literal["native", "numpy", "view", ""] | None = None,
    strategy: Text | None = None,
    name: Text | None = None,
    min_p50_ns: Annotated[float, Query(ge=0, le=1e18)] | None = None,
    group: GroupBy | None = None,
    sort: Annotated[str, Query(max_length=40)] = "-p50_ns",
    limit: Limit = 100,
    cursor: Cursor = None,
    format: Format = "json",
) -> Any:
    """Ops of runs by cost, or with `group` sums of them: of the runs named, or of the newest ones of a model or a device.

    `strategy` is how it begins, `name` a part of it. What ran in numpy, beside the native segments, has backend "numpy".
    """
    which = Which(_numbers(run), model, device, kind, op, bound, backend, strategy, name, min_p50_ns)

    def work() -> Page[FoundOp] | Page[FoundGroup]:
        queries = service.store.queries
        return queries.ops(which, sort, limit, cursor) if group is None else queries.groups(which, group, sort, limit, cursor)

    page = await service.desk.call(work)
    return _written(Page(tuple(asdict(row) for row in page.items), page.next), format)


@dataclass(frozen=True, slots=True)
class CompareRow:
    """The same work in every run, in their order. key: its first ONNX node. delta_ns, ratio: of the last run to the first.

    What a run has no step for, or no times of, is null.
    """

    key: str
    op: str
    name: str
    p50_ns: tuple[float | None, ...]
    flops: tuple[int | None, ...]
    strategy: tuple[str, ...]
    delta_ns: float | None
    ratio: float | None


class CompareOut(BaseModel):
    """Runs side by side. ratios: total -> of every run, how many times the first run's it is."""

    runs: list[RunOut]
    rows: list[CompareRow]
    ratios: dict[str, list[float | None]]


_COUNTS = ("macs", "flops", "peak_activation_bytes")
_TIMES = ("wall_p50_ns", "wall_p90_ns", "wall_min_ns", "first_ns", "predicted_ns", "roof_ns", "wasted_ns")


@router.get("/compare", response_model=CompareOut)
@needs(Scope.READ)
async def compare_runs(service: Serving, runs: Runs, format: Format = "json") -> Any:
    """Two to eight runs side by side: of devices, plans, builds, precisions or models. Ops that share ONNX nodes are one row."""
    numbers = _numbers(runs)
    if not 2 <= len(numbers) <= MOST_COMPARED:
        raise RequestError(400, f"compare: {len(numbers)} runs are named, need 2..{MOST_COMPARED}")

    def work() -> CompareOut:
        found = [service.store.profiles.get(number) for number in numbers]
        rows = [
            CompareRow(one.key, one.op, one.name, one.p50_ns, one.flops, one.strategies, one.delta_ns, one.ratio)
            for one in match([run.report for run in found])
        ]
        outs = [run_out(run) for run in found]
        ratios = {name: _ratios([getattr(run, name) for run in outs]) for name in (*_COUNTS, *_TIMES)}
        return CompareOut(runs=outs, rows=rows, ratios=ratios)

    found = await service.engine.call(work)  # matching may take a while
    return found if format == "json" else _csv([_flat(row, numbers) for row in found.rows])


class RegressionOut(BaseModel):
    """A run that takes longer than the one before it, by growth_percent of its median; noise_percent: how far either varies."""

    before: RunOut
    after: RunOut
    growth_percent: float
    noise_percent: float
    ops: list[Growth]


@router.get("/regressions")
@needs(Scope.READ)
async def list_regressions(
    service: Serving,
    model: Key | None = None,
    threshold_percent: Annotated[float, Query(ge=0, le=1e6)] = 5.0,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> PageOut[RegressionOut]:
    """Runs slower than the run before of the same model, device, threads, precision and shapes: those that grew most first."""
    page = await service.desk.call(lambda: service.store.queries.regressions(model, threshold_percent, limit, cursor))
    return PageOut(items=[_regression(found) for found in page.items], next=page.next)


class HistoryOut(BaseModel):
    """Runs of one device, thread count and precision, the oldest first. first_ns is cold, wall_p50_ns warm."""

    device: str | None
    device_name: str | None
    threads: int | None
    precision: str
    runs: list[RunOut]


@router.get("/history")
@needs(Scope.READ)
async def model_history(service: Serving, model: Key, device: Key | None = None) -> list[HistoryOut]:
    """The newest measured runs of a model, by device, threads and precision."""
    page = await service.desk.call(lambda: service.store.profiles.page(model, device, MOST_HISTORY, kind="trace"))
    groups: dict[tuple[Any, ...], list[RunOut]] = {}
    for run in map(run_out, reversed(page.items)):
        groups.setdefault((run.device, run.device_name, run.threads, run.precision), []).append(run)
    names = ("device", "device_name", "threads", "precision")
    return [HistoryOut(**dict(zip(names, key, strict=True)), runs=runs) for key, runs in groups.items()]


class FitOut(BaseModel):
    """A stored plan, and why it does not do; `misses` is empty where it does."""

    plan: PlanCard
    misses: list[str]


@router.get("/best")
@needs(Scope.READ)
async def best_plans(
    service: Serving,
    model: Key,
    device: Key | None = None,
    max_latency_ms: Annotated[float, Query(gt=0, le=1e9)] | None = None,
    max_memory_bytes: Size | None = None,
    max_error: Annotated[float, Query(ge=0, le=1)] | None = None,
) -> list[FitOut]:
    """Stored plans of a model, on all devices or one: those that do, the fastest first, then the others with what they miss."""

    def work() -> list[FitOut]:
        cards = service.store.queries.plans(service.here().build, model, device)
        fits = [FitOut(plan=card, misses=_misses(card, max_latency_ms, max_memory_bytes, max_error)) for card in cards]
        return sorted(fits, key=lambda fit: (bool(fit.misses), fit.plan.latency_ns))

    return await service.desk.call(work)


@router.get("/profiles/{number}/trace", response_class=Response, responses={200: {"content": {"application/json": {}}}})
@needs(Scope.READ)
async def download_trace(service: Serving, number: Number) -> Response:
    """The run as trace events, to be opened in ui.perfetto.dev or chrome://tracing."""

    def work() -> bytes:
        report = service.store.profiles.get(number).report
        if report.timeline is None:
            raise RequestError(404, f"profile {number}: it was counted, not measured, and has no trace")
        return chrome_trace(report)

    body = await service.engine.call(work)
    named = {"Content-Disposition": f'attachment; filename="edgewise-run-{number}.trace.json"'}
    return Response(body, media_type="application/json", headers=named)


class MemoryOut(BaseModel):
    """What is held while an op runs. at: its index. peak: the index where most is. values: the largest first."""

    at: int
    peak: int
    live_bytes: int
    values: list[Value]


@router.get("/profiles/{number}/memory")
@needs(Scope.READ)
async def memory_at(service: Serving, number: Number, at: Annotated[int, Query(ge=0, lt=1 << 31)] | None = None) -> MemoryOut:
    """The tensors alive while an op runs; where most memory is held, without `at`."""

    def work() -> MemoryOut:
        report = service.store.profiles.get(number).report
        peak = max(report.ops, key=lambda op: op.live_bytes).index if report.ops else 0
        index = peak if at is None else at
        if index >= max(len(report.ops), 1):
            raise RequestError(404, f"profile {number}: it has {len(report.ops)} ops, there is none {index}")
        values = report.alive(index)
        return MemoryOut(at=index, peak=peak, live_bytes=sum(value.nbytes for value in values), values=list(values))

    return await service.engine.call(work)


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


def _numbers(runs: str | None) -> tuple[int, ...]:
    return () if runs is None else tuple(dict.fromkeys(map(int, runs.split(","))))


def _written(page: Page[dict[str, Any]], form: str) -> Any:
    """A page as JSON or CSV; with CSV, the cursor of the next is a header."""
    if form == "json":
        return {"items": page.items, "next": page.next}
    return _csv(page.items, {} if page.next is None else {"X-Next-Cursor": page.next})


def _csv(rows: Sequence[dict[str, Any]], headers: dict[str, str] | None = None) -> Response:
    return Response(to_csv(rows), media_type="text/csv; charset=utf-8", headers=headers)


def _flat(row: CompareRow, numbers: Sequence[int]) -> dict[str, Any]:
    """A row of a comparison with a column for each run."""
    found: dict[str, Any] = {"key": row.key, "op": row.op, "name": row.name}
    for at, number in enumerate(numbers):
        found |= {f"p50_ns_{number}": row.p50_ns[at], f"flops_{number}": row.flops[at], f"strategy_{number}": row.strategy[at]}
    return {**found, "delta_ns": row.delta_ns, "ratio": row.ratio}


def _ratios(values: Sequence[float | None]) -> list[float | None]:
    first = values[0]
    return [None if value is None or not first else value / first for value in values]


def _regression(found: Regression) -> RegressionOut:
    return RegressionOut(
        before=run_out(found.before),
        after=run_out(found.after),
        growth_percent=found.growth_percent,
        noise_percent=found.noise_percent,
        ops=list(found.ops),
    )


def _misses(card: PlanCard, max_latency_ms: float | None, max_memory_bytes: int | None, max_error: float | None) -> list[str]:
    """Why a plan does not do."""
    found = [f"stale: {card.stale}"] if card.stale else []
    if max_latency_ms is not None and card.latency_ns > 1e6 * max_latency_ms:
        found.append(f"latency is {card.latency_ns / 1e6:.3f} ms, need at most {max_latency_ms:g}")
    if max_memory_bytes is not None and card.memory_bytes > max_memory_bytes:
        found.append(f"memory is {card.memory_bytes} bytes, need at most {max_memory_bytes}")
    if max_error is not None and card.error_estimate > max_error:
        found.append(f"error estimate is {card.error_estimate:.1e}, need at most {max_error:.1e}")
    return found
