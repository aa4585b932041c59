"""Files and folders that no other user may read or change: compiled code, databases, models that were sent, unsent results."""

from __future__ import annotations

import os
from pathlib import Path

FILE_MODE = 0o600
FOLDER_MODE = 0o700


def make_private_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, each with mode 0700. Folders that exist stay as they are.

    Raises: OSError.
    """
    for missing in reversed([place for place in (folder, *folder.parents) if not place.exists()]):
        missing.mkdir(FOLDER_MODE, exist_ok=True)
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder}: it is not a folder")


def private_opener(path: str, flags: int) -> int:
    """Open a file, and where that makes it, with mode 0600 from its first moment. For `open(..., opener=private_opener)`."""
    return os.open(path, flags | os.O_CLOEXEC, FILE_MODE)
