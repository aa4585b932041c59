"""What the commands share: where they print, how they log, options of the same meaning, and the error of a wrong call."""

from __future__ import annotations

import sys
from typing import Annotated

import structlog
import typer
from rich.console import Console

from kernels.errors import InvalidError

out = Console(highlight=False)
notes = Console(stderr=True, highlight=False)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Database = Annotated[str | None, typer.Option("--db", help="Database URL; SQLite in the user's data directory by default.")]


class ArgumentError(InvalidError):
    """A command line that cannot be understood."""


def print_json(text: bytes | str) -> None:
    """One JSON document on stdout, and nothing else."""
    sys.stdout.write((text if isinstance(text, str) else text.decode()) + "\n")


def configure_logging() -> None:
    """One JSON object a line on stderr."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.dict_tracebacks,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
