"""`edgewise bench`: time a model, or compare what the cost model predicts with what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, cast, get_args

import orjson
import typer
from rich.table import Table

from app.cli import speed
from app.cli.arrays import read_arrays
from app.cli.console import (
    MOST_ROWS,
    ArgumentError,
    Database,
    Json,
    Shape,
    notes,
    out,
    parse_counts,
    parse_shapes,
    print_json,
    require_known,
)
from kernels.confinement import usable_cores
from scheduler.cost.evaluation import evaluate_stored
from scheduler.store import Store
from scheduler.strategy import WantedPrecision

COST_MODEL = "cost-model"
MOST_THREADS = 1024


def command(
    what: Annotated[str, typer.Argument(help="An ONNX file, or cost-model.")] = COST_MODEL,
    threads: Annotated[
        str, typer.Option(help="Thread counts, as in 1,2; one and all cores by default.", show_default=False)
    ] = "",
    batch: Annotated[str, typer.Option(help="Rows of a run, as in 1,8.", show_default=False)] = "",
    precision: Annotated[str, typer.Option(help="Precisions of Edgewise, as in fp32,bf16.")] = "fp32",
    feed: Annotated[list[str], typer.Option("--input", help="x=file.npy, file.npz, or a JSON request; random when absent.")] = [],  # noqa: B006
    shape: Shape = [],  # noqa: B006
    seconds: Annotated[float, typer.Option(min=0.01, max=3600, help="Seconds of each engine, thread count and batch.")] = 3.0,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Turns that the engines take in that time.")] = 5,
    db: Database = None,
    json: Json = False,
) -> None:
    """Time a model by threads, batch and precision, beside ONNX Runtime where that is there; or evaluate the cost model.

    `cost-model` tells how well it predicts measurements that it was not fitted to, by kind of kernel.

    edgewise bench model.onnx --threads 1,2 --batch 1,8
    edgewise bench model.onnx --precision fp32,bf16
    edgewise bench cost-model
    """
    if what != COST_MODEL:
        if not Path(what).exists():
            raise ArgumentError(f"unknown benchmark {what!r}, need {COST_MODEL}, or the path of an ONNX file")
        counts = parse_counts("--threads", threads, MOST_THREADS) or sorted({1, usable_cores()})
        batches: Sequence[int | None] = parse_counts("--batch", batch, MOST_ROWS) or [None]
        for name in precision.split(","):
            require_known("precision", name, get_args(WantedPrecision))
        precisions = cast("list[WantedPrecision]", precision.split(","))
        sweep = speed.Sweep(counts, batches, precisions, seconds, rounds)
        found = speed.measure(Path(what), sweep, read_arrays(feed), parse_shapes(shape), _teller())
        speed.show(Path(what), list(found), json=json)
        return
    with Store(db) as store:
        evaluated = evaluate_stored(store)
    if json:
        print_json(orjson.dumps(evaluated))
        return
    if not evaluated:
        out.print("nothing was measured on this machine with this build yet, run `edgewise tune MODEL` first")
        return
    table = Table(title="held-out measurements, by signature", title_justify="left")
    for name in (
        "kernels",
        "points",
        "fitted %",
        "median error %",
        "works ranked",
        "Spearman",
        "ceiling",
        "pairs apart",
        "their rank",
    ):
        table.add_column(name, justify="left" if name == "kernels" else "right")
    for row in evaluated:
        rank, ceiling, gamma = ("" if r is None else f"{r:.3f}" for r in (row.spearman, row.ceiling, row.gamma))
        numbers = (str(row.points), f"{row.fitted_percent:.0f}", f"{row.error_percent:.1f}", str(row.works))
        table.add_row(row.kind, *numbers, rank, ceiling, str(row.pairs), gamma)
    out.print(table)


def _teller() -> Callable[[str], None]:
    """Return a function that prints a note, unless it has just printed the same."""
    last = ""

    def say(text: str) -> None:
        nonlocal last
        if text != last:
            notes.print(text, style="dim", markup=False)
        last = text

    return say
