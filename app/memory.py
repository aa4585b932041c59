"""Giving memory back: after a model is unloaded, to the operating system too."""

from __future__ import annotations

import ctypes
import gc


def release() -> None:
    """Collect cycles, then let glibc return what its heaps no longer use; elsewhere collect only."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
