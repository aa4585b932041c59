"""Load over gRPC. Every client has a channel, and so a connection, of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

import grpc
import grpc.aio

from app.load.server import (
    CONNECTION,
    MAX_REASON,
    Asked,
    BatchStats,
    Client,
    FailedError,
    LoadError,
    ModelStats,
    Total,
    Totals,
    port_of,
)
from app.models.datatypes import datatype_of
from app.oip import tensors
from app.rpc.messages import SERVICE, ModelInferRequest, message
from graph.ir import Port

SCHEMES: Final = ("grpc", "grpcs")
ANSWER_S: Final = 30.0  # for an answer about the server or a model
_OPTIONS: Final = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # else channels to one address share a connection
    ("grpc.enable_http_proxy", 0),
]


class GrpcClient:
    """A client that sends one request again and again. channel: of its own. raw: the request, serialised."""

    def __init__(self, channel: Any, raw: bytes, metadata: tuple[tuple[str, str], ...]) -> None:
        self._channel, self._raw, self._metadata = channel, raw, metadata
        self._infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")

    async def send(self) -> None:
        """Send the request; see `Client.send`."""
        try:
            await self._infer(self._raw, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise failed(error) from None

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()


class GrpcServer:
    """A server that is spoken to over gRPC. key: its API key, or None."""

    def __init__(self, url: str, key: str | None = None) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise LoadError(f"load: address is {url[:200]!r}, {error}") from None
        if parts.scheme not in SCHEMES or not parts.hostname or not port or parts.path.strip("/") or parts.query:
            raise LoadError(f"load: address is {url[:200]!r}, need one like grpc://host:8001")
        self._address = f"[{parts.hostname}]:{port}" if ":" in parts.hostname else f"{parts.hostname}:{port}"
        self._secure = parts.scheme == "grpcs"
        self._metadata = (("authorization", f"Bearer {key}"),) if key else ()

    async def models(self) -> list[str]:
        """Return the names of the served models. Raises LoadError."""
        found = await self._ask("RepositoryIndex", message("RepositoryIndexRequest")(ready=True))
        return sorted({model.name for model in found.models})

    async def inputs(self, model: str, version: str) -> list[Port]:
        """Return the inputs of a model. Raises LoadError."""
        found = await self._ask("ModelMetadata", message("ModelMetadataRequest")(name=model, version=version))
        return [port_of(model, tensor.name, tensor.datatype, tensor.shape) for tensor in found.inputs]

    async def statistics(self, model: str, version: str) -> ModelStats | None:
        """Return the statistics of a model, of its newest version if "" is asked for; None if the server has none."""
        try:
            found = await self._call("ModelStatistics", message("ModelStatisticsRequest")(name=model, version=version))
        except FailedError as error:
            if error.kind == CONNECTION:
                raise LoadError(f"load: ModelStatistics of {self._address}: {error}") from None
            return None
        return max(map(_stats, found.model_stats), key=lambda row: int(row.version), default=None)

    def clients(self, asked: Asked) -> Callable[[], Client]:
        """Return a function that makes clients which send this request. Raises LoadError for JSON, which gRPC does not have."""
        if asked.encoding != "binary":
            raise LoadError("load: gRPC has no tensors as JSON, only binary ones")
        made = ModelInferRequest(model_name=asked.model, model_version=asked.version)
        for name, array in asked.feeds.items():
            made.inputs.add(name=name, datatype=datatype_of(array.dtype), shape=array.shape)
            made.raw_input_contents.append(tensors.to_bytes(array))
        raw = made.SerializeToString()
        return lambda: GrpcClient(self._channel(), raw, self._metadata)

    def _channel(self) -> Any:
        if self._secure:
            return grpc.aio.secure_channel(self._address, grpc.ssl_channel_credentials(), _OPTIONS)
        return grpc.aio.insecure_channel(self._address, _OPTIONS)

    async def _ask(self, method: str, asked: Any) -> Any:
        """Call a method. Raises LoadError where the server is not reached or refuses."""
        try:
            return await self._call(method, asked)
        except FailedError as error:
            raise LoadError(f"load: {method} of {self._address}: {error.kind}, {error}") from None

    async def _call(self, method: str, asked: Any) -> Any:
        async with self._channel() as channel:
            call = channel.unary_unary(f"/{SERVICE}/{method}")
            try:
                raw = await call(asked.SerializeToString(), timeout=ANSWER_S, metadata=self._metadata)
            except grpc.aio.AioRpcError as error:
                raise failed(error) from None
        return message(f"{method}Response").FromString(raw)


def failed(error: Any) -> FailedError:
    """Return the failure that a status stands for. A server that refuses says when to try again, one that is gone does not."""
    gone = error.code() is grpc.StatusCode.UNAVAILABLE and not error.trailing_metadata()
    return FailedError(CONNECTION if gone else error.code().name, (error.details() or "no reason given")[:MAX_REASON])


def _stats(entry: Any) -> ModelStats:
    times = entry.inference_stats
    batches = [BatchStats(batch.batch_size, _total(batch.compute_infer)) for batch in entry.batch_stats]
    return ModelStats(entry.version, entry.inference_count, Totals(_total(times.success), _total(times.queue)), batches)


def _total(duration: Any) -> Total:
    return Total(duration.count, duration.ns)
