"""Compile code for tests, and keep it on disk beside the session's cache, since many tests and later sessions need the same."""

import functools
import hashlib
import inspect
import os
from pathlib import Path

from kernels.native.code import compile as compiler
from kernels.native.code.cache import CodeCache
from kernels.native.code.folder import FOLDER
from kernels.native.target.host import llvm_version
from kernels.native.target.isa import Isa

LIMIT_BYTES = 1 << 29


def object_code(ir: str, isa: Isa) -> bytes:
    """Return the object file of one module, from the cache if that has one of the same text, target, LLVM and options."""
    cache, key = _cache(), hashlib.sha256("\0".join((_compiler(), isa.key, ir)).encode()).digest()
    if (found := cache.get(key)) is None:
        found = compiler.generate(ir, isa)
        cache.put(key, found)
    return found.code


@functools.cache
def _compiler() -> str:
    return llvm_version() + inspect.getsource(compiler)


@functools.cache
def _cache() -> CodeCache:
    return CodeCache(Path(f"{os.environ[FOLDER]}-objects"), LIMIT_BYTES)
