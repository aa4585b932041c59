"""Helpers that the tables share: inserts that meet an existing row, ids by key, and pages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import Select, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import InstrumentedAttribute, Session

from scheduler.errors import NotFoundError
from scheduler.store.records import Page
from scheduler.store.schema import Base, DeviceRow, ModelRow, SignatureRow

CHUNK = 200  # keys in one IN (...)

T = TypeVar("T")
R = TypeVar("R", bound=Base)

Insert = sqlite.Insert | postgresql.Insert  # both say ON CONFLICT alike


def insert_into(session: Session, table: type[Base]) -> Insert:
    """Return an INSERT statement of this database's dialect."""
    dialect = session.connection().dialect.name
    return sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)


def upsert(session: Session, table: type[Base], key: str, row: Mapping[str, Any], replaced: Iterable[str]) -> None:
    """Insert a row, or replace the columns `replaced` of the row that has its key."""
    statement = insert_into(session, table).values(**row)
    excluded = statement.excluded
    session.execute(statement.on_conflict_do_update(index_elements=[key], set_={name: excluded[name] for name in replaced}))


def device_id(session: Session, fingerprint: str) -> int:
    """Return the row id of a device. Raises NotFoundError."""
    found = session.scalar(select(DeviceRow.id).where(DeviceRow.fingerprint == fingerprint))
    if found is None:
        raise NotFoundError(f"device {fingerprint}: not stored, save its profile first")
    return found


def model_id(session: Session, digest: str) -> int:
    """Return the row id of a model. Raises NotFoundError."""
    found = session.scalar(select(ModelRow.id).where(ModelRow.digest == digest))
    if found is None:
        raise NotFoundError(f"model {digest}: not stored, save it first")
    return found


def signature_ids(session: Session, signatures: Mapping[str, tuple[str, str]]) -> dict[str, int]:
    """Return the ids of signatures by key; new ones are inserted. signatures: key -> (op, text)."""
    found = ids_of_keys(session, signatures)
    # In the order of keys, like every other writer: two that insert the same ones wait for each other but never deadlock.
    missing = [
        {"key": key, "op": signatures[key][0], "text": signatures[key][1]} for key in sorted(signatures) if key not in found
    ]
    if missing:
        session.connection().execute(insert_into(session, SignatureRow).on_conflict_do_nothing(index_elements=["key"]), missing)
        found |= ids_of_keys(session, [row["key"] for row in missing])
    return found


def ids_of_keys(session: Session, keys: Iterable[str]) -> dict[str, int]:
    """Return the ids of signatures by key; keys that are not stored are left out."""
    found: dict[str, int] = {}
    for chunk in chunks(sorted(keys)):
        rows = session.execute(select(SignatureRow.key, SignatureRow.id).where(SignatureRow.key.in_(chunk)))
        found.update({key: number for key, number in rows})  # noqa: C416  a row is no pair to dict()
    return found


def chunks(items: Sequence[T], size: int = CHUNK) -> Iterable[Sequence[T]]:
    """Yield the items in groups of at most `size`."""
    return (items[start : start + size] for start in range(0, len(items), size))


def newest_first(
    session: Session,
    query: Select[R],
    id_column: InstrumentedAttribute[int],
    limit: int,
    before: int,
    make: Callable[[R], T],
) -> Page[T]:
    """Return one page of a query over one table, by descending id."""
    query = query.where(id_column < before).order_by(id_column.desc()).limit(limit + 1)
    found = list(session.scalars(query))
    kept = found[:limit]
    last = getattr(kept[-1], id_column.key) if len(found) > limit else None
    return Page(tuple(make(row) for row in kept), None if last is None else str(last))
