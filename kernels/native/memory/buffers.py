"""Memory for kernels: aligned, so that vectors and cache lines do not straddle."""

from __future__ import annotations

import ctypes
from typing import Any, Final

import numpy as np

from kernels.spec import Array

_BYTE: Any = ctypes.c_char
LINE_BYTES: Final = 128  # between data that different threads write: processors fetch cache lines of 64 bytes in pairs


def address(array: Array) -> int:
    """Return where an array begins: by the buffer protocol where it takes the array, in a third of the time that numpy takes."""
    try:
        return ctypes.addressof(_BYTE.from_buffer(array))
    except (TypeError, ValueError, BufferError):  # read-only, empty, or of a type that Python has no name for
        return int(array.ctypes.data)


def aligned(size_bytes: int, alignment_bytes: int = LINE_BYTES) -> Array:
    """Allocate zeroed bytes (uint8) at an aligned address."""
    raw = np.zeros(size_bytes + alignment_bytes, np.uint8)
    start = -raw.ctypes.data % alignment_bytes
    return raw[start : start + size_bytes]
