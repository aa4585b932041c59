"""Messages of the engine while it works: warnings, and with EDGEWISE_DEBUG its choices and its code. Errors are raised."""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Final

from kernels.errors import InvalidError

DEBUG = "EDGEWISE_DEBUG"  # environment variable: a level from 0 to 4; each shows what the lower ones show, too
DEBUG_FOLDER = "EDGEWISE_DEBUG_DIR"  # environment variable: where IR and assembly are written
PLAN: Final = 1  # tracebacks of errors, and each plan with its steps
KERNELS: Final = 2  # the kernels that each node becomes
IR: Final = 3  # LLVM IR of each module, as a file
ASSEMBLY: Final = 4  # its assembly, as a file


def warn(event: str, **facts: object) -> None:
    """Log a warning with named values. structlog is imported with the first warning, since it takes 12 MB of memory."""
    import structlog  # noqa: PLC0415

    structlog.get_logger("edgewise.engine").warning(event, **facts)


def debug_level() -> int:
    """The level that EDGEWISE_DEBUG asks for, 0 where it is not set. Raises InvalidError where it is no level."""
    given = os.environ.get(DEBUG, "").strip() or "0"
    if given not in {"0", "1", "2", "3", "4"}:
        raise InvalidError(
            f"{DEBUG}: {given!r} is no level, need 0 (nothing), 1 (plan), 2 (and kernels), 3 (and IR) or 4 (and assembly)"
        )
    return int(given)


def debug(event: str, **facts: object) -> None:
    """Write a line of JSON to standard error, which carries no results. The caller has looked at `debug_level`."""
    sys.stderr.write(json.dumps({"logger": "edgewise.debug", "event": event, **facts}, default=str, ensure_ascii=False) + "\n")


def debug_folder() -> Path:
    """The folder that EDGEWISE_DEBUG_DIR names, made where it is missing; without it a new one for this process.

    Its path is logged once. Raises InvalidError where it cannot be made.
    """
    return _make_folder(os.environ.get(DEBUG_FOLDER, ""))


@functools.cache
def _make_folder(given: str) -> Path:
    try:
        folder = Path(given) if given else Path(tempfile.mkdtemp(prefix="edgewise-debug-"))
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidError(f"{DEBUG_FOLDER}: {given!r} cannot be made, {error.strerror}") from error
    debug("debug folder", path=str(folder.absolute()))
    return folder
