"""Load over HTTP: a client with as little in its way as Python allows, since its own time counts as the server's.

It is uvicorn's parser (httptools) on a connection of asyncio. A general client costs several times as much for each request;
see docs/load.md. Redirects are answers like any other, and proxies of the environment are not used: only the address that the
user named is sent anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlsplit

import httptools
import msgspec
import orjson

from app.errors import RequestError
from app.load.server import CONNECTION, MAX_REASON, Asked, Client, FailedError, LoadError, ModelStats, port_of
from app.models.datatypes import datatype_of
from app.oip import tensors
from graph.ir import Port
from kernels.record import record
from kernels.version import VERSION

T = TypeVar("T")

MAX_ANSWER_BYTES: Final = 1 << 30
AGENT: Final = f"edgewise-load/{VERSION}"  # so that a server's owner sees what sends
ANSWER_S: Final = 30.0  # for an answer about the server or a model
_PORTS: Final = {"http": 80, "https": 443}


class _Models(msgspec.Struct):
    models: list[str]


class _Tensor(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]


class _Metadata(msgspec.Struct):
    inputs: list[_Tensor]


class _Statistics(msgspec.Struct):
    model_stats: list[ModelStats]


@record
class Answer:
    """A whole answer. status: of HTTP."""

    status: int
    body: bytes


@record
class Address:
    """Where a server listens. prefix: of every path, "" or "/a/b"."""

    scheme: str
    host: str
    port: int
    prefix: str = ""

    def request(self, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> bytes:
        """Return the bytes of a request."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        known = {
            "Host": f"{host}:{self.port}",
            "User-Agent": AGENT,
            "Content-Length": str(len(body)),
            "Accept-Encoding": "identity",
        }
        lines = [f"{method} {self.prefix}{path} HTTP/1.1", *(f"{name}: {value}" for name, value in (known | headers).items())]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def parse_address(url: str) -> Address:
    """Read an address like http://host:8000. Raises LoadError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise LoadError(f"load: address is {url[:200]!r}, {error}") from None
    if parts.scheme not in _PORTS or not parts.hostname or parts.query or parts.fragment or parts.username is not None:
        raise LoadError(f"load: address is {url[:200]!r}, need one like http://host:8000")
    return Address(parts.scheme, parts.hostname, port or _PORTS[parts.scheme], quote(parts.path.rstrip("/"), safe="/%"))


class Connection(asyncio.Protocol):
    """A connection of HTTP/1.1. The methods named on_… are called by its parser."""

    def __init__(self) -> None:
        self.open = False
        self._parser: Any = httptools.HttpResponseParser(self)
        self._transport: Any = None  # of asyncio or uvloop
        self._answer: asyncio.Future[Answer] | None = None
        self._parts: list[bytes] = []
        self._received_bytes = 0

    async def ask(self, request: bytes) -> Answer:
        """Send a request and return its whole answer. Raises ConnectionError where none comes, or one that is not HTTP."""
        self._parts, self._received_bytes = [], 0
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        """Close it at once."""
        self.open = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport."""
        self._transport, self.open = transport, True

    def connection_lost(self, error: Exception | None) -> None:
        """Fail the request that waits."""
        self._fail(str(error) if error else "the server closed the connection")

    def data_received(self, data: bytes) -> None:
        """Parse what arrived."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"the answer is not HTTP, {error}")
            self.close()

    def on_body(self, part: bytes) -> None:
        """Keep a part of the body."""
        self._received_bytes += len(part)
        if self._received_bytes > MAX_ANSWER_BYTES:
            self._fail(f"an answer of more than {MAX_ANSWER_BYTES} bytes, the limit")
            self.close()
        else:
            self._parts.append(part)

    def on_message_complete(self) -> None:
        """Hand over the answer."""
        self.open = self.open and self._parser.should_keep_alive()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(Answer(self._parser.get_status_code(), b"".join(self._parts)))
        if not self.open:
            self.close()

    def _fail(self, reason: str) -> None:
        self.open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError(reason))


class HttpClient:
    """A client that sends one request again and again."""

    def __init__(self, address: Address, request: bytes) -> None:
        self._address, self._request = address, request
        self._connection: Connection | None = None

    async def send(self) -> None:
        """Send the request; see `Client.send`."""
        answer = await self.ask(self._request)
        if answer.status != 200:
            raise FailedError(str(answer.status), _reason(answer))

    async def ask(self, request: bytes) -> Answer:
        """Send any request and return its answer. Raises FailedError of kind "connection"."""
        try:
            if self._connection is None or not self._connection.open:
                self._connection = await connect(self._address)
            return await self._connection.ask(request)
        except OSError as error:
            self._drop()
            raise FailedError(CONNECTION, f"{self._address.host}:{self._address.port}: {error}") from None
        except asyncio.CancelledError:
            self._drop()
            raise

    async def close(self) -> None:
        """Close the connection."""
        self._drop()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


async def connect(address: Address) -> Connection:
    """Open a connection. Raises OSError."""
    secure = ssl.create_default_context() if address.scheme == "https" else None
    _, made = await asyncio.get_running_loop().create_connection(Connection, address.host, address.port, ssl=secure)
    return made


class HttpServer:
    """A server that is spoken to over HTTP. key: its API key, or None."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self.address = parse_address(url)
        if key is not None and not (key.isascii() and key.isprintable()):
            raise LoadError("load: the API key holds characters that a header cannot carry")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    async def models(self) -> list[str]:
        """Return the names of the served models. Raises LoadError."""
        return (await self._get("/v2/models", _Models)).models

    async def inputs(self, model: str, version: str) -> list[Port]:
        """Return the inputs of a model. Raises LoadError."""
        found = await self._get(_path(model, version), _Metadata)
        return [port_of(model, tensor.name, tensor.datatype, tensor.shape) for tensor in found.inputs]

    async def statistics(self, model: str, version: str) -> ModelStats | None:
        """Return the statistics of a model, of its newest version if "" is asked for; None if the server has none."""
        answer = await self._ask(path := f"{_path(model, version)}/stats")
        if answer.status != 200:
            return None
        return max(_decoded(answer, path, _Statistics).model_stats, key=lambda row: int(row.version), default=None)

    def clients(self, asked: Asked) -> Callable[[], Client]:
        """Return a function that makes clients which send this request. Raises LoadError for tensors that have no JSON form."""
        request = self.address.request("POST", f"{_path(asked.model, asked.version)}/infer", *self._body(asked))
        return lambda: HttpClient(self.address, request)

    def _body(self, asked: Asked) -> tuple[dict[str, str], bytes]:
        """Return the headers and the body of a request for inference."""
        binary, inputs, tails = asked.encoding == "binary", [], []
        for name, array in asked.feeds.items():
            entry: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": datatype_of(array.dtype)}
            if binary:
                tails.append(tensors.to_bytes(array))
                entry["parameters"] = {"binary_data_size": len(tails[-1])}
            else:
                try:
                    entry["data"] = tensors.to_json(f"input {name!r}", array)
                except RequestError as error:
                    raise LoadError(f"load: {error}") from None
            inputs.append(entry)
        told = {"inputs": inputs, "parameters": {"binary_data_output": binary}}
        text = orjson.dumps(told, option=orjson.OPT_SERIALIZE_NUMPY)
        if not binary:
            return self._headers | {"Content-Type": "application/json"}, text
        headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(text))}
        return self._headers | headers, text + b"".join(tails)

    async def _get(self, path: str, kind: type[T]) -> T:
        """Return what a path answers. Raises LoadError where the server is not reached, refuses or answers something else."""
        answer = await self._ask(path)
        if answer.status != 200:
            raise LoadError(f"load: GET {path}: {answer.status}, {_reason(answer)}")
        return _decoded(answer, path, kind)

    async def _ask(self, path: str) -> Answer:
        client = HttpClient(self.address, b"")
        try:
            async with asyncio.timeout(ANSWER_S):
                return await client.ask(self.address.request("GET", path, self._headers))
        except FailedError as error:
            raise LoadError(f"load: {error}") from None
        except TimeoutError:
            raise LoadError(f"load: GET {path}: no answer within {ANSWER_S:g} s") from None
        finally:
            await client.close()


def _decoded(answer: Answer, path: str, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(answer.body, type=kind)
    except msgspec.DecodeError as error:
        raise LoadError(f"load: GET {path}: {str(error)[:MAX_REASON]}, is this the Open Inference Protocol?") from None


def _path(model: str, version: str) -> str:
    return f"/v2/models/{quote(model, safe='')}" + (f"/versions/{quote(version, safe='')}" if version else "")


def _reason(answer: Answer) -> str:
    """Return the text of an error's answer."""
    with contextlib.suppress(orjson.JSONDecodeError, KeyError, TypeError):
        return str(orjson.loads(answer.body)["error"])[:MAX_REASON]
    return answer.body[:MAX_REASON].decode("utf-8", "replace") or "no reason given"
