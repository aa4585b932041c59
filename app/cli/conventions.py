"""The output of `edgewise profile --convention`: what other tools that count FLOPs print for the same model, beside ours."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import orjson

from app.cli.console import ArgumentError, out, print_json
from app.cli.tables import Column, fitted
from profiler.counting.conventions import CONVENTIONS
from profiler.counting.counts import Profile
from profiler.report.exports import convention_rows

ALL: Final = "all"
OURS: Final = ("macs", "flops")


def names_of(asked: Iterable[str]) -> tuple[str, ...]:
    """Return the conventions to show: ours, then those asked for, each once. Raises ArgumentError for an unknown name."""
    names = list(OURS)
    for name in asked:
        if name != ALL and name not in CONVENTIONS:
            raise ArgumentError(f"--convention: {name!r} is unknown, need one of {', '.join(CONVENTIONS)}, {ALL}")
        names += CONVENTIONS if name == ALL else (name,)
    return tuple(dict.fromkeys(names))


def print_conventions(counted: Profile, names: Iterable[str], json: bool) -> None:
    """Print a model's totals by these conventions, and what each counts; or the same as JSON."""
    rows = convention_rows(counted, names)
    if json:
        print_json(orjson.dumps(rows))
        return
    columns = [
        Column("convention", [row["convention"] for row in rows], least=12),
        Column("total", [f"{row['total']:,}" for row in rows]),
        Column("unit", [row["unit"] for row in rows], least=18),
    ]
    out.print(fitted(f"{counted.model}: totals by convention", columns, out.width))
    for row in rows:
        out.print(f"{row['convention']}: {row['counts']} ({row['source']})", style="dim", markup=False)
