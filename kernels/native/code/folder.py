"""A folder that only this user can write to, because code from it is executed.

The folder is opened once, and files are opened below that descriptor, never by a path. So what was checked is what is used: a
folder that is moved away and replaced, or a link in its place, is not followed.
"""

from __future__ import annotations

import contextlib
import os
import stat
import weakref
from pathlib import Path
from typing import Final

from kernels.log import warn
from kernels.private import FILE_MODE, FOLDER_MODE

FOLDER = "EDGEWISE_CODE_CACHE"  # environment variable: where to keep compiled code; empty = keep none
LEFT_OVER_S: Final = 3600  # temporary files this much older than the newest file are of writers that died

_ROOT_USER: Final = 0
_OTHERS_WRITE: Final = 0o022
_STEP: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_DIRECTORY
_FILE: Final = os.O_CLOEXEC | os.O_NOFOLLOW
_WALK: Final = getattr(os, "O_PATH", os.O_RDONLY)  # a folder on the way may be searchable, yet not readable

_unwritable: Final[set[Path]] = set()  # folders whose last write failed, in this process


class PrivateFolder:
    """Files that are written under a temporary name and renamed, so that a reader never sees a part of one.

    refusal: why the folder is not used, or None. A refused folder reads as empty, and writing to it does nothing. Nothing that
    goes wrong with it is an error: it is logged, and what would have come from it is made again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.refusal: str | None = None
        try:
            self._folder = _open_trusted(path)
        except (OSError, _UntrustedError) as error:
            self.refusal = str(error)
            warn("code cache not used", folder=str(path), reason=self.refusal)
        else:
            weakref.finalize(self, os.close, self._folder).atexit = False  # threads may be using it until the process ends

    @staticmethod
    def default_path() -> Path | None:
        """Return the folder of this user's compiled code, or the one that EDGEWISE_CODE_CACHE names; None where that is empty."""
        given = os.environ.get(FOLDER)
        if given == "":
            return None
        if given:
            return Path(given)
        import platformdirs  # noqa: PLC0415  only where no folder is given

        return Path(platformdirs.user_cache_dir("edgewise")) / "native"

    def read(self, name: str) -> bytes | None:
        """Return the bytes of a file and mark it as used now; None where there is none, or none that can be trusted."""
        if self.refusal:
            return None
        try:
            # O_NONBLOCK: a pipe in place of a file is refused, not waited for.
            descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | _FILE, dir_fd=self._folder)
            with os.fdopen(descriptor, "rb") as file:
                _check_file(os.fstat(descriptor))
                data = file.read()
                with contextlib.suppress(OSError):  # a read-only disk
                    os.utime(descriptor)
                return data
        except FileNotFoundError:  # never written, or removed by another process that prunes
            return None
        except (OSError, _UntrustedError) as error:  # a link is an OSError, too
            warn("code cache entry not used", folder=str(self.path), entry=name, reason=str(error))
            return None

    def write(self, name: str, data: bytes) -> bool:
        """Write a file; return whether that succeeded.

        A full or read-only disk is logged once, until a write succeeds again, and costs the next process time.
        """
        if self.refusal:
            return False
        temporary = f"{os.urandom(8).hex()}.part"
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE, FILE_MODE, dir_fd=self._folder)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                os.rename(temporary, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            except BaseException:
                self._remove(temporary)
                raise
        except OSError as error:
            if self.path not in _unwritable:
                warn("code not kept", folder=str(self.path), reason=str(error))
            _unwritable.add(self.path)
            return False
        _unwritable.discard(self.path)
        return True

    def prune(self, limit_bytes: int) -> None:
        """Remove the least recently used files until the rest fits the limit, and temporary files of writers that died."""
        entries = []
        for name in os.listdir(self._folder) if not self.refusal else ():  # noqa: PTH208  a descriptor, not a path
            with contextlib.suppress(OSError):  # another process pruned it
                status = os.stat(name, dir_fd=self._folder, follow_symlinks=False)
                entries.append((status.st_mtime, status.st_size, name))
        newest = max((mtime for mtime, _, _ in entries), default=0.0)
        kept_bytes = 0
        for mtime, size, name in sorted(entries, reverse=True):
            left_over = name.endswith(".part") and mtime < newest - LEFT_OVER_S
            kept_bytes += 0 if left_over else size
            if left_over or kept_bytes > limit_bytes:
                self._remove(name)

    def _remove(self, name: str) -> None:
        with contextlib.suppress(OSError):  # it is gone already, or the disk has become read-only
            os.unlink(name, dir_fd=self._folder)


class _UntrustedError(Exception):
    """Another user could have put code there."""


def _open_trusted(path: Path) -> int:
    """Open a folder, made where it is missing, and return its descriptor.

    Links above the folder are resolved first; then each folder on the way is opened below the one before and checked, from the
    root of the file system on. Raises OSError, and _UntrustedError where another user could exchange a folder on the way.
    """
    if os.open not in os.supports_dir_fd:
        raise _UntrustedError("this system cannot open files below an open folder")
    path = path.absolute()
    way = (*Path(os.path.realpath(path.parent)).parts, path.name)
    opened = os.open(way[0], _WALK | _STEP)
    try:
        for depth, name in enumerate(way[1:], start=2):
            last = depth == len(way)
            _check_folder(os.fstat(opened), Path(*way[: depth - 1]), shared=True)
            with contextlib.suppress(FileExistsError):
                if not _exists(name, opened):
                    os.mkdir(name, FOLDER_MODE, dir_fd=opened)
            below = _open_below(name, opened, os.O_RDONLY if last else _WALK)
            os.close(opened)
            opened = below
        _check_folder(os.fstat(opened), path, shared=False)
    except BaseException:
        os.close(opened)
        raise
    return opened


def _exists(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _open_below(name: str, folder: int, flags: int) -> int:
    try:
        return os.open(name, flags | _STEP, dir_fd=folder)
    except NotADirectoryError:  # a link, too
        raise _UntrustedError(f"{name} is not a folder") from None


def _check_folder(status: os.stat_result, path: Path, *, shared: bool) -> None:
    """Refuse a folder in which another user could exchange files.

    shared: the folder is only on the way: root may own it, and all may write to it where it is sticky, as /tmp is, since what is
    below then belongs to whom it is checked to belong to.
    """
    _check_owner(status, str(path), {os.getuid(), _ROOT_USER} if shared else {os.getuid()})
    sticky = shared and status.st_mode & stat.S_ISVTX
    if status.st_mode & _OTHERS_WRITE and not sticky and not (shared and _own_group_only(status)):
        raise _UntrustedError(f"the mode of {path} is {status.st_mode & 0o777:o}, others must not be able to write to it")


def _check_file(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise _UntrustedError("it is not a regular file")
    _check_owner(status, "it", {os.getuid()})
    if status.st_mode & _OTHERS_WRITE:
        raise _UntrustedError(f"its mode is {status.st_mode & 0o777:o}, others must not be able to write to it")


def _check_owner(status: os.stat_result, what: str, trusted: set[int]) -> None:
    if status.st_uid not in trusted:
        raise _UntrustedError(f"{what} belongs to user {status.st_uid}, need {' or '.join(map(str, sorted(trusted)))}")


def _own_group_only(status: os.stat_result) -> bool:
    """Whether the only others who may write are a group that holds this user alone, as systems with umask 002 give each user."""
    if status.st_mode & 0o002 or status.st_uid != os.getuid():
        return False
    import grp  # noqa: PLC0415  rarely needed
    import pwd  # noqa: PLC0415

    try:
        user, group = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(status.st_gid)
    except KeyError:
        return False
    return group.gr_name == user and set(group.gr_mem) <= {user}
