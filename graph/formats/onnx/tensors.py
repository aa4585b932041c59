"""Decoding of TensorProto to numpy, for every encoding of ONNX. Each size is checked before memory is allocated."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from graph.errors import CorruptModelError, LimitError
from graph.formats.onnx.external import read_tensor
from graph.formats.onnx.messages import TensorProto
from graph.limits import Limits
from graph.mapped import MappedFile
from kernels.errors import UnsupportedError
from kernels.spec import ELEMENT_TYPES, STRING, Array, DType, Spec

_UNSUPPORTED = frozenset({"int4", "uint4", "int2", "uint2", "float4_e2m1fn"})  # packed below a byte

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
            if len(raw) != spec.nbytes:
                raise CorruptModelError(f"tensor: raw_data has {len(raw)} bytes, {spec} needs {spec.nbytes} ({subject})")
            return raw.view(dtype).reshape(shape)
        try:
            array = _typed(tensor, dtype).reshape(shape)
        except ValueError as error:
            raise CorruptModelError(f"tensor: its typed data do not make a {spec}, {error} ({subject})") from None
        return array

    def _external(self, tensor: TensorProto, spec: Spec, subject: str) -> Array:
        if self.folder is None:
            raise UnsupportedError(f"external data: a model given as bytes has no folder to read it from ({subject})")
        if spec.dtype == STRING:
            raise CorruptModelError(f"external data: strings cannot be stored externally ({subject})")
        self.external_bytes += spec.nbytes
        if self.external_bytes > self.limits.external_bytes:
            raise LimitError(f"external data: more than {self.limits.external_bytes} bytes, the limit external_bytes ({subject})")
        entries = {entry.key: entry.value for entry in tensor.external_data}
        return read_tensor(self.folder, entries, spec, subject, self.files if self.mapped else None)


def element_type(code: int, subject: str) -> DType:
    """The numpy dtype of a TensorProto.DataType. Raises UnsupportedError or CorruptModelError."""
    if code not in ELEMENT_TYPES:
        raise CorruptModelError(f"tensor: element type number is {code}, ONNX has 1…{max(ELEMENT_TYPES)} ({subject})")
    dtype = ELEMENT_TYPES[code]
    if dtype.name in _UNSUPPORTED:
        raise UnsupportedError(f"tensor: element type is {dtype.name}, types packed below a byte are not supported ({subject})")
    return dtype


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


def _typed(tensor: TensorProto, dtype: DType) -> Array:
    """Decode a tensor without raw data. Complex numbers are stored as two floats, floats below 32 bits as integers of their bits.

    Raises: ValueError where floats do not make whole complex numbers.
    """
    if tensor.HasField("segment"):
        raise ValueError("it is a segment of a tensor")
    field, stored_dtype = _FIELDS.get(dtype.name, ("int32_data", np.int32))
    stored = np.array(getattr(tensor, field), stored_dtype)
    if dtype.kind == "c":
        return stored.view(dtype)
    if field == "int32_data" and dtype.kind not in "biu":
        return stored.astype(f"u{dtype.itemsize}").view(dtype)
    return stored.astype(dtype)


def _strings(tensor: TensorProto, spec: Spec, subject: str) -> Array:
    if len(tensor.string_data) != spec.elements:
        raise CorruptModelError(f"tensor: {len(tensor.string_data)} strings, {spec} needs {spec.elements} ({subject})")
    array = np.empty(spec.elements, STRING)
    try:
        array[:] = [text.decode() for text in tensor.string_data]
    except UnicodeDecodeError:
        raise CorruptModelError(f"tensor: a string is not UTF-8 ({subject})") from None
    return array.reshape(spec.shape)
