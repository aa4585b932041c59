"""What commands share: where they print, options of the same meaning, and the error of a command line that makes no sense.

An option that is also a setting of the service reads the setting's environment variable, in every command alike.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from kernels.confinement import read_cpus
from kernels.errors import InvalidError

MOST_ROWS = 65_536  # of one request or run

out = Console(highlight=False)
notes = Console(stderr=True, highlight=False)

ModelPath = Annotated[Path, typer.Argument(help="An ONNX file.", show_default=False)]
Shape = Annotated[list[str], typer.Option("--shape", help="Whole shape of an input, as in x=1,3,224,224; repeatable.")]
Dim = Annotated[list[str], typer.Option("--dim", help="Size of a named dimension, as in batch=8 (or batch=1,2,4 to sweep).")]


def _warn_of_threads(threads: int | None) -> int | None:
    """Say on stderr that more threads are asked for than this process may use CPUs."""
    if threads is not None and threads > (cpus := read_cpus()).usable:
        text = (
            f"--threads: {threads} is more than the {cpus.usable} that this process can keep busy, they will take turns ({cpus})"
        )
        notes.print(text, style="yellow", markup=False, soft_wrap=True)
    return threads


Threads = Annotated[
    int | None,
    typer.Option(
        envvar="EDGEWISE_THREADS",
        min=1,
        help="Cores to use; the physical cores it may use by default.",
        callback=_warn_of_threads,
    ),
]
MaxError = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="The largest difference from outputs in fp32 to allow, as a share of the largest output."),
]
PrecisionOption = Annotated[
    str,
    typer.Option("--precision", help="Of products: fp32, bf16, or auto: what is fastest within --max-error, by default 0.01."),
]
Samples = Annotated[
    list[Path],
    typer.Option("--samples", help="Inputs to measure the error on, one .npz file each; else random ones. Repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Database = Annotated[
    str | None,
    typer.Option("--db", envvar="EDGEWISE_DB", help="Database URL; SQLite in the user's data directory by default."),
]


class ArgumentError(InvalidError):
    """A command line that makes no sense; the program exits with 2."""


def print_json(text: bytes | str) -> None:
    """Print one JSON document on stdout, and nothing else."""
    sys.stdout.write((text if isinstance(text, str) else text.decode()) + "\n")


def print_inputs(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Print the shapes that a model was bound to, given or not."""
    out.print("inputs: " + ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()), markup=False)


def parse_shapes(texts: list[str]) -> dict[str, tuple[int, ...]]:
    """Read --shape x=1,3,224,224 as {"x": (1, 3, 224, 224)}. Raises ArgumentError."""
    return dict(_assignment("--shape", text) for text in texts)


def parse_dims(texts: list[str]) -> dict[str, tuple[int, ...]]:
    """Read --dim batch=8 as {"batch": (8,)}. Raises ArgumentError."""
    return dict(_assignment("--dim", text) for text in texts)


def _assignment(option: str, text: str) -> tuple[str, tuple[int, ...]]:
    name, equals, sizes = text.rpartition("=")
    parts = sizes.split(",") if sizes else []
    if not equals or not name or not all(part.strip().isdecimal() for part in parts):
        raise ArgumentError(f"{option}: {text!r} is not understood, need name=size[,size…]")
    return name, tuple(int(part) for part in parts)


def parse_numbers(option: str, text: str, most: float) -> list[float]:
    """Read 0.5,8,32; "" is none. Raises ArgumentError for what is no number above 0 and at most `most`."""
    try:
        found = [float(part) for part in text.split(",")] if text else []
    except ValueError:
        found = [0.0]
    if not all(0 < value <= most for value in found):
        raise ArgumentError(f"{option}: {text!r} is not understood, need numbers above 0 and at most {most:g}, as in 1,8,32")
    return found


def parse_counts(option: str, text: str, most: int) -> list[int]:
    """Read 1,8,32; "" is none. Raises ArgumentError for what is no whole number from 1 to `most`."""
    found = parse_numbers(option, text, most)
    if not all(value.is_integer() for value in found):
        raise ArgumentError(f"{option}: {text!r} is not understood, need whole numbers, as in 1,8,32")
    return [int(value) for value in found]


def typed(context: typer.Context, option: str) -> bool:
    """Return whether an option was given on the command line rather than by the environment."""
    source = context.get_parameter_source(option)
    return source is not None and source.name == "COMMANDLINE"


def require_known(what: str, value: str, known: Sequence[str]) -> None:
    """Raise ArgumentError unless the value is one of those known."""
    if value not in known:
        raise ArgumentError(f"unknown {what} {value!r}, need one of {', '.join(known)}")
