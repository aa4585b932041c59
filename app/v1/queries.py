"""/v1 queries over stored profiles and plans: the costliest ops, comparisons, regressions, history, and plans within limits.

Lists are JSON, or CSV with `?format=csv`. Their numbers are those of the stored documents (`profiler.report.document`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel

from app.access.auth import Scope, needs
from app.errors import RequestError
from app.service import EnginePart, QuickCallsPart, StoragePart
from app.v1.paging import Cursor, Key, Limit, PageOut, Size
from app.v1.profiles import Format, Kind, as_csv, written
from kernels.record import record
from profiler.report.matching import match
from scheduler.planning.pareto import timing
from scheduler.planning.ranking import by_device, ranked
from scheduler.store import Page, ProfileRun
from scheduler.store.queries import FoundGroup, FoundOp, GroupBy, PlanCard, Regression, Which

router = APIRouter()
MOST_COMPARED = 8  # runs of one comparison
MOST_HISTORY = 200  # runs of a history
Text = Annotated[str, Query(max_length=512)]
Runs = Annotated[str, Query(pattern=r"^[0-9]{1,18}(,[0-9]{1,18})*$", max_length=400, description="Numbers of runs, as in 3,7.")]


@router.get("/profiles/query", response_model=PageOut[FoundOp] | PageOut[FoundGroup])
@needs(Scope.READ)
async def query_ops(
    storage: StoragePart,
    quick_calls: QuickCallsPart,
    run: Runs | None = None,
    model: Key | None = None,
    device: Key | None = None,
    kind: Kind | None = None,
    op: Text | None = None,
    bound: Literal["compute", "memory", ""] | None = None,
    backend: Literal["native", "cuda", "numpy", "view", ""] | None = None,
    strategy: Text | None = None,
    name: Text | None = None,
    min_p50_ns: Annotated[float, Query(ge=0, le=1e18)] | None = None,
    group: GroupBy | None = None,
    sort: Annotated[str, Query(max_length=40)] = "-p50_ns",
    limit: Limit = 100,
    cursor: Cursor = None,
    format: Format = "json",
) -> Any:
    """List the ops of runs by cost, or with `group` their sums. The runs are those named, or the newest of a model or a device.

    `strategy` matches a prefix, and `name` any part. Ops outside the segments of other backends have the backend "numpy".
    """
    which = Which(_numbers(run), model, device, kind, op, bound, backend, strategy, name, min_p50_ns)

    def work() -> Page[FoundOp] | Page[FoundGroup]:
        queries = storage.store.queries
        return queries.ops(which, sort, limit, cursor) if group is None else queries.groups(which, group, sort, limit, cursor)

    page = await quick_calls.call(work)
    return written(page, format)


@record
class CompareRow:
    """One piece of work in each run, in the order of the runs. key: its first ONNX node. delta_ns, ratio: last run against first.

    Values are null for a run that has no such step, or no times.
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
    """A comparison of runs. ratios: name of a total -> each run's total ÷ that of the first run."""

    runs: list[ProfileRun]
    rows: list[CompareRow]
    ratios: dict[str, list[float | None]]


_COUNTS = ("macs", "flops", "peak_activation_bytes")
_TIMES = ("wall_p50_ns", "wall_p90_ns", "wall_min_ns", "first_ns", "predicted_ns", "roof_ns", "wasted_ns")


@router.get("/compare", response_model=CompareOut)
@needs(Scope.READ)
async def compare_runs(storage: StoragePart, engine: EnginePart, runs: Runs, format: Format = "json") -> Any:
    """Compare two to eight runs, of any devices, plans, builds, precisions or models. Ops that share ONNX nodes are one row."""
    numbers = _numbers(runs)
    if not 2 <= len(numbers) <= MOST_COMPARED:
        raise RequestError(400, f"compare: {len(numbers)} runs, need 2..{MOST_COMPARED}")

    def work() -> CompareOut:
        stored = [storage.store.profiles.get(number) for number in numbers]
        rows = [
            CompareRow(one.key, one.op, one.name, one.p50_ns, one.flops, one.strategies, one.delta_ns, one.ratio)
            for one in match([run.report for run in stored])
        ]
        runs = [one.run for one in stored]
        ratios = {name: _ratios([getattr(run, name) for run in runs]) for name in (*_COUNTS, *_TIMES)}
        return CompareOut(runs=runs, rows=rows, ratios=ratios)

    found = await engine.call(work)  # matching may take a while
    return found if format == "json" else as_csv([_flat(row, numbers) for row in found.rows])


@router.get("/regressions")
@needs(Scope.READ)
async def list_regressions(
    storage: StoragePart,
    quick_calls: QuickCallsPart,
    model: Key | None = None,
    threshold_percent: Annotated[float, Query(ge=0, le=1e6)] = 5.0,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> PageOut[Regression]:
    """List runs slower than the previous run of the same model, device, threads, precision and shapes; largest growth first."""
    page = await quick_calls.call(lambda: storage.store.queries.regressions(model, threshold_percent, limit, cursor))
    return PageOut(items=list(page.items), next=page.next)


class HistoryOut(BaseModel):
    """Runs of one device, thread count and precision, the oldest first. first_ns: of a cold run. wall_p50_ns: of warm runs."""

    device: str | None
    device_name: str | None
    threads: int | None
    precision: str
    runs: list[ProfileRun]


@router.get("/history")
@needs(Scope.READ)
async def model_history(
    storage: StoragePart, quick_calls: QuickCallsPart, model: Key, device: Key | None = None
) -> list[HistoryOut]:
    """Return the newest measured runs of a model, grouped by device, threads and precision."""
    page = await quick_calls.call(lambda: storage.store.profiles.page(model, device, MOST_HISTORY, kind="trace"))
    groups: dict[tuple[Any, ...], list[ProfileRun]] = {}
    for run in reversed(page.items):
        groups.setdefault((run.device, run.device_name, run.threads, run.precision), []).append(run)
    names = ("device", "device_name", "threads", "precision")
    return [HistoryOut(**dict(zip(names, key, strict=True)), runs=runs) for key, runs in groups.items()]


class FitOut(BaseModel):
    """A stored plan. misses: the limits that it does not meet; empty if it meets them all."""

    plan: PlanCard
    misses: list[str]


@router.get("/best")
@needs(Scope.READ)
async def best_plans(
    storage: StoragePart,
    quick_calls: QuickCallsPart,
    model: Key,
    device: Key | None = None,
    max_latency_ms: Annotated[float, Query(gt=0, le=1e9)] | None = None,
    max_memory_bytes: Size | None = None,
    max_error: Annotated[float, Query(ge=0, le=1)] | None = None,
) -> list[FitOut]:
    """List stored plans of a model, on all devices or one: those that meet the limits, then the others.

    Plans of this device come first, then those of each other device. Of one device measured latencies go before predicted ones,
    each the fastest first.
    """

    def work() -> list[FitOut]:
        here = storage.here()
        cards = storage.store.queries.plans(here.build, model, device)
        groups = by_device(cards, lambda card: card.device, here.device_fingerprint)
        fits = [
            FitOut(plan=card, misses=_misses(card, max_latency_ms, max_memory_bytes, max_error))
            for group in groups
            for card in ranked(group, timing)
        ]
        return sorted(fits, key=lambda fit: bool(fit.misses))

    return await quick_calls.call(work)


def _numbers(runs: str | None) -> tuple[int, ...]:
    return () if runs is None else tuple(dict.fromkeys(map(int, runs.split(","))))


def _flat(row: CompareRow, numbers: Sequence[int]) -> dict[str, Any]:
    """Return a row of a comparison with its own columns for each run."""
    found: dict[str, Any] = {"key": row.key, "op": row.op, "name": row.name}
    for at, number in enumerate(numbers):
        found |= {f"p50_ns_{number}": row.p50_ns[at], f"flops_{number}": row.flops[at], f"strategy_{number}": row.strategy[at]}
    return {**found, "delta_ns": row.delta_ns, "ratio": row.ratio}


def _ratios(values: Sequence[float | None]) -> list[float | None]:
    first = values[0]
    return [None if value is None or not first else value / first for value in values]


def _misses(card: PlanCard, max_latency_ms: float | None, max_memory_bytes: int | None, max_error: float | None) -> list[str]:
    """Return the limits that a plan does not meet."""
    found = [f"stale: {card.stale}"] if card.stale else []
    if max_latency_ms is not None and card.latency_ns > 1e6 * max_latency_ms:
        found.append(f"latency is {card.latency_ns / 1e6:.3f} ms, need at most {max_latency_ms:g}")
    if max_memory_bytes is not None and card.memory_bytes > max_memory_bytes:
        found.append(f"memory is {card.memory_bytes} bytes, need at most {max_memory_bytes}")
    if max_error is not None and card.error_estimate > max_error:
        found.append(f"error estimate is {card.error_estimate:.1e}, need at most {max_error:.1e}")
    return found
