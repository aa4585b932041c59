"""The values of one tensor as bytes or JSON, and back. Every violation is a RequestError 400 that names the tensor."""

from __future__ import annotations

import math
import re
from typing import Any

import msgspec
import numpy as np
import orjson

from app.errors import refuse
from app.models.datatypes import datatype_of
from kernels.spec import BOOL, STRING, Array, DType

_HALF = frozenset({"FP16", "BF16"})
_NO_MARKS = bytes(sorted(set(range(256)) - set(b"[]{},")))
PIECE_BYTES = 256 * 1024  # of JSON decoded or encoded in one call
_PIECE_ELEMENTS = 16 * 1024
_SURROGATE = re.compile("[\ud800-\udfff]")


def from_json(name: str, data: bytes | msgspec.Raw, dtype: DType, shape: tuple[int, ...]) -> Array:
    """Return an input's values, which are a JSON array, flat or nested as its shape. Raises RequestError 400."""
    subject = f"input {name!r}"
    if (datatype := datatype_of(dtype)) in _HALF:
        raise refuse(f"{subject}: {datatype} has no JSON form, use the binary data format")
    if len(data) > PIECE_BYTES and dtype != STRING:
        return _large_numbers(subject, bytes(data), dtype, shape).reshape(shape)
    try:
        values = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise refuse(f"{subject}: data is not a JSON array, {str(error)[:100]}") from None
    if not isinstance(values, list):
        raise refuse(f"{subject}: data is a {type(values).__name__}, need an array")
    if dtype == STRING:
        array = np.array(_flat(values), STRING)
        if not all(isinstance(item, str) for item in array):
            raise refuse(f"{subject}: data holds something other than strings, BYTES needs strings")
    else:
        array = _numbers(subject, values, dtype)
    if array.size != math.prod(shape):
        raise refuse(f"{subject}: data has {array.size} elements, shape {list(shape)} needs {math.prod(shape)}")
    return array.reshape(shape)


def _large_numbers(subject: str, data: bytes, dtype: DType, shape: tuple[int, ...]) -> Array:
    """Decode numbers piece by piece, so that no single call holds the GIL for long."""
    marks = data.translate(None, _NO_MARKS)
    if b'"' in data or marks not in (_marks((math.prod(shape),)), _marks(shape)):
        raise refuse(f"{subject}: its data is not {math.prod(shape)} numbers, flat or nested as shape {list(shape)}")
    flat = data.translate(None, b"[] \t\r\n")
    pieces, start = [], 0
    while start < len(flat):
        comma = flat.find(b",", start + PIECE_BYTES)
        end = len(flat) if comma < 0 else comma
        try:
            values = msgspec.json.decode(b"[%b]" % flat[start:end])
        except msgspec.DecodeError as error:
            raise refuse(f"{subject}: data is not a JSON array, {str(error)[:100]}") from None
        pieces.append(_numbers(subject, values, dtype))
        start = end + 1
    return np.concatenate(pieces) if pieces else np.empty(0, dtype)


def _marks(shape: tuple[int, ...]) -> bytes:
    """Return the brackets and commas of a JSON array of that shape."""
    text = b""
    for size in reversed(shape):
        text = b"[%b]" % b",".join([text] * size)
    return text


def _flat(values: list[Any]) -> list[Any]:
    while values and all(isinstance(value, list) for value in values):
        values = [item for value in values for item in value]
    return values


def _numbers(subject: str, values: list[Any], dtype: DType) -> Array:
    """Convert to a flat array of the dtype. Refuses values that the conversion would change: strings, fractions, overflow."""
    try:
        found = np.array(values) if values else np.empty(0, dtype)
        if dtype == np.uint64 and found.dtype.kind == "f" and all(type(value) is int for value in _flat(values)):
            found = np.array(values, dtype)  # numpy has no integer type for both 1 and 2^63, and takes floats
        allowed = {"b": "biu", "i": "iu", "u": "iu", "f": "iuf"}[dtype.kind]
        if found.size and found.dtype.kind not in allowed:
            raise refuse(f"{subject}: data holds {found.dtype.name} values, need {dtype.name}")
        if dtype == BOOL and found.size and not np.isin(found, (0, 1)).all():
            raise refuse(f"{subject}: data holds values other than true, false, 0 and 1")
        if dtype.kind in "iu" and found.size:
            info = np.iinfo(dtype)
            if int(found.min()) < info.min or int(found.max()) > info.max:
                raise refuse(f"{subject}: data is outside of [{info.min}, {info.max}], the range of {dtype.name}")
        with np.errstate(over="ignore"):
            return found.astype(dtype).ravel()
    except (ValueError, TypeError, OverflowError):
        raise refuse(f"{subject}: data is not a regular array of numbers") from None


def from_bytes(name: str, data: memoryview, dtype: DType, shape: tuple[int, ...]) -> Array:
    """Return an input's values from the protocol's bytes: little-endian numbers, or strings behind their lengths.

    Numbers stay in the memory of `data`. Raises: RequestError 400 where the bytes are not those of the shape.
    """
    count = math.prod(shape)
    if dtype == STRING:
        return _strings(name, data, count).reshape(shape)
    if len(data) != count * dtype.itemsize:
        raise refuse(
            f"input byte size mismatch for input {name!r}: {len(data)} bytes, shape {list(shape)} needs {count * dtype.itemsize}"
        )
    if dtype == BOOL and count and np.frombuffer(data, np.uint8).max() > 1:
        raise refuse(f"input {name!r}: a BOOL byte is neither 0 nor 1")
    return np.frombuffer(data, dtype.newbyteorder("<") if dtype.kind != "V" else dtype, count).reshape(shape)


def _strings(name: str, data: memoryview, count: int) -> Array:
    array = np.empty(count, STRING)
    offset = 0
    for index in range(count):
        length = int.from_bytes(data[offset : offset + 4], "little")
        offset += 4
        if offset > len(data) or length > len(data) - offset:
            raise refuse(f"input {name!r}: element {index} says {length} bytes, {max(0, len(data) - offset)} are left")
        array[index] = text_of(bytes(data[offset : offset + length]))
        offset += length
    if offset != len(data):
        raise refuse(f"input {name!r}: {len(data) - offset} bytes behind its {count} elements")
    return array


def text_of(data: bytes) -> str:
    """Decode bytes as UTF-8; invalid bytes become lone surrogates, so that they leave the model unchanged."""
    return data.decode("utf-8", "surrogateescape")


def to_bytes(array: Array) -> bytes:
    """Return an array as the protocol's bytes."""
    if array.dtype != STRING:
        return np.ascontiguousarray(array).tobytes()
    texts = [text.encode("utf-8", "surrogateescape") for text in array.ravel()]
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


def to_json(subject: str, array: Array) -> Any:
    """Return what orjson writes as the array's values, flat. subject: the tensor, for messages. Raises RequestError 400."""
    if datatype_of(array.dtype) in _HALF:
        raise refuse(f"{subject}: {datatype_of(array.dtype)} has no JSON form, use binary_data")
    if array.dtype == STRING:
        texts: list[str] = array.ravel().tolist()
        if any(not text.isascii() and _SURROGATE.search(text) for text in texts):
            raise refuse(f"{subject}: it holds bytes that are not UTF-8, which JSON cannot represent, use binary_data")
        return texts
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise refuse(f"{subject}: it holds NaN or infinity, which JSON cannot represent, use binary_data")
    flat = np.ascontiguousarray(array).ravel()
    if flat.size <= _PIECE_ELEMENTS:
        return flat
    starts = range(0, flat.size, _PIECE_ELEMENTS)
    pieces = [orjson.dumps(flat[start : start + _PIECE_ELEMENTS], option=orjson.OPT_SERIALIZE_NUMPY)[1:-1] for start in starts]
    return orjson.Fragment(b"[%b]" % b",".join(pieces))
