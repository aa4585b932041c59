"""Reports in other forms: rows and CSV, and the trace events that Chrome and Perfetto open."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import orjson

from profiler.counting.conventions import compare, convention_of
from profiler.counting.counts import Profile
from profiler.counting.sweep import SweepPoint
from profiler.report.document import Doing, Op, Report

_MEDIAN_RUN, _FIRST_RUN = 1, 2

Row = dict[str, Any]


def op_rows(report: Report) -> list[Row]:
    """Return one flat row for each op, in order."""
    return [op.model_dump() for op in report.ops]


def sweep_rows(points: Iterable[SweepPoint]) -> list[Row]:
    """Return one flat row for each point of a sweep, its dimensions first."""
    names = ("macs", "flops", "other_flops", "read_bytes", "write_bytes", "param_bytes", "peak_activation_bytes", "intensity")
    return [{**point.dims, **{name: getattr(point, name) for name in names}} for point in points]


def convention_rows(counted: Profile, names: Iterable[str]) -> list[Row]:
    """Return one flat row for each named convention of counting. Raises ConventionError for an unknown name."""
    return [
        {"convention": name, "total": total, "unit": found.unit, "counts": found.description, "source": found.source}
        for name, total in compare(counted, names).items()
        for found in (convention_of(name),)
    ]


def to_csv(rows: Sequence[Row]) -> str:
    """Return rows as RFC 4180 CSV with a header. Lists are joined by spaces; text that a spreadsheet would run is quoted."""
    if not rows:
        return ""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\r\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return out.getvalue()


def chrome_trace(report: Report) -> bytes:
    """Return a trace as events for chrome://tracing or ui.perfetto.dev.

    The median run and the very first one are a process each. In the median run every thread is a track: at work in a step, or
    waiting for the others. Of the first run only the time of each step is known; its steps are laid end to end. Steps carry their
    cost and strategy; a counter shows the activation memory held. A report without times has no events.
    """
    events: list[Row] = []
    if report.timeline is not None:
        threads = report.timeline.threads
        events += _metadata(_MEDIAN_RUN, "median run", [f"thread {number}" for number in range(len(threads))])
        events += _metadata(_FIRST_RUN, "first run", ["steps, end to end"])
        for thread, slices in enumerate(threads):
            for index, start_ns, duration_ns, doing in slices:
                events.append(_doing(report.ops[index], thread, start_ns, duration_ns, doing))
        events += _memory(report)
        events += _first_run(report.ops)
    return orjson.dumps({"traceEvents": events, "displayTimeUnit": "ns", "otherData": {"model": report.model.name}})


def _metadata(process: int, name: str, threads: Sequence[str]) -> Iterator[Row]:
    yield {"ph": "M", "name": "process_name", "pid": process, "tid": 0, "args": {"name": name}}
    yield {"ph": "M", "name": "process_sort_index", "pid": process, "tid": 0, "args": {"sort_index": process}}
    for number, text in enumerate(threads):
        yield {"ph": "M", "name": "thread_name", "pid": process, "tid": number, "args": {"name": text}}


def _doing(op: Op, thread: int, start_ns: int, duration_ns: int, doing: Doing) -> Row:
    if doing == "wait":
        return _slice(_MEDIAN_RUN, thread, f"wait for {op.name}", "wait", start_ns, duration_ns, {})
    return _slice(_MEDIAN_RUN, thread, op.name, op.op, start_ns, duration_ns, _args(op))


def _memory(report: Report) -> Iterator[Row]:
    """Yield the activation memory held, from the moment at which the first thread begins each step."""
    begins_ns: dict[int, int] = {}
    for slices in () if report.timeline is None else report.timeline.threads:
        for index, start_ns, _, _ in slices:
            begins_ns[index] = min(start_ns, begins_ns.get(index, start_ns))
    for index, start_ns in sorted(begins_ns.items()):
        where = {"pid": _MEDIAN_RUN, "tid": 0, "ts": start_ns / 1e3}
        yield {"ph": "C", "name": "activation memory", **where, "args": {"bytes": report.ops[index].live_bytes}}


def _first_run(ops: Iterable[Op]) -> Iterator[Row]:
    at_ns = 0.0
    for op in ops:
        yield _slice(_FIRST_RUN, 0, op.name, op.op, at_ns, op.first_ns or 0.0, _args(op))
        at_ns += op.first_ns or 0.0


def _args(op: Op) -> Row:
    names = ("strategy", "output", "macs", "executed_macs", "flops", "read_bytes", "write_bytes", "roof_percent", "bound")
    return {**{name: getattr(op, name) for name in names}, "origins": list(op.origins)}


def _slice(process: int, track: int, name: str, category: str, at_ns: float, duration_ns: float, args: Row) -> Row:
    times = {"ts": at_ns / 1e3, "dur": duration_ns / 1e3}
    return {"ph": "X", "name": name, "cat": category, "pid": process, "tid": track, **times, "args": args}


def _cell(value: Any) -> Any:
    text = " ".join(map(str, value)) if isinstance(value, list | tuple) else value
    return f"'{text}" if isinstance(text, str) and text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
