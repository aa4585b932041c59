"""Compiled code kept on disk between processes.

An entry is a file named by the hash of everything that its code depends on. Since it will be executed, an entry is used only if
its length, key and checksum are right; anything else is compiled again and replaced.

The checksum is over all of an entry, and has no secret key: it is for disks that lose or change bytes, and for entries cut short.
Other users are kept out by the folder (`folder.py`). A key would have to lie where this user's processes read it, and a process
that can write to this user's private folder can read that, too.
"""

from __future__ import annotations

import functools
import hashlib
import os
import struct
from collections.abc import Callable
from pathlib import Path

from kernels.log import warn
from kernels.native.code.folder import PrivateFolder
from kernels.native.target.host import llvm_version
from kernels.native.target.isa import Isa
from kernels.record import record

LIMIT_BYTES = 256 << 20

_MAGIC = b"EWCODE2\n"
_CHECKSUM_BYTES = 32
_HEADER = struct.Struct(
    "<32sqd"
)  # key, length of the code, spills (-1: not counted); before it magic and checksum, behind it code
_KERNEL = "kernel "  # begins the key of a module that a kernel's name identifies


@record
class Compiled:
    """Machine code of one module.

    spills: the share (0 to 1) of vector instructions in innermost loops that access the stack; None where it was not counted. A
    candidate above SPILL_LIMIT is not worth timing.
    """

    code: bytes
    spills: float | None = None


@record
class Source:
    """A module to compile. key: identifies its IR among all modules of one build. text: returns the IR."""

    key: str
    text: Callable[[], str]

    @staticmethod
    def of(text: str) -> Source:
        """Make a source that its IR identifies."""
        return Source(text, lambda: text)

    @staticmethod
    def of_kernel(name: str, text: Callable[[], str]) -> Source:
        """Make a source that the name of its kernel identifies, so that a known kernel is not even emitted."""
        return Source(f"{_KERNEL}{name}", text)

    @property
    def name(self) -> str:
        """A name for files: the kernel's name, or module_<digest of the IR>."""
        if self.key.startswith(_KERNEL):
            return self.key.removeprefix(_KERNEL)
        return f"module_{hashlib.sha256(self.key.encode()).hexdigest()[:12]}"


@functools.cache
def build_key() -> str:
    """Hash what compiled code depends on besides IR and ISA: the version of LLVM, and the source of emitters and compiler."""
    digest = hashlib.sha256(llvm_version().encode())
    for folder, _, names in sorted(os.walk(Path(__file__).parents[1])):  # Path.rglob and Path.read_bytes take four times as long
        for name in sorted(name for name in names if name.endswith(".py")):
            digest.update(name.encode())
            with open(os.path.join(folder, name), "rb") as file:  # noqa: PTH118, PTH123
                digest.update(file.read())
    return digest.hexdigest()


def entry_key(source: Source, isa: Isa) -> bytes:
    """Hash everything that the code of a module depends on (32 bytes)."""
    return hashlib.sha256(b"\0".join(part.encode() for part in (build_key(), isa.key, source.key))).digest()


class CodeCache:
    """A folder of compiled modules, bounded in bytes; the least recently used are removed first."""

    def __init__(self, folder: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self.files = PrivateFolder(folder)
        self.limit_bytes = limit_bytes
        self._unpruned_bytes = limit_bytes  # the first write prunes

    @staticmethod
    def default() -> CodeCache | None:
        """Open this user's cache, or the folder that EDGEWISE_CODE_CACHE names; None where that is set to the empty string."""
        path = PrivateFolder.default_path()
        return None if path is None else CodeCache(path)

    def get(self, key: bytes) -> Compiled | None:
        """Return the code of that key, or None where there is none, or only a damaged entry."""
        name = f"{key.hex()}.o"
        data = self.files.read(name)
        if data is None:
            return None
        found = _unpack(data, key)
        if found is None:
            warn("code cache entry is damaged, compiling it again", folder=str(self.files.path), entry=name, bytes=len(data))
        return found

    def put(self, key: bytes, compiled: Compiled) -> None:
        """Store the code; where that fails, it is compiled again next time."""
        data = _pack(key, compiled)
        if not self.files.write(f"{key.hex()}.o", data):
            return
        self._unpruned_bytes += len(data)
        if self._unpruned_bytes > self.limit_bytes // 16:
            self.files.prune(self.limit_bytes)
            self._unpruned_bytes = 0


def _pack(key: bytes, compiled: Compiled) -> bytes:
    spills = -1 if compiled.spills is None else compiled.spills
    body = _HEADER.pack(key, len(compiled.code), spills) + compiled.code
    return _MAGIC + hashlib.sha256(body).digest() + body


def _unpack(data: bytes, key: bytes) -> Compiled | None:
    """Read an entry; None where it is damaged, or of another key."""
    at = len(_MAGIC) + _CHECKSUM_BYTES
    if len(data) < at + _HEADER.size:
        return None
    stored_key, length, spills = _HEADER.unpack_from(data, at)
    whole = data[:at] == _MAGIC + hashlib.sha256(data[at:]).digest()
    code = data[at + _HEADER.size :]
    return Compiled(code, None if spills < 0 else spills) if whole and stored_key == key and length == len(code) else None
