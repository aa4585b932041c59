"""`python -m bench` compares Edgewise with other engines on this machine's cores."""

from __future__ import annotations

import platform
from typing import Annotated

import psutil
import typer

from bench.accuracy import compare_accuracy
from bench.costs import compare_costs
from bench.counts import check_counts
from bench.exports import EXPORTS, GOLDEN
from bench.models import compare
from bench.shapes import SHAPES_OF, compare_shapes


def main(
    models: Annotated[str, typer.Option(help="Comma-separated files of the exports' folder, without .onnx.")] = ",".join(EXPORTS),
    engines: Annotated[
        str,
        typer.Option(help="Comma-separated: edgewise[:backend or :bf16][@CHECKOUT], onnxruntime, openvino[:bf16], mnn, ncnn."),
    ] = ("edgewise,onnxruntime"),
    dim: Annotated[list[str], typer.Option(help="Size of a named dimension, as in seq=64; others are 1. Repeatable.")] = [],  # noqa: B006  typer copies it
    threads: Annotated[str, typer.Option(help="Comma-separated thread counts.")] = "1,2",
    rounds: Annotated[int, typer.Option(help="Turns per engine.")] = 5,
    seconds: Annotated[float, typer.Option(help="Seconds of one turn.")] = 1.0,
    shapes: Annotated[str, typer.Option(help="Comma-separated exports whose shapes are timed one by one; empty = none.")] = (
        ",".join(SHAPES_OF)
    ),
    costs: Annotated[
        bool, typer.Option(help="Measure start-up time, the speedup by threads, and the overhead of timing each step.")
    ] = True,
    accuracy: Annotated[
        bool, typer.Option(help="Compare outputs with float64, and peak memory with that of ONNX Runtime.")
    ] = True,
) -> None:
    """Check the counts of the exports, then print one table per thread count and one per other benchmark that is on."""
    cores = psutil.cpu_count(logical=False)
    typer.echo(
        f"{platform.platform()}, {platform.processor() or platform.machine()}, {cores} cores, Python {platform.python_version()}"
    )
    dims = {name: int(size) for name, _, size in (text.partition("=") for text in dim)}
    if published := [name for name in models.split(",") if name in GOLDEN]:
        check_counts(published)
    for count in map(int, threads.split(",")):
        compare(models.split(","), engines.split(","), count, rounds=rounds, seconds=seconds, dims=dims)
    if shapes:
        compare_shapes(shapes.split(","), 1, seconds / 2)
    if costs:
        compare_costs(models.split(","), max(map(int, threads.split(","))), 4 * seconds)
    if accuracy:
        compare_accuracy(models.split(","), max(map(int, threads.split(","))))


if __name__ == "__main__":
    typer.run(main)
