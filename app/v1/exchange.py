"""/v1 routes for agents: they send device profiles and measurements, and fetch files of served models."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel
from starlette.responses import FileResponse

from app.access.auth import Scope, needs
from app.errors import RequestError
from app.service import QuickCallsPart, RepositoryPart, StoragePart
from app.v1.devices import DeviceOut, describe_device
from profiler.device.profile import DeviceProfile
from scheduler.errors import NotFoundError, RecordFormatError
from scheduler.store.transfer import import_measurements

router = APIRouter()
Fingerprint = Annotated[str, Path(pattern=r"^[0-9a-f]{16}$")]
Digest = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]


class ImportedOut(BaseModel):
    """Number of records read, whether or not they replaced stored ones."""

    devices: int
    measurements: int


@router.put("/devices/{fingerprint}")
@needs(Scope.ADMIN)
async def put_device(request: Request, storage: StoragePart, quick_calls: QuickCallsPart, fingerprint: Fingerprint) -> DeviceOut:
    """Store a device's profile, replacing an earlier one. The body is the profile's JSON; its fingerprint must match (400)."""
    body = await request.body()

    def work() -> DeviceOut:
        profile = DeviceProfile.from_json(body)
        if profile.fingerprint != fingerprint:
            raise RecordFormatError(f"device profile: its fingerprint is {profile.fingerprint}, need {fingerprint}")
        storage.store.devices.save(profile)
        return describe_device(storage.store.devices.get(fingerprint))

    return await quick_calls.call(work)


@router.post("/measurements")
@needs(Scope.ADMIN)
async def add_measurements(request: Request, storage: StoragePart, quick_calls: QuickCallsPart) -> ImportedOut:
    """Merge measurements. The body is JSON lines as written by `edgewise db export`.

    Of two measurements of the same thing, the one with more samples stays. Sending them again changes nothing.
    """
    lines = (await request.body()).decode("utf-8", "replace").split("\n")  # not splitlines: names may hold other line ends
    imported = await quick_calls.call(lambda: import_measurements(storage.store, lines))
    return ImportedOut(devices=imported.devices, measurements=imported.measurements)


@router.get("/models/{digest}/file", response_class=FileResponse)
@needs(Scope.ADMIN)
async def get_model_file(repository: RepositoryPart, digest: Digest) -> FileResponse:
    """Return the ONNX file of a served model, by the model's digest."""
    served = repository.by_digest(digest)
    if not served.path.is_file():
        raise NotFoundError(f"model {digest}: its file no longer exists")
    if served.session is not None and served.session.model.nbytes != served.path.stat().st_size:
        raise RequestError(400, f"model {digest}: it has external data, only models of one file are sent")
    return FileResponse(served.path, media_type="application/octet-stream", headers={"Cache-Control": "no-store"})
