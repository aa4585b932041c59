"""A folder of this user's alone: what lies in it may be run, so nobody else may have written it."""

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
    """Files that are written beside their place and renamed: a reader never sees half of one, whoever dies when.

    refusal: why the folder is not used, or None. Reading is then absent, and writing does nothing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.refusal = self._open()
        if self.refusal:
            warn("code cache not used", folder=str(path), reason=self.refusal)

    @staticmethod
    def default_path() -> Path | None:
        """Where this user's compiled code is kept, or where EDGEWISE_CODE_CACHE says; None when that is set to nothing."""
        given = os.environ.get(FOLDER)
        if given == "":
            return None
        return Path(given) if given else Path(platformdirs.user_cache_dir("edgewise")) / "native"

    def _open(self) -> str | None:
        """Make the folder; why it cannot be trusted, or None."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = self.path.lstat()
        except OSError as error:
            return str(error)
        if not stat.S_ISDIR(status.st_mode):
            return "it is no folder"
        if hasattr(os, "getuid") and status.st_uid != os.getuid():
            return f"it belongs to user {status.st_uid}, need {os.getuid()}"
        if status.st_mode & 0o022:
            return f"its mode is {status.st_mode & 0o777:o}, others must not be able to write code"
        return None

    def read(self, name: str) -> bytes | None:
        """The bytes of a file, which counts as used now; None where there is none."""
        if self.refusal:
            return None
        try:
            data = (self.path / name).read_bytes()
            os.utime(self.path / name)
        except OSError:  # absent, or taken away by another process that prunes
            return None
        return data

    def write(self, name: str, data: bytes) -> bool:
        """Keep a file; whether it is kept. A full or read-only disk costs the next process its time, and is logged."""
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
        """Remove what was not used for longest until the rest fits the limit, and what dead writers left."""
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
