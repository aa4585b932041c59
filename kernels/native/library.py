"""Object code in memory, ready to call: linked on construction, unmapped when the handle is closed or collected.

LLVM's ORC with its in-process linker: 0.1 ms a library, against 0.8 ms for an MCJIT engine each, and it frees what it mapped.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Sequence

import llvmlite.binding as llvm

from kernels.native.compile import set_up_llvm
from kernels.native.errors import CompileError

_LOCK = threading.Lock()
_NAMES = itertools.count()
_JIT: list[llvm.LLJIT] = []  # the one linker of this process, made on first use


class Library:
    """Functions linked from one or more objects, which may call one another by name."""

    def __init__(self, objects: Sequence[bytes], exports: Sequence[str]) -> None:
        """Link. Raises CompileError when an object is broken, a symbol is missing, or one is defined twice."""
        builder = llvm.JITLibraryBuilder().add_current_process()
        for code in objects:
            builder.add_object_img(code)
        for name in exports:
            builder.export_symbol(name)
        with _LOCK:
            if not _JIT:
                set_up_llvm()
                _JIT.append(llvm.create_lljit_compiler(use_jit_link=True, suppress_errors=True))
            try:
                self._tracker = builder.link(_JIT[0], f"edgewise{next(_NAMES)}")
            except RuntimeError as error:
                raise CompileError(f"library: {', '.join(exports)} does not link, {error}") from error
        self._addresses = {name: int(self._tracker[name]) for name in exports}

    def address(self, name: str) -> int:
        """Where an exported function lies; valid until the library is closed."""
        if name not in self._addresses:
            raise CompileError(f"library: {name!r} is not exported, it has {sorted(self._addresses)}")
        return self._addresses[name]

    def close(self) -> None:
        """Unmap the code. Nobody may run it, or call it, any more."""
        self._addresses = {}
        with _LOCK:
            self._tracker.close()


def _after_fork() -> None:
    global _LOCK  # noqa: PLW0603  another thread of the parent may have held it
    _LOCK = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
