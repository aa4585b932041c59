"""The tables of devices and of models."""

from __future__ import annotations

from sqlalchemy import select

from profiler.device.profile import DeviceProfile
from scheduler.errors import NotFoundError
from scheduler.store.database import Database
from scheduler.store.lookups import newest_first, upsert
from scheduler.store.records import Page, StoredDevice, StoredModel, cursor_ids, document, now_us, page_limit, short
from scheduler.store.schema import DeviceRow, ModelRow


class Devices:
    """Device profiles by fingerprint; saving one again replaces it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def save(self, profile: DeviceProfile) -> None:
        """Store a profile, replacing the one of the same fingerprint."""
        moment = now_us()
        row = {
            "fingerprint": profile.fingerprint,
            "name": short(profile.name),
            "profile": document("device profile", profile.to_json()),
            "created_us": moment,
            "updated_us": moment,
        }
        replaced = ("name", "profile", "updated_us")
        self._database.write(lambda session: upsert(session, DeviceRow, "fingerprint", row, replaced))

    def get(self, fingerprint: str) -> StoredDevice:
        """Return a device. Raises NotFoundError."""
        row = self._database.read(lambda session: session.scalar(select(DeviceRow).where(DeviceRow.fingerprint == fingerprint)))
        if row is None:
            raise NotFoundError(f"device {fingerprint}: not stored")
        return _device(row)

    def page(self, limit: int | None = None, cursor: str | None = None) -> Page[StoredDevice]:
        """Return a page of all devices. Raises RecordFormatError."""
        (before,), bound = cursor_ids(cursor), page_limit(limit)
        return self._database.read(lambda session: newest_first(session, select(DeviceRow), DeviceRow.id, bound, before, _device))


class Models:
    """Models by digest; saving one again replaces its name and summary."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def save(self, digest: str, name: str, nbytes: int, summary: str = "{}") -> None:
        """Store a model, replacing the one of the same digest. summary: JSON."""
        moment = now_us()
        row = {
            "digest": digest,
            "name": short(name),
            "nbytes": nbytes,
            "summary": document("model summary", summary),
            "created_us": moment,
            "updated_us": moment,
        }
        replaced = ("name", "nbytes", "summary", "updated_us")
        self._database.write(lambda session: upsert(session, ModelRow, "digest", row, replaced))

    def get(self, digest: str) -> StoredModel:
        """Return a model. Raises NotFoundError."""
        row = self._database.read(lambda session: session.scalar(select(ModelRow).where(ModelRow.digest == digest)))
        if row is None:
            raise NotFoundError(f"model {digest}: not stored")
        return _model(row)

    def page(self, name: str | None = None, limit: int | None = None, cursor: str | None = None) -> Page[StoredModel]:
        """Return a page of all models, or of those with exactly that name. Raises RecordFormatError."""
        (before,), bound = cursor_ids(cursor), page_limit(limit)
        query = select(ModelRow) if name is None else select(ModelRow).where(ModelRow.name == name)
        return self._database.read(lambda session: newest_first(session, query, ModelRow.id, bound, before, _model))


def _device(row: DeviceRow) -> StoredDevice:
    return StoredDevice(row.fingerprint, row.name, row.profile, row.created_us, row.updated_us)


def _model(row: ModelRow) -> StoredModel:
    return StoredModel(row.digest, row.name, row.nbytes, row.summary, row.created_us, row.updated_us)
