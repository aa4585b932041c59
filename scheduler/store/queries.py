"""Queries over stored profile runs: their ops by cost, sums of them, and runs slower than the one before.

A query over ops reads a bounded number of runs: the named ones, or the newest of a model or device that have WINDOW_OPS ops
together. They are found by key, however large the database is, and their ops are then sorted or summed by any column.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import fields
from typing import Any, Final, Literal, get_args

import orjson
from sqlalchemy import ColumnElement, and_, func, select
from sqlalchemy.orm import Session, aliased, defer

from kernels.record import record
from scheduler.build import Build
from scheduler.errors import RecordFormatError
from scheduler.plan import since_built
from scheduler.store.database import Database
from scheduler.store.lookups import device_id, model_id
from scheduler.store.profiles import Growth, Kind, noise_percent, run_of, without_documents
from scheduler.store.records import Page, ProfileRun, cursor_ids, page_limit
from scheduler.store.schema import DeviceRow, PlanRow
from scheduler.store.schema import ProfileNodeRow as Node
from scheduler.store.schema import ProfileRunRow as Run

MOST_RUNS: Final = 16
WINDOW_OPS: Final = 10_000
MOST_PLANS: Final = 500
MOST_OPS: Final = 1_000_000_000  # the largest offset of a page

GroupBy = Literal["op", "bound", "backend", "strategy", "run"]
SortKey = Literal[
    "position",
    "p50_ns",
    "flops",
    "macs",
    "executed_macs",
    "moved_bytes",
    "wasted_ns",
    "roof_ns",
    "roof_percent",
    "share_percent",
    "predicted_ns",
    "measured_ratio",
]
SORT_KEYS: Final[tuple[SortKey, ...]] = get_args(SortKey)


@record
class Which:
    """A selection of ops.

    runs: by number. Without any, the newest runs of a model (digest), a device, or both, of one kind where `kind` is set.
    op, bound, backend: equal to the stored value. strategy: its beginning. name: a part of it. min_p50_ns: least median.
    """

    runs: tuple[int, ...] = ()
    model: str | None = None
    device: str | None = None
    kind: Kind | None = None
    op: str | None = None
    bound: str | None = None
    backend: str | None = None
    strategy: str | None = None
    name: str | None = None
    min_p50_ns: float | None = None


@record
class FoundOp:
    """An op of a run. measured_ratio: p50_ns ÷ predicted_ns. Unknown values are None."""

    run: int
    position: int
    name: str
    op: str
    backend: str
    strategy: str
    bound: str
    macs: int
    executed_macs: int | None
    flops: int
    moved_bytes: int
    p50_ns: float | None
    share_percent: float | None
    predicted_ns: float | None
    measured_ratio: float | None
    roof_ns: float | None
    roof_percent: float | None
    wasted_ns: float | None


@record
class FoundGroup:
    """The sums of ops that have a value in common. share_percent: of the run; the mean over several runs."""

    group: str
    rows: int
    macs: int
    flops: int
    moved_bytes: int
    p50_ns: float | None
    share_percent: float | None
    predicted_ns: float | None
    roof_ns: float | None
    wasted_ns: float | None


@record
class Regression:
    """A run slower than the one before it in its series, by more than the noise of both. ops: those that grew most."""

    before: ProfileRun
    after: ProfileRun
    growth_percent: float
    noise_percent: float
    ops: tuple[Growth, ...]


@record
class PlanCard:
    """A plan without its steps. latency_ns: measured as a whole where `measured`, else predicted.

    stale: what changed since it was made, "" where nothing did. drift: how its latency while serving differs, None where it does
    not.
    """

    plan_id: str
    device: str
    device_name: str
    objective: str
    precision: str
    threads: int
    latency_ns: float
    measured: bool
    error_estimate: float
    memory_bytes: int
    stale: str
    drift: str | None
    created_us: int


_MEASURED_RATIO: Final = Node.p50_ns / func.nullif(Node.predicted_ns, 0.0)
_SUMS: Final[dict[str, ColumnElement[Any]]] = {
    "rows": func.count(),
    "macs": func.sum(Node.macs),
    "flops": func.sum(Node.flops),
    "moved_bytes": func.sum(Node.moved_bytes),
    "p50_ns": func.sum(Node.p50_ns),
    "share_percent": func.sum(Node.share_percent),
    "predicted_ns": func.sum(Node.predicted_ns),
    "roof_ns": func.sum(Node.roof_ns),
    "wasted_ns": func.sum(Node.wasted_ns),
}
_COUNTS: Final = ("rows", "macs", "flops", "moved_bytes")  # PostgreSQL sums integers to decimals


class Queries:
    """Queries over stored profile runs and plans."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def ops(self, which: Which, sort: str = "-p50_ns", limit: int | None = None, cursor: str | None = None) -> Page[FoundOp]:
        """Return ops in the order of a column, "-" before it for the largest first; ops without a value come last.

        Raises: NotFoundError; RecordFormatError for an unknown column, or where neither runs, model nor device are named.
        """
        start, bound = _start(cursor), page_limit(limit)
        key, descending = _order("ops", sort, SORT_KEYS)
        column: ColumnElement[Any] = _MEASURED_RATIO if key == "measured_ratio" else getattr(Node, key)

        def work(session: Session) -> Page[FoundOp]:
            query = select(Node).where(*_conditions(session, which))
            query = query.order_by(column.is_(None), column.desc() if descending else column, Node.run_id.desc(), Node.position)
            return _page([_op(row) for row in session.scalars(query.offset(start).limit(bound + 1))], start, bound)

        return self._database.read(work)

    def groups(
        self, which: Which, by: GroupBy, sort: str = "-p50_ns", limit: int | None = None, cursor: str | None = None
    ) -> Page[FoundGroup]:
        """Return the sums of ops that share the value of column `by`. Raises like `ops`."""
        start, bound = _start(cursor), page_limit(limit)
        key, descending = _order("groups", sort, _SUMS)
        column = Node.run_id if by == "run" else getattr(Node, by)
        order = _SUMS[key]

        def work(session: Session) -> Page[FoundGroup]:
            runs = _runs(session, which)
            query = select(column, *_SUMS.values()).where(Node.run_id.in_(runs), *_filters(which)).group_by(column)
            query = query.order_by(order.is_(None), order.desc() if descending else order, column)
            shared = 1 if by == "run" else max(len(runs), 1)
            return _page([_group(row, shared) for row in session.execute(query.offset(start).limit(bound + 1))], start, bound)

        return self._database.read(work)

    def regressions(
        self, model: str | None = None, threshold_percent: float = 0.0, limit: int | None = None, cursor: str | None = None
    ) -> Page[Regression]:
        """Return the runs slower than the one before by more than the threshold, of all models or one, the worst first.

        Raises: NotFoundError, RecordFormatError.
        """
        start, bound = _start(cursor), page_limit(limit)

        def work(session: Session) -> Page[Regression]:
            before = aliased(Run)
            query = select(Run, before).join(before, before.id == Run.previous_id).where(Run.growth_percent > threshold_percent)
            if model is not None:
                query = query.where(Run.model_id == model_id(session, model))
            query = query.options(defer(before.growth), *without_documents(Run), *without_documents(before))
            query = query.order_by(Run.growth_percent.desc(), Run.id.desc()).offset(start).limit(bound + 1)
            return _page([_regression(row, earlier) for row, earlier in session.execute(query)], start, bound)

        return self._database.read(work)

    def plans(self, build: Build, model: str, device: str | None = None, limit: int = MOST_PLANS) -> list[PlanCard]:
        """Return the newest plans of a model, on all devices or one. build: the current one. Raises NotFoundError."""

        def work(session: Session) -> list[PlanCard]:
            query = select(PlanRow, DeviceRow).join(DeviceRow, DeviceRow.id == PlanRow.device_id)
            query = query.where(PlanRow.model_id == model_id(session, model))
            if device is not None:
                query = query.where(PlanRow.device_id == device_id(session, device))
            query = query.options(defer(PlanRow.payload), defer(DeviceRow.profile)).order_by(PlanRow.id.desc()).limit(limit)
            return [_card(plan, of, build) for plan, of in session.execute(query)]

        return self._database.read(work)


def _order(subject: str, sort: str, keys: Collection[str]) -> tuple[str, bool]:
    """Return the column to sort by, and whether the largest comes first."""
    key = sort.removeprefix("-")
    if key not in keys:
        raise RecordFormatError(f"{subject}: sort is {sort[:40]!r}, need one of {', '.join(keys)}, with - for the largest first")
    return key, sort.startswith("-")


def _start(cursor: str | None) -> int:
    start = 0 if cursor is None else cursor_ids(cursor)[0]
    if start > MOST_OPS:
        raise RecordFormatError(f"page: cursor is {start}, need the `next` of an earlier page")
    return start


def _page(found: Sequence[Any], start: int, bound: int) -> Page[Any]:
    return Page(tuple(found[:bound]), str(start + bound) if len(found) > bound else None)


def _conditions(session: Session, which: Which) -> list[ColumnElement[bool]]:
    return [Node.run_id.in_(_runs(session, which)), *_filters(which)]


def _runs(session: Session, which: Which) -> Sequence[int]:
    """Return the selected runs, at most MOST_RUNS. Unnamed ones: the newest, and more while they have at most WINDOW_OPS ops."""
    if which.runs:
        if len(which.runs) > MOST_RUNS:
            raise RecordFormatError(f"ops: {len(which.runs)} runs are named, need at most {MOST_RUNS}")
        return which.runs
    if which.model is None and which.device is None:
        raise RecordFormatError("ops: neither run, model nor device is named, need one of them")
    query = select(Run.id, Run.ops)
    if which.model is not None:
        query = query.where(Run.model_id == model_id(session, which.model))
    if which.device is not None:
        query = query.where(Run.device_id == device_id(session, which.device))
    if which.kind is not None:
        query = query.where(Run.kind == which.kind)
    found: list[int] = []
    room = WINDOW_OPS
    for number, ops in session.execute(query.order_by(Run.id.desc()).limit(MOST_RUNS)):
        room -= ops
        if found and room < 0:
            break
        found.append(number)
    return found


def _filters(which: Which) -> list[ColumnElement[bool]]:
    equal = {Node.op: which.op, Node.bound: which.bound, Node.backend: which.backend}
    found = [column == value for column, value in equal.items() if value is not None]
    if which.strategy is not None:
        found.append(Node.strategy.startswith(which.strategy, autoescape=True))
    if which.name is not None:
        found.append(Node.node.contains(which.name, autoescape=True))
    if which.min_p50_ns is not None:
        found.append(and_(Node.p50_ns.is_not(None), Node.p50_ns >= which.min_p50_ns))
    return found


def _op(row: Node) -> FoundOp:
    ratio = None if row.p50_ns is None or not row.predicted_ns else row.p50_ns / row.predicted_ns
    same = [each.name for each in fields(FoundOp) if each.name not in ("run", "name", "measured_ratio")]
    return FoundOp(run=row.run_id, name=row.node, measured_ratio=ratio, **{name: getattr(row, name) for name in same})


def _group(row: Any, runs: int) -> FoundGroup:
    group, *sums = row
    named = dict(zip(_SUMS, sums, strict=True))
    share = named.pop("share_percent")
    counts = {name: int(named.pop(name)) for name in _COUNTS}
    return FoundGroup(group=str(group), share_percent=None if share is None else share / runs, **counts, **named)


def _regression(after: Run, before: Run) -> Regression:
    return Regression(
        run_of(before),
        run_of(after),
        after.growth_percent or 0.0,
        max(noise_percent(run.wall_p50_ns or 0.0, run.wall_p90_ns) for run in (before, after)),
        tuple(Growth(**item) for item in orjson.loads(after.growth)),
    )


def _card(plan: PlanRow, device: DeviceRow, build: Build) -> PlanCard:
    same = ("objective", "precision", "threads", "error_estimate", "memory_bytes", "drift", "created_us")
    return PlanCard(
        plan_id=plan.digest,
        device=device.fingerprint,
        device_name=device.name,
        latency_ns=plan.predicted_ns if plan.measured_ns is None else plan.measured_ns,
        measured=plan.measured_ns is not None,
        stale=since_built(plan.engine_build, orjson.loads(plan.kernels), build),
        **{name: getattr(plan, name) for name in same},
    )
