"""The protocol's routes: health, metadata, inference. Bodies are parsed by `app.oip.codec`, never by the framework."""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from app.metrics import COMPUTE, FAILURES, INFERENCES
from app.oip import codec
from app.oip.datatypes import datatype_of
from app.repository import Served, State
from app.state import Service, Serving
from graph.ir import Port
from kernels.errors import EdgewiseError
from kernels.spec import Array
from scheduler.session import Session

EXTENSIONS = ("binary_tensor_data", "classification", "parameters")
HEADER_LENGTH = "Inference-Header-Content-Length"

router = APIRouter()


@router.get("/v2/health/live")
async def live() -> dict[str, bool]:
    """The process answers."""
    return {"live": True}


@router.get("/v2/health/ready")
async def ready(service: Serving) -> Response:
    """Every model has been tried once, and none is still loading."""
    service.require_ready()
    return JSONResponse({"ready": True})


@router.get("/v2")
@router.get("/v2/", include_in_schema=False)
async def server_metadata(request: Request) -> dict[str, Any]:
    """Name, version and the extensions implemented."""
    return {"name": "edgewise", "version": request.app.version, "extensions": list(EXTENSIONS)}


@router.get("/v2/models")
async def models(service: Serving) -> dict[str, list[str]]:
    """Names of the served models."""
    return {"models": sorted({served.name for served in service.repository.models})}


@router.get("/v2/models/{name}/ready")
@router.get("/v2/models/{name}/versions/{version}/ready")
async def model_ready(service: Serving, name: str, version: str | None = None) -> dict[str, Any]:
    """Whether that model can run."""
    served, _ = service.repository.ready(name, version)
    return {"name": served.name, "ready": served.state is State.READY}


@router.get("/v2/models/{name}")
@router.get("/v2/models/{name}/versions/{version}")
async def model_metadata(service: Serving, name: str, version: str | None = None) -> dict[str, Any]:
    """Its versions, inputs and outputs."""
    repository = service.repository
    served, session = repository.ready(name, version)
    versions = [other.version for other in repository.models if other.name == served.name]
    return {
        "name": served.name,
        "versions": versions,
        "platform": "onnx_onnxv1",
        "inputs": [_tensor(port) for port in session.inputs],
        "outputs": [_tensor(port) for port in session.outputs],
    }


def _tensor(port: Port) -> dict[str, Any]:
    shape = [dim if isinstance(dim, int) else -1 for dim in port.dims or ()]
    return {"name": port.name, "datatype": datatype_of(port.dtype), "shape": shape}


@router.post("/v2/models/{name}/infer")
@router.post("/v2/models/{name}/versions/{version}/infer")
async def infer(request: Request, service: Serving, name: str, version: str | None = None) -> Response:
    """Run the model on one request."""
    served, session = service.repository.ready(name, version)
    try:
        return await _infer(request, service, served, session)
    except EdgewiseError:
        FAILURES.labels(served.name, served.version).inc()
        raise


async def _infer(request: Request, service: Service, served: Served, session: Session) -> Response:
    settings = service.settings
    limits = codec.CodecLimits(settings.max_body_bytes, settings.max_tensor_elements, settings.max_inputs)
    body = codec.decompress(await request.body(), request.headers.get("content-encoding", ""), limits.body_bytes)
    json_bytes = codec.header_length(request.headers.get(HEADER_LENGTH), len(body))
    asked = codec.decode(body, json_bytes, limits) if json_bytes else _raw(body, served, session)
    _check_inputs(asked, served, session)
    wanted = _wanted(asked, served, session)
    started = time.perf_counter()
    results = await service.engine.call(service.observed.run(session), asked.feeds)
    COMPUTE.labels(served.name, served.version).observe(time.perf_counter() - started)
    INFERENCES.labels(served.name, served.version).inc(_rows(asked.feeds))
    head: dict[str, Any] = {"model_name": served.name, "model_version": served.version}
    if asked.id:
        head["id"] = asked.id
    outputs = []
    for output in wanted:
        array = results[output.name]
        if output.classes:
            array = codec.classify(array, output.classes, served.card.labels.get(output.name, ()))
        outputs.append((output.name, array, output.binary))
    reply, length = codec.encode(head, outputs)
    return _reply(reply, length, request.headers.get("accept-encoding", ""))


def _raw(body: bytes, served: Served, session: Session) -> codec.InferRequest:
    if len(session.inputs) != 1:
        raise codec.refuse(f"raw body: model '{served.name}' has {len(session.inputs)} inputs, need exactly one")
    (port,) = session.inputs
    return codec.decode_raw(body, port.name, port.dtype, port.dims or ())


def _check_inputs(asked: codec.InferRequest, served: Served, session: Session) -> None:
    names = [port.name for port in session.inputs]
    for name in asked.feeds:
        if name not in names:
            raise codec.refuse(f"unexpected inference input '{name[:128]}' for model '{served.name}', it has {', '.join(names)}")
    if len(asked.feeds) != len(names):
        missing = ", ".join(name for name in names if name not in asked.feeds)
        raise codec.refuse(
            f"expected {len(names)} inputs but got {len(asked.feeds)} inputs for model '{served.name}', missing {missing}"
        )


def _wanted(asked: codec.InferRequest, served: Served, session: Session) -> tuple[codec.OutputRequest, ...]:
    names = [port.name for port in session.outputs]
    if not asked.outputs:
        return tuple(codec.OutputRequest(name, asked.binary_default) for name in names)
    for output in asked.outputs:
        if output.name not in names:
            raise codec.refuse(
                f"unexpected inference output '{output.name[:128]}' for model '{served.name}', it has {', '.join(names)}"
            )
    return asked.outputs


def _rows(feeds: Mapping[str, Array]) -> int:
    first = next(iter(feeds.values()), None)
    return int(first.shape[0]) if first is not None and first.ndim else 1


def _reply(body: bytes, json_bytes: int | None, accepted: str) -> Response:
    """The reply; compressed only when the client asks for exactly gzip or deflate, since others list all they can read."""
    headers = {} if json_bytes is None else {HEADER_LENGTH: str(json_bytes)}
    media_type = "application/json" if json_bytes is None else "application/octet-stream"
    encoding = accepted.strip().lower()
    if encoding in ("gzip", "deflate"):
        deflater = zlib.compressobj(wbits=16 + zlib.MAX_WBITS if encoding == "gzip" else zlib.MAX_WBITS)
        body = deflater.compress(body) + deflater.flush()
        headers["Content-Encoding"] = encoding
    return Response(body, media_type=media_type, headers=headers)
