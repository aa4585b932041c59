"""/v1/devices: the devices whose profiles are stored."""

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
    """A known device. profile: what was measured on it; only of a single device."""

    fingerprint: str
    name: str
    created_us: int
    updated_us: int
    profile: dict[str, Any] | None = None


@router.get("/devices")
@needs(Scope.READ)
async def list_devices(storage: StoragePart, engine: EnginePart, limit: Limit = 50, cursor: Cursor = None) -> PageOut[DeviceOut]:
    """Devices whose profiles are stored."""
    page = await engine.call(lambda: storage.store.devices.page(limit, cursor))
    return PageOut(items=[describe_device(item) for item in page.items], next=page.next)


@router.get("/devices/{fingerprint}")
@needs(Scope.READ)
async def get_device(storage: StoragePart, engine: EnginePart, fingerprint: str) -> DeviceOut:
    """One device with what was measured; "local" is this machine, measured now when it is new."""

    def work() -> DeviceOut:
        key = storage.device(fingerprint).fingerprint if fingerprint == "local" else fingerprint
        stored = storage.store.devices.get(key)
        return describe_device(stored).model_copy(update={"profile": orjson.loads(stored.profile)})

    return await engine.call(work)


def describe_device(stored: StoredDevice) -> DeviceOut:
    """A stored device for the reply, without its profile."""
    times = {"created_us": stored.created_us, "updated_us": stored.updated_us}
    return DeviceOut(fingerprint=stored.fingerprint, name=stored.name, **times)
