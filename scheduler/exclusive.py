"""One measurement at a time on a machine: a second one on the same cores would slow the first.

Processes take turns by a lock on a file in the user's data directory, which the system releases when its process ends or dies.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final

import platformdirs

from kernels.private import make_private_folder, private_opener

if sys.platform == "win32":  # which locks bytes of a file instead
    import msvcrt
else:
    import fcntl

FILE: Final = "measuring.lock"
POLL_S: Final = 0.2


def lock_path() -> Path:
    """Return the path of the lock file."""
    return platformdirs.user_data_path("edgewise") / FILE


@contextlib.contextmanager
def measuring(
    waiting: Callable[[str], None] | None = None, stop: Callable[[], bool] | None = None, path: Path | None = None
) -> Iterator[bool]:
    """Hold the machine's measurement lock for the length of a `with` block, waiting for other processes first.

    Args:   waiting: called while it waits, with a text that names the other process. stop: asked while it waits; True ends the
            wait. path: of the lock file, None = `lock_path`.
    Yields: True with the lock held; False without it, where `stop` ended the wait.
    """
    path = path or lock_path()
    make_private_folder(path.parent)
    with open(path, "a+", opener=private_opener) as file:
        while not _taken(file):
            if stop is not None and stop():
                yield False
                return
            if waiting is not None:
                waiting(f"waiting for process {_holder(path)}, which is measuring on this machine")
            time.sleep(POLL_S)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        try:
            yield True
        finally:
            _release(file)


def _taken(file: IO[str]) -> bool:
    """Take the lock if it is free. Returns whether it was."""
    try:
        if sys.platform == "win32":
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _release(file: IO[str]) -> None:
    if sys.platform == "win32":
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
    else:
        fcntl.flock(file, fcntl.LOCK_UN)


def _holder(path: Path) -> str:
    """Return the number of the process that holds the lock, as it wrote it into the file; "?" where it has not yet."""
    text = path.read_text(errors="replace").strip()
    return text if text.isdecimal() else "?"
