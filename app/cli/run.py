"""`edgewise run`: run a model once or many times on this machine."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import numpy as np
import orjson
import typer

from app.cli.arrays import read_arrays
from app.cli.console import Json, ModelPath, Shape, Threads, out, parse_shapes, print_json, require_known
from app.engine.feeds import make_feeds
from kernels.spec import Array
from profiler.report.exports import chrome_trace
from profiler.units import milliseconds
from scheduler.profile_run import time_session
from scheduler.session import Session
from scheduler.strategy import WantedPrecision


def command(
    model: ModelPath,
    feed: Annotated[list[str], typer.Option("--input", help="x=file.npy, file.npz, or a JSON request; random when absent.")] = [],  # noqa: B006
    shape: Shape = [],  # noqa: B006
    runs: Annotated[int, typer.Option(min=1, max=1_000_000, help="Timed runs after one warm-up.")] = 10,
    threads: Threads = None,
    precision: Annotated[str, typer.Option(help="Of products of float32: fp32 or bf16.")] = "fp32",
    trace_out: Annotated[Path | None, typer.Option(help="Write a Chrome/Perfetto trace of the runs here.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write the outputs to this .npz.")] = None,
    json: Json = False,
) -> None:
    """Run a model and print its outputs and latency.

    edgewise run model.onnx --input x=image.npy
    edgewise run model.onnx --runs 100 --trace-out trace.json
    """
    require_known("precision", precision, get_args(WantedPrecision))
    session = Session(model, threads=threads, precision=cast("WantedPrecision", precision))
    feeds = make_feeds(session.inputs, read_arrays(feed), parse_shapes(shape))
    outputs = _arrays(session.run(feeds))
    times_ns = [session.executor(feeds).run_timed(feeds).wall_ns for _ in range(runs)]
    if trace_out is not None:
        trace_out.write_bytes(chrome_trace(time_session(session, feeds, runs)))
    if save is not None:
        np.savez(save, allow_pickle=False, **outputs)
    median_ns = statistics.median(times_ns)
    if json:
        described = {name: {"shape": a.shape, "dtype": a.dtype.name, "first": _first(a)} for name, a in outputs.items()}
        print_json(orjson.dumps({"outputs": described, "runs": runs, "median_ns": median_ns, "min_ns": min(times_ns)}))
        return
    for name, array in outputs.items():
        out.print(f"{name}: {array.dtype.name}{list(array.shape)} {_first(array)}", markup=False)
    median, best = milliseconds(median_ns), milliseconds(min(times_ns))
    out.print(f"latency: median {median}, best {best} of {runs} runs, {session.threads} threads")


def _arrays(outputs: dict[str, Any]) -> dict[str, Array]:
    """Return every tensor among the outputs: those of a sequence as name[0], name[1], …; an optional that is empty has none."""
    found: dict[str, Array] = {}
    for name, value in outputs.items():
        found.update({f"{name}[{i}]": item for i, item in enumerate(value)} if isinstance(value, list) else {name: value})
    return {name: array for name, array in found.items() if array is not None}


def _first(array: Array) -> list[Any]:
    return array.ravel()[:10].tolist()  # type: ignore[no-any-return]
