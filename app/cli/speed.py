"""`edgewise bench MODEL`: how long runs take by thread count, batch and precision, beside ONNX Runtime where it is installed."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import orjson

from app.cli.console import out, print_json
from app.cli.tables import Column, fitted
from app.engine.feeds import make_feeds, rows_of
from kernels.record import record
from kernels.spec import Array
from scheduler.exclusive import measuring
from scheduler.planning import accuracy
from scheduler.session import Session
from scheduler.strategy import WantedPrecision

OURS, PEER = "edgewise", "onnxruntime"
AS_IN_FILE = "file"  # the precision of an engine that is not asked for one
LEAST_RUNS = 3
MOST_ERROR = 1e-3  # of the largest output, by which the results of engines that compute in float32 may differ

N = TypeVar("N", bound=Hashable)
Run = Callable[[], Mapping[str, Array]]


@record
class Timing:
    """Times of the runs of one engine.

    rows: of one run. rows_per_s: at the median. difference: of its outputs from those of the first engine, as a share of the
    largest; None for the first.
    """

    engine: str
    precision: str
    threads: int
    rows: int
    runs: int
    p50_ns: int
    p99_ns: int
    min_ns: int
    rows_per_s: float
    difference: float | None = None


@record
class Sweep:
    """What to time: every thread count with every batch, in each precision. seconds: of each engine, in `rounds` turns."""

    threads: Sequence[int]
    batches: Sequence[int | None]
    precisions: Sequence[WantedPrecision]
    seconds: float
    rounds: int


class LeftOutError(Exception):
    """ONNX Runtime cannot run the model here. The message says why."""


def measure(
    model: Path, sweep: Sweep, own: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]], say: Callable[[str], None]
) -> Iterator[list[Timing]]:
    """Yield the timings of each thread count and batch. say: tells what it waits for, and what is left out.

    The engines run in turns, so that a drift of the machine's speed affects all alike; see `make_feeds` for the inputs.
    """
    with measuring(say):
        for threads in sweep.threads:
            sessions = {precision: Session(model, threads=threads, precision=precision) for precision in sweep.precisions}
            for batch in sweep.batches:
                ports = next(iter(sessions.values())).inputs
                feeds = make_feeds(ports, own, shapes, batch)
                runs: dict[tuple[str, str], Run] = {
                    (OURS, precision): partial(session.run, feeds) for precision, session in sessions.items()
                }
                try:
                    runs[PEER, AS_IN_FILE] = peer(model, threads, feeds)
                except LeftOutError as reason:
                    say(f"{PEER} is left out: {reason}")
                results = {name: run() for name, run in runs.items()}
                first, *_ = results.values()
                timings = []
                for name, times in in_turns(runs, sweep.seconds, sweep.rounds).items():
                    differs = None if results[name] is first else difference(first, results[name])
                    timings.append(_timing(name, threads, rows_of(ports, feeds), times, differs))
                yield timings


def _timing(name: tuple[str, str], threads: int, rows: int, times: Sequence[int], differs: float | None) -> Timing:
    p50, p99 = (int(np.quantile(times, share, method="inverted_cdf")) for share in (0.5, 0.99))
    return Timing(*name, threads, rows, len(times), p50, p99, min(times), rows * 1e9 / p50, differs)


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


def in_turns(runs: Mapping[N, Run], seconds: float, rounds: int) -> dict[N, list[int]]:
    """Run each for `seconds` in all, in turns whose order alternates, and return the nanoseconds of every run."""
    times: dict[N, list[int]] = {name: [] for name in runs}
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
        is_measured = array.dtype.kind == "f" and array.size
        apart = accuracy.difference(array, theirs[name]) if is_measured else float(not np.array_equal(array, theirs[name]))
        found = max(found, apart)
    return found


def show(model: Path, timings: Sequence[Sequence[Timing]], *, json: bool) -> None:
    """Print timings as a table, each beside the first engine's of the same threads and rows, or as JSON."""
    rows = [(each, each.p50_ns / same[0].p50_ns) for same in timings for each in same]
    if json:
        print_json(orjson.dumps([each for each, _ in rows]))
        return
    columns = [
        Column("engine", [each.engine for each, _ in rows], least=11),
        Column("precision", [each.precision for each, _ in rows], least=9),
        Column("threads", [str(each.threads) for each, _ in rows]),
        Column("rows", [str(each.rows) for each, _ in rows]),
        *(
            Column(f"{name} ms", [f"{getattr(each, f'{name}_ns') / 1e6:.3f}" for each, _ in rows], rank=rank)
            for name, rank in (("p50", 0), ("p99", 0), ("min", 3))
        ),
        Column("rows/s", [f"{each.rows_per_s:.1f}" for each, _ in rows], rank=1),
        Column("ratio", [f"{ratio:.2f}" for _, ratio in rows]),
        Column("runs", [f"{each.runs:,}" for each, _ in rows], rank=2),
    ]
    out.print(fitted(f"{model.name}: latency of a run", columns, out.width))
    for each, _ in rows:
        if each.difference is not None and each.difference > MOST_ERROR:
            where = f"{each.engine} ({each.precision}; threads {each.threads}, rows {each.rows})"
            out.print(
                f"{where}: its outputs differ by {each.difference:.1e} of the largest",
                style="yellow",
                markup=False,
                soft_wrap=True,
            )
