"""`edgewise profile`: count what a model costs, and with --measure time each step of it on this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.bar import Bar
from rich.progress import Progress
from rich.table import Table

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
    require_known,
    typed,
)
from app.cli.conventions import names_of, print_conventions
from app.cli.tables import Column, fitted
from app.pages.report import write_report
from graph.formats.registry import read
from graph.ir import Model
from profiler.counting import sweep
from profiler.counting.counts import profile
from profiler.device.profile import FULL_S
from profiler.device.quiet import Quietness, refused
from profiler.report.document import Op, Report
from profiler.report.exports import op_rows, sweep_rows, to_csv
from profiler.report.makers import static_report
from profiler.units import milliseconds, quantity
from scheduler.build import current_build
from scheduler.local import local_device, local_fingerprint
from scheduler.profile_run import measure_model
from scheduler.store import Here, Store

BAR_WIDTH = 12
COUNTS = ("flops", "macs", "read_bytes", "write_bytes", "param_bytes")
TIMES = ("p50_ns", "wasted_ns", "first_ns")
SWEPT = ("macs", "flops", "peak_activation_bytes", "read_bytes", "write_bytes", "param_bytes", "intensity", "other_flops")


def command(
    context: typer.Context,
    model: ModelPath,
    shape: Shape = [],  # noqa: B006  typer reads the default, and nothing changes it
    dim: Dim = [],  # noqa: B006
    measured: Annotated[bool, typer.Option("--measure", help="Run the model and time each step.")] = False,
    runs: Annotated[int, typer.Option(min=1, max=10_000, help="Runs to time, with --measure.")] = 50,
    threads: Threads = None,
    plan: Annotated[str | None, typer.Option(help="Id of a stored plan to run, with --measure.")] = None,
    store: Annotated[bool, typer.Option(help="Store the measured run in the database.")] = True,
    db: Database = None,
    top: Annotated[int, typer.Option(help="Rows to print, 0 = all.")] = 20,
    sort: Annotated[
        str | None, typer.Option(help=f"{', '.join(COUNTS)}, order; with --measure {', '.join(TIMES)} too.", show_default=False)
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Also write the per-op table here.")] = None,
    html: Annotated[Path | None, typer.Option(help="Also write a report here: one file that opens in a browser.")] = None,
    convention: Annotated[
        list[str], typer.Option(help="Print the totals that another counter prints, beside ours: thop, fvcore, …, or all.")
    ] = [],  # noqa: B006  typer reads the default, and nothing changes it
    json: Json = False,
) -> None:
    """Count what a model costs: MACs, FLOPs, bytes, parameters and peak memory, per op and in total.

    With --measure also time each step on this machine and compare it with the least time that the machine could take. A step that
    is faster than that is reported as a contradiction, and the program exits with 1.

    edgewise profile resnet50.onnx
    edgewise profile resnet50.onnx --measure --threads 1
    edgewise profile resnet50.onnx --measure --html report.html
    edgewise profile model.onnx --shape x=8,3,224,224 --sort read_bytes
    edgewise profile model.onnx --dim batch=1,2,4,8
    edgewise profile model.onnx --convention thop --convention fvcore
    """
    shapes, dims = parse_shapes(shape), parse_dims(dim)
    if not measured and (typed(context, "threads") or plan is not None):
        raise ArgumentError("profile: --threads and --plan need --measure")
    if convention and (measured or any(len(sizes) > 1 for sizes in dims.values())):
        raise ArgumentError("profile: --convention needs one size of each dimension, and no --measure")
    if any(len(sizes) > 1 for sizes in dims.values()):
        if measured:
            raise ArgumentError("profile: --measure times one size of each dimension, --dim gives several")
        _print_sweep(sweep.sweep(model, dims, shapes), json)
        return
    sizes = {name: several[0] for name, several in dims.items()}
    if convention:
        print_conventions(profile(model, shapes, sizes), names_of(convention), json)
        return
    key = _sort_key(sort or ("p50_ns" if measured else "flops"), COUNTS + TIMES if measured else COUNTS)
    if measured:
        report = _measure(read(model), shapes, sizes, runs, threads, plan, db, store=store)
    else:
        report = static_report(profile(model, shapes, sizes))
    if csv is not None:
        csv.write_text(to_csv(op_rows(report)), encoding="utf-8")
    if html is not None:
        write_report(report.to_json().encode(), html)
    if json:
        print_json(report.to_json())
    else:
        ops = sorted(report.ops, key=key)[: top or None]
        (_print_trace if measured else _print_counts)(report, ops, top)
    _tell_quietness(report.quietness)
    if not report.check.ok or refused(report.quietness):
        raise typer.Exit(1)


def _sort_key(name: str, columns: tuple[str, ...]) -> Callable[[Op], float]:
    """Return the sort key of a column: the largest value first, or the order of execution."""
    if name == "order":
        return lambda op: op.index
    require_known("column", name, (*columns, "order"))
    return lambda op: -(getattr(op, name) or 0)


def _measure(
    model: Model,
    shapes: dict[str, tuple[int, ...]],
    dims: dict[str, int],
    runs: int,
    threads: int | None,
    plan_id: str | None,
    db: str | None,
    *,
    store: bool,
) -> Report:
    """Time the model, with a progress bar on a terminal. A machine that is not in the database is measured first."""
    here = Here(local_fingerprint(), current_build())
    with Store(db) as opened, Progress(console=notes, transient=True, disable=not notes.is_terminal) as bar:
        task = bar.add_task("measuring the machine", total=None)

        def progress(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what)

        device = local_device(opened, FULL_S, progress=progress)
        plan = None if plan_id is None else opened.plans.get(plan_id, here).plan
        bar.update(task, total=None)

        def say(what: str) -> None:
            bar.update(task, description=what)

        report = measure_model(model, device, opened, shapes, dims, runs=runs, threads=threads, plan=plan, say=say)
        if store and not refused(report.quietness):
            opened.models.save(model.digest, model.source, model.nbytes)
            number = opened.profiles.save(report, here.build.id)
            notes.print(f"stored as profile {number}", style="dim")
    return report


def _tell_quietness(seen: Quietness | None) -> None:
    """Say on stderr that other work used the machine, and what that means for the times."""
    if seen is None or not seen.reasons:
        return
    if seen.level == "disturbed":
        notes.print(f"{seen.text}; the fastest runs hold, medians may be too long", style="yellow", markup=False)
        return
    kept = "they are not stored, measure again when it is quiet" if refused(seen) else "they are stored with this mark"
    notes.print(f"{seen.text}. These times are not the model's; {kept}.", style="bold red", markup=False)


def _print_counts(report: Report, ops: list[Op], top: int) -> None:
    figures = [
        Column("MACs", [quantity(op.macs, "") for op in ops]),
        Column("FLOPs", [quantity(op.flops, "") for op in ops]),
        Column("%", [f"{op.share_percent:.1f}" for op in ops]),
        Column("read", [quantity(op.read_bytes, "B") for op in ops]),
        Column("written", [quantity(op.write_bytes, "B") for op in ops]),
    ]
    output = Column("output", [op.output for op in ops], least=12, rank=1)
    _print(fitted(f"{report.model.name}: cost per op", [*_names(ops), output, *figures], out.width), report, top)


def _print_trace(report: Report, ops: list[Op], top: int) -> None:
    setup, totals = report.setup, report.totals
    largest = max((op.share_percent for op in ops), default=1.0) or 1.0
    columns = [
        *_names(ops),
        Column("strategy", [op.strategy for op in ops], least=16, rank=3),
        Column("bound", [op.bound for op in ops], least=7, rank=2),
        Column("µs", [f"{(op.p50_ns or 0) / 1e3:.1f}" for op in ops]),
        Column("%", [f"{op.share_percent:.1f}" for op in ops]),
        Column("", [Bar(largest, 0, op.share_percent, width=BAR_WIDTH) for op in ops], rank=4),
        Column("% of roof", ["" if op.roof_percent is None else f"{op.roof_percent:.0f}" for op in ops], rank=1),
        Column("wasted µs", ["" if op.wasted_ns is None else f"{op.wasted_ns / 1e3:.1f}" for op in ops]),
    ]
    _print(fitted(f"{report.model.name}: time per step", columns, out.width), report, top)
    if setup is not None:
        how = f"{setup.device_name}; {setup.threads} threads, plan {setup.plan_id[:12]}, {setup.runs} runs"
        out.print(how, markup=False)
    out.print(f"median {milliseconds(totals.wall_p50_ns)}, of which {milliseconds(totals.unattributed_ns)} between the steps")
    out.print(f"best {milliseconds(totals.wall_min_ns)}, first run {milliseconds(totals.first_ns)}")
    roof, wasted, predicted = map(milliseconds, (totals.roof_ns, totals.wasted_ns, totals.predicted_ns))
    out.print(f"roof {roof}, above it {wasted}, predicted {predicted}")
    for problem in report.check.problems:
        text = f"above its roof: {problem.name} ({problem.op}) at {problem.roof_percent:.0f} %; {problem.reason}"
        out.print(text, style="red", markup=False)
    if report.quietness is not None and report.quietness.level == "busy":
        out.print("self-check: not possible, the machine was busy", style="bold red")
        return
    out.print("self-check: ok" if report.check.ok else f"self-check: {len(report.check.problems)} steps are above their roof")


def _names(ops: list[Op]) -> list[Column]:
    return [Column("op", [op.op for op in ops], least=8), Column("node", [op.name for op in ops], least=18)]


def _print(table: Table, report: Report, top: int) -> None:
    """Print the table, and below it the totals that every report has."""
    totals = report.totals
    out.print(table)
    if top and len(report.ops) > top:
        out.print(f"{top} of {len(report.ops)} ops; --top 0 prints all", style="dim")
    out.print("inputs: " + ", ".join(f"{name} {spec}" for name, spec in report.model.inputs.items()), markup=False)
    out.print(f"macs {totals.macs:,}   params {totals.params:,}")
    out.print(f"flops {totals.flops:,} (2·macs + {totals.other_flops:,})")
    peak, params = quantity(totals.peak_activation_bytes, "B"), quantity(totals.param_bytes, "B")
    out.print(f"peak activations {peak}   parameters {params}   counted {totals.coverage_percent:.1f} %")
    for missing in report.uncounted:
        out.print(f"not counted: {missing.node} ({missing.op}): {missing.reason}", style="yellow", markup=False)


def _print_sweep(points: list[sweep.SweepPoint], json: bool) -> None:
    rows = sweep_rows(points)
    if json:
        print_json(orjson.dumps(rows))
        return
    ranks = {name: rank for rank, name in enumerate(SWEPT)}
    columns = [Column(name, [_figure(row[name]) for row in rows], rank=ranks.get(name, 0)) for name in rows[0]]
    out.print(fitted(None, columns, out.width))


def _figure(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}" if isinstance(value, float) else str(value)
