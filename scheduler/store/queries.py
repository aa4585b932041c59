"""Questions about many profile runs: their ops sorted and grouped, what got slower, a model's history, the plans that fit.

Ops are looked up in the newest runs that a question names, as many as have `WINDOW_OPS` ops together: every filter, order and
group is then a pass over that many rows at most, found by the key of their runs, whatever the database holds besides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson
from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import Session, defer

from scheduler.errors import RecordFormatError
from scheduler.store.database import Database
from scheduler.store.profiles import Growth, Kind, run_of
from scheduler.store.records import LAST_ID, Here, Page, ProfileRun, cursor_ids, page_limit
from scheduler.store.rows import device_id, model_id
from scheduler.store.schema import DeviceRow, PlanRow, ProfileNodeRow, ProfileRunRow

WINDOW_OPS: Final = 10_000
WINDOW_RUNS: Final = 400
HISTORY_RUNS: Final = 500
PLANS: Final = 200

Group = Literal["op", "bound", "backend", "strategy", "run"]
Sort = Literal[
    "position", "p50_ns", "flops", "macs", "moved_bytes", "wasted_ns", "roof_percent", "predicted_ratio", "share_percent"
]

_Op = ProfileNodeRow


@dataclass(frozen=True, slots=True)
class OpFilter:
    """Which ops are meant; None is any. name: a part of it. runs: those numbers; else the newest of a model, device and kind."""

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


@dataclass(frozen=True, slots=True)
class OpRow:
    """One op of a run, as its report says it. predicted_ratio: p50_ns ÷ predicted_ns."""

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
    predicted_ratio: float | None
    roof_ns: float | None
    roof_percent: float | None
    wasted_ns: float | None


@dataclass(frozen=True, slots=True)
class OpGroup:
    """Ops that have something in common. share_percent: of a run, the mean over the runs that were looked at."""

    key: str
    rows: int
    p50_ns: float | None
    share_percent: float
    flops: int
    moved_bytes: int
    wasted_ns: float | None


@dataclass(frozen=True, slots=True)
class Window:
    """The runs that were looked at, the newest first. older: whether there are more, which were not."""

    runs: tuple[int, ...]
    older: bool


@dataclass(frozen=True, slots=True)
class Regression:
    """A run whose median is beyond the noise of both above that of the run before it in its series."""

    before: ProfileRun
    after: ProfileRun
    growth_percent: float
    ops: tuple[Growth, ...]


@dataclass(frozen=True, slots=True)
class PlanCost:
    """A plan as its document says it. latency_ns: measured where it was, else predicted. stale: why it holds no more."""

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


class Queries:
    """Reads what profiles and plans stored."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def ops(
        self, asked: OpFilter, sort: Sort = "p50_ns", limit: int | None = None, cursor: str | None = None, *, rising: bool = False
    ) -> tuple[Page[OpRow], Window]:
        """Ops by a column, the largest first unless `rising`; unknown values last. Raises NotFoundError, RecordFormatError."""
        bound = page_limit(limit)
        newest, offset = (LAST_ID, 0) if cursor is None else cursor_ids(cursor, parts=2)
        column = _SORTS[sort]
        order = column.asc() if rising else column.desc()

        def work(session: Session) -> tuple[Page[OpRow], Window]:
            window = _window(session, asked, newest)
            query = _matching(select(_Op), asked, window).order_by(order.nulls_last(), _Op.run_id.desc(), _Op.position)
            rows = session.scalars(query.offset(offset).limit(bound + 1)).all()
            following = f"{window.runs[0]}.{offset + bound}" if len(rows) > bound else None
            return Page(tuple(_op_row(row) for row in rows[:bound]), following), window

        return self._database.read(work)

    def groups(self, asked: OpFilter, by: Group) -> tuple[list[OpGroup], Window]:
        """All the same ops by what they have in common, the most time first. Raises NotFoundError."""
        key = _GROUPS[by]

        def work(session: Session) -> tuple[list[OpGroup], Window]:
            window = _window(session, asked, LAST_ID)
            sums = [func.sum(column) for column in (_Op.p50_ns, _Op.share_percent, _Op.flops, _Op.moved_bytes, _Op.wasted_ns)]
            query = _matching(select(key, func.count(), *sums), asked, window).group_by(key)
            found = [_group(row, len(window.runs)) for row in session.execute(query)]
            return sorted(found, key=lambda group: (-(group.p50_ns or 0), -group.flops, group.key)), window

        return self._database.read(work)

    def regressions(
        self,
        model: str | None = None,
        device: str | None = None,
        threshold_percent: float = 5.0,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Page[Regression]:
        """Runs that took that much more than the one before, the worst first. Raises NotFoundError, RecordFormatError."""
        bound = page_limit(limit)
        (offset,) = (0,) if cursor is None else cursor_ids(cursor)

        def work(session: Session) -> Page[Regression]:
            query = select(ProfileRunRow).options(defer(ProfileRunRow.payload))
            query = query.where(ProfileRunRow.growth_percent >= threshold_percent)
            if model is not None:
                query = query.where(ProfileRunRow.model_id == model_id(session, model))
            if device is not None:
                query = query.where(ProfileRunRow.device_id == device_id(session, device))
            query = query.order_by(ProfileRunRow.growth_percent.desc(), ProfileRunRow.id.desc())
            rows = session.scalars(query.offset(offset).limit(bound + 1)).all()
            found = [pair for row in rows[:bound] if (pair := _regression(session, row)) is not None]
            return Page(tuple(found), str(offset + bound) if len(rows) > bound else None)

        return self._database.read(work)

    def history(self, model: str, device: str | None = None) -> list[ProfileRun]:
        """The newest traces of a model, the oldest of them first. Raises NotFoundError."""

        def work(session: Session) -> list[ProfileRun]:
            query = select(ProfileRunRow).options(defer(ProfileRunRow.payload), defer(ProfileRunRow.growth))
            query = query.where(ProfileRunRow.model_id == model_id(session, model), ProfileRunRow.kind == "trace")
            if device is not None:
                query = query.where(ProfileRunRow.device_id == device_id(session, device))
            rows = session.scalars(query.order_by(ProfileRunRow.id.desc()).limit(HISTORY_RUNS)).all()
            return [run_of(session, row) for row in reversed(rows)]

        return self._database.read(work)

    def plans(self, here: Here, model: str, device: str | None = None) -> list[PlanCost]:
        """The newest plans of a model, the newest first. Raises NotFoundError."""

        def work(session: Session) -> list[PlanCost]:
            query = select(PlanRow).options(defer(PlanRow.payload)).where(PlanRow.model_id == model_id(session, model))
            if device is not None:
                query = query.where(PlanRow.device_id == device_id(session, device))
            rows = session.scalars(query.order_by(PlanRow.id.desc()).limit(PLANS)).all()
            return [_plan_cost(row, session.get_one(DeviceRow, row.device_id), here) for row in rows]

        return self._database.read(work)


_PREDICTED_RATIO: ColumnElement[Any] = _Op.p50_ns / func.nullif(_Op.predicted_ns, 0)
_SORTS: Final[Mapping[Sort, Any]] = {
    "position": _Op.position,
    "p50_ns": _Op.p50_ns,
    "flops": _Op.flops,
    "macs": _Op.macs,
    "moved_bytes": _Op.moved_bytes,
    "wasted_ns": _Op.wasted_ns,
    "roof_percent": _Op.roof_percent,
    "predicted_ratio": _PREDICTED_RATIO,
    "share_percent": _Op.share_percent,
}
_GROUPS: Final[Mapping[Group, Any]] = {
    "op": _Op.op,
    "bound": _Op.bound,
    "backend": _Op.backend,
    "strategy": _Op.strategy,
    "run": _Op.run_id,
}


def _window(session: Session, asked: OpFilter, newest: int) -> Window:
    """The newest runs that are meant, as many as have WINDOW_OPS ops together, at least one."""
    query = select(ProfileRunRow.id, ProfileRunRow.ops).where(ProfileRunRow.id <= newest)
    if asked.runs:
        if len(asked.runs) > WINDOW_RUNS:
            raise RecordFormatError(f"query: {len(asked.runs)} runs are named, need at most {WINDOW_RUNS}")
        query = query.where(ProfileRunRow.id.in_(asked.runs))
    if asked.model is not None:
        query = query.where(ProfileRunRow.model_id == model_id(session, asked.model))
    if asked.device is not None:
        query = query.where(ProfileRunRow.device_id == device_id(session, asked.device))
    if asked.kind is not None:
        query = query.where(ProfileRunRow.kind == asked.kind)
    found = session.execute(query.order_by(ProfileRunRow.id.desc()).limit(WINDOW_RUNS + 1)).all()
    runs: list[int] = []
    ops = 0
    for number, count in found[:WINDOW_RUNS]:
        ops += count
        if runs and ops > WINDOW_OPS:
            break
        runs.append(number)
    return Window(tuple(runs), len(runs) < len(found))


def _matching(query: Select[Any], asked: OpFilter, window: Window) -> Select[Any]:
    query = query.where(_Op.run_id.in_(window.runs))
    for column, wanted in (
        (_Op.op, asked.op),
        (_Op.bound, asked.bound),
        (_Op.backend, asked.backend),
        (_Op.strategy, asked.strategy),
    ):
        if wanted is not None:
            query = query.where(column == wanted)
    if asked.name is not None:
        query = query.where(func.lower(_Op.node).contains(asked.name.lower(), autoescape=True))
    if asked.min_p50_ns is not None:
        query = query.where(_Op.p50_ns >= asked.min_p50_ns)
    return query


def _op_row(row: ProfileNodeRow) -> OpRow:
    names = set(OpRow.__dataclass_fields__) - {"run", "name", "predicted_ratio"}
    ratio = row.p50_ns / row.predicted_ns if row.p50_ns is not None and row.predicted_ns else None
    values = {name: getattr(row, name) for name in names}
    return OpRow(**values, run=row.run_id, name=row.node, predicted_ratio=ratio)


def _group(row: Sequence[Any], runs: int) -> OpGroup:
    key, count, p50_ns, share_percent, flops, moved_bytes, wasted_ns = row
    share = (share_percent or 0.0) / max(runs, 1)
    return OpGroup(str(key), count, p50_ns, share, int(flops), int(moved_bytes), wasted_ns)


def _regression(session: Session, row: ProfileRunRow) -> Regression | None:
    """None where the run before is not there any more."""
    before = (
        None if row.previous_id is None else session.get(ProfileRunRow, row.previous_id, options=[defer(ProfileRunRow.payload)])
    )
    if before is None or row.growth_percent is None:
        return None
    ops = tuple(Growth(**found) for found in orjson.loads(row.growth))
    return Regression(run_of(session, before), run_of(session, row), row.growth_percent, ops)


def _plan_cost(row: PlanRow, device: DeviceRow, here: Here) -> PlanCost:
    return PlanCost(
        id=row.digest,
        device_fingerprint=device.fingerprint,
        device_name=device.name,
        objective=row.objective,
        threads=row.threads,
        precision=row.precision,
        latency_ns=row.predicted_ns if row.measured_ns is None else row.measured_ns,
        measured=row.measured_ns is not None,
        memory_bytes=row.memory_bytes,
        error_estimate=row.error_estimate,
        stale=_staleness(row, here),
        created_us=row.created_us,
    )


def _staleness(row: PlanRow, here: Here) -> str:
    """Why the plan is not true of the engine that runs here; "" where it is, on whatever device it is for."""
    if row.engine_build != here.build.id:
        return f"made by engine build {row.engine_build}, this is {here.build.id}"
    kernels: dict[str, str] = orjson.loads(row.kernels)
    changed = sorted(op for op, source in kernels.items() if here.build.kernel_source(op) != source)
    return f"the source of {', '.join(changed)} changed since" if changed else ""
