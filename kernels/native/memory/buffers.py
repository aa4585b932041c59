"""Memory for kernels: aligned, so that vectors and cache lines do not straddle."""

from __future__ import annotations

from typing import Final

import numpy as np

from kernels.spec import Array

LINE_BYTES: Final = 128  # between data that different threads write: processors fetch cache lines of 64 bytes in pairs


def aligned(size_bytes: int, alignment_bytes: int = LINE_BYTES) -> Array:
    """Allocate zeroed bytes (uint8) at an aligned address."""
    raw = np.zeros(size_bytes + alignment_bytes, np.uint8)
    start = -raw.ctypes.data % alignment_bytes
    return raw[start : start + size_bytes]
