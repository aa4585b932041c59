"""Weights that stay in their file: mapped into memory when they are read, and released once they are packed.

A mapped array is an ordinary read-only numpy array whose pages take memory only while they are read. A model that runs natively
therefore holds its weights once, packed for the kernels. Inferences never read a mapping: numpy steps get copies (`resident`). A
session that meets new shapes reads the mapping again, so the file must not have been written to (`require_unchanged`). Replacing
it by a new file of the same name is allowed, since the mapping keeps the old file.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator
from weakref import WeakValueDictionary

import numpy as np

from graph.errors import CorruptModelError
from kernels.spec import Array, Spec

LEAST_BYTES = 64 << 10  # smaller tensors are copied: a page would hold several
PIECE_BYTES = 4 << 20  # of a file that is read from end to end; whole pages


class MappedFile:
    """A file mapped read-only. The mapping lives as long as this object or an array of it."""

    def __init__(self, descriptor: int, name: str) -> None:
        """Map an open file, which must not be empty. The descriptor may be closed afterwards."""
        self.name = name
        self._descriptor = os.dup(descriptor)
        self._status = _state(self._descriptor)
        self.map = _Map(self._descriptor, 0, access=mmap.ACCESS_READ)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def array(self, offset: int, spec: Spec, subject: str) -> Array:
        """Return the tensor of that spec at `offset`. Raises CorruptModelError where it reaches over the end of the file."""
        if offset + spec.nbytes > len(self.map):
            have = f"{self.name} has {len(self.map)} bytes"
            raise CorruptModelError(f"model: {spec} at byte {offset} does not lie in its file, {have} ({subject})")
        return np.frombuffer(self.map, spec.dtype, spec.elements, offset).reshape(spec.shape)

    def pieces(self) -> Iterator[memoryview]:
        """Yield all its bytes in order, piece by piece; the memory of a piece is released when the next one is asked for."""
        with memoryview(self.map) as whole:
            for start in range(0, len(whole), PIECE_BYTES):
                with whole[start : start + PIECE_BYTES] as piece:
                    yield piece
                if hasattr(mmap, "MADV_DONTNEED"):
                    self.map.madvise(mmap.MADV_DONTNEED, start, min(PIECE_BYTES, len(whole) - start))

    @property
    def is_unchanged(self) -> bool:
        """Whether the file has not been written to since it was mapped."""
        return _state(self._descriptor) == self._status


class _Map(mmap.mmap):
    """A mapping with its address (`start`) and the copies of its parts that are alive."""

    start: int
    copies: WeakValueDictionary[object, Array]

    def __new__(cls, *arguments: int, **named: int) -> _Map:
        made = super().__new__(cls, *arguments, **named)
        made.start = np.frombuffer(made, np.uint8).ctypes.data
        made.copies = WeakValueDictionary()
        return made


def require_unchanged(files: Iterable[MappedFile]) -> None:
    """Raise CorruptModelError with the name of a file that was written to since it was mapped."""
    for file in files:
        if not file.is_unchanged:
            raise CorruptModelError(f"model: its file was written to since it was read, load it again ({file.name})")


def release(array: Array) -> None:
    """Free the memory of a contiguous mapped array; the next access reads the file again. Other arrays are left alone."""
    whole = array.flags.c_contiguous or array.flags.f_contiguous
    if whole and (found := _map_of(array)) is not None and hasattr(mmap, "MADV_DONTNEED"):
        low, high = (edge - found.start for edge in np.lib.array_utils.byte_bounds(array))
        first = low // mmap.PAGESIZE * mmap.PAGESIZE
        found.madvise(mmap.MADV_DONTNEED, first, high - first)


def resident(array: Array) -> Array:
    """Return the array itself, or for a mapped one a copy in memory; copies of one array are shared while they are alive."""
    found = _map_of(array)
    if found is None:
        return array
    key = identity(array)
    copy = found.copies.get(key)
    if copy is None:
        copy = found.copies[key] = np.array(array, order="C")
        copy.flags.writeable = False
        release(array)
    return copy


def identity(array: Array) -> object | None:
    """Return a key that is unique among living mapped arrays (address, shape, dtype); None for any other array."""
    found = _map_of(array)
    if found is None:
        return None
    return id(found), array.ctypes.data - found.start, array.shape, array.strides, array.dtype.str


def _map_of(array: Array) -> _Map | None:
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    return base if isinstance(base, _Map) else None


def _state(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns
