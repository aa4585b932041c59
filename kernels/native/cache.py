"""Compiled code kept on disk between processes.

An entry is one file named by the hash of all that its code depends on. It is machine code that will be run, so the folder
must be this user's alone, and an entry counts only if its length, key and checksum are right; anything else reads as absent.
Entries are written beside their place and renamed, so a reader never sees half of one, whoever dies when.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import platformdirs
import structlog

from kernels.native.compile import Compiled, build_key
from kernels.native.isa import Isa

FOLDER = "EDGEWISE_CODE_CACHE"  # environment variable: where to keep compiled code; empty = keep none
LIMIT_BYTES = 256 << 20

_HEADER = struct.Struct("<8s32s32sqd")  # magic, key, checksum of the code, its length, spills (-1: not looked at)
_MAGIC = b"EWCODE1\n"
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Source:
    """A module to compile. key: what tells its text from any other, given the emitters' own source. text: makes it."""

    key: str
    text: Callable[[], str]

    @staticmethod
    def of(text: str) -> Source:
        """A module that is told by its text."""
        return Source(text, lambda: text)


def entry_key(source: Source, isa: Isa) -> bytes:
    """The hash of everything the code of a module depends on."""
    return hashlib.sha256(b"\0".join(part.encode() for part in (build_key(), isa.key, source.key))).digest()


class CodeCache:
    """A folder of compiled modules, bounded in bytes; the least recently used go first."""

    def __init__(self, folder: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._unpruned_bytes = limit_bytes  # the first write prunes
        self.refusal = self._open()
        if self.refusal:
            _log.warning("code cache not used", folder=str(folder), reason=self.refusal)

    @staticmethod
    def default() -> CodeCache | None:
        """The cache of this user, or where EDGEWISE_CODE_CACHE says; None when that is set to nothing."""
        given = os.environ.get(FOLDER)
        if given == "":
            return None
        return CodeCache(Path(given) if given else Path(platformdirs.user_cache_dir("edgewise")) / "native")

    def _open(self) -> str | None:
        """Make the folder; why it cannot be trusted, or None."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = self.folder.lstat()
        except OSError as error:
            return str(error)
        if not stat.S_ISDIR(status.st_mode):
            return "it is no folder"
        if hasattr(os, "getuid") and status.st_uid != os.getuid():
            return f"it belongs to user {status.st_uid}, need {os.getuid()}"
        if status.st_mode & 0o022:
            return f"its mode is {status.st_mode & 0o777:o}, others must not be able to write code"
        return None

    def _path(self, key: bytes) -> Path:
        return self.folder / f"{key.hex()}.o"

    def get(self, key: bytes) -> Compiled | None:
        """The code of that key, or None where there is none that is whole."""
        if self.refusal:
            return None
        path = self._path(key)
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:  # absent, or taken away by another process that prunes
            return None
        if len(data) < _HEADER.size:
            return None
        magic, stored_key, checksum, length, spills = _HEADER.unpack_from(data)
        code = data[_HEADER.size :]
        whole = magic == _MAGIC and stored_key == key and length == len(code) and checksum == hashlib.sha256(code).digest()
        return Compiled(code, None if spills < 0 else spills) if whole else None

    def put(self, key: bytes, compiled: Compiled) -> None:
        """Keep the code. A full or read-only disk costs the next process its time, and is logged, nothing worse."""
        if self.refusal:
            return
        spills = -1 if compiled.spills is None else compiled.spills
        header = _HEADER.pack(_MAGIC, key, hashlib.sha256(compiled.code).digest(), len(compiled.code), spills)
        try:
            descriptor, temporary = tempfile.mkstemp(dir=self.folder, suffix=".part")  # mode 0600
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(header + compiled.code)
                Path(temporary).replace(self._path(key))
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as error:
            _log.warning("code not kept", folder=str(self.folder), reason=str(error))
            return
        self._unpruned_bytes += len(header) + len(compiled.code)
        if self._unpruned_bytes > self.limit_bytes // 16:
            self.prune()

    def prune(self) -> None:
        """Remove what was not used for longest until the rest fits the limit, and what dead writers left."""
        entries = []
        for path in self.folder.iterdir():
            with contextlib.suppress(OSError):  # another process pruned it
                status = path.stat()
                entries.append((status.st_mtime, status.st_size, path))
        newest = max((mtime for mtime, _, _ in entries), default=0.0)
        kept_bytes = 0
        for mtime, size, path in sorted(entries, reverse=True):
            left_over = path.suffix == ".part" and mtime < newest - 3600
            kept_bytes += 0 if left_over else size
            if left_over or kept_bytes > self.limit_bytes:
                path.unlink(missing_ok=True)
        self._unpruned_bytes = 0
