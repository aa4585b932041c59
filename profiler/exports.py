"""Profiles, traces and rooflines as files: JSON (versioned), CSV, and the trace events that Chrome and Perfetto open."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from profiler.counts import OpProfile, Profile
from profiler.roofline import Roofline, RooflinePoint
from profiler.sweep import SweepPoint
from profiler.trace import UNATTRIBUTED, Durations, OpTrace, RunTimes, Trace

SCHEMA_VERSION = 1
_MEDIAN_PROCESS, _FIRST_PROCESS = 1, 2
_OPS_TRACK, _REST_TRACK = 1, 2

Row = dict[str, Any]


def profile_rows(profile: Profile) -> list[Row]:
    """One flat row for each node, in order; share_percent is of the model's FLOPs."""
    return [_op_row(op, profile.flops) for op in profile.ops]


def trace_rows(measured: Trace) -> list[Row]:
    """One flat row for each step in execution order, and the unattributed rest last; shares add up to 100."""
    return [_trace_row(row) for row in measured.rows]


def roofline_rows(placed: Roofline) -> list[Row]:
    """One flat row for each point."""
    return [_point_row(point) for point in placed.points]


def profile_json(profile: Profile) -> bytes:
    """A profile with its totals, timeline, uncounted nodes and ops."""
    return _document(
        "profile",
        {
            "model": profile.model,
            "digest": profile.digest,
            "inputs": {name: str(spec) for name, spec in profile.inputs.items()},
            "macs": profile.macs,
            "flops": profile.flops,
            "other_flops": profile.other_flops,
            "params": profile.params,
            "params_note": profile.params_note,
            "initializer_elements": profile.initializer_elements,
            "param_bytes": profile.param_bytes,
            "read_bytes": profile.read_bytes,
            "write_bytes": profile.write_bytes,
            "intensity": profile.intensity,
            "peak_activation_bytes": profile.peak_activation_bytes,
            "arena_bytes": profile.arena_bytes,
            "arena_lower_bound_bytes": profile.arena_lower_bound_bytes,
            "coverage_percent": profile.coverage_percent,
            "uncounted": [{"node": u.node, "op": u.op, "reason": u.reason} for u in profile.uncounted],
            "timeline": [{"node": point.node, "live_bytes": point.live_bytes} for point in profile.timeline],
            "ops": profile_rows(profile),
        },
    )


def trace_json(measured: Trace) -> bytes:
    """A trace with every run: in each, the steps and the rest add up to the wall time."""
    return _document(
        "trace",
        {
            "warmup": measured.warmup,
            "wall": _durations(measured.wall),
            "first_run": _run(measured.first),
            "runs": [_run(run) for run in measured.runs],
            "rows": trace_rows(measured),
            "by_op": [
                {
                    "op": kind.op,
                    "steps": kind.steps,
                    "mean_ns": kind.mean_ns,
                    "share_percent": kind.share_percent,
                    "cumulative_percent": kind.cumulative_percent,
                }
                for kind in measured.by_op()
            ],
        },
    )


def roofline_json(placed: Roofline) -> bytes:
    """A roofline with its device and totals."""
    return _document(
        "roofline",
        {
            "device": placed.device,
            "threads": placed.threads,
            "roof_ns": placed.roof_ns,
            "wasted_ns": placed.wasted_ns,
            "skipped": list(placed.skipped),
            "points": roofline_rows(placed),
        },
    )


def sweep_rows(points: Iterable[SweepPoint]) -> list[Row]:
    """One flat row for each point, its dimensions first."""
    names = ("macs", "flops", "other_flops", "read_bytes", "write_bytes", "param_bytes", "peak_activation_bytes", "intensity")
    return [{**point.dims, **{name: getattr(point, name) for name in names}} for point in points]


def to_csv(rows: Sequence[Row]) -> str:
    """Rows as RFC 4180 CSV with a header. Lists are joined by spaces; a text that a spreadsheet would run gets a quote."""
    if not rows:
        return ""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\r\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return out.getvalue()


def chrome_trace(measured: Trace, profile: Profile | None = None) -> bytes:
    """Trace events of the median run and of the very first one, each a process; open in chrome://tracing or ui.perfetto.dev.

    Steps carry their arithmetic, bytes, algorithm and origins as arguments; what no step explains is a track of its own,
    behind the steps. With a profile, a counter shows the activation memory held while each step's first origin runs.
    """
    live = {op.name: op.live_bytes for op in profile.ops if not op.constant} if profile is not None else {}
    events: list[Row] = []
    for process, name, run in (
        (_MEDIAN_PROCESS, "median run", measured.median_run),
        (_FIRST_PROCESS, "first run", measured.first),
    ):
        events += _metadata(process, name)
        events += _run_events(process, run, measured.ops, live)
    return orjson.dumps({"traceEvents": events, "displayTimeUnit": "ns", "otherData": {"schema_version": SCHEMA_VERSION}})


def _metadata(process: int, name: str) -> list[Row]:
    tracks = ((_OPS_TRACK, "steps"), (_REST_TRACK, UNATTRIBUTED))
    return [
        {"ph": "M", "name": "process_name", "pid": process, "tid": 0, "args": {"name": name}},
        {"ph": "M", "name": "process_sort_index", "pid": process, "tid": 0, "args": {"sort_index": process}},
        *({"ph": "M", "name": "thread_name", "pid": process, "tid": tid, "args": {"name": text}} for tid, text in tracks),
    ]


def _run_events(process: int, run: RunTimes, ops: Sequence[OpTrace], live: Mapping[str, int]) -> list[Row]:
    """Slices laid end to end, times in microseconds; the rest behind them, so that the last ends at the wall time."""
    events: list[Row] = []
    at_ns = 0
    for op, step_ns in zip(ops, run.step_ns, strict=True):
        held = next((live[origin] for origin in op.origins if origin in live), None)
        if held is not None:
            counter = {"ph": "C", "name": "activation memory", "pid": process, "tid": 0, "ts": at_ns / 1e3}
            events.append({**counter, "args": {"bytes": held}})
        cost = _trace_cost(op)
        args = {"algorithm": op.algorithm, "origins": list(op.origins), **cost}
        events.append(_slice(process, _OPS_TRACK, op.name, op.op, at_ns, step_ns, args))
        at_ns += step_ns
    events.append(_slice(process, _REST_TRACK, UNATTRIBUTED, UNATTRIBUTED, at_ns, run.unattributed_ns, {}))
    return events


def _slice(process: int, track: int, name: str, category: str, at_ns: int, duration_ns: int, args: Row) -> Row:
    return {
        "ph": "X",
        "name": name,
        "cat": category,
        "pid": process,
        "tid": track,
        "ts": at_ns / 1e3,
        "dur": duration_ns / 1e3,
        "args": args,
    }


def _document(kind: str, body: Row) -> bytes:
    return orjson.dumps({"schema_version": SCHEMA_VERSION, "kind": kind, **body})


def _op_row(op: OpProfile, total_flops: int) -> Row:
    return {
        "index": op.index,
        "name": op.name,
        "op": op.op,
        "inputs": list(op.inputs),
        "outputs": list(op.outputs),
        "macs": op.macs,
        "other_flops": op.other_flops,
        "flops": op.flops,
        "share_percent": 100 * op.flops / total_flops if total_flops else 0.0,
        "params": op.params,
        "param_bytes": op.param_bytes,
        "read_bytes": op.read_bytes,
        "write_bytes": op.write_bytes,
        "live_bytes": op.live_bytes,
        "intensity": op.intensity,
        "counted": op.counted,
        "constant": op.constant,
        "executions": op.executions,
        "reason": op.reason,
    }


def _trace_row(row: OpTrace) -> Row:
    return {
        "name": row.name,
        "op": row.op,
        "algorithm": row.algorithm,
        "origins": list(row.origins),
        **_trace_cost(row),
        **_durations(row.durations),
        "share_percent": row.share_percent,
        "cumulative_percent": row.cumulative_percent,
    }


def _trace_cost(row: OpTrace) -> Row:
    cost = row.cost
    return {
        "macs": cost.macs if cost else 0,
        "executed_macs": row.executed_macs,
        "flops": cost.flops if cost else 0,
        "read_bytes": cost.read_bytes if cost else 0,
        "write_bytes": cost.write_bytes if cost else 0,
    }


def _point_row(point: RooflinePoint) -> Row:
    return {
        "name": point.name,
        "op": point.op,
        "precision": point.precision,
        "level": point.level,
        "flops": point.flops,
        "moved_bytes": point.moved_bytes,
        "intensity": point.intensity,
        "attainable_flops_per_s": point.attainable_flops_per_s,
        "achieved_flops_per_s": point.achieved_flops_per_s,
        "achieved_bytes_per_s": point.achieved_bytes_per_s,
        "roof_percent": point.roof_percent,
        "bound": point.bound,
        "roof_ns": point.roof_ns,
        "measured_ns": point.measured_ns,
        "wasted_ns": point.wasted_ns,
        "contradiction": point.contradiction,
    }


def _durations(durations: Durations) -> Row:
    return {
        "first_ns": durations.first_ns,
        "min_ns": durations.min_ns,
        "p50_ns": durations.p50_ns,
        "p90_ns": durations.p90_ns,
        "mean_ns": durations.mean_ns,
        "std_ns": durations.std_ns,
    }


def _run(run: RunTimes) -> Row:
    return {"step_ns": list(run.step_ns), "unattributed_ns": run.unattributed_ns, "wall_ns": run.wall_ns}


def _cell(value: Any) -> Any:
    text = " ".join(map(str, value)) if isinstance(value, list) else value
    return f"'{text}" if isinstance(text, str) and text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
