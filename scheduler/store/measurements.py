"""The table of measurements, from which plans are made. Those of another device or build are returned with a label."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Select, and_, exists, or_, select, tuple_
from sqlalchemy.orm import Session

from scheduler.errors import NotFoundError, RecordFormatError
from scheduler.store.database import Database
from scheduler.store.lookups import chunks, device_id, ids_of_keys, insert_into, model_id, signature_ids
from scheduler.store.records import LAST_ID, Here, JudgedMeasurement, Measurement, Page, cursor_ids, page_limit
from scheduler.store.schema import DeviceRow, MeasurementRow, ModelSignatureRow, SignatureRow
from scheduler.strategy import Strategy

if TYPE_CHECKING:
    from sqlalchemy import Row

    _Query = Select[Any]  # see `_all`
    _Line = Row[Any]

MAX_EVIDENCE: Final = 4000
_BATCH = 500  # rows of one INSERT
_LAST_BUILD = 200  # newest measurements of a signature, searched for those of the build measured last
_KEY = ("device_id", "signature_id", "engine_build", "kernel_source", "strategy")
_WORK = ("op", "executed_macs", "other_flops", "moved_bytes")
_EVIDENCE = ("samples", "min_ns", "p50_ns", "p90_ns", "mean_ns", "std_ns", "measured_us", "load")


class Measurements:
    """Measurements by device, engine build, kernel source, signature and strategy.

    Of two measurements with one key the one with more samples is kept; of equally many, the newer one.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def save(self, measurements: Iterable[Measurement]) -> None:
        """Store measurements, all of them or none. Raises NotFoundError for a device that is not stored."""
        best = _best_of_each_key(measurements)
        for_devices = sorted({item.device_fingerprint for item in best})

        def work(session: Session) -> None:
            devices = {fingerprint: device_id(session, fingerprint) for fingerprint in for_devices}
            signatures = signature_ids(session, {item.signature_key: (item.op, item.signature) for item in best})
            rows = [_columns(item, devices[item.device_fingerprint], signatures[item.signature_key]) for item in best]
            rows.sort(key=lambda row: tuple(row[name] for name in _KEY))  # one order for all writers: no deadlock
            statement = insert_into(session, MeasurementRow)
            new, old = statement.excluded, MeasurementRow.__table__.c
            better = or_(new.samples > old.samples, and_(new.samples == old.samples, new.measured_us > old.measured_us))
            kept = statement.on_conflict_do_update(
                index_elements=list(_KEY), set_={name: new[name] for name in (*_WORK, *_EVIDENCE)}, where=better
            )
            for chunk in chunks(rows, _BATCH):
                session.connection().execute(kept, chunk)

        if best:
            self._database.write(work)

    def page(
        self,
        here: Here,
        device: str | None = None,
        signature: str | None = None,
        model: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
        *,
        since_us: int = 0,
    ) -> Page[JudgedMeasurement]:
        """Return the measurements of a device, a signature (its key) or all signatures of a model, each fresh or with a reason.

        since_us: leaves out earlier ones; it reads without an index, and is for copying a database, not for requests.

        Raises: NotFoundError when device or model is not stored, RecordFormatError when both signature and model are given.
        """
        bound = page_limit(limit)
        if signature is not None and model is not None:
            raise RecordFormatError("strategies: both a signature and a model are given, need one of them")
        before = cursor_ids(cursor, parts=1 if model is None else 2)

        def work(session: Session) -> Page[JudgedMeasurement]:
            query = _all() if not since_us else _all().where(MeasurementRow.measured_us >= since_us)
            of = None if device is None else device_id(session, device)
            if of is not None and model is None and signature is None:
                lines = _newest_of_device(session, query, of, before[0], bound + 1)
                return _page(lines, bound, here, lambda row: str(row.id))
            if of is not None:
                query = query.where(MeasurementRow.device_id == of)
            if model is not None:
                return _page_of_model(session, query, model_id(session, model), before, bound, here)
            if signature is not None:
                query = query.where(MeasurementRow.signature_id == ids_of_keys(session, [signature]).get(signature, -1))
            lines = _newest(session, query, before[0], bound + 1)
            return _page(lines, bound, here, lambda row: str(row.id))

        return self._database.read(work)

    def best(
        self,
        here: Here,
        signature: str | None = None,
        model: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Page[JudgedMeasurement]:
        """Return the fastest measured strategy of a signature, or of each signature of a model, on the device of `here`.

        A fresh one where there is any; else the fastest of the build that was measured last, with the reason why it is stale.

        Raises: NotFoundError when device or model is not stored, RecordFormatError unless one of signature and model is given.
        """
        (before,), bound = cursor_ids(cursor), page_limit(limit)
        if (signature is None) == (model is None):
            raise RecordFormatError("strategies: need either a signature or a model")

        def work(session: Session) -> Page[JudgedMeasurement]:
            device = device_id(session, here.device_fingerprint)
            query = select(SignatureRow.id, SignatureRow.op).where(SignatureRow.id < before)
            measured = exists().where(MeasurementRow.device_id == device, MeasurementRow.signature_id == SignatureRow.id)
            if model is not None:
                linked = ModelSignatureRow.signature_id == SignatureRow.id
                query = query.join(ModelSignatureRow, linked).where(ModelSignatureRow.model_id == model_id(session, model))
                query = query.order_by(ModelSignatureRow.signature_id.desc())
            else:
                query = query.where(SignatureRow.key == signature)
            rows = session.execute(query.where(measured).limit(bound + 1)).all()
            found = tuple(_best(session, here, device, number, op) for number, op in rows[:bound])
            return Page(found, str(rows[bound - 1][0]) if len(rows) > bound else None)

        return self._database.read(work)

    def fresh(self, here: Here, signatures: Mapping[str, str]) -> dict[str, dict[Strategy, Measurement]]:
        """Return the fresh measurements of signatures: of this device, engine build and kernel source only.

        Args:    signatures: key -> op.
        Returns: key -> strategy -> measurement; keys without any are left out.
        """
        return self._database.read(lambda session: _fresh(session, here, signatures))

    def evidence(self, here: Here, limit: int = MAX_EVIDENCE) -> list[Measurement]:
        """Return the newest fresh measurements of any signature, to fit a cost model on. At most `limit` rows are read."""

        def work(session: Session) -> list[Measurement]:
            return [_measurement(line) for line in session.execute(_of_build(session, _all(), here).limit(limit))]

        try:
            found = self._database.read(work)
        except NotFoundError:  # a device that is not stored has no measurements
            return []
        return [measurement for measurement in found if here.judge(measurement).fresh]

    def newest(self, here: Here) -> int:
        """Return the id of the newest measurement of this device and build; 0 where there is none."""

        def work(session: Session) -> int:
            query = select(MeasurementRow.id)
            return session.scalar(_of_build(session, query, here).limit(1)) or 0

        try:
            return self._database.read(work)
        except NotFoundError:
            return 0


def _fresh(session: Session, here: Here, signatures: Mapping[str, str]) -> dict[str, dict[Strategy, Measurement]]:
    device = session.scalar(select(DeviceRow.id).where(DeviceRow.fingerprint == here.device_fingerprint))
    found: dict[str, dict[Strategy, Measurement]] = {}
    if device is None:
        return found
    for chunk in chunks(sorted(signatures)):
        sources = {here.build.kernel_source(signatures[key]) for key in chunk}
        query = _all().where(
            MeasurementRow.device_id == device,
            MeasurementRow.signature_id.in_(list(ids_of_keys(session, chunk).values())),
            MeasurementRow.engine_build == here.build.id,
            MeasurementRow.kernel_source.in_(sorted(sources)),
        )
        for line in session.execute(query):
            measurement = _measurement(line)
            if here.judge(measurement).fresh:
                found.setdefault(measurement.signature_key, {})[measurement.strategy] = measurement
    return found


def _best(session: Session, here: Here, device: int, signature: int, op: str) -> JudgedMeasurement:
    """Return the fastest measurement of a signature that has some."""
    of_signature = _all().where(MeasurementRow.device_id == device, MeasurementRow.signature_id == signature)
    fresh = of_signature.where(
        MeasurementRow.engine_build == here.build.id, MeasurementRow.kernel_source == here.build.kernel_source(op)
    )
    fastest = session.execute(fresh.order_by(MeasurementRow.min_ns).limit(1)).all()
    if not fastest:
        newest = _newest(session, of_signature, LAST_ID, _LAST_BUILD)
        build = (newest[0].engine_build, newest[0].kernel_source)
        of_build = [line for line in newest if (line.engine_build, line.kernel_source) == build]
        fastest = [min(of_build, key=lambda line: float(line.min_ns))]
    return here.judge(_measurement(fastest[0]))


def _of_build(session: Session, query: Any, here: Here) -> Any:
    """Narrow a query to this device and build, the newest first."""
    device = device_id(session, here.device_fingerprint)
    query = query.where(MeasurementRow.device_id == device, MeasurementRow.engine_build == here.build.id)
    return query.order_by(MeasurementRow.id.desc())


@functools.cache  # building it costs more than asking it
def _all() -> _Query:
    """Return a query of all measurements as columns: building objects would double its cost."""
    query = select(*MeasurementRow.__table__.columns, DeviceRow.fingerprint, SignatureRow.key, SignatureRow.text)
    # Every row has both; said so as outer joins, PostgreSQL keeps to the order of the measurements.
    query = query.outerjoin(DeviceRow, DeviceRow.id == MeasurementRow.device_id)
    return query.outerjoin(SignatureRow, SignatureRow.id == MeasurementRow.signature_id)


def _newest(session: Session, query: _Query, before: int, limit: int) -> list[_Line]:
    return list(session.execute(query.where(MeasurementRow.id < before).order_by(MeasurementRow.id.desc()).limit(limit)))


def _newest_of_device(session: Session, query: _Query, device: int, before: int, limit: int) -> list[_Line]:
    """Return the newest measurements of one device, in the form that each database answers from its index.

    With a condition on the device alone, PostgreSQL expects the device's rows to lie evenly among all and walks through them by
    id, so there device and id are compared as one pair. SQLite would use only the device of such a pair, and read all newer rows.
    """
    if session.connection().dialect.name == "sqlite":
        return _newest(session, query.where(MeasurementRow.device_id == device), before, limit)
    key = (MeasurementRow.device_id, MeasurementRow.id)
    query = query.where(tuple_(*key) > tuple_(device, 0), tuple_(*key) < tuple_(device, before))
    return list(session.execute(query.order_by(*(column.desc() for column in key)).limit(limit)))


def _page_of_model(
    session: Session, query: _Query, model: int, before: Sequence[int], limit: int, here: Here
) -> Page[JudgedMeasurement]:
    """Return a page signature by signature, each the newest first: one index lookup for each, so that no join becomes a scan."""
    from_signature, from_id = before
    measured = query.with_only_columns(MeasurementRow.id).where(MeasurementRow.signature_id == ModelSignatureRow.signature_id)
    of_model = (
        select(ModelSignatureRow.signature_id)
        .where(ModelSignatureRow.model_id == model, ModelSignatureRow.signature_id <= from_signature, measured.exists())
        .order_by(ModelSignatureRow.signature_id.desc())
        .limit(limit + 2)  # each has at least one row, but the first may have none left
    )
    lines: list[_Line] = []
    for signature in session.scalars(of_model).all():
        of_signature = query.where(MeasurementRow.signature_id == signature)
        lines += _newest(session, of_signature, from_id if signature == from_signature else LAST_ID, limit + 1 - len(lines))
        if len(lines) > limit:
            break
    return _page(lines, limit, here, lambda row: f"{row.signature_id}.{row.id}")


def _page(lines: list[_Line], limit: int, here: Here, cursor: Callable[[_Line], str]) -> Page[JudgedMeasurement]:
    kept = lines[:limit]
    following = cursor(kept[-1]) if len(lines) > limit else None
    return Page(tuple(here.judge(_measurement(line)) for line in kept), following)


def _columns(item: Measurement, device: int, signature: int) -> dict[str, object]:
    names = ("engine_build", "kernel_source", *_WORK, *_EVIDENCE)
    values: dict[str, object] = {name: getattr(item, name) for name in names}
    return {**values, "device_id": device, "signature_id": signature, "strategy": str(item.strategy)}


def _measurement(row: _Line) -> Measurement:
    return Measurement(
        device_fingerprint=row.fingerprint,
        signature=row.text,
        signature_key=row.key,
        strategy=Strategy.parse(row.strategy),
        **{name: getattr(row, name) for name in ("engine_build", "kernel_source", *_WORK, *_EVIDENCE)},
    )


def _best_of_each_key(measurements: Iterable[Measurement]) -> list[Measurement]:
    """Keep the best measurement of each key: one INSERT statement must not meet a row twice."""
    best: dict[tuple[str, ...], Measurement] = {}
    for item in measurements:
        key = (item.device_fingerprint, item.signature_key, item.engine_build, item.kernel_source, str(item.strategy))
        held = best.get(key)
        if held is None or (item.samples, item.measured_us) > (held.samples, held.measured_us):
            best[key] = item
    return list(best.values())
