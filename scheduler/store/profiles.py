"""The table of profile runs: reports of counts and of measured traces."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any, Final, Literal

import orjson
from sqlalchemy import insert, select
from sqlalchemy.orm import Session, defer, joinedload
from sqlalchemy.orm.interfaces import ORMOption

from kernels.record import record
from profiler.report.document import SCHEMA_VERSION, Op, Report
from profiler.report.matching import match
from scheduler.errors import NotFoundError
from scheduler.store.database import Database
from scheduler.store.lookups import chunks, device_id, model_id, newest_first
from scheduler.store.records import Page, ProfileRun, StoredProfile, cursor_ids, document, now_us, page_limit, short
from scheduler.store.schema import DeviceRow, ProfileNodeRow, ProfileRunRow

MOST_GROWN: Final = 5  # ops stored of a slower run: those that grew most
_BATCH = 500
_TIMES = ("wall_p50_ns", "wall_p90_ns", "wall_min_ns", "first_ns", "predicted_ns", "roof_ns", "wasted_ns")
_COLUMNS = ("schema_version", "threads", "precision", "backend", "plan_id", "ops", "problems", "peak_activation_bytes")
_OP = ("op", "macs", "flops", "moved_bytes", "p50_ns", "backend", "bound", "strategy", "executed_macs", "predicted_ns")
_OP_PLACED = ("roof_ns", "roof_percent", "wasted_ns", "share_percent")

Kind = Literal["static", "trace"]


@record
class Growth:
    """An op, or several that do the same work, with its time and strategy in the run before and in this one."""

    name: str
    op: str
    before_ns: float
    after_ns: float
    before_strategy: str
    after_strategy: str


class Profiles:
    """Profile runs by number."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def save(self, report: Report, engine_build: str) -> int:
        """Store a report and return its number. A trace is compared with the one before it in its series.

        Args:   engine_build: of the engine that made the report.
        Raises: NotFoundError where the model or the device is not stored.
        """
        payload = document("profile run", report.to_json())
        series = series_of(report)

        def work(session: Session) -> int:
            before = None if not series else _newest(session, series)
            setup, totals = report.setup, report.totals
            run = ProfileRunRow(
                model_id=model_id(session, report.model.digest),
                device_id=None if setup is None else device_id(session, setup.device),
                kind=report.kind,
                engine_build=engine_build,
                macs=totals.macs,
                flops=totals.flops,
                schema_version=report.schema_version,
                series=series,
                threads=None if setup is None else setup.threads,
                precision="" if setup is None else setup.precision,
                backend="" if setup is None else setup.backend,
                plan_id="" if setup is None else setup.plan_id,
                ops=len(report.ops),
                problems=len(report.check.problems),
                peak_activation_bytes=totals.peak_activation_bytes,
                **{name: getattr(totals, name) for name in _TIMES},
                **({} if before is None else _since(before, report)),
                payload=payload,
                created_us=now_us(),
            )
            session.add(run)
            session.flush()
            rows = [_op_columns(run.id, op) for op in report.ops]
            for chunk in chunks(rows, _BATCH):
                session.connection().execute(insert(ProfileNodeRow), chunk)
            return run.id

        return self._database.write(work)

    def get(self, number: int) -> StoredProfile:
        """Return a run with its document. Raises NotFoundError."""

        def work(session: Session) -> StoredProfile:
            run = session.get(ProfileRunRow, number)
            if run is None:
                raise NotFoundError(f"profile {number}: not stored")
            return StoredProfile(run_of(run), run.payload)

        return self._database.read(work)

    def page(
        self,
        model: str | None = None,
        device: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
        *,
        kind: Kind | None = None,
    ) -> Page[ProfileRun]:
        """Return a page of runs without documents: all, or of a model, device or kind.

        Raises NotFoundError, RecordFormatError.
        """
        (before,), bound = cursor_ids(cursor), page_limit(limit)

        def work(session: Session) -> Page[ProfileRun]:
            query = select(ProfileRunRow).options(defer(ProfileRunRow.growth), *without_documents(ProfileRunRow))
            if model is not None:
                query = query.where(ProfileRunRow.model_id == model_id(session, model))
            if device is not None:
                query = query.where(ProfileRunRow.device_id == device_id(session, device))
            if kind is not None:
                query = query.where(ProfileRunRow.kind == kind)
            return newest_first(session, query, ProfileRunRow.id, bound, before, run_of)

        return self._database.read(work)


def series_of(report: Report) -> str:
    """Return the key of runs to compare: a hash of model, device, threads, precision and shapes; "" for a count."""
    setup = report.setup
    if setup is None:
        return ""
    said = [report.model.digest, setup.device, setup.threads, setup.precision, sorted(report.model.inputs.items())]
    return hashlib.sha256(orjson.dumps(said)).hexdigest()


def without_documents(run: type[ProfileRunRow]) -> tuple[ORMOption, ...]:
    """Return the options by which a query of runs leaves large texts unread."""
    return defer(run.payload), joinedload(run.device).defer(DeviceRow.profile)


def run_of(row: ProfileRunRow) -> ProfileRun:
    """Return a row as a record, without its document."""
    model, device = row.model, row.device
    kind: Kind = "static" if device is None else "trace"
    return ProfileRun(
        id=row.id,
        model_digest=model.digest,
        model_name=model.name,
        device=None if device is None else device.fingerprint,
        device_name=None if device is None else device.name,
        kind=kind,
        engine_build=row.engine_build,
        macs=row.macs,
        flops=row.flops,
        **{name: getattr(row, name) for name in (*_COLUMNS, *_TIMES)},
        created_us=row.created_us,
    )


def _newest(session: Session, series: str) -> ProfileRunRow | None:
    query = select(ProfileRunRow).where(ProfileRunRow.series == series).order_by(ProfileRunRow.id.desc()).limit(1)
    return session.scalar(query)


def _since(before: ProfileRunRow, report: Report) -> dict[str, Any]:
    """Return the columns that compare a run with the one before it."""
    totals = report.totals
    if not before.wall_p50_ns or totals.wall_p50_ns is None:
        return {"previous_id": before.id}
    grown = 100 * (totals.wall_p50_ns / before.wall_p50_ns - 1)
    noise = max(noise_percent(before.wall_p50_ns, before.wall_p90_ns), noise_percent(totals.wall_p50_ns, totals.wall_p90_ns))
    if grown <= noise or before.schema_version != SCHEMA_VERSION:
        return {"previous_id": before.id}
    growth = orjson.dumps([asdict(item) for item in _grown(Report.from_json(before.payload), report)]).decode()
    return {"previous_id": before.id, "growth_percent": grown, "growth": growth}


def noise_percent(p50_ns: float, p90_ns: float | None) -> float:
    """Return the noise of runs: how far the 90th percentile lies above the median."""
    return 0.0 if p90_ns is None or not p50_ns else 100 * (p90_ns / p50_ns - 1)


def _grown(before: Report, after: Report) -> list[Growth]:
    """Return the ops that grew most, at most MOST_GROWN."""
    found = [pair for pair in match([before, after]) if (pair.delta_ns or 0) > 0]
    found.sort(key=lambda pair: -(pair.delta_ns or 0))
    grown = []
    for pair in found[:MOST_GROWN]:
        (before_ns, after_ns), strategies = pair.p50_ns, pair.strategies
        grown.append(Growth(pair.name, pair.op, before_ns or 0.0, after_ns or 0.0, *strategies))
    return grown


def _op_columns(run: int, op: Op) -> dict[str, object]:
    columns: dict[str, object] = {name: getattr(op, name) for name in (*_OP, *_OP_PLACED)}
    return {**columns, "op": short(op.op), "run_id": run, "position": op.index, "node": short(op.name)}
