"""The command line: every command prints for people, or JSON with --json; exit 0 = done, 1 = failed, 2 = called wrongly.

Errors are one line on stderr that names the value, the rule and the place; EDGEWISE_DEBUG=1 adds the traceback.
"""

from __future__ import annotations

import os
import platform
import signal
import statistics
import sys
import threading
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import numpy as np
import orjson
import psutil
import typer
from rich.progress import Progress
from rich.table import Table

from app.cli import keys
from app.cli.agent import agent_command
from app.cli.console import (
    ArgumentError,
    Database,
    Dim,
    Json,
    ModelPath,
    Shape,
    Threads,
    notes,
    out,
    parse_dims,
    parse_shapes,
    print_json,
)
from app.cli.db import databases
from app.cli.device import device_command
from app.cli.plan import show_diff, show_what_if
from app.cli.profile import profile_command
from app.engine.shapes import smallest_shapes
from app.settings import DEMO_MODELS, Settings, knobs
from graph.errors import FeedError
from graph.ir import Port
from graph.run.feeds import random_feeds
from kernels.errors import EdgewiseError
from kernels.spec import Array, Spec
from kernels.version import VERSION
from profiler.report.exports import chrome_trace
from profiler.units import quantity
from scheduler.cost.evaluation import evaluate_stored
from scheduler.plan import Objective
from scheduler.planning.planner import plan as make_and_store
from scheduler.profile_run import time_session
from scheduler.session import Session
from scheduler.store import Store
from scheduler.strategy import WantedBackend
from scheduler.tuning.tuner import TuneProgress, tune

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
app.add_typer(keys.app, name="keys")


def main() -> None:
    """Run the command line; typer itself exits 2 on bad usage."""
    try:
        app()
    except (EdgewiseError, FileNotFoundError, PermissionError, IsADirectoryError) as error:
        if os.environ.get("EDGEWISE_DEBUG"):
            raise
        text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
        notes.print(f"edgewise: {text}", style="red", markup=False, soft_wrap=True)
        sys.exit(2 if isinstance(error, ArgumentError) else 1)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"edgewise {VERSION}")
        raise typer.Exit


app.command("agent")(agent_command)
app.command("device")(device_command)
app.command("profile")(profile_command)
app.add_typer(databases, name="db")


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Profile an ONNX model op by op, plan how this device should run it, and serve it with that plan."""


@app.command("run")
def run_command(
    model: ModelPath,
    feed: Annotated[list[str], typer.Option("--input", help="x=file.npy, file.npz, or a JSON request; random when absent.")] = [],  # noqa: B006
    shape: Shape = [],  # noqa: B006
    runs: Annotated[int, typer.Option(min=1, max=1_000_000, help="Timed runs after one warm-up.")] = 10,
    threads: Threads = None,
    trace_out: Annotated[Path | None, typer.Option(help="Write a Chrome/Perfetto trace of the runs here.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write the outputs to this .npz.")] = None,
    json: Json = False,
) -> None:
    """Run a model and print its outputs and latency.

    edgewise run model.onnx --input x=image.npy
    edgewise run model.onnx --runs 100 --trace-out trace.json
    """
    session = Session(model, threads=threads)
    feeds = read_feeds(session, feed, parse_shapes(shape))
    outputs = session.run(feeds)
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
    out.print(
        f"latency: median {median_ns / 1e6:.3f} ms, best {min(times_ns) / 1e6:.3f} ms of {runs} runs, {session.threads} threads"
    )


def _first(array: Array) -> list[Any]:
    return array.ravel()[:10].tolist()  # type: ignore[no-any-return]


@app.command("plan")
def plan_command(
    model: Annotated[Path | None, typer.Argument(help="An ONNX file.", show_default=False)] = None,
    shape: Shape = [],  # noqa: B006
    dim: Dim = [],  # noqa: B006
    device: Annotated[str, typer.Option(help='"local", or the fingerprint of a stored device.')] = "local",
    objective: Annotated[str, typer.Option(help="latency, throughput or memory.")] = "latency",
    max_latency_ms: Annotated[float | None, typer.Option(min=0, help="Refuse plans slower than this.")] = None,
    max_memory_bytes: Annotated[int | None, typer.Option(min=0, help="Refuse plans larger than this.")] = None,
    max_error: Annotated[float | None, typer.Option(min=0, max=1, help="Refuse plans less accurate than this.")] = None,
    max_threads: Annotated[int | None, typer.Option(min=1, help="Use no more cores.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Every step's candidates and why one won.")] = False,
    force: Annotated[list[str], typer.Option("--with", help="Also say the cost with node=strategy, or *=strategy.")] = [],  # noqa: B006
    differ: Annotated[
        tuple[str, str] | None, typer.Option("--diff", help="Compare two plans instead: ids, or files of --json.")
    ] = None,
    db: Database = None,
    json: Json = False,
) -> None:
    """Choose how a device should run a model: kernel, threads and precision of every step, and why.

    edgewise plan resnet50.onnx --explain
    edgewise plan resnet50.onnx --with '*=numpy' --with conv1=native/direct
    edgewise plan --diff before.json after.json
    edgewise plan model.onnx --dim batch=8 --objective throughput --max-memory-bytes 200000000
    """
    if differ is not None:
        show_diff(*differ, db, json=json)
        return
    if model is None:
        raise ArgumentError("plan: no model is given, need an ONNX file, or --diff with two plans")
    if objective not in get_args(Objective):
        raise ArgumentError(f"--objective: {objective!r} is none, need one of {', '.join(get_args(Objective))}")
    dims = {name: sizes[0] for name, sizes in parse_dims(dim).items()}
    made = make_and_store(
        model,
        device,
        cast("Objective", objective),
        parse_shapes(shape),
        dims,
        max_latency_ms=max_latency_ms,
        max_memory_bytes=max_memory_bytes,
        max_error=max_error,
        max_threads=max_threads,
        db=db,
    )
    if force:
        show_what_if(made, force, json=json)
        return
    if json:
        print_json(made.to_json())
        return
    table = Table(title=f"{made.model_name} on {made.device_name}", title_justify="left")
    for name in ("step", "strategy", "ms", "why"):
        table.add_column(name, overflow="fold", justify="right" if name == "ms" else "left")
    for step in made.steps:
        table.add_row(step.node, str(step.strategy), f"{step.predicted_ns / 1e6:.3f}", step.why)
        for candidate in step.candidates if explain else ():
            if candidate.verdict != "chosen":
                expected = "" if candidate.expected_ns is None else f"{candidate.expected_ns / 1e6:.3f}"
                table.add_row("", f"  {candidate.verdict}: {candidate.strategy}", expected, candidate.reason, style="dim")
    out.print(table)
    out.print(made.why, markup=False)
    out.print(f"memory {quantity(made.memory_bytes, 'B')}   plan {made.id[:12]}   {made.state.status}")


@app.command("tune")
def tune_command(
    model: ModelPath,
    budget: Annotated[float, typer.Option(min=0.1, max=86_400, help="Seconds to measure for.")] = 60.0,
    shape: Shape = [],  # noqa: B006
    dim: Dim = [],  # noqa: B006
    threads: Threads = None,
    max_error: Annotated[float | None, typer.Option(min=0, max=1, help="Leave out what is less accurate than this.")] = None,
    backend: Annotated[str, typer.Option(help="auto, native or numpy.")] = "auto",
    db: Database = None,
    json: Json = False,
) -> None:
    """Measure how this machine runs a model best, keep what is learned, and print the plan. Ctrl-C ends it early.

    edgewise tune resnet50.onnx --budget 60
    edgewise tune model.onnx --dim batch=8 --threads 1 --json
    """
    if backend not in get_args(WantedBackend):
        raise ArgumentError(f"--backend: {backend!r} is none, need one of {', '.join(get_args(WantedBackend))}")
    asked = threading.Event()
    before = signal.signal(signal.SIGINT, lambda _number, _frame: asked.set())
    try:
        with Progress(*Progress.get_default_columns(), console=notes, transient=True, disable=not notes.is_terminal) as bar:
            task = bar.add_task("tuning", total=budget)

            def progress(at: TuneProgress) -> None:
                best = f"{at.best_ns / 1e6:.3f} ms, " if at.best_ns else ""
                text = f"{best}{at.measured}/{at.planned} candidates, {at.now}"
                bar.update(task, completed=min(at.spent_s, at.budget_s), description=text)

            made = tune(
                model,
                budget,
                parse_shapes(shape),
                {name: sizes[0] for name, sizes in parse_dims(dim).items()},
                threads=threads,
                max_error=max_error,
                backend=cast("WantedBackend", backend),
                db=db,
                progress=progress,
                stop=asked.is_set,
            )
    finally:
        signal.signal(signal.SIGINT, before)
    if json:
        print_json(made.to_json())
        return
    measured = sum(step.measured for step in made.steps)
    whole = "not run whole" if made.measured_ns is None else f"{made.measured_ns / 1e6:.3f} ms run whole"
    out.print(f"{made.model_name} on {made.device_name}: {whole}, {made.threads} threads", markup=False)
    out.print(
        f"{measured} of {len(made.steps)} steps measured, {len(made.ties)} ties   plan {made.id[:12]}   {made.state.status}"
    )
    out.print(made.why, markup=False)


@app.command("bench")
def bench_command(
    what: Annotated[str, typer.Argument(help="cost-model.")] = "cost-model", db: Database = None, json: Json = False
) -> None:
    """Say how well the cost model predicts measurements that it never saw, kind of kernel by kind.

    edgewise bench cost-model
    """
    if what != "cost-model":
        raise ArgumentError(f"bench: {what!r} is none, need cost-model")
    with Store(db) as store:
        found = evaluate_stored(store)
    if json:
        print_json(orjson.dumps(found))
        return
    if not found:
        out.print("nothing was measured on this machine with this build yet: `edgewise tune MODEL` measures")
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
    for row in found:
        rank, ceiling, gamma = ("" if r is None else f"{r:.3f}" for r in (row.spearman, row.ceiling, row.gamma))
        numbers = (str(row.points), f"{row.fitted_percent:.0f}", f"{row.error_percent:.1f}", str(row.works))
        table.add_row(row.kind, *numbers, rank, ceiling, str(row.pairs), gamma)
    out.print(table)


@app.command("models")
def models_command(folder: Annotated[Path, typer.Argument(help="A folder of models.")] = DEMO_MODELS, json: Json = False) -> None:
    """List the models of a folder as `serve` would load them."""
    from app.models.repository import Repository  # noqa: PLC0415
    from app.v1.models import describe  # noqa: PLC0415  the service's modules load only when they are needed

    repository = Repository(folder)
    repository.load_all()
    described = [describe(served) for served in repository.models]
    if json:
        print_json(orjson.dumps([model.model_dump() for model in described]))
        return
    table = Table()
    for column in ("model", "version", "state", "inputs", "about"):
        table.add_column(column)
    for model in described:
        table.add_row(
            model.name,
            model.version,
            model.state,
            ", ".join(f"{t.name}: {t.dtype}{t.shape}" for t in model.inputs),
            model.reason or model.description,
        )
    out.print(table)


@app.command("serve")
def serve_command(
    models: Annotated[Path, typer.Option(help="Folder with name.onnx or name/<version>/model.onnx.")] = DEMO_MODELS,
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to bind, 0 = any free one.")] = 8000,
    db: Database = None,
    threads: Threads = None,
) -> None:
    """Serve a folder of models over HTTP, with the dashboard at /.

    edgewise serve --models models --port 8000
    """
    if not models.is_dir():
        raise ArgumentError(f"--models: {str(models)!r} is no folder, need one that holds models")
    from app import logs  # noqa: PLC0415
    from app.http import server  # noqa: PLC0415
    from app.main import create_app  # noqa: PLC0415

    logs.configure()
    settings = Settings(models=models, host=host, port=port, db=db, threads=threads)
    notes.print(f"Edgewise serves {models.name} on http://{host}:{port}/", markup=False)
    if not settings.loopback:
        notes.print("every route but health needs an API key, see `edgewise keys create`", markup=False)
    server.run(create_app(settings), settings)


@app.command("doctor")
def doctor_command(
    show_knobs: Annotated[bool, typer.Option("--knobs", help="Print every setting.")] = False, json: Json = False
) -> None:
    """Say what this installation is and has: versions, cores, instruction sets, settings."""
    if show_knobs:
        rows = knobs()
        if json:
            print_json(orjson.dumps([dict(zip(("name", "type", "default", "meaning"), row, strict=True)) for row in rows]))
            return
        table = Table()
        for column in ("variable", "type", "default", "meaning"):
            table.add_column(column)
        for row in rows:
            table.add_row(*row)
        out.print(table)
        return
    from scheduler.session import available_cores  # noqa: PLC0415

    packages = ("numpy", "onnx", "llvmlite", "fastapi", "sqlalchemy")
    facts: dict[str, Any] = {
        "edgewise": VERSION,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: metadata.version(name) for name in packages},
        "cores": available_cores(),
        "memory_bytes": psutil.virtual_memory().total,
    }
    if json:
        print_json(orjson.dumps(facts))
        return
    for name, value in facts.items():
        out.print(f"{name:14} {value}", markup=False)


def read_feeds(session: Session, texts: list[str], shapes: dict[str, tuple[int, ...]]) -> dict[str, Array]:
    """Inputs from files; random ones where none is given, with 1 for every open dimension that --shape leaves out."""
    feeds: dict[str, Array] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if equals:
            feeds[name] = np.load(path, allow_pickle=False)
        elif text.endswith(".npz"):
            feeds.update(np.load(text, allow_pickle=False))
        elif text.endswith(".json"):
            feeds.update(_request_feeds(Path(text)))
        else:
            raise ArgumentError(f"--input: {text!r} is not understood, need name=file.npy, file.npz or request.json")
    defaults = {**smallest_shapes(session), **shapes}
    missing = {port.name: _spec(port, defaults) for port in session.inputs if port.name not in feeds}
    return {**random_feeds(missing), **feeds}


def _request_feeds(path: Path) -> dict[str, Array]:
    from app.oip import codec  # noqa: PLC0415

    body = path.read_bytes()
    return codec.decode(body, len(body), codec.CodecLimits()).feeds


def _spec(port: Port, shapes: dict[str, tuple[int, ...]]) -> Spec:
    if port.name not in shapes:
        raise FeedError(f"input {port.name!r}: its rank is open, give --shape {port.name}=…")
    return Spec(shapes[port.name], port.dtype)
