"""The file of a SQLite database: private to its user, and the same file for as long as it is open.

SQLite goes on writing to a file that was moved or deleted, and would keep what it acknowledges where no one finds it. So the
file that is open is compared with the one that its path leads to, by device and inode.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from kernels.log import warn
from kernels.private import FILE_MODE, make_private_folder, private_opener
from scheduler.errors import StoreError, StoreMissingError, StoreMovedError, StoreReadOnlyError

SUFFIXES: Final = ("", "-wal", "-shm")  # the database, its write-ahead log, and the log's index

Identity = tuple[int, int] | None  # device and inode; None where there is no file


class DatabaseFile:
    """One file, by its path. error: makes an error of the database, given its class and a fact. Thread-safe."""

    def __init__(self, path: Path, error: Callable[[type[StoreError], str], StoreError]) -> None:
        self.path = path.absolute()
        self._error = error
        self._first: Identity = None

    def prepare(self, *, create: bool) -> None:
        """Make the file where it is missing, and keep other users away from one that is there.

        Raises: StoreMissingError where it is missing and not to be created, StoreReadOnlyError where it cannot be.
        """
        if self.path.exists():
            self._close_to_others()
            return
        if not create:
            raise self._error(StoreMissingError, "no such file, run `edgewise db upgrade` to create it")
        try:
            make_private_folder(self.path.parent)
            with contextlib.suppress(FileExistsError):  # another process was faster
                # SQLite gives its -wal and -shm files the mode of this one.
                open(self.path, "xb", opener=private_opener).close()
        except OSError as error:
            raise self._error(
                StoreReadOnlyError, f"cannot be created, {error.strerror} (choose another place with --db)"
            ) from None

    def _close_to_others(self) -> None:
        """Set mode 0600 on files that other users can read or change, as earlier versions and other programs made them.

        By path, for closing a descriptor of the file would end SQLite's locks on it in this process.
        """
        for path in (Path(f"{self.path}{suffix}") for suffix in SUFFIXES):
            try:
                mode = path.stat().st_mode & 0o777
            except OSError:  # there is none, or SQLite will say why it cannot be opened
                continue
            if not mode & ~FILE_MODE:
                continue
            try:
                path.chmod(mode & FILE_MODE)
            except OSError as error:  # it belongs to another user, or the file system is read-only
                warn("database file is open to other users", file=str(path), mode=f"{mode:o}", reason=str(error))
            else:
                warn("database file closed to other users", file=str(path), mode=f"{mode:o}", now=f"{mode & FILE_MODE:o}")

    def opened(self) -> None:
        """Note that a connection opened the file. Raises StoreMovedError where it is another one than the first opened."""
        if self._first is None:
            self._first = _identity(self.path)
        self.require_same()

    def identities(self) -> tuple[Identity, ...]:
        """Return what the paths of the file and of its log lead to now."""
        return tuple(_identity(Path(f"{self.path}{suffix}")) for suffix in SUFFIXES)

    def require_same(self, opened: tuple[Identity, ...] = ()) -> None:
        """Raise StoreMovedError where the path leads to another file than the first that was opened, or to none.

        opened: `identities` as one connection found them, whose log has to be the same, too.
        """
        found = self.identities() if opened else (_identity(self.path),)
        for suffix, was, now in zip(SUFFIXES, opened or (self._first,), found, strict=False):
            if was is not None and was != now:
                happened = "is gone" if now is None else "was replaced by another"
                raise self._error(
                    StoreMovedError,
                    f"the file{f' with suffix {suffix}' if suffix else ''} that is open {happened}, nothing is read or written "
                    "until it is back (move it back, or restart to use what is there)",
                )


def _identity(path: Path) -> Identity:
    try:
        found = os.stat(path)  # noqa: PTH116  before and after every transaction: Path.stat takes twice as long
    except OSError:
        return None
    return found.st_dev, found.st_ino
