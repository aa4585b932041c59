"""Decoding of TensorProto to numpy, for every encoding of ONNX. Each size is checked before memory is allocated."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from graph.errors import CorruptModelError, LimitError
from graph.formats.onnx.external import read_tensor
from graph.formats.onnx.messages import TensorProto
from graph.limits import Limits
from graph.mapped import MappedFile
from kernels.containers import optional_of, sequence_of
from kernels.errors import UnsupportedError
from kernels.spec import BYTE_BITS, ELEMENT_TYPES, STRING, Array, DType, Spec, element_bits

if TYPE_CHECKING:
    from onnx import TypeProto

_FIELDS: Mapping[str, tuple[str, type[np.generic]]] = {  # of typed data, and the type of their elements; others are in int32_data
    "float32": ("float_data", np.float32),
    "complex64": ("float_data", np.float32),
    "float64": ("double_data", np.float64),
    "complex128": ("double_data", np.float64),
    "int64": ("int64_data", np.int64),
    "uint64": ("uint64_data", np.uint64),
    "uint32": ("uint64_data", np.uint64),
}


class TensorReader:
    """Decodes the tensors of one model file.

    folder: where external data may lie, None = refuse it. external_bytes and digest_parts accumulate over the tensors read.
    """

    def __init__(self, folder: Path | None, limits: Limits, *, mapped: bool = False) -> None:
        self.folder = folder
        self.limits = limits
        self.external_bytes = 0
        self.mapped = mapped
        self.files: dict[str, MappedFile] = {}  # of external data, by location

    def read(self, tensor: TensorProto, subject: str, raw: Array | None = None) -> Array:
        """Decode a tensor; read-only where its bytes can be shared with the message.

        raw: its raw data as bytes, where the message does not hold them.
        """
        dtype = element_type(tensor.data_type, subject)
        shape = checked_shape(tensor.dims, self.limits, subject)
        spec = Spec(shape, dtype)
        if tensor.data_location == TensorProto.EXTERNAL:
            return self._external(tensor, spec, subject)
        if dtype == STRING:
            return _strings(tensor, spec, subject)
        if raw is None and tensor.HasField("raw_data"):
            raw = np.frombuffer(tensor.raw_data, np.uint8)
        if raw is not None:
            if len(raw) != stored_bytes(spec):
                raise CorruptModelError(f"tensor: raw_data has {len(raw)} bytes, {spec} needs {stored_bytes(spec)} ({subject})")
            return unpacked(raw, spec) if element_bits(dtype) < BYTE_BITS else raw.view(dtype).reshape(shape)
        try:
            array = _typed(tensor, spec)
        except ValueError as error:
            raise CorruptModelError(f"tensor: its typed data do not make a {spec}, {error} ({subject})") from None
        return array

    def _external(self, tensor: TensorProto, spec: Spec, subject: str) -> Array:
        if self.folder is None:
            raise UnsupportedError(f"external data: a model given as bytes has no folder to read it from ({subject})")
        if spec.dtype == STRING:
            raise CorruptModelError(f"external data: strings cannot be stored externally ({subject})")
        is_packed = element_bits(spec.dtype) < BYTE_BITS
        stored = Spec((stored_bytes(spec),), np.dtype(np.uint8)) if is_packed else spec
        self.external_bytes += stored.nbytes
        if self.external_bytes > self.limits.external_bytes:
            raise LimitError(f"external data: more than {self.limits.external_bytes} bytes, the limit external_bytes ({subject})")
        entries = {entry.key: entry.value for entry in tensor.external_data}
        array = read_tensor(self.folder, entries, stored, subject, self.files if self.mapped and not is_packed else None)
        return unpacked(array, spec) if is_packed else array


def element_type(code: int, subject: str) -> DType:
    """The numpy dtype of a TensorProto.DataType. Raises CorruptModelError."""
    if code not in ELEMENT_TYPES:
        raise CorruptModelError(f"tensor: element type number is {code}, ONNX has 1…{max(ELEMENT_TYPES)} ({subject})")
    return ELEMENT_TYPES[code]


def value_type(proto: TypeProto, subject: str) -> DType:
    """The dtype of values of an ONNX type: a tensor's elements, a sequence or an optional. Raises UnsupportedError for others."""
    kind = proto.WhichOneof("value")
    if kind == "tensor_type":
        return element_type(proto.tensor_type.elem_type, subject)
    if kind == "sequence_type" and proto.sequence_type.elem_type.HasField("tensor_type"):
        return sequence_of(value_type(proto.sequence_type.elem_type, subject))
    if kind == "optional_type" and not proto.optional_type.elem_type.HasField("optional_type"):
        return optional_of(value_type(proto.optional_type.elem_type, subject))
    raise UnsupportedError(
        f"type: {kind or 'none'} of another type than tensors, need tensors, their sequences or optionals ({subject})"
    )


def checked_shape(dims: Iterable[int], limits: Limits, subject: str) -> tuple[int, ...]:
    """The dims as a tuple, each ≥ 0, rank and product within the limits."""
    shape = tuple(dims)
    if any(size < 0 for size in shape):
        raise CorruptModelError(f"tensor: dims are {list(shape)}, need sizes ≥ 0 ({subject})")
    if len(shape) > limits.rank:
        raise LimitError(f"tensor: rank is {len(shape)}, the limit is {limits.rank} ({subject})")
    elements = math.prod(size for size in shape if size)  # numpy refuses (0, 2⁶², 2⁶²), though it holds nothing
    if elements > limits.tensor_elements:
        raise LimitError(
            f"tensor: dims {list(shape)} make {elements} elements, the limit is {limits.tensor_elements} ({subject})"
        )
    return shape


def stored_bytes(spec: Spec) -> int:
    """Return the bytes of a tensor in a file, where elements of less than a byte are packed."""
    return -(-spec.elements * element_bits(spec.dtype) // BYTE_BITS)


def unpacked(packed: Array, spec: Spec) -> Array:
    """Return the elements of a tensor of less than a byte each, one in a byte. packed: uint8, the first in the lowest bits.

    Six-bit numbers run across the borders of bytes. Signed integers are kept with their sign extended, as `ml_dtypes` keeps them.
    """
    bits = element_bits(spec.dtype)
    group = math.lcm(bits, BYTE_BITS) // BYTE_BITS  # bytes that hold whole elements
    padded = np.zeros(-(-len(packed) // group) * group, np.uint8)
    padded[: len(packed)] = packed
    words = padded if group == 1 else (padded.reshape(-1, group).astype(np.uint32) << np.arange(group) * BYTE_BITS).sum(1)
    codes = np.empty((len(words), group * BYTE_BITS // bits), np.uint8)
    for place in range(codes.shape[1]):
        codes[:, place] = words >> place * bits & (1 << bits) - 1
    codes = codes.reshape(-1)[: spec.elements].reshape(spec.shape)
    if spec.dtype.name.startswith("int"):
        return ((codes << (BYTE_BITS - bits)).view(np.int8) >> (BYTE_BITS - bits)).view(spec.dtype)
    return codes.view(spec.dtype)


def _typed(tensor: TensorProto, spec: Spec) -> Array:
    """Decode a tensor without raw data. Complex numbers are stored as two floats, floats below 32 bits as integers of their bits.

    Raises: ValueError where the numbers do not make up the elements.
    """
    dtype = spec.dtype
    if tensor.HasField("segment"):
        raise ValueError("it is a segment of a tensor")
    field, stored_dtype = _FIELDS.get(dtype.name, ("int32_data", np.int32))
    stored = np.array(getattr(tensor, field), stored_dtype)
    if dtype.kind == "c":
        return stored.view(dtype).reshape(spec.shape)
    if element_bits(dtype) == 6:  # one in each number, unlike those of 2 or 4 bits
        return (stored & 0x3F).astype(np.uint8).view(dtype).reshape(spec.shape)
    if element_bits(dtype) < BYTE_BITS:  # each number holds a byte of packed elements
        if len(stored) != stored_bytes(spec):
            raise ValueError(f"{len(stored)} bytes instead of {stored_bytes(spec)}")
        return unpacked(stored.astype(np.uint8), spec)
    if field == "int32_data" and dtype.kind not in "biu":
        return stored.astype(f"u{dtype.itemsize}").view(dtype).reshape(spec.shape)
    return stored.astype(dtype).reshape(spec.shape)


def _strings(tensor: TensorProto, spec: Spec, subject: str) -> Array:
    if len(tensor.string_data) != spec.elements:
        raise CorruptModelError(f"tensor: {len(tensor.string_data)} strings, {spec} needs {spec.elements} ({subject})")
    array = np.empty(spec.elements, STRING)
    try:
        array[:] = [text.decode() for text in tensor.string_data]
    except UnicodeDecodeError:
        raise CorruptModelError(f"tensor: a string is not UTF-8 ({subject})") from None
    return array.reshape(spec.shape)
