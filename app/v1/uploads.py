"""POST /v1/models: upload a model file, which is added to the model folder only after it has been loaded."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated, BinaryIO

from fastapi import APIRouter, Query, Request

from app.access.audit import caller_of
from app.access.auth import Scope, needs
from app.errors import RequestError
from app.models.files import MODEL_FILE, check_name, staging
from app.models.repository import Served
from app.oip.calls import require_control
from app.service import Serving
from app.settings import DEMO_MODELS, Settings
from app.v1.models import ModelOut, describe
from kernels.private import private_opener

WRITE_BYTES = 1 << 20  # collected before a thread writes them

router = APIRouter()


@router.post("/models")
@needs(Scope.ADMIN)
async def upload_model(
    request: Request, service: Serving, name: Annotated[str, Query(max_length=256)], replace: bool = False
) -> ModelOut:
    """Upload an ONNX file as the body, load it and serve it as `name`. A file that cannot be loaded leaves nothing behind.

    With replace=true an existing file is replaced; the old model is served until the new one is ready.
    """
    require_control(service.settings, service.health)
    if reason := refusal(service.settings):
        raise RequestError(403, f"upload: {reason}")
    repository, name = service.repository, check_name(name)
    repository.check_place(name, replace=replace)
    try:
        with staging(repository.folder) as made:
            staged = made / f"{name}{MODEL_FILE.suffix}"
            nbytes = await _write(request, staged)
            served: Served = await service.engine.call(repository.admit, name, staged, replace=replace)
    except OSError as error:
        raise RequestError(503, f"upload: the model folder cannot be written to, {error.strerror}") from None
    await service.engine.load(served)
    service.audit.record(caller_of(request), "model.upload", f"{served.name} {nbytes} bytes")
    return describe(served)


def refusal(settings: Settings) -> str:
    """Return why this service takes no uploads; "" if it takes them."""
    if not settings.max_upload_bytes:
        return "uploads are switched off, see EDGEWISE_MAX_UPLOAD_BYTES"
    if settings.models.resolve() == DEMO_MODELS.resolve():
        return "the bundled demo is served, whose folder is not changed; serve a folder of your own with --models"
    return "" if os.access(settings.models, os.W_OK) else "the model folder is read-only"


async def _write(request: Request, staged: Path) -> int:
    """Write the body to a file and return its size in bytes. Raises OSError; RequestError 400 for an empty body."""
    nbytes, gathered = 0, bytearray()
    with await asyncio.to_thread(open, staged, "xb", opener=private_opener) as file:
        async for part in request.stream():
            gathered += part
            nbytes += len(part)
            if len(gathered) >= WRITE_BYTES:
                await asyncio.to_thread(file.write, gathered)
                gathered = bytearray()
        await asyncio.to_thread(_finish, file, gathered)
    if not nbytes:
        raise RequestError(400, "upload: the body is empty, need an ONNX file")
    return nbytes


def _finish(file: BinaryIO, rest: bytes | bytearray) -> None:
    """Write the rest and flush it to disk, since the file is then renamed into place."""
    file.write(rest)
    file.flush()
    os.fsync(file.fileno())
