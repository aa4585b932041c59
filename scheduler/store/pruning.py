"""Pruning: old and stale rows are deleted, a bounded batch at a time, so that other writers need not wait.

Signatures stay: they are few, and a measurement that is being stored may refer to one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import delete, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from kernels.record import record
from scheduler.errors import RecordFormatError
from scheduler.plan import Plan
from scheduler.store.database import Database
from scheduler.store.lookups import chunks
from scheduler.store.records import ENDED, LAST_ID, Here, now_us
from scheduler.store.schema import Base, JobRow, MeasurementRow, PlanRow, ProfileRunRow

BATCH: Final = 2000  # rows looked at in one transaction
PLAN_BATCH: Final = 20  # plans are documents
_DAY_US: Final = 86_400 * 1_000_000


@record
class Pruned:
    """The number of rows deleted."""

    measurements: int
    plans: int
    profiles: int
    jobs: int


class Pruning:
    """Deletes rows that are old, or stale on this build."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def prune(self, here: Here, older_than_days: float | None = None, *, stale: bool = False) -> Pruned:
        """Delete measurements, plans, profile runs and ended jobs.

        Args:    older_than_days: only rows older than that; None = of any age.
                 stale: only measurements and plans, of any device, with another engine build or kernel source than `here`.
                 Without it all rows of that age are deleted, profile runs and ended jobs included.
        Raises:  RecordFormatError where neither is given, because that would delete everything.
        """
        if older_than_days is None and not stale:
            raise RecordFormatError("prune: neither an age nor stale is given, which would delete everything, need one of them")
        if older_than_days is not None and not 0 <= older_than_days <= 36_500:
            raise RecordFormatError(f"prune: older_than_days is {older_than_days}, need 0..36500")
        before_us = LAST_ID if older_than_days is None else now_us() - round(older_than_days * _DAY_US)
        sources: dict[str, str] = {}

        def is_stale(op: str, build: str, source: str) -> bool:
            if op not in sources:
                sources[op] = here.build.kernel_source(op)
            return build != here.build.id or source != sources[op]

        def stale_plan(payload: str) -> bool:
            plan = Plan.from_json(payload)
            return bool(plan.staleness(plan.device_fingerprint, here.build))

        evidence = (MeasurementRow.measured_us, MeasurementRow.op, MeasurementRow.engine_build, MeasurementRow.kernel_source)
        measurements = self._walk(
            MeasurementRow, MeasurementRow.id, evidence, lambda us, *of: us < before_us and (not stale or is_stale(*of))
        )
        made = (PlanRow.created_us, PlanRow.payload)
        plans = self._walk(
            PlanRow, PlanRow.id, made, lambda us, text: us < before_us and (not stale or stale_plan(text)), PLAN_BATCH
        )
        if stale:
            return Pruned(measurements, plans, 0, 0)
        runs = self._walk(ProfileRunRow, ProfileRunRow.id, (ProfileRunRow.created_us,), lambda us: us < before_us)
        ended = self._walk(
            JobRow, JobRow.id, (JobRow.created_us, JobRow.state), lambda us, state: us < before_us and state in ENDED
        )
        return Pruned(measurements, plans, runs, ended)

    def _walk(
        self,
        table: type[Base],
        key: InstrumentedAttribute[int],
        columns: tuple[InstrumentedAttribute[Any], ...],
        goes: Callable[..., bool],
        batch: int = BATCH,
    ) -> int:
        """Delete the rows whose columns `goes` accepts, in the order of the key; rows locked by others are left.

        Returns how many.
        """
        deleted, after = 0, 0
        while True:
            query = select(key, *columns).where(key > after).order_by(key).limit(batch)

            def work(session: Session, query: Any = query) -> tuple[int, int | None]:
                rows = session.execute(query.with_for_update(skip_locked=True)).all()
                going = [row[0] for row in rows if goes(*row[1:])]
                for chunk in chunks(going):
                    session.execute(delete(table).where(key.in_(chunk)))
                return len(going), rows[-1][0] if rows else None

            count, last = self._database.write(work)
            if last is None:
                return deleted
            deleted, after = deleted + count, last
