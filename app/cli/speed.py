"""`edgewise bench MODEL`: how long runs of a model take by thread count and batch, beside ONNX Runtime where it is installed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import orjson

from app.cli.console import notes, out, print_json
from app.cli.tables import Column, fitted
from app.engine.feeds import make_feeds, rows_of
from kernels.record import record
from kernels.spec import Array
from scheduler.exclusive import measuring
from scheduler.session import Session

OURS, PEER = "edgewise", "onnxruntime"
LEAST_RUNS = 3
MOST_ERROR = 1e-3  # of the largest output, by which the results of engines that compute in float32 may differ

Run = Callable[[], Mapping[str, Array]]


@record
class Timing:
    """Times of the runs of one engine.

    rows: of one run. rows_per_s: at the median. difference: of its outputs from Edgewise's, as a share of the largest.
    """

    engine: str
    threads: int
    rows: int
    runs: int
    p50_ns: int
    p99_ns: int
    min_ns: int
    rows_per_s: float
    difference: float | None = None


class LeftOutError(Exception):
    """ONNX Runtime cannot run the model here. The message says why."""


def measure(
    model: Path,
    threads: Sequence[int],
    batches: Sequence[int | None],
    own: Mapping[str, Array],
    shapes: Mapping[str, tuple[int, ...]],
    seconds: float,
    rounds: int,
) -> list[Timing]:
    """Time a model with every thread count and batch. seconds: of each engine, in `rounds` turns.

    The engines run in turns, so that a drift of the machine's speed affects both alike; see `make_feeds` for the inputs.
    """
    found = []
    with measuring(lambda text: notes.print(text, style="dim")):
        for count in threads:
            session = Session(model, threads=count)
            for batch in batches:
                feeds = make_feeds(session.inputs, own, shapes, batch)
                rows = rows_of(session.inputs, feeds)
                runs: dict[str, Run] = {OURS: lambda session=session, feeds=feeds: session.run(feeds)}  # type: ignore[misc]
                try:
                    runs[PEER] = peer(model, count, feeds)
                except LeftOutError as reason:
                    notes.print(f"{PEER} is left out: {reason}", style="dim", markup=False)
                results = {name: run() for name, run in runs.items()}
                for name, times in in_turns(runs, seconds, rounds).items():
                    p50, p99 = (int(np.quantile(times, share, method="inverted_cdf")) for share in (0.5, 0.99))
                    differs = difference(results[OURS], results[name]) if name != OURS else None
                    found.append(Timing(name, count, rows, len(times), p50, p99, min(times), rows * 1e9 / p50, differs))
    return found


def peer(model: Path, threads: int, feeds: Mapping[str, Array]) -> Run:
    """Return a run of ONNX Runtime with its CPU provider, which has run once. Raises LeftOutError."""
    try:
        import onnxruntime  # noqa: PLC0415  only this command uses it, where it is installed
    except ImportError:
        raise LeftOutError("it is not installed") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 4
    try:
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        session.run(None, dict(feeds))
    except Exception as error:  # noqa: BLE001  its errors have no base of their own
        raise LeftOutError(str(error)[:300]) from None
    names = [output.name for output in session.get_outputs()]
    return lambda: dict(zip(names, session.run(None, dict(feeds)), strict=True))


def in_turns(runs: Mapping[str, Run], seconds: float, rounds: int) -> dict[str, list[int]]:
    """Run each for `seconds` in all, in turns whose order alternates, and return the nanoseconds of every run."""
    times: dict[str, list[int]] = {name: [] for name in runs}
    for turn in range(rounds):
        for name in runs if turn % 2 == 0 else reversed(list(runs)):
            ends_ns, began = time.perf_counter_ns() + round(seconds / rounds * 1e9), len(times[name])
            while len(times[name]) < began + LEAST_RUNS or time.perf_counter_ns() < ends_ns:
                start_ns = time.perf_counter_ns()
                runs[name]()
                times[name].append(time.perf_counter_ns() - start_ns)
    return times


def difference(ours: Mapping[str, Array], theirs: Mapping[str, Array]) -> float:
    """Return the largest difference of two results, as a share of the largest value of its output."""
    found = 0.0
    for name, array in ours.items():
        if array.dtype.kind != "f" or not array.size:
            found = max(found, float(not np.array_equal(array, theirs[name])))
            continue
        truth = theirs[name].astype(np.float64)
        found = max(found, float(np.abs(array - truth).max() / (np.abs(truth).max() or 1.0)))
    return found


def show(model: Path, timings: Sequence[Timing], *, json: bool) -> None:
    """Print timings as a table, each beside the peer's of the same threads and rows, or as JSON."""
    if json:
        print_json(orjson.dumps(list(timings)))
        return
    ours = {(each.threads, each.rows): each for each in timings if each.engine == OURS}
    columns = [
        Column("engine", [each.engine for each in timings], least=8),
        Column("threads", [str(each.threads) for each in timings]),
        Column("rows", [str(each.rows) for each in timings]),
        *(
            Column(f"{name} ms", [f"{getattr(each, f'{name}_ns') / 1e6:.3f}" for each in timings])
            for name in ("p50", "p99", "min")
        ),
        Column("rows/s", [f"{each.rows_per_s:.1f}" for each in timings]),
        Column("ratio", [f"{each.p50_ns / ours[each.threads, each.rows].p50_ns:.2f}" for each in timings]),
        Column("runs", [f"{each.runs:,}" for each in timings], rank=1),
    ]
    out.print(fitted(f"{model.name}: latency of a run", columns, out.width))
    for each in timings:
        if each.difference is not None and each.difference > MOST_ERROR:
            where = f"{each.engine}, {each.threads} threads, {each.rows} rows"
            out.print(f"{where}: its outputs differ by {each.difference:.1e} of the largest", style="yellow", markup=False)
