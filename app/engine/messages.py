"""What the service and its engine processes say to each other: small typed messages, length first, over a socket pair."""

from __future__ import annotations

import socket
import struct

import msgspec

from app.engine.slab import Tensor
from app.errors import UnbuiltError
from kernels.errors import DeviceLostError, EdgewiseError, InvalidError, UnsupportedError

MAX_MESSAGE_BYTES = 80 * 2**20  # a plan may be 64 MiB of JSON
_LENGTH = struct.Struct("<I")

Shapes = dict[str, tuple[int, ...]]


class ModelFile(msgspec.Struct, frozen=True):
    """A model as it is loaded to run: the file, what it must be, and how it runs.

    path: "" for one whose file is not kept. model_bytes, arena_bytes: the most it may be.
    """

    name: str
    path: str
    digest: str
    threads: int
    instances: int
    model_bytes: int
    arena_bytes: int


class LoadModel(msgspec.Struct, frozen=True, tag=True):
    """Load a model under a number of the sender's."""

    id: int
    model: int
    file: ModelFile


class FollowPlan(msgspec.Struct, frozen=True, tag=True):
    """Run a plan, given as JSON, from now on."""

    id: int
    model: int
    plan: bytes


class ProveRows(msgspec.Struct, frozen=True, tag=True):
    """Say why rows of these shapes (without axis 0) may not share a run."""

    id: int
    model: int
    shapes: Shapes


class PrepareShapes(msgspec.Struct, frozen=True, tag=True):
    """Get ready to run these shapes."""

    id: int
    model: int
    shapes: Shapes


class RunBatch(msgspec.Struct, frozen=True, tag=True):
    """Run once. region, nbytes: where the inputs lie. deadline_ns: on the monotonic clock. build: what is not ready for these
    shapes. freed: replies that were read."""

    id: int
    model: int
    region: int
    nbytes: int
    inputs: dict[str, Tensor]
    deadline_ns: int | None
    build: bool
    freed: list[int]


class CancelRun(msgspec.Struct, frozen=True, tag=True):
    """Do not start that run any more."""

    id: int


class DropModel(msgspec.Struct, frozen=True, tag=True):
    """Forget a model."""

    model: int


class FreeReplies(msgspec.Struct, frozen=True, tag=True):
    """These replies were read, their space may be used again."""

    regions: list[int]


class Done(msgspec.Struct, frozen=True, tag=True):
    """That is done. reason: the answer to Prove."""

    id: int
    reason: str = ""


class RunResult(msgspec.Struct, frozen=True, tag=True):
    """What a run gave. region, nbytes: where the outputs lie, until they are freed."""

    id: int
    region: int
    nbytes: int
    outputs: dict[str, Tensor]
    compute_ns: int
    plan_id: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    """That did not work. kind: see `failure`."""

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
    "failed": EdgewiseError,
}
_ENCODER = msgspec.msgpack.Encoder()
_ORDERS = msgspec.msgpack.Decoder(Order)
_REPLIES = msgspec.msgpack.Decoder(Reply)


def failure(number: int, error: Exception) -> Failed:
    """An error as a message. What nobody raised on purpose is told without its text: that may hold anything."""
    kind = next((name for name, kind in _KINDS.items() if isinstance(error, kind)), None)
    return Failed(number, kind or "failed", str(error) if kind else f"engine: {type(error).__name__}, its log has the details")


def error_of(failed: Failed) -> EdgewiseError:
    """The error that a message tells of."""
    return _KINDS.get(failed.kind, EdgewiseError)(failed.message)


def frame(message: Order | Reply) -> bytes:
    """A message with its length before it."""
    body = _ENCODER.encode(message)
    return _LENGTH.pack(len(body)) + body


class Frames:
    """Replies out of a stream of bytes."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Reply]:
        """The messages that are whole now. Raises DeviceLostError for what is none."""
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
                raise DeviceLostError(f"engine: a message that is none, {error}") from None
            del self._buffer[:end]
        return found


def receive(stream: socket.socket) -> Order | None:
    """The next order, waited for; None at the end of the stream."""
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
