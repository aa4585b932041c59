"""Measure what the first answer takes: importing the engine, loading the model and one run, in a new process each time.

    python -m bench.starts FILE.onnx… [--dim batch=1 --dim seq=16] [--threads 2] [--rounds 3] [--json]

Edgewise starts cold, with an empty code cache, and warm, with the code of an earlier process on disk. All engines start in turns.
The fastest of the rounds counts: other work on the machine can only add time. Processor seconds are less sensitive to such work;
they are those of all threads. Peers run under the interpreter that EDGEWISE_PEERS_PYTHON names.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.models import feeds_of
from bench.race import EngineFailedError, start

COLD, WARM = "edgewise cold", "edgewise warm"


@dataclass(frozen=True, slots=True)
class Start:
    """The best of an engine's starts with one file. seconds: of wall clock. cpu_seconds: of the processor, on all threads."""

    model: str
    engine: str
    seconds: float
    cpu_seconds: float


def start_once(engine: str, model: Path, threads: int, feeds: Path, folder: Path, code: Path) -> Start:
    """Start an engine in a new process. code: folder of Edgewise's compiled code. Raises EngineFailedError where it fails."""
    name = engine.partition(" ")[0]
    worker = start(name, model, threads, feeds, folder, {"EDGEWISE_CODE_CACHE": str(code)})
    try:
        ready = worker.answer()
    finally:
        worker.process.kill()
        worker.process.wait()
    return Start(model.name, engine, ready["load_ns"] / 1e9, ready["cpu_ns"] / 1e9)


def starts_of(model: Path, engines: list[str], threads: int, rounds: int, feeds: dict[str, np.ndarray]) -> list[Start]:
    """Start every engine with one file in turns. An engine that cannot run it is left out, with the reason on stderr."""
    best: dict[str, Start] = {}
    failed: set[str] = set()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "feeds.npz", allow_pickle=False, **feeds)
        for turn in range(rounds):
            for engine in (each for each in engines if each not in failed):
                code = folder / (f"code-{turn}" if engine == COLD else "code-0")  # the first cold start compiles for warm ones
                try:
                    found = start_once(engine, model, threads, folder / "feeds.npz", folder, code)
                except EngineFailedError as error:
                    failed.add(engine)
                    sys.stderr.write(f"{model.name}: left out: {error}\n")
                    continue
                known = best.get(engine, found)
                seconds, cpu_seconds = min(known.seconds, found.seconds), min(known.cpu_seconds, found.cpu_seconds)
                best[engine] = Start(model.name, engine, seconds, cpu_seconds)
    return list(best.values())


def show(rows: list[list[Start]], engines: list[str], threads: int) -> None:
    """Print a table with a line for each file, and the ratios to the first peer."""
    peer = next((engine for engine in engines if engine not in (COLD, WARM)), None)
    table = Table(title=f"Import, load and first run in a new process, {threads} threads: seconds (processor seconds)")
    table.add_column("file")
    for engine in engines:
        table.add_column(engine, justify="right")
    for way in (COLD, WARM):
        table.add_column(f"{way} / {peer}", justify="right")
    ratios: dict[str, list[float]] = {COLD: [], WARM: []}
    for row in rows:
        by_engine = {found.engine: found for found in row}
        cells = [f"{f.seconds:.2f} ({f.cpu_seconds:.2f})" if (f := by_engine.get(engine)) else "–" for engine in engines]
        for way, among in ratios.items():
            if peer in by_engine and way in by_engine:
                among.append(by_engine[way].seconds / by_engine[peer].seconds)
                cells.append(f"{among[-1]:.2f}")
            else:
                cells.append("–")
        table.add_row(row[0].model if row else "–", *cells)
    console = Console(width=140)
    console.print(table)
    for way, among in ratios.items():
        if among:
            mean = math.exp(sum(map(math.log, among)) / len(among))
            console.print(f"{way} / {peer}: geometric mean {mean:.2f}, worst {max(among):.2f}")


def main(
    models: Annotated[list[Path], typer.Argument(help="ONNX files.")],
    dim: Annotated[list[str], typer.Option(help="Size of a named dimension, as in seq=16; others are 1. Repeatable.")] = [],  # noqa: B006  typer copies it
    peers: Annotated[str, typer.Option(help="Comma-separated: onnxruntime, openvino, mnn, ncnn; empty = none.")] = "onnxruntime",
    threads: Annotated[int, typer.Option(help="Threads of every engine.")] = 2,
    rounds: Annotated[int, typer.Option(help="Starts of each engine with each file.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Compare the time to the first answer, cold and warm, with other engines."""
    dims = {name: int(size) for name, _, size in (text.partition("=") for text in dim)}
    engines = [COLD, WARM, *filter(None, peers.split(","))]
    rows = []
    for model in track(models, description="starts", console=Console(stderr=True), transient=True):
        rows.append(starts_of(model, engines, threads, rounds, feeds_of(model, dims)))
    if as_json:
        typer.echo(json.dumps([asdict(found) for row in rows for found in row]))
    else:
        show(rows, engines, threads)


if __name__ == "__main__":
    typer.run(main)
