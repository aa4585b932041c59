"""Opening of model files from untrusted sources."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from graph.errors import UnsafePathError

_KINDS = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}


def open_regular(path: Path) -> int:
    """Open a regular file and return its descriptor, which the caller closes. Never blocks on a pipe or device.

    Raises: UnsafePathError, FileNotFoundError.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise UnsafePathError(f"model: it is a {_KINDS.get(stat.S_IFMT(mode), 'device')}, need a file ({path.name})")
    return descriptor
