"""A folder that only this user can write to, because code from it is executed."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

import platformdirs

from kernels.log import warn

FOLDER = "EDGEWISE_CODE_CACHE"  # environment variable: where to keep compiled code; empty = keep none


class PrivateFolder:
    """Files that are written under a temporary name and renamed, so that a reader never sees a part of one.

    refusal: why the folder is not used, or None. A refused folder reads as empty, and writing to it does nothing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.refusal = self._open()
        if self.refusal:
            warn("code cache not used", folder=str(path), reason=self.refusal)

    @staticmethod
    def default_path() -> Path | None:
        """Return the folder of this user's compiled code, or the one that EDGEWISE_CODE_CACHE names; None where that is empty."""
        given = os.environ.get(FOLDER)
        if given == "":
            return None
        return Path(given) if given else Path(platformdirs.user_cache_dir("edgewise")) / "native"

    def _open(self) -> str | None:
        """Make the folder; return why it cannot be trusted, or None."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = self.path.lstat()
        except OSError as error:
            return str(error)
        if not stat.S_ISDIR(status.st_mode):
            return "it is not a folder"
        if hasattr(os, "getuid") and status.st_uid != os.getuid():
            return f"it belongs to user {status.st_uid}, need {os.getuid()}"
        if status.st_mode & 0o022:
            return f"its mode is {status.st_mode & 0o777:o}, others must not be able to write code"
        return None

    def read(self, name: str) -> bytes | None:
        """Return the bytes of a file and mark it as used now; None where there is none."""
        if self.refusal:
            return None
        try:
            data = (self.path / name).read_bytes()
            os.utime(self.path / name)
        except OSError:  # absent, or removed by another process that prunes
            return None
        return data

    def write(self, name: str, data: bytes) -> bool:
        """Write a file; return whether that succeeded. A full or read-only disk is logged and costs the next process time."""
        if self.refusal:
            return False
        try:
            descriptor, temporary = tempfile.mkstemp(dir=self.path, suffix=".part")  # mode 0600
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                Path(temporary).replace(self.path / name)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as error:
            warn("code not kept", folder=str(self.path), reason=str(error))
            return False
        return True

    def prune(self, limit_bytes: int) -> None:
        """Remove the least recently used files until the rest fits the limit, and temporary files of writers that died."""
        entries = []
        for path in self.path.iterdir():
            with contextlib.suppress(OSError):  # another process pruned it
                status = path.stat()
                entries.append((status.st_mtime, status.st_size, path))
        newest = max((mtime for mtime, _, _ in entries), default=0.0)
        kept_bytes = 0
        for mtime, size, path in sorted(entries, reverse=True):
            left_over = path.suffix == ".part" and mtime < newest - 3600
            kept_bytes += 0 if left_over else size
            if left_over or kept_bytes > limit_bytes:
                path.unlink(missing_ok=True)
