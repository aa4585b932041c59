"""/v1/devices: devices with stored profiles."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import APIRouter
from pydantic import BaseModel

from app.access.auth import Scope, needs
from app.service import EnginePart, StoragePart
from app.v1.paging import Cursor, Limit, PageOut
from scheduler.store import StoredDevice

router = APIRouter()


class DeviceOut(BaseModel):
    """A device. profile: its measured peak rates, bandwidths and overheads; only in the reply for a single device."""

    fingerprint: str
    name: str
    created_us: int
    updated_us: int
    profile: dict[str, Any] | None = None


@router.get("/devices")
@needs(Scope.READ)
async def list_devices(storage: StoragePart, engine: EnginePart, limit: Limit = 50, cursor: Cursor = None) -> PageOut[DeviceOut]:
    """List the devices with stored profiles, without the profiles."""
    page = await engine.call(lambda: storage.store.devices.page(limit, cursor))
    return PageOut(items=[describe_device(item) for item in page.items], next=page.next)


@router.get("/devices/{fingerprint}")
@needs(Scope.READ)
async def get_device(storage: StoragePart, engine: EnginePart, fingerprint: str) -> DeviceOut:
    """Return one device with its profile. "local" is the service's own machine, which is measured first if it is new."""

    def work() -> DeviceOut:
        key = storage.device(fingerprint).fingerprint if fingerprint == "local" else fingerprint
        stored = storage.store.devices.get(key)
        return describe_device(stored).model_copy(update={"profile": orjson.loads(stored.profile)})

    return await engine.call(work)


def describe_device(stored: StoredDevice) -> DeviceOut:
    """Return a stored device as the API shows it, without its profile."""
    times = {"created_us": stored.created_us, "updated_us": stored.updated_us}
    return DeviceOut(fingerprint=stored.fingerprint, name=stored.name, **times)
