"""The inference route: decodes the body, runs the model, encodes the outputs. It bypasses FastAPI (see `DirectRoute`)."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from app.access.auth import DirectRoute, Scope, needs
from app.engine.lane import rows_of
from app.engine.requests import InferOptions, Outcome
from app.errors import CLIENT_GONE, RequestError, refuse, status_of
from app.models.datatypes import datatype_of
from app.models.repository import Served
from app.oip import codec, compression
from app.service import Service, service_of
from app.settings import LOOPBACK
from app.watch.flops import Shapes
from app.watch.statistics import Reason, Timed
from graph.ir import Port
from kernels.errors import EdgewiseError
from kernels.spec import Array
from scheduler.session import Session

HEADER_LENGTH = "Inference-Header-Content-Length"
LARGE_BYTES = 64 * 1024  # larger bodies are decoded, and larger replies encoded, off the event loop

T = TypeVar("T")


@needs(Scope.INFER)
async def infer(request: Request) -> Response:
    """Run a model on one request."""
    started_ns, service = time.perf_counter_ns(), service_of(request)
    with service.repository.lease(request.path_params["name"], request.path_params.get("version")) as (served, session):
        statistics = service.statistics.of(served.name, served.version)
        statistics.pending += 1
        try:
            call = _Call(request, service, served, session)
            timed, reply = await call.answer(started_ns)
        except BaseException as error:
            statistics.failed(_reason(error), time.perf_counter_ns() - started_ns)
            raise
        finally:
            statistics.pending -= 1
        service.recorder.record(served, session, call.shapes, timed, request.state.request_id)
        request.state.logged = {
            "model": served.name,
            "version": served.version,
            "plan": timed.outcome.plan_id[:12],
            "queue_ns": timed.outcome.queue_ns,
            "compute_ns": timed.outcome.compute_ns,
            "batch_rows": timed.outcome.batch_rows,
        }
    return reply


ROUTES = [
    DirectRoute(path, infer, methods=["POST"])
    for path in ("/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer")
]


def _reason(error: BaseException) -> Reason:
    """Return why a request failed, as a label of the failure metric."""
    if isinstance(error, asyncio.CancelledError | ClientDisconnect):
        return "CANCELED"
    status = status_of(error) if isinstance(error, EdgewiseError) else 500
    return (
        "CANCELED" if status == CLIENT_GONE else "REJECTED" if status in (429, 503) else "BACKEND" if status >= 500 else "OTHER"
    )


@dataclass(slots=True)
class _Call:
    """One inference request. shapes: of its inputs, once they are decoded."""

    request: Request
    service: Service
    served: Served
    session: Session
    shapes: Shapes = ()

    async def answer(self, started_ns: int) -> tuple[Timed, Response]:
        """Decode the request, run the model and encode the reply. started_ns: arrival, on the performance counter."""
        body = await self.request.body()
        decoding_ns = time.perf_counter_ns()
        asked = await self._somewhere(self._slow_bytes(body), self._decode, body)
        input_ns = time.perf_counter_ns() - decoding_ns
        self.shapes = tuple((name, array.shape) for name, array in asked.feeds.items())
        deadline_ns = time.monotonic_ns() + 1000 * asked.timeout_us if asked.timeout_us else None
        options = InferOptions(asked.priority, deadline_ns, asked.id or self.request.state.request_id)
        outcome = await _while_connected(self.request, self.service.engine.infer(self.served, asked.feeds, options))
        encoding_ns = time.perf_counter_ns()
        size = sum(array.nbytes for array in outcome.outputs.values())
        reply = await self._somewhere(size, self._encode, asked, outcome)
        ended_ns = time.perf_counter_ns()
        timed = Timed(outcome, rows_of(asked.feeds), input_ns, ended_ns - encoding_ns, ended_ns - started_ns)
        return timed, reply

    async def _somewhere(self, size: int, work: Callable[..., T], *arguments: object) -> T:
        """Do small work at once, and large work on a thread. size: in bytes."""
        return work(*arguments) if size <= LARGE_BYTES else await self.service.engine.call(work, *arguments)

    def _slow_bytes(self, body: bytes) -> int:
        """Return the bytes to decode; a compressed body counts as large, since its size is unknown."""
        headers = self.request.headers
        if "content-encoding" in headers:
            return LARGE_BYTES + 1
        return codec.slow_bytes(body, codec.header_length(headers.get(HEADER_LENGTH), len(body)))

    def _decode(self, body: bytes) -> codec.InferRequest:
        limits = codec.limits_of(self.service.settings)
        headers = self.request.headers
        plain = codec.decompress(body, headers.get("content-encoding", ""), limits.body_bytes)
        json_bytes = codec.header_length(headers.get(HEADER_LENGTH), len(plain))
        asked = codec.decode(plain, json_bytes, limits) if json_bytes else _raw(plain, self.served, self.session)
        _check_inputs(asked, self.served, self.session)
        return codec.InferRequest(
            asked.feeds,
            _wanted(asked, self.served, self.session),
            asked.binary_default,
            asked.id,
            asked.parameters,
            asked.priority,
            asked.timeout_us,
        )

    def _encode(self, asked: codec.InferRequest, outcome: Outcome) -> Response:
        head: dict[str, Any] = {"model_name": self.served.name, "model_version": self.served.version}
        if asked.id:
            head["id"] = asked.id
        head["parameters"] = {"plan_id": outcome.plan_id, "batch_rows": outcome.batch_rows}
        outputs = []
        for output in asked.outputs:
            array = outcome.outputs[output.name]
            if output.classes:
                array = codec.classify(output.name, array, output.classes, self.served.card.labels.get(output.name, ()))
            outputs.append((output.name, array, output.binary))
        body, length = codec.encode(head, outputs)
        return _reply(self.request, body, length)


async def _while_connected(request: Request, work: Awaitable[T]) -> T:
    """Await the work, but cancel it and raise RequestError 499 when the client closes the connection."""
    here = asyncio.current_task()
    watching, left = True, False

    def leave(received: asyncio.Future[Any]) -> None:
        nonlocal left
        if watching and here is not None and not received.cancelled():
            left = True
            here.cancel()

    gone = asyncio.ensure_future(request.receive())  # after the body, only a disconnect can be received
    gone.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if here is not None and left and not here.uncancel():
            raise RequestError(CLIENT_GONE, "request: the client closed the connection") from None
        raise
    finally:
        watching = False
        gone.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await gone


def _raw(body: bytes, served: Served, session: Session) -> codec.InferRequest:
    if len(session.inputs) != 1:
        raise refuse(f"raw body: model '{served.name}' has {len(session.inputs)} inputs, need exactly one")
    (port,) = session.inputs
    return codec.decode_raw(body, port.name, port.dtype, port.dims or ())


def _check_inputs(asked: codec.InferRequest, served: Served, session: Session) -> None:
    """Raise RequestError 400 if the feeds are not the model's inputs, in Triton's wording, on which clients rely."""
    ports = {port.name: port for port in session.inputs}
    for name in asked.feeds:
        if name not in ports:
            raise refuse(f"unexpected inference input '{name[:128]}' for model '{served.name}', it has {', '.join(ports)}")
    if len(asked.feeds) != len(ports):
        missing = ", ".join(name for name in ports if name not in asked.feeds)
        raise refuse(
            f"expected {len(ports)} inputs but got {len(asked.feeds)} inputs for model '{served.name}', missing {missing}"
        )
    for name, array in asked.feeds.items():
        _check_tensor(ports[name], array, served)


def _check_tensor(port: Port, array: Array, served: Served) -> None:
    if array.dtype != port.dtype:
        raise refuse(
            f"inference input '{port.name}' data-type is '{datatype_of(array.dtype)}', "
            f"model '{served.name}' expects '{datatype_of(port.dtype)}'"
        )
    dims = port.dims
    if dims is None:
        return
    fits = array.ndim == len(dims) and all(
        not isinstance(dim, int) or dim == size for dim, size in zip(dims, array.shape, strict=True)
    )
    if not fits:
        expected = ",".join(str(dim) if isinstance(dim, int) else "-1" for dim in dims)
        got = ",".join(map(str, array.shape))
        raise refuse(f"unexpected shape for input '{port.name}' for model '{served.name}'. Expected [{expected}], got [{got}].")


def _wanted(asked: codec.InferRequest, served: Served, session: Session) -> tuple[codec.OutputRequest, ...]:
    names = [port.name for port in session.outputs]
    if not asked.outputs:
        return tuple(codec.OutputRequest(name, asked.binary_default) for name in names)
    for output in asked.outputs:
        if output.name not in names:
            raise refuse(
                f"unexpected inference output '{output.name[:128]}' for model '{served.name}', it has {', '.join(names)}"
            )
    return asked.outputs


def _reply(request: Request, body: bytes, json_bytes: int | None) -> Response:
    headers = {} if json_bytes is None else {HEADER_LENGTH: str(json_bytes)}
    media_type = "application/json" if json_bytes is None else "application/octet-stream"
    near = request.client is None or request.client.host in LOOPBACK
    encoding = compression.choose(request.headers.get("accept-encoding", ""), near)
    if encoding != "identity":
        body = compression.compress(body, encoding)
        headers["Content-Encoding"] = encoding
    return Response(body, media_type=media_type, headers=headers)
