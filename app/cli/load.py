"""`edgewise load`: send a server requests at set loads, and tell how fast it answers and where the time goes."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.arrays import read_arrays
from app.cli.console import (
    MOST_ROWS,
    ArgumentError,
    Json,
    Shape,
    notes,
    out,
    parse_counts,
    parse_numbers,
    parse_shapes,
    print_json,
)
from app.cli.tables import Column, fitted
from app.engine.threads import share_interpreter
from app.load import sweep
from app.load.figures import doubts
from app.load.generator import Bounds, Load
from app.load.http import HttpServer
from app.load.report import Report
from app.load.server import LoadError, Server
from profiler.units import milliseconds

MOST_CLIENTS, MOST_RATE = 4096, 100_000


def command(
    url: Annotated[
        str,
        typer.Argument(help="Address of the server, as in http://127.0.0.1:8000 or grpc://127.0.0.1:8001.", show_default=False),
    ],
    model: Annotated[str | None, typer.Option(help="Model; the served one if there is one only.", show_default=False)] = None,
    version: Annotated[str, typer.Option(help="Version of the model; the newest by default.", show_default=False)] = "",
    clients: Annotated[
        str, typer.Option(help="Clients that each send as soon as they have an answer, as in 1,8,32; with --rate, most at once.")
    ] = "",
    rate: Annotated[str, typer.Option(help="Requests a second, whether or not earlier ones are answered, as in 50,100.")] = "",
    even: Annotated[bool, typer.Option("--even", help="With --rate: at even intervals instead of random ones.")] = False,
    batch: Annotated[str, typer.Option(help="Rows of a request, as in 1,8.")] = "",
    feed: Annotated[list[str], typer.Option("--input", help="x=file.npy, file.npz, or a JSON request; random when absent.")] = [],  # noqa: B006
    shape: Shape = [],  # noqa: B006
    json_tensors: Annotated[bool, typer.Option("--json-tensors", help="Send and ask for tensors as JSON, not binary.")] = False,
    seconds: Annotated[float, typer.Option(min=0.1, max=86_400, help="Seconds of each load.")] = 10.0,
    requests: Annotated[int | None, typer.Option(min=1, max=10_000_000, help="Most requests of each load.")] = None,
    warmup: Annotated[float, typer.Option(min=0, max=3600, help="Seconds of warm-up before each load, not counted.")] = 1.0,
    timeout: Annotated[float, typer.Option(min=0.001, max=3600, help="Seconds to wait for an answer.")] = 10.0,
    key: Annotated[str | None, typer.Option(envvar="EDGEWISE_KEY", help="API key of scope infer.", show_envvar=True)] = None,
    html: Annotated[Path | None, typer.Option(help="Also write a report here: one file that opens in a browser.")] = None,
    json: Json = False,
) -> None:
    """Send a server requests at set loads, and tell how fast it answers and where the time goes. Ctrl-C ends it early.

    The server speaks the Open Inference Protocol. Only the one that is named is sent anything; it may be slow for others then.

    edgewise load http://127.0.0.1:8000 --clients 1,2,4,8
    edgewise load http://127.0.0.1:8000 --model digits --rate 50,100,200 --seconds 30 --html load.html
    edgewise load grpc://127.0.0.1:8001 --clients 8
    edgewise load http://127.0.0.1:8000 --batch 1,8 --input x=image.npy --requests 1000 --json
    """
    batches: Sequence[int | None] = parse_counts("--batch", batch, MOST_ROWS) or [None]
    plan = sweep.Plan(
        model or "",
        version,
        _loads(clients, rate, even=even),
        batches,
        read_arrays(feed),
        parse_shapes(shape),
        "json" if json_tensors else "binary",
        Bounds(seconds, requests, timeout),
        warmup,
    )
    report = _run(_measure(url, _server(url, key), plan))
    if html is not None:
        report.write_html(html)
    if json:
        print_json(report.to_json())
    else:
        _print(report)
    if not any(each.answered for each in report.steps):
        raise typer.Exit(1)


def _server(url: str, key: str | None) -> Server:
    """Return the server at an address, by its scheme. Raises LoadError."""
    if not url.startswith("grpc"):
        return HttpServer(url, key)
    try:
        from app.load.rpc import GrpcServer  # noqa: PLC0415  HTTP does without the extra
    except ImportError as error:
        raise LoadError(f"load: gRPC needs {error.name}, install edgewise[grpc]") from None
    return GrpcServer(url, key)


def _loads(clients: str, rate: str, *, even: bool) -> list[Load]:
    counts = parse_counts("--clients", clients, MOST_CLIENTS)
    rates = parse_numbers("--rate", rate, MOST_RATE)
    if not rates:
        if even:
            raise ArgumentError("--even: it needs --rate")
        return [Load(count) for count in counts or [1]]
    if len(counts) > 1:
        raise ArgumentError(f"--clients: {clients!r} with --rate, need one number: the most requests that are under way at once")
    return [Load(counts[0] if counts else 256, each, even) for each in rates]


def _run(work: Coroutine[Any, Any, Report]) -> Report:
    """Run on uvloop, where it is: the generator's own time counts as the server's."""
    factory = None
    if sys.platform != "win32":
        import uvloop  # noqa: PLC0415  it is not for Windows

        factory = uvloop.new_event_loop
    share_interpreter()
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)


async def _measure(url: str, server: Server, plan: sweep.Plan) -> Report:
    """Measure until all is done or Ctrl-C is pressed; pressed again it ends the program."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    before = signal.getsignal(signal.SIGINT)

    def interrupt(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, before)
        loop.call_soon_threadsafe(stop.set)

    signal.signal(signal.SIGINT, interrupt)
    try:
        named = replace(plan, model=plan.model or await sweep.only_model(server))
        steps = []
        async for each in sweep.run(server, named, stop):
            steps.append(each)
            notes.print(f"{each.label}: {each.requests_per_s:.1f} requests/s, p99 {milliseconds(each.p99_ns)}", style="dim")
        return Report(url, named.model, named.version, named.encoding, steps, stop.is_set())
    finally:
        signal.signal(signal.SIGINT, before)


def _print(report: Report) -> None:
    steps = report.steps
    failures = [", ".join(f"{count} × {kind}" for kind, count in each.failures.items()) or "0" for each in steps]
    columns = [
        Column("clients", [f"{each.clients}" for each in steps])
        if steps and steps[0].rate_per_s is None
        else Column("rate/s", [f"{each.rate_per_s:g}" for each in steps]),
        Column("rows", [f"{each.rows}" for each in steps]),
        Column("requests/s", [f"{each.requests_per_s:.1f}" for each in steps]),
        Column("rows/s", [f"{each.rows_per_s:.1f}" for each in steps], rank=4),
        *(
            Column(f"{name} ms", [_ms(getattr(each, f"{name}_ns")) for each in steps], rank=rank)
            for name, rank in (("p50", 0), ("p90", 3), ("p99", 0), ("max", 2))
        ),
        Column("answered", [f"{each.answered:,}" for each in steps], rank=1),
        Column("errors", failures, least=6),
        *(
            Column(f"{name} ms", [_ms(getattr(each.server, f"{name}_ns", None)) for each in steps], rank=1)
            for name in ("queue", "compute", "service")
        ),
    ]
    where = f"{report.model} on {report.url}, {report.encoding} tensors"
    out.print(fitted(where, columns, out.width))
    for each in steps:
        for kind, example in each.examples.items():
            out.print(
                f"{each.label}: {each.failures[kind]} × {kind}, the first: {example}",
                style="yellow",
                markup=False,
                soft_wrap=True,
            )
        if each.unanswered:
            out.print(f"{each.label}: {each.unanswered} requests were under way at Ctrl-C", markup=False)
        for doubt in doubts(each):
            out.print(f"{each.label}: {doubt}", style="yellow", markup=False, soft_wrap=True)
    if steps and not any(each.server for each in steps):
        out.print("the server has no statistics, so where its time goes is unknown", style="dim")
    if (found := report.knee) is not None:
        out.print(f"knee: {found.label}, beyond it requests mostly wait", markup=False)


def _ms(nanoseconds: float | None) -> str:
    return "–" if nanoseconds is None else f"{nanoseconds / 1e6:.3f}"
