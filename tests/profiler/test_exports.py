from __future__ import annotations

import csv
import io
import json

import pytest

from graph.native.engine import find_native
from profiler.counting.counts import profile
from profiler.counting.sweep import sweep
from profiler.report.exports import chrome_trace, convention_rows, op_rows, sweep_rows, to_csv
from profiler.report.makers import static_report
from tests.profiler.models import small_convnet
from tests.profiler.traced import traced


@pytest.fixture(scope="module")
def measured():
    return traced(small_convnet(), 1, find_native("native"))


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_csv_of_ops_reads_back():
    report = static_report(profile(small_convnet(), dims={"batch": 1}))
    rows = read_csv(to_csv(op_rows(report)))
    assert [row["name"] for row in rows] == [op.name for op in report.ops]
    assert sum(int(row["macs"]) for row in rows) == report.totals.macs
    assert rows[0]["inputs"] == "x w1 b1"


def test_sweep_rows_begin_with_the_dimensions():
    rows = sweep_rows(sweep(small_convnet(), {"batch": [1, 2]}))
    assert [row["batch"] for row in rows] == [1, 2]
    assert next(iter(rows[0])) == "batch"


def test_csv_of_nothing_is_empty():
    assert to_csv([]) == ""


@pytest.mark.parametrize("name", ["=1+1", "+x", "-x", "@cmd", "\tx", "\rx"])
def test_csv_runs_nothing_in_a_spreadsheet(name):
    (row,) = read_csv(to_csv([{"name": name, "value": -1}]))
    assert row["name"] == f"'{name}"
    assert row["value"] == "-1"


def test_csv_quotes_what_would_break_a_row():
    (row,) = read_csv(to_csv([{"name": 'a,"b"\nc'}]))
    assert row["name"] == 'a,"b"\nc'


def test_rows_of_conventions_say_what_each_counts():
    counted = profile(small_convnet(), dims={"batch": 1})
    ours, theirs = convention_rows(counted, ["macs", "ultralytics"])
    assert (ours["total"], ours["unit"], ours["source"]) == (counted.macs, "MACs", "edgewise")
    assert (theirs["convention"], theirs["unit"], theirs["counts"]) == ("ultralytics", "FLOPs", "twice the MACs of thop")


@pytest.fixture(scope="module")
def events(measured):
    return json.loads(chrome_trace(measured))["traceEvents"]


def test_chrome_events_have_what_the_format_asks(events):
    assert {event["ph"] for event in events} == {"X", "C", "M"}
    for event in events:
        assert isinstance(event["name"], str)
        assert {"pid", "tid"} <= event.keys()
        if event["ph"] == "X":
            assert event["ts"] >= 0
            assert event["dur"] >= 0
            assert isinstance(event["args"], dict)
        elif event["ph"] == "C":
            assert all(isinstance(value, int) for value in event["args"].values())


def test_chrome_threads_are_tracks_of_the_median_run(events, measured):
    tracks = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    threads = len(measured.timeline.threads)
    assert tracks == {**{(1, n): f"thread {n}" for n in range(threads)}, (2, 0): "steps, end to end"}


def test_chrome_slices_of_a_track_do_not_overlap(events, measured):
    at: dict[tuple[int, int], float] = {}
    for event in events:
        if event["ph"] == "X":
            track = event["pid"], event["tid"]
            assert event["ts"] >= at.get(track, 0.0) - 0.002  # times are whole nanoseconds
            at[track] = event["ts"] + event["dur"]
    assert max(end for (process, _), end in at.items() if process == 1) <= measured.timeline.wall_ns / 1e3


def test_chrome_slices_carry_cost_and_origin(events, measured):
    conv = next(event for event in events if event["ph"] == "X" and event["cat"] == "Conv")
    op = next(op for op in measured.ops if op.name == conv["name"])
    assert conv["args"]["macs"] == op.macs == 8 * 196 * 27
    assert conv["args"]["origins"] == list(op.origins)
    assert conv["args"]["strategy"] == op.strategy


def test_a_count_has_no_events():
    report = static_report(profile(small_convnet(), dims={"batch": 1}))
    assert json.loads(chrome_trace(report))["traceEvents"] == []
