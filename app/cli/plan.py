"""`edgewise plan`: choose how a device should run a model, compare two plans, or estimate other choices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast, get_args

import orjson
import typer
from rich.table import Table

from app.cli.arrays import read_samples
from app.cli.console import (
    ArgumentError,
    Database,
    Dim,
    Json,
    MaxError,
    PrecisionOption,
    Samples,
    Shape,
    out,
    parse_dims,
    parse_shapes,
    print_inputs,
    print_json,
    require_known,
    typed,
)
from app.cli.stored import find_plan
from profiler.units import quantity
from scheduler.plan import Objective, Plan
from scheduler.planning.compare import PlanDiff, WhatIf, diff, what_if
from scheduler.planning.planner import plan as make_and_store
from scheduler.strategy import WantedPrecision


def command(
    context: typer.Context,
    model: Annotated[Path | None, typer.Argument(help="An ONNX file.", show_default=False)] = None,
    shape: Shape = [],  # noqa: B006
    dim: Dim = [],  # noqa: B006
    device: Annotated[str, typer.Option(help='"local", or the fingerprint of a stored device.')] = "local",
    objective: Annotated[str, typer.Option(help="latency, throughput or memory.")] = "latency",
    max_latency_ms: Annotated[float | None, typer.Option(min=0, help="Refuse plans slower than this.")] = None,
    max_memory_bytes: Annotated[int | None, typer.Option(min=0, help="Refuse plans larger than this.")] = None,
    max_error: MaxError = None,
    precision: PrecisionOption = "fp32",
    samples: Samples = [],  # noqa: B006
    max_threads: Annotated[
        int | None,
        typer.Option(envvar="EDGEWISE_THREADS", min=1, max=1024, help="Use no more cores; the variable is of this machine."),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show the candidates of every step, and why one was chosen.")
    ] = False,
    force: Annotated[
        list[str],
        typer.Option("--with", help="Estimate the cost with node=strategy, or *=strategy for all other nodes; repeatable."),
    ] = [],  # noqa: B006
    differ: Annotated[
        tuple[str, str] | None, typer.Option("--diff", help="Compare two plans instead, each an id or a file that --json wrote.")
    ] = None,
    db: Database = None,
    json: Json = False,
) -> None:
    """Choose how a device should run a model: kernel, threads and precision of every step, and why.

    edgewise plan resnet50.onnx --explain
    edgewise plan resnet50.onnx --precision auto --max-error 0.01 --samples photo.npz
    edgewise plan resnet50.onnx --with '*=numpy' --with conv1=native/direct
    edgewise plan --diff before.json after.json
    edgewise plan model.onnx --dim batch=8 --objective throughput --max-memory-bytes 200000000
    """
    if differ is not None:
        show_diff(*differ, db, json=json)
        return
    if model is None:
        raise ArgumentError("plan: no model is given, need an ONNX file, or --diff with two plans")
    require_known("objective", objective, get_args(Objective))
    require_known("precision", precision, get_args(WantedPrecision))
    dims = {name: sizes[0] for name, sizes in parse_dims(dim).items()}
    if device != "local" and not typed(context, "max_threads"):
        max_threads = None  # EDGEWISE_THREADS says how many cores of this machine to use
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
        precision=cast("WantedPrecision", precision),
        samples=read_samples(samples),
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
    print_inputs({item.name: item.shape for item in made.inputs})
    out.print(made.why, markup=False)
    out.print(f"{error_text(made)}   memory {quantity(made.memory_bytes, 'B')}   plan {made.id[:12]}   {made.state.status}")


def error_text(plan: Plan) -> str:
    """Return what is known of a plan's error, in words."""
    if plan.measured_error is not None:
        return f"{plan.precision}, error {plan.measured_error:.1e} measured on samples"
    return f"{plan.precision}, error {plan.error_estimate:.1e} estimated"


def show_diff(before: str, after: str, db: str | None, *, json: bool) -> None:
    """Print what differs between two plans, each a file of `plan --json` or the id of a stored one."""
    found = diff(find_plan(before, db), find_plan(after, db))
    if json:
        print_json(orjson.dumps({**orjson.loads(orjson.dumps(found)), "ratio": found.ratio}))
        return
    _print_diff(found)


def _print_diff(found: PlanDiff) -> None:
    if found.changes:
        table = Table("what", "before", "after", title="plan", title_justify="left")
        for change in found.changes:
            table.add_row(change.what, change.before, change.after)
        out.print(table)
    if found.steps:
        table = Table("step", "op", "before", "after", "ms before", "ms after", title="steps", title_justify="left")
        for step in found.steps:
            table.add_row(step.node, step.op, step.before, step.after, _ms(step.before_ns), _ms(step.after_ns))
        out.print(table)
    out.print(f"{_ms(found.before_ns)} ms before, {_ms(found.after_ns)} ms after, {found.ratio:.3f} times")


def show_what_if(plan: Plan, texts: list[str], *, json: bool) -> None:
    """Print what a plan would cost with other strategies, given as node=strategy, or *=strategy for all others.

    Raises: ArgumentError, NotFoundError.
    """
    nodes: dict[str, str] = {}
    for text in texts:
        node, equals, strategy = _split(text, plan)
        if not equals or not strategy:
            raise ArgumentError(f"--with: {text!r} is not understood, need node=strategy or *=strategy")
        nodes[node] = strategy
    everywhere = nodes.pop("*", "")
    found = what_if(plan, nodes, everywhere)
    if json:
        print_json(orjson.dumps({**orjson.loads(orjson.dumps(found)), "ratio": found.ratio}))
        return
    _print_what_if(found)


def _split(text: str, plan: Plan) -> tuple[str, str, str]:
    """Split node=strategy. Both may contain "=": the longest node name of the plan that fits is taken."""
    fitting = [step.node for step in plan.steps if text.startswith(f"{step.node}=")]
    if fitting:
        node = max(fitting, key=len)
        return node, "=", text[len(node) + 1 :]
    return text.partition("=")


def _print_what_if(found: WhatIf) -> None:
    table = Table("step", "planned", "instead", "ms planned", "ms instead", "known by", title="what if", title_justify="left")
    for step in found.steps:
        known = "measurement" if step.measured else f"prediction, {_ms(step.low_ns)} to {_ms(step.high_ns)}"
        table.add_row(step.node, step.before, step.after, _ms(step.before_ns), _ms(step.after_ns), known)
    out.print(table)
    for node, reason in found.refused:
        out.print(f"{node} is unchanged: {reason}", style="yellow", markup=False)
    out.print(
        f"planned {_ms(found.before_ns)} ms ({found.before_measured} steps measured), "
        f"instead {_ms(found.after_ns)} ms ({found.after_measured} measured), {found.ratio:.3f} times"
    )


def _ms(nanoseconds: float) -> str:
    return f"{nanoseconds / 1e6:.3f}"
