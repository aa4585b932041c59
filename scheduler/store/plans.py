"""The table of plans."""

from __future__ import annotations

import re
from collections import Counter
from typing import Final

import orjson
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from scheduler.errors import NotFoundError
from scheduler.plan import Plan, State
from scheduler.store.database import Database
from scheduler.store.lookups import device_id, insert_into, model_id, newest_first, signature_ids
from scheduler.store.records import Here, Page, StoredPlan, cursor_ids, document, now_us, page_limit
from scheduler.store.schema import ModelSignatureRow, PlanRow

LEAST_DIGITS: Final = 8  # of an id that is not written in full; commands and pages print twelve
MAX_STANDING: Final = 64  # requests of one model whose plans `standing` returns
_PLAN_ID: Final = re.compile(rf"[0-9a-f]{{{LEAST_DIGITS},64}}")


class Plans:
    """Plans by their id (`Plan.id`). Every plan returned has the state that it holds for `here`, so none is stale unnoticed."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def save(self, plan: Plan) -> None:
        """Store a plan as the newest of its request. Raises NotFoundError when its model or device is not stored."""
        payload = document("plan", plan.to_json())

        def work(session: Session) -> None:
            model, device = model_id(session, plan.model_digest), device_id(session, plan.device_fingerprint)
            session.execute(delete(PlanRow).where(PlanRow.digest == plan.id))
            session.add(
                PlanRow(
                    digest=plan.id,
                    request=plan.request,
                    model_id=model,
                    device_id=device,
                    measured_ns=plan.measured_ns,
                    predicted_ns=plan.predicted_ns,
                    error_estimate=plan.error_estimate,
                    memory_bytes=plan.memory_bytes,
                    threads=plan.threads,
                    objective=plan.objective,
                    precision=plan.precision,
                    engine_build=plan.engine_build,
                    kernels=orjson.dumps({step.op: step.kernel_source for step in plan.steps}).decode(),
                    payload=payload,
                    created_us=now_us(),
                )
            )
            session.flush()
            _link_signatures(session, model, plan)

        self._database.write(work)

    def get(self, plan_id: str, here: Here) -> StoredPlan:
        """Return a plan by its id, or by the first digits of it, at least LEAST_DIGITS.

        Raises: NotFoundError, also where several plans begin with these digits.
        """
        if not _PLAN_ID.fullmatch(plan_id):
            raise NotFoundError(f"plan {plan_id[:64]!r}: not an id, need {LEAST_DIGITS} to 64 hexadecimal digits")
        beyond = f"{plan_id}g"  # "g" follows every hexadecimal digit
        begins = select(PlanRow).where(PlanRow.digest >= plan_id, PlanRow.digest < beyond).limit(2)
        rows = self._database.read(lambda session: list(session.scalars(begins)))
        if len(rows) != 1:
            why = "several plans begin so, give more digits" if rows else "not stored"
            raise NotFoundError(f"plan {plan_id}: {why}")
        return _plan(rows[0], here)

    def latest(self, model_digest: str, request: str, here: Here) -> StoredPlan:
        """Return the newest plan of a request (`plan.request_key`) for this model and device. Raises NotFoundError."""
        missing = f"plan of model {model_digest} for device {here.device_fingerprint}: none is stored for this request"

        def work(session: Session) -> PlanRow | None:
            model, device = model_id(session, model_digest), device_id(session, here.device_fingerprint)
            query = select(PlanRow).where(PlanRow.model_id == model, PlanRow.device_id == device, PlanRow.request == request)
            return session.scalar(query.order_by(PlanRow.id.desc()).limit(1))

        row = self._database.read(work)
        if row is None:
            raise NotFoundError(missing)
        return _plan(row, here)

    def newest(self) -> int:
        """Return the id of the row stored last, 0 without any: a larger one than before means that there are new plans."""
        return self._database.read(lambda session: session.scalar(select(func.max(PlanRow.id))) or 0)

    def standing(self, model_digest: str, here: Here, after: int = 0) -> list[StoredPlan]:
        """Return the newest plan of every request for a model on a device, the newest first; only rows with an id above `after`.

        At most MAX_STANDING; an empty list for a model or a device that is not stored.
        """

        def work(session: Session) -> list[PlanRow]:
            model, device = model_id(session, model_digest), device_id(session, here.device_fingerprint)
            query = select(func.max(PlanRow.id)).where(PlanRow.model_id == model, PlanRow.device_id == device, PlanRow.id > after)
            ids = query.group_by(PlanRow.request).order_by(func.max(PlanRow.id).desc()).limit(MAX_STANDING)
            return list(session.scalars(select(PlanRow).where(PlanRow.id.in_(ids)).order_by(PlanRow.id.desc())))

        try:
            rows = self._database.read(work)
        except NotFoundError:
            return []
        return [_plan(row, here) for row in rows]

    def page(
        self,
        here: Here,
        model: str | None = None,
        device: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Page[StoredPlan]:
        """Return a page of all plans, or of those of a model, a device or both. Raises NotFoundError, RecordFormatError."""
        (before,), bound = cursor_ids(cursor), page_limit(limit)

        def work(session: Session) -> Page[StoredPlan]:
            query = select(PlanRow)
            if model is not None:
                query = query.where(PlanRow.model_id == model_id(session, model))
            if device is not None:
                query = query.where(PlanRow.device_id == device_id(session, device))
            return newest_first(session, query, PlanRow.id, bound, before, lambda row: _plan(row, here))

        return self._database.read(work)

    def measured(self, plan_id: str, measured_ns: float) -> None:
        """Store the measured time of one inference by a plan. Raises NotFoundError."""

        def work(session: Session) -> PlanRow | None:
            statement = update(PlanRow).where(PlanRow.digest == plan_id).values(measured_ns=measured_ns).returning(PlanRow)
            return session.scalar(statement)

        if self._database.write(work) is None:
            raise NotFoundError(f"plan {plan_id}: not stored")

    def drifted(self, plan_id: str, reason: str) -> None:
        """Store that a plan has drifted, with the reason; saving it again clears that.

        Raises: NotFoundError.
        """

        def work(session: Session) -> int | None:
            statement = update(PlanRow).where(PlanRow.digest == plan_id).values(drift=reason[:1000]).returning(PlanRow.id)
            return session.scalar(statement)

        if self._database.write(work) is None:
            raise NotFoundError(f"plan {plan_id}: not stored")


def _plan(row: PlanRow, here: Here) -> StoredPlan:
    plan = Plan.from_json(row.payload).judged(here.device_fingerprint, here.build)
    if row.drift is not None and plan.state.status == "current":
        plan = plan.model_copy(update={"state": State(status="drifted", reason=row.drift)})
    return StoredPlan(plan.model_copy(update={"measured_ns": row.measured_ns}), row.created_us)


def _link_signatures(session: Session, model: int, plan: Plan) -> None:
    """Store the signatures that the model consists of, so that strategies can be looked up by model."""
    nodes = Counter(step.signature_key for step in plan.steps)
    ids = signature_ids(session, {step.signature_key: (step.op, step.signature) for step in plan.steps})
    rows = [{"model_id": model, "signature_id": ids[key], "nodes": count} for key, count in sorted(nodes.items())]
    if rows:
        statement = insert_into(session, ModelSignatureRow)
        session.connection().execute(
            statement.on_conflict_do_update(
                index_elements=["model_id", "signature_id"], set_={"nodes": statement.excluded.nodes}
            ),
            rows,
        )
