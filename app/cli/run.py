"""`edgewise run`: run a model once or many times on this machine."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import numpy as np
import orjson
import typer

from app.cli.arrays import read_arrays
from app.cli.console import (
    ArgumentError,
    Database,
    Dim,
    Json,
    ModelPath,
    Shape,
    Threads,
    out,
    parse_dims,
    parse_shapes,
    print_inputs,
    print_json,
    require_known,
)
from app.cli.stored import find_plan
from graph.run.feeds import random_feeds
from graph.shapes import bind
from kernels.spec import Array
from profiler.report.exports import chrome_trace
from profiler.units import milliseconds
from scheduler.profile_run import time_session
from scheduler.session import BACKENDS, Session, SessionBackend
from scheduler.strategy import WantedPrecision


def command(
    model: ModelPath,
    feed: Annotated[list[str], typer.Option("--input", help="x=file.npy, file.npz, or a JSON request; random when absent.")] = [],  # noqa: B006
    shape: Shape = [],  # noqa: B006
    dim: Dim = [],  # noqa: B006
    runs: Annotated[int, typer.Option(min=1, max=1_000_000, help="Timed runs after one warm-up.")] = 10,
    threads: Threads = None,
    backend: Annotated[str, typer.Option(help="auto, native, numpy, or cuda: an NVIDIA GPU.")] = "auto",
    precision: Annotated[str, typer.Option(help="Of products of float32: fp32 or bf16; on a GPU also tf32 or fp16.")] = "fp32",
    plan: Annotated[
        str | None,
        typer.Option(help="Plan to run: a stored one's id, or a file of `plan --json`.", show_default=False),
    ] = None,
    db: Database = None,
    trace_out: Annotated[Path | None, typer.Option(help="Write a Chrome/Perfetto trace of the runs here.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write the outputs to this .npz.")] = None,
    json: Json = False,
) -> None:
    """Run a model and print its outputs and latency.

    edgewise run model.onnx --input x=image.npy
    edgewise run model.onnx --runs 100 --trace-out trace.json
    edgewise run model.onnx --plan 948aef4db6d8
    edgewise run model.onnx --backend cuda --precision bf16
    """
    require_known("backend", backend, BACKENDS)
    require_known("precision", precision, get_args(WantedPrecision))
    followed = None if plan is None else find_plan(plan, db)
    session = Session(model, threads, cast("WantedPrecision", precision), cast("SessionBackend", backend), followed)
    made_for = {} if followed is None else {item.name: item.shape for item in followed.inputs}
    sizes = {name: several[0] for name, several in parse_dims(dim).items()}
    given = read_arrays(feed)
    shapes = {**({} if sizes else made_for), **parse_shapes(shape), **{name: array.shape for name, array in given.items()}}
    bound = bind(session.model.graph, shapes, sizes)
    feeds = {**random_feeds({name: spec for name, spec in bound.items() if name not in given}), **given}
    if followed is not None and session.plan_in_use({name: array.shape for name, array in feeds.items()}) is None:
        text = ", ".join(f"{name} {list(sizes)}" for name, sizes in made_for.items())
        raise ArgumentError(f"--plan: plan {followed.id[:12]} is made for {text}, give these shapes or another plan")
    outputs = _arrays(session.run(feeds))
    times_ns = [session.executor(feeds).run_timed(feeds).wall_ns for _ in range(runs)]
    if trace_out is not None:
        trace_out.write_bytes(chrome_trace(time_session(session, feeds, runs)))
    if save is not None:
        np.savez(save, allow_pickle=False, **outputs)
    median_ns = statistics.median(times_ns)
    if json:
        described = {name: {"shape": a.shape, "dtype": a.dtype.name, "first": _first(a)} for name, a in outputs.items()}
        print_json(
            orjson.dumps(
                {"outputs": described, "runs": runs, "median_ns": median_ns, "min_ns": min(times_ns)}
                | {"plan_id": session.plan_id}
            )
        )
        return
    print_inputs({name: array.shape for name, array in feeds.items()})
    for name, array in outputs.items():
        out.print(f"{name}: {array.dtype.name}{list(array.shape)} {_first(array)}", markup=False)
    used = session.threads if followed is None else min(followed.threads, session.threads)
    by = "" if followed is None else f", plan {followed.id[:12]}"
    median, best = milliseconds(median_ns), milliseconds(min(times_ns))
    out.print(f"latency: median {median}, best {best} of {runs} runs, {used} threads{by}")


def _arrays(outputs: dict[str, Any]) -> dict[str, Array]:
    """Return every tensor among the outputs: those of a sequence as name[0], name[1], …; an optional that is empty has none."""
    found: dict[str, Array] = {}
    for name, value in outputs.items():
        found.update({f"{name}[{i}]": item for i, item in enumerate(value)} if isinstance(value, list) else {name: value})
    return {name: array for name, array in found.items() if array is not None}


def _first(array: Array) -> list[Any]:
    return array.ravel()[:10].tolist()  # type: ignore[no-any-return]
