"""Inference requests and replies as bytes: JSON, JSON followed by binary tensors, or one raw tensor. Knows no HTTP and no models.

A body is `JSON ‖ tensor bytes…`: inputs whose parameters have `binary_data_size` take their bytes from the tail, in order. Every
size is checked before memory is allocated. Every violation is a RequestError 400 that names the tensor, the value and the rule.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import orjson

from app.errors import RequestError, refuse
from app.models.datatypes import datatype_of
from app.oip import tensors
from app.oip.request import (
    CodecLimits,
    InferRequest,
    Parameter,
    check_counts,
    check_parameters,
    check_request_parameters,
    check_spec,
    make_request,
)
from kernels.spec import STRING, Array, DType


class _Tensor(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Parameter] = {}
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Parameter] = {}


class _Request(msgspec.Struct):
    inputs: list[_Tensor]
    id: str = ""
    parameters: dict[str, Parameter] = {}
    outputs: list[_Output] = []


_DECODER = msgspec.json.Decoder(_Request)


def decompress(body: bytes, encoding: str, limit_bytes: int) -> bytes:
    """Undo Content-Encoding gzip or deflate (zlib), never beyond the limit. Raises RequestError 400, 413 or 501."""
    kinds = {"": None, "identity": None, "gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
    name = encoding.strip().lower()
    if name not in kinds:
        raise RequestError(501, f"Content-Encoding is {name!r}, need gzip or deflate", {"Accept-Encoding": "gzip, deflate"})
    window = kinds[name]
    if window is None:
        return body
    inflater = zlib.decompressobj(window)
    try:
        plain = inflater.decompress(body, limit_bytes + 1)
    except zlib.error as error:
        raise refuse(f"body: not {name} data, {error}") from None
    if len(plain) > limit_bytes:
        raise RequestError(413, f"body: more than {limit_bytes} bytes after decompression, the limit")
    if not inflater.eof or inflater.unused_data:
        raise refuse(f"body: its {name} data is truncated or followed by other bytes")
    return plain


def header_length(text: str | None, body_bytes: int) -> int:
    """Return the length of the JSON part: the Inference-Header-Content-Length header; the whole body without one."""
    if text is None:
        return body_bytes
    if not (text.isascii() and text.isdigit() and len(text) < 19) or int(text) > body_bytes:
        raise refuse(f"Inference-Header-Content-Length is {text[:40]!r}, need an integer in [0, {body_bytes}], the body's length")
    return int(text)


def slow_bytes(body: bytes, json_bytes: int) -> int:
    """Return how many bytes `decode` examines one by one: the JSON, or all of them if tensors may be strings or bools."""
    head = body[:json_bytes]
    whole = not head or any(mark in head for mark in (b"BYTES", b"BOOL", b"\\"))  # an escape may hide either
    return len(body) if whole else json_bytes


def check_depth(text: memoryview | bytes, limit: int) -> None:
    """Refuse JSON that nests deeper than the limit, before it is parsed. Brackets in strings do not count."""
    if len(text) <= tensors.PIECE_BYTES and (whole := bytes(text)).count(b"[") + whole.count(b"{") <= limit:
        return
    depth, inside, carried = 0, 0, b""
    for start in range(0, len(text), tensors.PIECE_BYTES):
        piece = carried + bytes(text[start : start + tensors.PIECE_BYTES])
        carried = b"\\" if (len(piece) - len(piece.rstrip(b"\\"))) % 2 else b""  # half an escape
        piece = piece[: len(piece) - len(carried)].replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = piece.split(b'"')
        codes = np.frombuffer(b"".join(parts[inside::2]), np.uint8)
        inside = (inside + len(parts) - 1) % 2
        steps = ((codes == ord("[")) | (codes == ord("{"))).astype(np.int8) - ((codes == ord("]")) | (codes == ord("}")))
        depths = np.cumsum(steps, dtype=np.int32) + depth
        if depths.max(initial=0) > limit:
            raise refuse(f"request: JSON nests deeper than {limit}, the limit")
        depth = int(depths[-1]) if depths.size else depth


def decode(body: bytes, json_bytes: int, limits: CodecLimits) -> InferRequest:
    """Decode a request whose first `json_bytes` are JSON. Raises RequestError 400, 413 or 501."""
    if json_bytes > limits.json_bytes:
        raise RequestError(
            413, f"request: {json_bytes} bytes of JSON, the limit is {limits.json_bytes}; use the binary data format"
        )
    text = memoryview(body)[:json_bytes]
    check_depth(text, limits.json_depth)
    try:
        request = _DECODER.decode(text)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise refuse(f"request: not an inference request, {str(error)[:200]}") from None
    check_counts(len(request.inputs), len(request.outputs), limits)
    check_request_parameters(request.parameters)
    feeds: dict[str, Array] = {}
    offset = json_bytes
    for tensor in request.inputs:
        if tensor.name in feeds:
            raise refuse(f"input {tensor.name!r} is given twice")
        shape = tuple(tensor.shape)
        dtype = check_spec(tensor.name, tensor.datatype, shape, limits)
        check_parameters(f"input {tensor.name!r}", tensor.parameters)
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            if tensor.data is msgspec.UNSET:
                raise refuse(f"input {tensor.name!r}: it has neither data nor binary_data_size")
            feeds[tensor.name] = tensors.from_json(tensor.name, tensor.data, dtype, shape)
            continue
        if tensor.data is not msgspec.UNSET:
            raise refuse(f"input {tensor.name!r}: it has both data and binary_data_size, need one of them")
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(body) - offset:
            raise refuse(f"input {tensor.name!r}: binary_data_size is {size}, the body has {len(body) - offset} bytes left")
        feeds[tensor.name] = tensors.from_bytes(tensor.name, memoryview(body)[offset : offset + size], dtype, shape)
        offset += size
    if offset != len(body):
        raise refuse(f"request: unexpected additional input data, {len(body) - offset} bytes behind the last tensor")
    outputs = [(output.name, output.parameters) for output in request.outputs]
    return make_request(feeds, outputs, request.id, request.parameters)


def decode_raw(body: bytes, name: str, dtype: DType, dims: Sequence[int | str | None]) -> InferRequest:
    """Decode a body that is the raw bytes of the model's only input.

    An open first dimension is 1, and at most one other open dimension follows from the body's length. Raises RequestError 400.
    """
    if dtype == STRING:
        shape: tuple[int, ...] = tuple(1 for _ in dims)
        return InferRequest({name: np.array([tensors.text_of(body)], STRING).reshape(shape)}, binary_default=True)
    sizes: list[int | None] = [dim if isinstance(dim, int) else None for dim in dims]
    if sizes and sizes[0] is None:
        sizes[0] = 1
    if sizes.count(None) > 1:
        raise refuse(
            f"input {name!r}: more than one dimension of {list(dims)} is open, their sizes do not follow from a raw body"
        )
    known = math.prod(size for size in sizes if size is not None) * dtype.itemsize
    if None in sizes:
        sizes[sizes.index(None)] = len(body) // known if known else 0
    shape = tuple(size or 0 for size in sizes)
    return InferRequest({name: tensors.from_bytes(name, memoryview(body), dtype, shape)}, binary_default=True)


def encode(head: Mapping[str, Any], outputs: Sequence[tuple[str, Array, bool]]) -> tuple[bytes, int | None]:
    """Encode a reply. outputs: (name, array, binary). Returns the body and the length of its JSON; None without a binary tail."""
    described, tails = [], []
    for name, array, binary in outputs:
        entry: dict[str, Any] = {"name": name, "datatype": datatype_of(array.dtype), "shape": list(array.shape)}
        if binary:
            tails.append(tensors.to_bytes(array))
            entry["parameters"] = {"binary_data_size": len(tails[-1])}
        else:
            entry["data"] = tensors.to_json(f"output {name!r}", array)
        described.append(entry)
    text = orjson.dumps({**head, "outputs": described}, option=orjson.OPT_SERIALIZE_NUMPY)
    tail = b"".join(tails)
    return text + tail, len(text) if tail else None
