"""`edgewise tune`: measure which kernels run a model fastest on this machine, within a budget of seconds."""

from __future__ import annotations

import signal
import threading
from itertools import product
from typing import Annotated, cast, get_args

import typer
from rich.progress import Progress

from app.cli.arrays import read_samples
from app.cli.console import (
    Database,
    Dim,
    Json,
    MaxError,
    ModelPath,
    PrecisionOption,
    Samples,
    Shape,
    Threads,
    notes,
    out,
    parse_dims,
    parse_shapes,
    print_json,
    require_known,
    typed,
)
from app.engine.policy import Rules
from app.models.planned import Terms
from kernels.confinement import usable_cores
from profiler.units import milliseconds
from scheduler.plan import Plan
from scheduler.strategy import WantedBackend, WantedPrecision
from scheduler.tuning.tuner import TuneProgress, tune


def command(
    context: typer.Context,
    model: ModelPath,
    budget: Annotated[float, typer.Option(min=0.1, max=86_400, help="Seconds to measure for.")] = 60.0,
    shape: Shape = [],  # noqa: B006
    dim: Dim = [],  # noqa: B006
    threads: Threads = None,
    max_error: MaxError = None,
    precision: PrecisionOption = "fp32",
    samples: Samples = [],  # noqa: B006
    backend: Annotated[str, typer.Option(help="auto, native or numpy.")] = "auto",
    db: Database = None,
    json: Json = False,
) -> None:
    """Measure which kernels run a model fastest here, store the results, and print the plan. Ctrl-C ends it early.

    edgewise tune resnet50.onnx --budget 60
    edgewise tune model.onnx --dim batch=8 --threads 1 --json
    edgewise tune resnet50.onnx --precision auto --max-error 0.01
    edgewise tune bert.onnx --dim seq=16,64,256          a plan for each, which lengths nearby follow too
    """
    require_known("backend", backend, get_args(WantedBackend))
    require_known("precision", precision, get_args(WantedPrecision))
    inputs = read_samples(samples)
    points = [dict(zip(sizes, point, strict=True)) for sizes in [parse_dims(dim)] for point in product(*sizes.values())]
    asked = threading.Event()
    before = signal.signal(signal.SIGINT, lambda _number, _frame: asked.set())
    plans: list[Plan] = []
    try:
        with Progress(*Progress.get_default_columns(), console=notes, transient=True, disable=not notes.is_terminal) as bar:
            task = bar.add_task("tuning", total=budget)

            def progress(at: TuneProgress) -> None:
                best = f"{milliseconds(at.best_ns)}, " if at.best_ns else ""
                text = f"{best}{at.measured}/{at.planned} candidates, {at.now}"
                bar.update(task, completed=len(plans) * budget / len(points) + min(at.spent_s, at.budget_s), description=text)

            for point in points:
                if plans and asked.is_set():
                    break
                made = tune(
                    model,
                    budget / len(points),
                    parse_shapes(shape),
                    point,
                    threads=threads,
                    max_error=max_error,
                    backend=cast("WantedBackend", backend),
                    precision=cast("WantedPrecision", precision),
                    samples=inputs,
                    db=db,
                    progress=progress,
                    stop=asked.is_set,
                )
                plans.append(made)
    finally:
        signal.signal(signal.SIGINT, before)
    if json:
        texts = [made.to_json() for made in plans]
        print_json(texts[0] if len(points) == 1 else f"[{','.join(texts)}]")
        return
    served_cores = usable_cores() if threads is None or typed(context, "threads") else threads
    for made in plans:
        _print(made, served_cores, several=len(points) > 1)


def _print(made: Plan, served_cores: int, *, several: bool) -> None:
    """Print the answer, the time of a run, and under it where it comes from. served_cores: that a service here uses."""
    measured = sum(step.measured for step in made.steps)
    whole = "not measured as a whole" if made.measured_ns is None else f"{milliseconds(made.measured_ns)} a run"
    inputs = ", ".join(f"{item.name} {list(item.shape)}" for item in made.inputs)
    of = f"{made.model_name} ({inputs})" if several else made.model_name
    out.print(f"{of} on {made.device_name}: {whole}, {made.threads} threads", markup=False)
    for reason in made.why.split("; "):
        out.print(f"  {reason}", markup=False)
    out.print(
        f"{measured} of {len(made.steps)} steps measured, {len(made.ties)} ties   plan {made.id[:12]}   {made.state.status}"
    )
    for line in _served(made, served_cores):
        out.print(f"  {line}", markup=False)


def _served(plan: Plan, cores: int) -> list[str]:
    """Say which requests a plan answers, whether a running service follows it, and what makes one serve it."""
    limits = plan.constraints
    asked = [f"at most {limits.max_threads} threads"] if limits.max_threads else ["all cores"]
    asked += [f"an error of at most {limits.max_error:g}"] if limits.max_error is not None else []
    asked += [f"backend {limits.backend}"] if limits.backend != "auto" else []
    asked += [f"precision {limits.precision}"] if limits.precision != "fp32" else []
    shapes = ", ".join(f"{item.name} {list(item.shape)}" for item in plan.inputs)
    told = [f"answers: {plan.objective}, {', '.join(asked)}, of {shapes}"]
    if Terms(Rules(), threads=cores, cores=cores).met(plan):
        return [*told, "served: a service on this machine with this database follows it within seconds"]
    command = f"edgewise serve --plan {plan.id[:12]}"
    rule = f', or {{"plan": "{plan.id[:12]}"}} in the file NAME.json beside the model'
    return [*told, f"served: only where it is asked for, since it was tuned on other terms: {command}{rule}"]
