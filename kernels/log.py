"""Messages of the engine besides errors: warnings, and where EDGEWISE_DEBUG asks for them, plans, kernels and code."""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path
from typing import Final

from kernels.errors import InvalidError

DEBUG = "EDGEWISE_DEBUG"  # environment variable: a level from 0 to 4; each includes the lower ones
DEBUG_FOLDER = "EDGEWISE_DEBUG_DIR"  # environment variable: where IR and assembly are written
PLAN: Final = 1  # tracebacks of errors, each plan with its steps, and why a model was lowered again
KERNELS: Final = 2  # the kernels that each node becomes
IR: Final = 3  # LLVM IR of each module, as a file
ASSEMBLY: Final = 4  # its assembly, as a file


def warn(event: str, **facts: object) -> None:
    """Log a warning with its facts, on standard error where the program has not configured structlog.

    structlog is loaded for the first warning only, because it takes 12 MB.
    """
    import structlog  # noqa: PLC0415

    if structlog.is_configured():
        structlog.get_logger("edgewise.engine").warning(event, **facts)
    else:  # its default is standard output, which belongs to what a command prints
        structlog.wrap_logger(structlog.PrintLogger(sys.stderr)).warning(event, **facts)


def debug_level() -> int:
    """Return the level that EDGEWISE_DEBUG sets, 0 where it is not set. Raises InvalidError for another value."""
    given = os.environ.get(DEBUG, "").strip() or "0"
    if given not in {"0", "1", "2", "3", "4"}:
        raise InvalidError(
            f"{DEBUG}: unknown level {given!r}, need 0 (nothing), 1 (plan), 2 (and kernels), 3 (and IR) or 4 (and assembly)"
        )
    return int(given)


def debug(event: str, **facts: object) -> None:
    """Write one line of JSON to standard error. Callers check `debug_level` first."""
    sys.stderr.write(json.dumps({"logger": "edgewise.debug", "event": event, **facts}, default=str, ensure_ascii=False) + "\n")


def debug_folder() -> Path:
    """Return the folder that EDGEWISE_DEBUG_DIR names, made where it is missing, or else a temporary one of this process.

    Its path is logged once. Raises InvalidError where it cannot be made.
    """
    return _make_folder(os.environ.get(DEBUG_FOLDER, ""))


@functools.cache
def _make_folder(given: str) -> Path:
    import tempfile  # noqa: PLC0415  2 ms with what it brings, and few processes write debug files

    try:
        folder = Path(given) if given else Path(tempfile.mkdtemp(prefix="edgewise-debug-"))
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidError(f"{DEBUG_FOLDER}: {given!r} cannot be made, {error.strerror}") from error
    debug("debug folder", path=str(folder.absolute()))
    return folder
