"""Compare the counts of the exported models with published integers. A profiler that is off by one fails here."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

import edgewise
from bench.exports import GOLDEN
from bench.models import exports_folder


def check_counts(names: list[str]) -> None:
    """Print the MACs and parameters of exports whose counts are published. Exits with 1 if one differs."""
    table = Table(title="counts of the exports")
    for column in ("model", "MACs", "parameters", "as published"):
        table.add_column(column, justify="left" if column == "model" else "right")
    wrong = []
    for name in names:
        counted = edgewise.profile(exports_folder() / f"{name}.onnx")
        right = GOLDEN[name][:2] == (counted.macs, counted.params)
        wrong += [] if right else [name]
        table.add_row(name, f"{counted.macs:,}", f"{counted.params:,}", "yes" if right else "NO")
    Console(width=100).print(table)
    if wrong:
        sys.exit(f"bench: counts of {', '.join(wrong)} differ from the published ones")
