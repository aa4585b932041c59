"""Profile runs: counts and measured traces of models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from scheduler.errors import NotFoundError
from scheduler.store.database import Database
from scheduler.store.records import Page, ProfileNode, ProfileRun, cursor_ids, document, now_us, page_limit, short
from scheduler.store.rows import chunks, device_id, model_id, newest_first
from scheduler.store.schema import DeviceRow, ModelRow, ProfileNodeRow, ProfileRunRow

_BATCH = 500


class Profiles:
    """Profile runs by number."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def save(
        self,
        model_digest: str,
        engine_build: str,
        payload: str,
        nodes: Sequence[ProfileNode],
        *,
        flops: int,
        device_fingerprint: str | None = None,
        wall_p50_ns: float | None = None,
    ) -> int:
        """Store a run and return its number; with a device and a wall time it is a trace, without them a count.

        Raises: NotFoundError when the model or the device is not stored.
        """
        document("profile run", payload)

        def work(session: Session) -> int:
            run = ProfileRunRow(
                model_id=model_id(session, model_digest),
                device_id=None if device_fingerprint is None else device_id(session, device_fingerprint),
                kind="static" if device_fingerprint is None else "trace",
                engine_build=engine_build,
                macs=sum(node.macs for node in nodes),
                flops=flops,
                wall_p50_ns=wall_p50_ns,
                payload=payload,
                created_us=now_us(),
            )
            session.add(run)
            session.flush()
            rows = [_node_columns(run.id, position, node) for position, node in enumerate(nodes)]
            for chunk in chunks(rows, _BATCH):
                session.connection().execute(insert(ProfileNodeRow), chunk)
            return run.id

        return self._database.write(work)

    def get(self, number: int) -> ProfileRun:
        """A run with its nodes and its document. Raises NotFoundError."""

        def work(session: Session) -> ProfileRun:
            run = session.get(ProfileRunRow, number)
            if run is None:
                raise NotFoundError(f"profile {number}: not stored")
            rows = session.scalars(
                select(ProfileNodeRow).where(ProfileNodeRow.run_id == number).order_by(ProfileNodeRow.position)
            )
            nodes = tuple(ProfileNode(row.node, row.op, row.macs, row.flops, row.moved_bytes, row.p50_ns) for row in rows)
            return _run(session, run, nodes)

        return self._database.read(work)

    def page(
        self, model: str | None = None, device: str | None = None, limit: int | None = None, cursor: str | None = None
    ) -> Page[ProfileRun]:
        """Runs without their nodes: all of them, of one model, one device or both. Raises NotFoundError, RecordFormatError."""
        (before,), bound = cursor_ids(cursor), page_limit(limit)

        def work(session: Session) -> Page[ProfileRun]:
            query = select(ProfileRunRow)
            if model is not None:
                query = query.where(ProfileRunRow.model_id == model_id(session, model))
            if device is not None:
                query = query.where(ProfileRunRow.device_id == device_id(session, device))
            return newest_first(session, query, ProfileRunRow.id, bound, before, lambda row: _run(session, row, ()))

        return self._database.read(work)


def _node_columns(run: int, position: int, node: ProfileNode) -> dict[str, object]:
    return {
        "run_id": run,
        "position": position,
        "node": short(node.node),
        "op": short(node.op),
        "macs": node.macs,
        "flops": node.flops,
        "moved_bytes": node.moved_bytes,
        "p50_ns": node.p50_ns,
    }


def _run(session: Session, row: ProfileRunRow, nodes: tuple[ProfileNode, ...]) -> ProfileRun:
    model = session.get_one(ModelRow, row.model_id)
    device = None if row.device_id is None else session.get_one(DeviceRow, row.device_id)
    kind: Literal["static", "trace"] = "static" if device is None else "trace"
    return ProfileRun(
        id=row.id,
        model_digest=model.digest,
        device_fingerprint="" if device is None else device.fingerprint,
        kind=kind,
        engine_build=row.engine_build,
        macs=row.macs,
        flops=row.flops,
        wall_p50_ns=row.wall_p50_ns,
        payload=row.payload,
        nodes=nodes,
        created_us=row.created_us,
    )
