"""What the commands share: where they print, how they log, options of the same meaning, and the error of a wrong call."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import structlog
import typer
from rich.console import Console

from kernels.errors import InvalidError

out = Console(highlight=False)
notes = Console(stderr=True, highlight=False)

ModelPath = Annotated[Path, typer.Argument(help="An ONNX file.", show_default=False)]
Shape = Annotated[list[str], typer.Option("--shape", help="Whole shape of an input, as in x=1,3,224,224; repeatable.")]
Dim = Annotated[list[str], typer.Option("--dim", help="Size of a named dimension, as in batch=8 (or batch=1,2,4 to sweep).")]
Threads = Annotated[int | None, typer.Option(help="Cores to use; physical cores by default.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Database = Annotated[str | None, typer.Option("--db", help="Database URL; SQLite in the user's data directory by default.")]


class ArgumentError(InvalidError):
    """A command line that cannot be understood."""


def print_json(text: bytes | str) -> None:
    """One JSON document on stdout, and nothing else."""
    sys.stdout.write((text if isinstance(text, str) else text.decode()) + "\n")


def parse_shapes(texts: list[str]) -> dict[str, tuple[int, ...]]:
    """--shape x=1,3,224,224 as {"x": (1, 3, 224, 224)}. Raises ArgumentError."""
    return dict(_assignment("--shape", text) for text in texts)


def parse_dims(texts: list[str]) -> dict[str, tuple[int, ...]]:
    """--dim batch=8 as {"batch": (8,)}. Raises ArgumentError."""
    return dict(_assignment("--dim", text) for text in texts)


def _assignment(option: str, text: str) -> tuple[str, tuple[int, ...]]:
    name, equals, sizes = text.rpartition("=")
    parts = sizes.split(",") if sizes else []
    if not equals or not name or not all(part.strip().isdecimal() for part in parts):
        raise ArgumentError(f"{option}: {text!r} is not understood, need name=size[,size…]")
    return name, tuple(int(part) for part in parts)


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
