"""The service over gRPC: the same engine, checks, keys, limits, metrics and logs as over HTTP, on a port of its own.

Every method reads its request as a stream of one message. So keys are checked before the message is read, and a client that
begins a request and does not send it is bounded in time. To the client it is the protocol's unary method.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import grpc
import grpc.aio
import structlog

from app.access.audit import Caller
from app.access.auth import Principal, Scope, check_scopes, sent_key
from app.engine.requests import Outcome
from app.errors import RequestError, refuse
from app.models.repository import Served
from app.oip import calls, exchange
from app.oip.request import CodecLimits, InferRequest, limits_of
from app.rpc import codec
from app.rpc.messages import HEALTH, SERVICE, ModelInferRequest, ModelStreamInferResponse
from app.rpc.methods import HEALTH_METHODS, METHODS, Method
from app.rpc.status import refusal_of
from app.service import Service
from app.settings import Settings
from app.watch.requests import Ended, choose_id, record_request
from scheduler.session import Session

log = structlog.get_logger("edgewise.grpc")

T = TypeVar("T")

STREAM_REQUESTS: Final = 16  # of one stream that are under way at once; further ones are read once earlier ones are answered
INFER: Final = frozenset({Scope.INFER})
_SHARED_MEMORY: Final = [
    f"{kind}SharedMemory{call}" for kind in ("System", "Cuda") for call in ("Status", "Register", "Unregister")
]


class RpcServer:
    """The gRPC server of one service. port: it listens on, once it has started."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._server: Any = None
        self.port = 0

    async def start(self) -> None:
        """Listen. Raises RequestError 500 where the port is taken."""
        settings = self._service.settings
        self._server = grpc.aio.server(options=_options(settings), maximum_concurrent_rpcs=settings.max_requests)
        services = _Methods(self._service).handlers()
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(*each) for each in services.items()])
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        try:
            self.port = self._server.add_insecure_port(f"{host}:{settings.grpc_port}")
        except RuntimeError as error:
            raise RequestError(500, f"EDGEWISE_GRPC_PORT: cannot listen on {host}:{settings.grpc_port}, {error}") from None
        await self._server.start()
        log.info("gRPC is served", address=f"{host}:{self.port}")

    async def stop(self, seconds: float) -> None:
        """Refuse new requests, let running ones end, and cancel those that have not after that many seconds.

        Called again it waits for the end that the first call began.
        """
        if self._server is not None:
            await self._server.stop(seconds)


def _options(settings: Settings) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", settings.max_body_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", settings.max_head_bytes),
        ("grpc.absolute_max_metadata_size", settings.max_head_bytes),
        ("grpc.max_concurrent_streams", settings.max_requests),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.max_connection_idle_ms", settings.keep_alive_s * 1000),
        ("grpc.server_handshake_timeout_ms", round(settings.head_timeout_s * 1000)),
        ("grpc.so_reuseport", 0),  # else a second server would take half of the first one's clients
    ]


_Answers = asyncio.Queue[asyncio.Task[bytes] | Exception | None]  # of a stream: under way, what ends it, or its end


@dataclass(slots=True)
class _Call:
    """A call that is being answered. headers: its metadata. logged: what its log line says besides."""

    path: str
    headers: dict[str, str]
    request_id: str
    logged: dict[str, Any] = field(default_factory=dict)


class _Methods:
    """Answers the calls of one service."""

    def __init__(self, service: Service) -> None:
        self._service, self._limits = service, limits_of(service.settings)

    def handlers(self) -> dict[str, dict[str, Any]]:
        """Return the handler of every method, by the names of its service and its own."""
        answers = {
            **{name: self._refuse_shared_memory(name) for name in _SHARED_MEMORY},
            **{name: self._plain(method) for name, method in METHODS.items()},
            "ModelInfer": self._infer,
        }
        found = {name: self._unary(f"/{SERVICE}/{name}", answer) for name, answer in answers.items()}
        found["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._stream)
        health = {name: self._unary(f"/{HEALTH}/{name}", self._plain(method)) for name, method in HEALTH_METHODS.items()}
        return {SERVICE: found, HEALTH: health}

    def _unary(self, path: str, answer: Callable[[_Call, Any], Awaitable[bytes]]) -> Any:
        async def called(_messages: object, context: Any) -> bytes:
            async with self._called(path, context) as call:
                return await answer(call, context)

        return grpc.stream_unary_rpc_method_handler(called)

    @contextlib.asynccontextmanager
    async def _called(self, path: str, context: Any) -> AsyncIterator[_Call]:
        """Give a call its id, log and count it, and answer errors with their status."""
        headers = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        call = _Call(path, headers, choose_id(headers.get("x-request-id", "")))
        started_ns, status = time.perf_counter_ns(), "OK"
        structlog.contextvars.bind_contextvars(request_id=call.request_id)
        try:
            await context.send_initial_metadata((("x-request-id", call.request_id),))
            yield call
        except asyncio.CancelledError:
            status = grpc.StatusCode.CANCELLED.name
            raise
        except Exception as error:  # noqa: BLE001  the server's last resort, as the handlers of HTTP are
            refusal = refusal_of(error, path)
            status = refusal.code.name
            await context.abort(refusal.code, refusal.text, refusal.metadata)
        finally:
            ended = Ended(path, "gRPC", path, status, time.perf_counter_ns() - started_ns)
            record_request(self._service.metrics, ended, call.logged)
            structlog.contextvars.clear_contextvars()

    async def _principal(self, call: _Call) -> Principal:
        """Return who sent a call, by the key in its metadata. Raises RequestError 401 or 503."""
        key = sent_key(call.headers)
        directory = self._service.directory
        return await (directory.by_key(key) if key else directory.local())

    async def _admit(self, call: _Call, scopes: frozenset[Scope]) -> Principal:
        """Count a request against its caller's rate and check the caller's scopes. Raises RequestError 401, 403, 429 or 503."""
        principal = await self._principal(call)
        self._service.rates.take(principal.account, principal.key.rate_per_s if principal.key else None)
        check_scopes(principal, scopes)
        return principal

    async def _read(self, context: Any) -> bytes | None:
        """Return the next message; None at the end of a stream. Raises RequestError 408 where none comes in time."""
        try:
            async with asyncio.timeout(self._service.settings.body_timeout_s):
                raw = await context.read()
        except TimeoutError:
            raise RequestError(408, f"request: no message within {self._service.settings.body_timeout_s:g} s") from None
        return None if raw is grpc.aio.EOF else raw

    @contextlib.asynccontextmanager
    async def _message(self, context: Any, kind: Any) -> AsyncIterator[Any]:
        """Read and parse the only message of a request, and count its bytes as held until it is answered."""
        raw = await self._read(context)
        if raw is None:
            raise refuse("request: the client sent no message")
        with self._held(len(raw)):
            asked = await self._parsed(kind, raw)
            del raw  # the message has a copy
            yield asked

    @contextlib.contextmanager
    def _held(self, nbytes: int) -> Iterator[None]:
        try:
            self._service.held.take(nbytes)
            yield
        finally:
            self._service.held.give(nbytes)

    async def _parsed(self, kind: Any, raw: bytes) -> Any:
        """Parse a message, a large one off the event loop. Raises RequestError 400."""
        large = len(raw) > exchange.LARGE_BYTES
        return await self._service.engine.call(codec.parse, kind, raw) if large else codec.parse(kind, raw)

    def _plain(self, method: Method) -> Callable[[_Call, Any], Awaitable[bytes]]:
        async def answer(call: _Call, context: Any) -> bytes:
            principal = await self._admit(call, method.scopes) if method.scopes else None
            async with self._message(context, method.request) as asked:
                if method.scopes:
                    check_scopes(principal, method.scopes_of(asked))
                caller = Caller(principal.name if principal else "", call.request_id)
                reply = await method.answer(self._service, caller, asked)
                return bytes(reply.SerializeToString())

        return answer

    def _refuse_shared_memory(self, name: str) -> Callable[[_Call, Any], Awaitable[bytes]]:
        async def answer(call: _Call, _context: Any) -> bytes:
            await self._admit(call, frozenset({Scope.INFER, Scope.READ}))
            raise calls.refuse_shared_memory("system" if name.startswith("System") else "cuda")

        return answer

    async def _infer(self, call: _Call, context: Any) -> bytes:
        await self._admit(call, INFER)
        async with self._message(context, ModelInferRequest) as asked:
            answer, call.logged = await self._run(call, asked, _deadline_ns(context), _unary_answer)
            return answer

    async def _run(
        self, call: _Call, asked: Any, deadline_ns: int | None, wrap: Callable[[Any], Any]
    ) -> tuple[bytes, dict[str, Any]]:
        """Run a model on a ModelInferRequest. Returns the answer, and what the log says of it. wrap: makes the reply of it."""
        name, version = asked.model_name, asked.model_version or None
        one = _Exchange(asked, self._limits, call.request_id, deadline_ns, wrap)
        return await exchange.infer(self._service, name, version, one)

    async def _stream(self, _messages: object, context: Any) -> None:
        """Answer the requests of a stream in their order, up to STREAM_REQUESTS of them at once."""
        async with self._called(f"/{SERVICE}/ModelStreamInfer", context) as call:
            check_scopes(await self._principal(call), INFER)
            answers: _Answers = asyncio.Queue(STREAM_REQUESTS)
            reading = asyncio.ensure_future(self._read_stream(call, context, answers))
            count = 0
            try:
                while (answer := await answers.get()) is not None:
                    if isinstance(answer, Exception):
                        raise answer
                    await context.write(await answer)
                    count += 1
            finally:
                call.logged = {"answers": count}
                reading.cancel()
                while not answers.empty():
                    left = answers.get_nowait()
                    if isinstance(left, asyncio.Task):
                        left.cancel()

    async def _read_stream(self, call: _Call, context: Any, answers: _Answers) -> None:
        """Begin to answer each message of a stream. None in the queue is its end, an error ends it."""
        try:
            while (raw := await self._read(context)) is not None:
                answering = asyncio.ensure_future(self._streamed(call, raw, _deadline_ns(context)))
                try:
                    await answers.put(answering)
                except asyncio.CancelledError:
                    answering.cancel()
                    raise
            await answers.put(None)
        except Exception as error:  # noqa: BLE001  for the call to be answered with
            await answers.put(error)

    async def _streamed(self, call: _Call, raw: bytes, deadline_ns: int | None) -> bytes:
        """Answer one request of a stream. Its errors are an answer too: the stream goes on."""
        try:
            with self._held(len(raw)):
                await self._admit(call, INFER)
                asked = await self._parsed(ModelInferRequest, raw)
                del raw  # the message has a copy
                answer, _ = await self._run(call, asked, deadline_ns, _streamed_answer)
                return answer
        except Exception as error:  # noqa: BLE001  as in `_called`
            refusal = refusal_of(error, call.path)
            return bytes(ModelStreamInferResponse(error_message=refusal.text).SerializeToString())


class _Exchange:
    """A request for inference in a message, and the message that answers it."""

    def __init__(
        self, asked: Any, limits: CodecLimits, request_id: str, deadline_ns: int | None, wrap: Callable[[Any], Any]
    ) -> None:
        self.request_id, self.deadline_ns = request_id, deadline_ns
        self._asked, self._limits, self._wrap = asked, limits, wrap

    async def receive(self) -> int:
        """Return the bytes that are decoded one by one: all but those of raw numbers."""
        return codec.slow_bytes(self._asked)

    def decode(self, _served: Served, _session: Session) -> InferRequest:
        """Decode the message, and let go of it: the arrays have copies of what it holds."""
        asked, self._asked = self._asked, None
        return codec.decode(asked, self._limits)

    def encode(self, asked: InferRequest, served: Served, outcome: Outcome) -> bytes:
        """Encode and serialise the answer."""
        return bytes(self._wrap(codec.encode(asked, served, outcome)).SerializeToString())

    async def attend(self, work: Awaitable[T]) -> T:
        """Await the work. gRPC itself cancels a call whose client has left, or waits no longer."""
        return await work


def _unary_answer(reply: Any) -> Any:
    return reply


def _streamed_answer(reply: Any) -> Any:
    return ModelStreamInferResponse(infer_response=reply)


def _deadline_ns(context: Any) -> int | None:
    """Return when the client of a call stops waiting, on the monotonic clock; None if it waits for ever."""
    left_s = context.time_remaining()
    return None if left_s is None else time.monotonic_ns() + round(left_s * 1e9)
