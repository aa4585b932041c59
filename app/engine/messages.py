"""Messages between the service and its engine processes: orders and replies as msgpack, length-prefixed, over a socket pair."""

from __future__ import annotations

import socket
import struct

import msgspec

from app.engine.slab import Tensor
from app.errors import UnbuiltError
from graph.errors import RunCancelledError, RunTimeoutError
from kernels.errors import DeviceLostError, EdgewiseError, InvalidError, OutOfMemoryError, UnsupportedError, exhausted

MAX_MESSAGE_BYTES = 80 * 2**20  # a plan may be 64 MiB of JSON
_LENGTH = struct.Struct("<I")

Shapes = dict[str, tuple[int, ...]]


class ModelFile(msgspec.Struct, frozen=True):
    """A model file to load, its expected digest, and how to run it.

    path: "" if the file was not kept. threads: of one run. instances: runs at once. model_bytes, arena_bytes: limits.
    process_bytes: limit of all models of the process and their runs together.
    """

    name: str
    path: str
    digest: str
    threads: int
    instances: int
    model_bytes: int
    arena_bytes: int
    process_bytes: int


class LoadModel(msgspec.Struct, frozen=True, tag=True):
    """Load a model; `model` is the number under which later orders name it."""

    id: int
    model: int
    file: ModelFile


class FollowPlan(msgspec.Struct, frozen=True, tag=True):
    """Run this plan, given as JSON, from now on."""

    id: int
    model: int
    plan: bytes


class ProveRows(msgspec.Struct, frozen=True, tag=True):
    """Ask why rows of these shapes (without axis 0) may not share a run. The reply is a Done with the reason."""

    id: int
    model: int
    shapes: Shapes


class PrepareShapes(msgspec.Struct, frozen=True, tag=True):
    """Build the code for these input shapes."""

    id: int
    model: int
    shapes: Shapes


class RunBatch(msgspec.Struct, frozen=True, tag=True):
    """Run a batch.

    region, nbytes: where its inputs lie in shared memory. ends_ns: when the run must have ended, on the monotonic clock.
    build: build missing code within the run, rather than refuse. freed: regions of replies that were read.
    """

    id: int
    model: int
    region: int
    nbytes: int
    inputs: dict[str, Tensor]
    ends_ns: int | None
    build: bool
    freed: list[int]


class CancelRun(msgspec.Struct, frozen=True, tag=True):
    """End the run with this number, or do not start it. reason: why."""

    id: int
    reason: str


class DropModel(msgspec.Struct, frozen=True, tag=True):
    """Unload a model."""

    model: int


class FreeReplies(msgspec.Struct, frozen=True, tag=True):
    """Reuse the space of these replies, which were read."""

    regions: list[int]


class Done(msgspec.Struct, frozen=True, tag=True):
    """An order is done. reason: the answer to ProveRows, "" if rows may share a run."""

    id: int
    reason: str = ""


class RunResult(msgspec.Struct, frozen=True, tag=True):
    """Result of a run. region, nbytes: where its outputs lie in shared memory until freed. compute_ns: of the run alone."""

    id: int
    region: int
    nbytes: int
    outputs: dict[str, Tensor]
    compute_ns: int
    plan_id: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    """An order failed. kind: a key of `_KINDS`."""

    id: int
    kind: str
    message: str


Order = LoadModel | FollowPlan | ProveRows | PrepareShapes | RunBatch | CancelRun | DropModel | FreeReplies
Reply = Done | RunResult | Failed

_KINDS: dict[str, type[EdgewiseError]] = {
    "invalid": InvalidError,
    "unsupported": UnsupportedError,
    "lost": DeviceLostError,
    "unbuilt": UnbuiltError,
    "memory": OutOfMemoryError,
    "cancelled": RunCancelledError,
    "late": RunTimeoutError,
    "failed": EdgewiseError,
}
_ENCODER = msgspec.msgpack.Encoder()
_ORDERS = msgspec.msgpack.Decoder(Order)
_REPLIES = msgspec.msgpack.Decoder(Reply)


def failure(number: int, error: Exception) -> Failed:
    """Return an error as a message. The text of an unexpected error is left out: it may hold anything."""
    if isinstance(error, MemoryError):
        error = exhausted("engine", error)
    kind = next((name for name, kind in _KINDS.items() if isinstance(error, kind)), None)
    return Failed(number, kind or "failed", str(error) if kind else f"engine: {type(error).__name__}, its log has the details")


def error_of(failed: Failed) -> EdgewiseError:
    """Return the error that a message stands for."""
    return _KINDS.get(failed.kind, EdgewiseError)(failed.message)


def frame(message: Order | Reply) -> bytes:
    """Encode a message, with its length before it."""
    body = _ENCODER.encode(message)
    return _LENGTH.pack(len(body)) + body


class Frames:
    """Decodes replies from a stream of bytes."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Reply]:
        """Add received bytes and return the complete replies. Raises DeviceLostError for a message that cannot be decoded."""
        self._buffer += data
        found: list[Reply] = []
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > MAX_MESSAGE_BYTES:
                raise DeviceLostError(f"engine: a message of {length} bytes, the limit is {MAX_MESSAGE_BYTES}")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                break
            try:
                found.append(_REPLIES.decode(bytes(self._buffer[_LENGTH.size : end])))
            except msgspec.DecodeError as error:
                raise DeviceLostError(f"engine: a message that cannot be decoded, {error}") from None
            del self._buffer[:end]
        return found


def receive(stream: socket.socket) -> Order | None:
    """Wait for the next order; None at the end of the stream."""
    head = _exactly(stream, _LENGTH.size)
    body = None if head is None else _exactly(stream, _LENGTH.unpack(head)[0])
    return None if body is None else _ORDERS.decode(body)


def _exactly(stream: socket.socket, count: int) -> bytes | None:
    found = bytearray()
    while len(found) < count:
        data = stream.recv(count - len(found))
        if not data:
            return None
        found += data
    return bytes(found)
