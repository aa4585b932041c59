from __future__ import annotations

import csv
import io
import json

import pytest

from profiler.counts import profile
from profiler.exports import (
    chrome_trace,
    profile_json,
    profile_rows,
    roofline_json,
    roofline_rows,
    sweep_rows,
    to_csv,
    trace_json,
    trace_rows,
)
from profiler.roofline import roofline
from profiler.sweep import sweep
from profiler.trace import trace
from tests.profiler.devices import device
from tests.profiler.models import small_convnet
from tests.profiler.timed import scripted

STEPS = 11


@pytest.fixture(scope="module")
def counted():
    return profile(small_convnet(), dims={"batch": 1})


@pytest.fixture(scope="module")
def measured():
    first = ([9_000] * STEPS, 120_000)
    runs = [([1_000 + 10 * i] * STEPS, 20_000 + 100 * i) for i in range(5)]
    return trace(scripted([first, *runs]), {}, runs=5, warmup=0)


def test_profile_json_holds_the_totals_and_every_op(counted):
    data = json.loads(profile_json(counted))
    assert (data["schema_version"], data["kind"]) == (1, "profile")
    assert data["macs"] == counted.macs == sum(op["macs"] for op in data["ops"])
    assert data["flops"] == 2 * data["macs"] + data["other_flops"]
    assert data["params"] == counted.params
    assert data["inputs"] == {"x": "f32[1,3,14,14]"}
    assert [op["name"] for op in data["ops"]] == [op.name for op in counted.ops]
    assert [point["live_bytes"] for point in data["timeline"]] == [point.live_bytes for point in counted.timeline]
    assert sum(op["share_percent"] for op in data["ops"]) == pytest.approx(100)


def test_trace_json_runs_add_up(measured):
    data = json.loads(trace_json(measured))
    assert (data["schema_version"], data["kind"]) == (1, "trace")
    for run in (data["first_run"], *data["runs"]):
        assert sum(run["step_ns"]) + run["unattributed_ns"] == run["wall_ns"]
    assert sum(row["share_percent"] for row in data["rows"]) == pytest.approx(100)
    assert sum(kind["share_percent"] for kind in data["by_op"]) == pytest.approx(100)


def test_roofline_json_points_match_its_totals(measured):
    placed = roofline(measured, device())
    data = json.loads(roofline_json(placed))
    assert (data["schema_version"], data["kind"]) == (1, "roofline")
    assert sum(point["wasted_ns"] for point in data["points"]) == pytest.approx(data["wasted_ns"])
    assert len(data["points"]) + len(data["skipped"]) == STEPS


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_profile_csv_reads_back(counted):
    rows = read_csv(to_csv(profile_rows(counted)))
    assert [row["name"] for row in rows] == [op.name for op in counted.ops]
    assert sum(int(row["macs"]) for row in rows) == counted.macs
    assert rows[0]["inputs"] == "f32[1,3,14,14] f32[8,3,3,3] f32[8]"


def test_trace_and_roofline_csv_have_a_row_for_each(measured):
    placed = roofline(measured, device())
    assert len(read_csv(to_csv(trace_rows(measured)))) == STEPS + 1
    assert len(read_csv(to_csv(roofline_rows(placed)))) == len(placed.points)


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


@pytest.fixture(scope="module")
def events(measured, counted):
    return json.loads(chrome_trace(measured, counted))["traceEvents"]


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


def test_chrome_events_name_their_processes_and_tracks(events):
    names = {(event["pid"], event["tid"], event["args"]["name"]) for event in events if event["name"].endswith("_name")}
    assert names == {
        *((1, 0, "median run"), (1, 1, "steps"), (1, 2, "unattributed")),
        *((2, 0, "first run"), (2, 1, "steps"), (2, 2, "unattributed")),
    }


@pytest.mark.parametrize("process", [1, 2])
def test_chrome_slices_do_not_overlap_and_end_at_the_wall_time(events, measured, process):
    slices = [event for event in events if event["ph"] == "X" and event["pid"] == process]
    run = measured.median_run if process == 1 else measured.first
    at = 0.0
    for event in slices:
        assert event["ts"] == pytest.approx(at)
        at = event["ts"] + event["dur"]
    assert at == pytest.approx(run.wall_ns / 1e3)
    assert len(slices) == STEPS + 1


def test_chrome_slices_carry_cost_and_origin(events):
    conv = next(event for event in events if event["ph"] == "X" and event["name"] == "conv1")
    assert conv["cat"] == "Conv"
    assert conv["args"]["macs"] == 8 * 196 * 27
    assert conv["args"]["origins"] == ["conv1"]
    assert conv["args"]["algorithm"]


def test_chrome_counter_shows_memory_held(events, counted):
    held = [event["args"]["bytes"] for event in events if event["ph"] == "C" and event["pid"] == 1]
    assert held == [op.live_bytes for op in counted.ops]


def test_chrome_trace_without_a_profile_has_no_counter(measured):
    assert not [e for e in json.loads(chrome_trace(measured))["traceEvents"] if e["ph"] == "C"]
