"""Tensors in memory shared by two processes: one anonymous file of fixed size in each direction, mapped by both.

The process that writes into a slab allocates its space; the process that reads says when it is done. Arrays that are read are
views of the slab.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Sequence

import msgspec
import numpy as np

from kernels.errors import DeviceLostError
from kernels.spec import ELEMENT_CODES, ELEMENT_TYPES, STRING, Array, DType

ALIGNMENT_BYTES = 64


class Tensor(msgspec.Struct, frozen=True, array_like=True):
    """Where an array lies in a slab. dtype: ONNX's element type. Strings are stored as a msgpack list."""

    dtype: int
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def anonymous_file(size_bytes: int) -> int:
    """Return a descriptor of zeroed memory without a name; Linux also seals its size. The caller closes it."""
    if not hasattr(os, "memfd_create"):
        with tempfile.TemporaryFile() as file:
            file.truncate(size_bytes)
            return os.dup(file.fileno())
    import fcntl  # noqa: PLC0415  exists where memfd_create does

    descriptor = os.memfd_create("edgewise", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size_bytes)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


class Space:
    """Allocator of a slab's space: first fit, so that the same few pages stay in the caches."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._holes = [(0, size_bytes)]
        self._taken: dict[int, int] = {}

    @property
    def taken_bytes(self) -> int:
        """Allocated bytes, alignment included."""
        return sum(self._taken.values())

    def take(self, size_bytes: int) -> int | None:
        """Allocate and return an offset; None while no hole is large enough."""
        size_bytes = _aligned(max(size_bytes, 1))
        for index, (start, length) in enumerate(self._holes):
            if length >= size_bytes:
                rest = [(start + size_bytes, length - size_bytes)] if length > size_bytes else []
                self._holes[index : index + 1] = rest
                self._taken[start] = size_bytes
                return start
        return None

    def give(self, offset: int) -> None:
        """Free an allocation. Raises DeviceLostError for an offset that is not allocated: the other process is out of step."""
        if offset not in self._taken:
            raise DeviceLostError(f"slab: offset {offset} is freed, it was not allocated")
        holes = sorted([*self._holes, (offset, self._taken.pop(offset))])
        self._holes = holes[:1]
        for start, length in holes[1:]:
            last_start, last_length = self._holes[-1]
            if last_start + last_length == start:
                self._holes[-1] = (last_start, last_length + length)
            else:
                self._holes.append((start, length))


class Slab:
    """Shared memory of one direction. descriptor: of `anonymous_file`; the caller closes it."""

    def __init__(self, descriptor: int, size_bytes: int) -> None:
        self._map: mmap.mmap | None = mmap.mmap(descriptor, size_bytes)
        self.size_bytes = size_bytes

    def bytes_at(self, offset: int, size_bytes: int) -> Array:
        """Return a part as a uint8 array. Raises DeviceLostError for a part outside the slab."""
        if self._map is None or not 0 <= offset <= offset + size_bytes <= self.size_bytes:
            raise DeviceLostError(f"slab: {size_bytes} bytes at {offset}, it has {self.size_bytes}")
        return np.frombuffer(self._map, np.uint8, size_bytes, offset)

    def close(self) -> None:
        """Release the mapping; it is unmapped with the last array that views it."""
        self._map = None


def pack(parts: Sequence[Array]) -> tuple[bytes, tuple[int, ...]] | None:
    """Pack string arrays, joined along axis 0, and return the bytes and the shape; None for other dtypes."""
    if parts[0].dtype != STRING:
        return None
    joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return msgspec.msgpack.encode([text.encode("utf-8", "surrogatepass") for text in joined.ravel()]), joined.shape


def layout(groups: Sequence[Sequence[Array]]) -> tuple[list[Tensor], list[bytes | None], int]:
    """Lay out one tensor per group: its arrays joined along axis 0, strings packed.

    Returns: the tensors from offset 0 on, the packed strings of each (None for other dtypes), and the bytes of all.
    """
    tensors: list[Tensor] = []
    texts: list[bytes | None] = []
    end = 0
    for parts in groups:
        packed = pack(parts)
        first = parts[0]
        shape = first.shape if len(parts) == 1 else (sum(part.shape[0] for part in parts), *first.shape[1:])
        nbytes = math.prod(shape) * first.dtype.itemsize if packed is None else len(packed[0])
        tensors.append(Tensor(ELEMENT_CODES[first.dtype], shape, end, nbytes))
        texts.append(None if packed is None else packed[0])
        end += _aligned(nbytes)
    return tensors, texts, end


def write(
    slab: Slab, base: int, tensors: Sequence[Tensor], texts: Sequence[bytes | None], groups: Sequence[Sequence[Array]]
) -> None:
    """Copy tensors laid out by `layout` into the slab at `base`: the only copy of a tensor on its way."""
    for tensor, text, parts in zip(tensors, texts, groups, strict=True):
        raw = slab.bytes_at(base + tensor.offset, tensor.nbytes)
        if text is not None:
            raw[:] = np.frombuffer(text, np.uint8)
            continue
        target = raw.view(ELEMENT_TYPES[tensor.dtype]).reshape(tensor.shape)
        if len(parts) == 1:
            np.copyto(target, parts[0])
            continue
        row = 0
        for part in parts:
            target[row : row + part.shape[0]] = part
            row += part.shape[0]


def view(region: Array, tensor: Tensor) -> Array:
    """Return a tensor in a region of a slab as an array: a view, but a copy for strings.

    Raises: DeviceLostError for a tensor that does not fit the region or its own shape.
    """
    dtype: DType | None = ELEMENT_TYPES.get(tensor.dtype)
    if dtype is None or not 0 <= tensor.offset <= tensor.offset + tensor.nbytes <= region.nbytes:
        raise DeviceLostError(f"slab: {tensor} is no tensor of a region of {region.nbytes} bytes")
    raw = region[tensor.offset : tensor.offset + tensor.nbytes]
    if dtype == STRING:
        values = [text.decode("utf-8", "surrogatepass") for text in msgspec.msgpack.decode(raw.tobytes(), type=list[bytes])]
        strings = np.empty(len(values), STRING)
        strings[:] = values
        return strings.reshape(tensor.shape)
    if math.prod(tensor.shape) * dtype.itemsize != tensor.nbytes:
        raise DeviceLostError(f"slab: {tensor} has {tensor.nbytes} bytes, its shape needs another number")
    return raw.view(dtype).reshape(tensor.shape)


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
