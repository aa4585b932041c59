"""Weights that stay in their file: mapped into memory when they are read, and let go of once they are packed.

A mapped array is an ordinary read-only numpy array. Its pages cost memory only while somebody looks at them, so a model that
runs natively holds its weights once, as kernels read them. Nothing that runs inferences reads a mapping: the numpy steps of a
program get copies (`resident`). For reading it later, when a session meets new shapes, the file must be as it was
(`require_unchanged`); one that is replaced by a new file under the same name is, since the mapping keeps the old one.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from weakref import WeakValueDictionary

import numpy as np

from graph.errors import CorruptModelError
from kernels.spec import Array, Spec

LEAST_BYTES = 64 << 10  # smaller tensors are copied: a page would hold several


class MappedFile:
    """A file mapped read-only. It and the arrays made of it keep the mapping alive."""

    def __init__(self, descriptor: int, name: str) -> None:
        """Map an open file, which must not be empty; the descriptor may be closed after."""
        self.name = name
        self._descriptor = os.dup(descriptor)
        self._status = _state(self._descriptor)
        self.map = _Map(self._descriptor, 0, access=mmap.ACCESS_READ)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def array(self, offset: int, spec: Spec, subject: str) -> Array:
        """A tensor that lies in the file. Raises CorruptModelError where it does not."""
        if offset + spec.nbytes > len(self.map):
            have = f"{self.name} has {len(self.map)} bytes"
            raise CorruptModelError(f"model: {spec} at byte {offset} does not lie in its file, {have} ({subject})")
        return np.frombuffer(self.map, spec.dtype, spec.elements, offset).reshape(spec.shape)

    @property
    def is_unchanged(self) -> bool:
        """Whether the file is as it was when it was mapped."""
        return _state(self._descriptor) == self._status


class _Map(mmap.mmap):
    """A mapping that knows where it lies, and which copies of its parts there are."""

    start: int
    copies: WeakValueDictionary[object, Array]

    def __new__(cls, *arguments: int, **named: int) -> _Map:
        made = super().__new__(cls, *arguments, **named)
        made.start = np.frombuffer(made, np.uint8).ctypes.data
        made.copies = WeakValueDictionary()
        return made


def require_unchanged(files: Iterable[MappedFile]) -> None:
    """Raise CorruptModelError naming a file that was written to since it was mapped: its weights are not the model's any more."""
    for file in files:
        if not file.is_unchanged:
            raise CorruptModelError(f"model: its file was written to since it was read, load it again ({file.name})")


def release(array: Array) -> None:
    """Give back the memory behind a mapped array without gaps; whoever reads it again reads the file. Nothing for any other."""
    whole = array.flags.c_contiguous or array.flags.f_contiguous
    if whole and (found := _map_of(array)) is not None and hasattr(mmap, "MADV_DONTNEED"):
        low, high = (edge - found.start for edge in np.lib.array_utils.byte_bounds(array))
        first = low // mmap.PAGESIZE * mmap.PAGESIZE
        found.madvise(mmap.MADV_DONTNEED, first, high - first)


def resident(array: Array) -> Array:
    """The array in memory of this process: itself, or the one copy of a mapped one that is alive."""
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
    """What tells a mapped array from every other as long as it lives: where it lies, and as what; None for any other."""
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
