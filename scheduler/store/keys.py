"""The tables of API keys and of the audit log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from scheduler.errors import ConflictError, NotFoundError
from scheduler.store.database import Database
from scheduler.store.keymark import KeyMark
from scheduler.store.lookups import insert_into, newest_first
from scheduler.store.records import AuditEntry, KeyRing, Page, StoredKey, cursor_ids, now_us, page_limit, short
from scheduler.store.schema import ApiKeyRow, AuditRow

MAX_KEYS: Final = 10_000  # not revoked; a server holds them all in memory


class Keys:
    """API keys by prefix. They are revoked, never deleted, so that the audit log stays readable."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.mark = KeyMark.of_database(database.url)

    def add(
        self, prefix: str, name: str, secret_sha256: str, scopes: Iterable[str], expires_us: int | None, rate_per_s: float | None
    ) -> None:
        """Store a new key, and leave the mark that keys were made. Raises ConflictError when the prefix is taken, or there
        are too many.
        """
        row = {
            "prefix": prefix,
            "name": short(name),
            "secret_sha256": secret_sha256,
            "scopes": ",".join(sorted(scopes)),
            "rate_per_s": rate_per_s,
            "created_us": now_us(),
            "expires_us": expires_us,
        }
        if len(self.ring().usable) >= MAX_KEYS:
            raise ConflictError(f"key {prefix}: {MAX_KEYS} keys are in use, the limit; revoke some")

        def work(session: Session) -> int | None:
            statement = insert_into(session, ApiKeyRow).values(**row)
            added: int | None = session.scalar(
                statement.on_conflict_do_nothing(index_elements=["prefix"]).returning(ApiKeyRow.id)
            )
            return added

        self.mark.leave()  # first: a key that is stored without a mark would be forgotten with its database
        if self._database.write(work) is None:
            raise ConflictError(f"key {prefix}: the prefix is taken")

    def ring(self) -> KeyRing:
        """Return the keys that are not revoked, and whether one was ever made."""
        usable = select(ApiKeyRow).where(ApiKeyRow.revoked_us.is_(None)).order_by(ApiKeyRow.id).limit(MAX_KEYS)
        first = select(ApiKeyRow.id).limit(1)

        def work(session: Session) -> KeyRing:
            return KeyRing(session.scalar(first) is not None, tuple(_key(row) for row in session.scalars(usable)))

        return self._database.read(work)

    def page(self, limit: int | None = None, cursor: str | None = None) -> Page[StoredKey]:
        """Return a page of all keys, revoked ones included, the newest first. Raises RecordFormatError."""
        (before,), bound = cursor_ids(cursor), page_limit(limit)
        return self._database.read(lambda session: newest_first(session, select(ApiKeyRow), ApiKeyRow.id, bound, before, _key))

    def revoke(self, prefix: str) -> None:
        """Revoke a key for good; a revoked key stays revoked. Raises NotFoundError."""
        revoked = update(ApiKeyRow).where(ApiKeyRow.prefix == prefix, ApiKeyRow.revoked_us.is_(None)).values(revoked_us=now_us())
        found = select(ApiKeyRow.id).where(ApiKeyRow.prefix == prefix)

        def work(session: Session) -> int | None:
            session.execute(revoked)
            return session.scalar(found)

        if self._database.write(work) is None:
            raise NotFoundError(f"key {prefix[:40]}: not stored")

    def touch(self, used_us: Mapping[str, int]) -> None:
        """Store when keys were last used. used_us: prefix -> microseconds of UTC since 1970."""

        def work(session: Session) -> None:
            for prefix in sorted(used_us):  # in one order, like every other writer
                session.execute(update(ApiKeyRow).where(ApiKeyRow.prefix == prefix).values(last_used_us=used_us[prefix]))

        self._database.write(work)


class Audit:
    """The audit log: actions of administrators, in order. Entries are added and never changed."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, entries: Iterable[AuditEntry]) -> None:
        """Store entries."""
        rows = [
            {
                "at_us": entry.at_us,
                "actor": short(entry.actor),
                "action": entry.action[:64],
                "target": short(entry.target),
                "request_id": short(entry.request_id)[:128],
            }
            for entry in entries
        ]
        if rows:
            self._database.write(lambda session: session.execute(insert_into(session, AuditRow), rows))

    def page(self, limit: int | None = None, cursor: str | None = None) -> Page[AuditEntry]:
        """Return a page of entries, the newest first. Raises RecordFormatError."""
        (before,), bound = cursor_ids(cursor), page_limit(limit)
        return self._database.read(lambda session: newest_first(session, select(AuditRow), AuditRow.id, bound, before, _entry))


def _key(row: ApiKeyRow) -> StoredKey:
    return StoredKey(
        prefix=row.prefix,
        name=row.name,
        secret_sha256=row.secret_sha256,
        scopes=tuple(row.scopes.split(",")),
        rate_per_s=row.rate_per_s,
        created_us=row.created_us,
        expires_us=row.expires_us,
        revoked_us=row.revoked_us,
        last_used_us=row.last_used_us,
    )


def _entry(row: AuditRow) -> AuditEntry:
    return AuditEntry(row.at_us, row.actor, row.action, row.target, row.request_id)
