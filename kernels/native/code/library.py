"""Object code in memory, ready to call: linked on construction, unmapped when the handle is closed or collected."""

from __future__ import annotations

import ctypes
import functools
import mmap
from collections.abc import Sequence

import numpy as np

from kernels.native.code.elf import Image, read_object
from kernels.native.errors import CompileError

_CALLED = frozenset({"memcpy", "memmove", "memset", "syscall"})  # functions of the C library that kernels may call


class Library:
    """Functions linked from one or more objects, which may call one another by name."""

    def __init__(self, objects: Sequence[bytes], exports: Sequence[str]) -> None:
        """Link. Raises CompileError when an object is broken, a symbol is missing, or one is defined twice."""
        image = Image([read_object(code) for code in objects], _address_outside)
        if missing := [name for name in exports if name not in image.exports]:
            raise CompileError(f"library: {', '.join(missing)} is in none of its {len(objects)} objects")
        self._memory: mmap.mmap | None = mmap.mmap(-1, image.nbytes, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        memory = np.frombuffer(self._memory, np.uint8)
        start = memory.ctypes.data
        image.write(memory, start)
        if _c_library().mprotect(ctypes.c_void_p(start), ctypes.c_size_t(image.nbytes), mmap.PROT_READ | mmap.PROT_EXEC):
            raise CompileError(f"library: memory cannot be made executable, error {ctypes.get_errno()}")
        # Arm's instruction caches need no flush here: Linux does it when a page that was written becomes executable.
        self._addresses = {name: start + image.exports[name] for name in exports}

    def address(self, name: str) -> int:
        """Return the address of an exported function, valid until the library is closed."""
        if name not in self._addresses:
            raise CompileError(f"library: {name!r} is not exported, it has {sorted(self._addresses)}")
        return self._addresses[name]

    def close(self) -> None:
        """Unmap the code, which must not be running and must not be called again."""
        self._addresses = {}
        self._memory = None


def _address_outside(name: str) -> int | None:
    if name not in _CALLED:
        return None
    return ctypes.cast(getattr(_c_library(), name), ctypes.c_void_p).value


@functools.cache
def _c_library() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
