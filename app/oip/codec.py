"""Inference requests and replies as bytes: JSON, JSON followed by binary tensors, or one raw tensor. Knows no HTTP and no models.

A body is `JSON ‖ tensor bytes…`: inputs whose parameters have `binary_data_size` take their bytes from the tail, in order. Every
size is checked before memory is allocated. Every violation is a RequestError 400 that names the tensor, the value and the rule.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

import msgspec
import numpy as np
import orjson

from app.errors import RequestError, refuse
from app.models.datatypes import DATATYPES, datatype_of
from app.oip import tensors
from app.settings import Settings
from kernels.record import record
from kernels.spec import STRING, Array, DType

Parameter = str | int | float | bool


@record
class CodecLimits:
    """Limits of one request; see the settings of the same names."""

    body_bytes: int = 64 * 2**20
    tensor_elements: int = 2**26
    inputs: int = 64
    rank: int = 64
    json_bytes: int = 64 * 2**20
    json_depth: int = 100
    outputs: int = 256


def limits_of(settings: Settings) -> CodecLimits:
    """Return the limits that the service's settings define."""
    return CodecLimits(
        settings.max_body_bytes,
        settings.max_tensor_elements,
        settings.max_inputs,
        json_bytes=settings.max_json_bytes,
        outputs=settings.max_outputs,
    )


@record
class OutputRequest:
    """A requested output. binary: as bytes behind the JSON. classes: top classes instead of the tensor; 0 = the tensor."""

    name: str
    binary: bool = False
    classes: int = 0


@record
class InferRequest:
    """A decoded request. outputs: empty = all, binary if `binary_default`. timeout_us: 0 = none."""

    feeds: dict[str, Array]
    outputs: tuple[OutputRequest, ...] = ()
    binary_default: bool = False
    id: str = ""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    priority: int = 0
    timeout_us: int = 0


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
MAX_CLASSIFICATIONS = 100_000


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
    if len(request.inputs) > limits.inputs:
        raise refuse(f"request: {len(request.inputs)} inputs, the limit is {limits.inputs}")
    if len(request.outputs) > limits.outputs:
        raise refuse(f"request: {len(request.outputs)} outputs, the limit is {limits.outputs}")
    _check_parameters("request", request.parameters)
    _check_sequence(request.parameters)
    feeds: dict[str, Array] = {}
    offset = json_bytes
    for tensor in request.inputs:
        if tensor.name in feeds:
            raise refuse(f"input {tensor.name!r} is given twice")
        dtype, shape = _spec(tensor, limits)
        _check_parameters(f"input {tensor.name!r}", tensor.parameters)
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
    default = _flag("request", request.parameters, "binary_data_output", False)
    return InferRequest(
        feeds,
        _outputs(request.outputs, default),
        default,
        request.id,
        request.parameters,
        _unsigned("request", request.parameters, "priority"),
        _unsigned("request", request.parameters, "timeout"),
    )


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


def _spec(tensor: _Tensor, limits: CodecLimits) -> tuple[DType, tuple[int, ...]]:
    if tensor.datatype not in DATATYPES:
        raise refuse(f"input {tensor.name!r}: datatype is {tensor.datatype[:20]!r}, need one of {', '.join(DATATYPES)}")
    shape = tuple(tensor.shape)
    if len(shape) > limits.rank or any(size < 0 for size in shape):
        raise refuse(f"input {tensor.name!r}: shape is {list(shape)[:8]}, need at most {limits.rank} sizes ≥ 0")
    if math.prod(shape) > limits.tensor_elements:
        raise refuse(
            f"input {tensor.name!r}: shape {list(shape)} has {math.prod(shape)} elements, the limit is {limits.tensor_elements}"
        )
    return DATATYPES[tensor.datatype], shape


def _check_parameters(subject: str, parameters: Mapping[str, Parameter]) -> None:
    for key in parameters:
        if key.startswith("triton_"):
            raise refuse(f"{subject}: parameter {key[:40]!r} is reserved")
        if key.startswith("shared_memory"):
            raise RequestError(501, f"{subject}: shared memory is not supported, send the data")


def _check_sequence(parameters: Mapping[str, Parameter]) -> None:
    """Check sequence parameters as the protocol defines them; they have no effect, since models have no state."""
    identity = parameters.get("sequence_id", 0)
    if isinstance(identity, bool | float) or (isinstance(identity, int) and identity < 0):
        raise refuse(f"request: parameter sequence_id is {identity!r}, need a number ≥ 0 or a string")
    for name in ("sequence_start", "sequence_end"):
        _flag("request", parameters, name, False)


def _unsigned(subject: str, parameters: Mapping[str, Parameter], name: str) -> int:
    value = parameters.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**64:
        raise refuse(f"{subject}: parameter {name} is {value!r}, need an integer in [0, 2^64)")
    return value


def _flag(subject: str, parameters: Mapping[str, Parameter], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise refuse(f"{subject}: parameter {name} is {value!r}, need true or false")
    return value


def _outputs(wanted: list[_Output], default: bool) -> tuple[OutputRequest, ...]:
    found: dict[str, OutputRequest] = {}
    for output in wanted:
        subject = f"output {output.name!r}"
        if output.name in found:
            raise refuse(f"{subject} is asked for twice")
        _check_parameters(subject, output.parameters)
        classes = output.parameters.get("classification", 0)
        if isinstance(classes, bool) or not isinstance(classes, int) or not 0 <= classes <= 100_000:
            raise refuse(f"{subject}: classification is {classes!r}, need a number of classes")
        found[output.name] = OutputRequest(output.name, _flag(subject, output.parameters, "binary_data", default), classes)
    return tuple(found.values())


def classify(name: str, array: Array, classes: int, labels: Sequence[str] = ()) -> Array:
    """Return the top `classes` of an output as "value:index[:label]" strings.

    Returns: (batch, k) strings for an array of two or more dimensions, (k,) for one dimension.
    Raises:  RequestError 400 for an output that is not numeric, or beyond MAX_CLASSIFICATIONS.
    """
    if array.dtype == STRING or array.dtype.kind == "b":
        raise refuse(f"output {name!r}: classification needs numbers, it holds {datatype_of(array.dtype)}")
    if array.ndim == 0 or array.size == 0:
        return np.empty((*array.shape[:1], 0) if array.ndim > 1 else (0,), STRING)
    rows = array.reshape(array.shape[0], -1) if array.ndim > 1 else array.reshape(1, -1)
    if (wanted := len(rows) * min(classes, rows.shape[1])) > MAX_CLASSIFICATIONS:
        raise refuse(f"output {name!r}: {wanted} classifications, the limit is {MAX_CLASSIFICATIONS}")
    top = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, :classes]
    text = np.empty(top.shape, STRING)
    for (row, rank), index in np.ndenumerate(top):
        label = f":{labels[int(index)]}" if index < len(labels) else ""
        value = str(rows[row, index]) if array.dtype.kind in "iu" else f"{float(rows[row, index]):f}"
        text[row, rank] = f"{value}:{index}{label}"
    return text if array.ndim > 1 else text[0]


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
