"""Separation of a model file's protobuf message from the data of its large initializers, which stays in the file.

protobuf's own parser would hold a second copy of all weights and return a third. Only files of the usual form are split: one
graph, and raw data of each initializer in one piece. For any other file `split` returns None, and protobuf parses the whole file.

Source: protobuf encoding, https://protobuf.dev/programming-guides/encoding; field numbers of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator

from kernels.record import record

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MODEL_GRAPH = 7
_GRAPH_INITIALIZER = 5
_TENSOR_NAME, _TENSOR_RAW = 8, 9
_MAX_VARINT_BYTES = 10


@record
class Span:
    """A range of `nbytes` bytes of a file, from `offset` on."""

    offset: int
    nbytes: int


@record
class _Field:
    """One field of a message: [start, end) with its key and length, [value, end) without them, as offsets in the file."""

    number: int
    wire: int
    start: int
    value: int
    end: int


class _UnusualError(Exception):
    """The file is not protobuf, or not of the usual form."""


def split(data: memoryview, least_bytes: int) -> tuple[bytes, dict[bytes, Span]] | None:
    """Split a model file.

    Returns: the message without the raw data of initializers that have at least `least_bytes`, and where that data lies, by the
             name of the tensor; None for a file of an unusual form.
    """
    spans: dict[bytes, Span] = {}
    pieces: list[bytes] = []
    try:
        fields = list(_fields(data, 0, len(data)))
        if sum(field.number == _MODEL_GRAPH for field in fields) != 1:
            return None
        for field in fields:
            if field.number == _MODEL_GRAPH and field.wire == _BYTES:
                pieces.append(_message(field.number, _graph(data, field, least_bytes, spans)))
            else:
                pieces.append(bytes(data[field.start : field.end]))
    except _UnusualError:
        return None
    return b"".join(pieces), spans


def _graph(data: memoryview, graph: _Field, least_bytes: int, spans: dict[bytes, Span]) -> bytes:
    pieces: list[bytes] = []
    for field in _fields(data, graph.value, graph.end):
        if field.number == _GRAPH_INITIALIZER and field.wire == _BYTES and field.end - field.value >= least_bytes:
            pieces.append(_message(field.number, _tensor(data, field, least_bytes, spans)))
        else:
            pieces.append(bytes(data[field.start : field.end]))
    return b"".join(pieces)


def _tensor(data: memoryview, tensor: _Field, least_bytes: int, spans: dict[bytes, Span]) -> bytes:
    fields = list(_fields(data, tensor.value, tensor.end))
    raw = [field for field in fields if field.number == _TENSOR_RAW]
    names = [bytes(data[field.value : field.end]) for field in fields if field.number == _TENSOR_NAME]
    if len(raw) != 1 or raw[0].wire != _BYTES or raw[0].end - raw[0].value < least_bytes:
        return bytes(data[tensor.value : tensor.end])
    if len(names) != 1 or not names[0] or names[0] in spans:
        raise _UnusualError
    spans[names[0]] = Span(raw[0].value, raw[0].end - raw[0].value)
    return b"".join(bytes(data[field.start : field.end]) for field in fields if field.number != _TENSOR_RAW)


def _fields(data: memoryview, at: int, end: int) -> Iterator[_Field]:
    """Yield the fields of the message in data[at:end]."""
    while at < end:
        start = at
        key, at = _varint(data, at, end)
        wire, value = key & 7, at
        if wire == _VARINT:
            _, at = _varint(data, at, end)
        elif wire == _FIXED64:
            at += 8
        elif wire == _FIXED32:
            at += 4
        elif wire == _BYTES:
            size, value = _varint(data, at, end)
            at = value + size
        else:
            raise _UnusualError
        if at > end:
            raise _UnusualError
        yield _Field(key >> 3, wire, start, value, at)


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    """Decode a varint. Returns the number and the offset behind it."""
    number = 0
    for shift in range(_MAX_VARINT_BYTES):
        if at >= end:
            raise _UnusualError
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:  # the bit that says more follow
            return number, at
    raise _UnusualError


def _message(number: int, content: bytes) -> bytes:
    """Encode a field that holds a message."""
    return _as_varint(number << 3 | _BYTES) + _as_varint(len(content)) + content


def _as_varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
