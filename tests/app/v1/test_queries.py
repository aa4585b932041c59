"""The query API over a real service: its answers are the stored reports', as JSON and as CSV."""

from __future__ import annotations

import csv
import io

import pytest

from app.settings import DEMO_MODELS, Settings
from bench.local import serving
from profiler.report.document import Timeline, Value
from scheduler.store import Store
from tests.scheduler.samples import DEVICE, MODEL, plan, report, run_op

STEM = run_op(
    0, "stem", p50_ns=30.0, share_percent=30.0, live_bytes=300, strategy="native/direct", bound="compute", backend="native"
)
POOL = run_op(1, "=pool", op="MaxPool", p50_ns=10.0, share_percent=10.0, live_bytes=500, strategy="native/pool", backend="native")
ODD = run_op(2, "odd", op="Resize", p50_ns=50.0, share_percent=50.0, live_bytes=200, strategy="numpy/whole", backend="numpy")
SLOW = STEM.model_copy(update={"p50_ns": 90.0, "strategy": "native/winograd"})
VALUES = (
    Value(name="small", nbytes=100, first=0, last=1, offset_bytes=0),
    Value(name="large", nbytes=400, first=1, last=2, offset_bytes=128),
)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    url = f"sqlite:///{tmp_path_factory.mktemp('db') / 'a.db'}"
    with Store(url) as store:
        store.devices.save(DEVICE)
        store.models.save(MODEL, "tiny.onnx", 100)
        store.plans.save(plan())
        first = report([STEM, POOL, ODD], wall_p50_ns=100.0)
        timeline = Timeline(wall_ns=100.0, threads=(((0, 0, 30, "work"), (1, 30, 10, "work"), (2, 40, 50, "work")),))
        store.profiles.save(first.model_copy(update={"values": VALUES, "timeline": timeline}), "a")
        store.profiles.save(report([SLOW, POOL], wall_p50_ns=150.0), "b")
        store.profiles.save(report([STEM.model_copy(update={"p50_ns": None})]), "b")
    with serving(Settings(models=DEMO_MODELS, db=url)) as client:
        yield client


def get(client, path, **params):
    reply = client.get(f"/v1/{path}", params=params)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_the_costliest_ops_of_a_run(client):
    found = get(client, "profiles/query", run="1", limit=2)
    assert [(row["name"], row["p50_ns"]) for row in found["items"]] == [("odd", 50.0), ("stem", 30.0)]
    rest = get(client, "profiles/query", run="1", limit=2, cursor=found["next"])
    assert [row["name"] for row in rest["items"]] == ["=pool"]
    assert rest["next"] is None
    assert [row["name"] for row in get(client, "profiles/query", model=MODEL, backend="numpy")["items"]] == ["odd"]


def test_ops_as_csv_are_those_of_the_json_and_harmless_in_a_spreadsheet(client):
    reply = client.get("/v1/profiles/query", params={"run": "1", "format": "csv", "limit": 2, "sort": "position"})
    assert (reply.headers["content-type"], reply.headers["x-next-cursor"]) == ("text/csv; charset=utf-8", "2")
    rows = list(csv.DictReader(io.StringIO(reply.text)))
    assert [(row["name"], float(row["p50_ns"])) for row in rows] == [("stem", 30.0), ("'=pool", 10.0)]


def test_groups_add_up_to_the_run(client):
    found = get(client, "profiles/query", run="1", group="op")["items"]
    assert {row["group"]: row["share_percent"] for row in found} == {"Resize": 50.0, "Conv": 30.0, "MaxPool": 10.0}
    (whole,) = get(client, "profiles/query", run="1", group="run")["items"]
    assert (whole["group"], whole["rows"], whole["p50_ns"]) == ("1", 3, 90.0)


def test_runs_side_by_side(client):
    found = get(client, "compare", runs="1,2")
    rows = {row["key"]: row for row in found["rows"]}
    assert rows["stem"]["p50_ns"] == [30.0, 90.0]
    assert (rows["stem"]["delta_ns"], rows["stem"]["ratio"]) == (60.0, 3.0)
    assert rows["stem"]["strategy"] == ["native/direct", "native/winograd"]
    assert (rows["odd"]["flops"], rows["odd"]["delta_ns"]) == ([2010, None], None)
    assert [run["id"] for run in found["runs"]] == [1, 2]
    assert found["ratios"]["wall_p50_ns"] == [1.0, 1.5]
    assert get(client, "compare", runs="1,3")["ratios"]["wall_p50_ns"] == [1.0, None]


def test_a_comparison_as_csv_has_a_column_for_each_run(client):
    reply = client.get("/v1/compare", params={"runs": "1,2", "format": "csv"})
    rows = {row["key"]: row for row in csv.DictReader(io.StringIO(reply.text))}
    assert (rows["stem"]["p50_ns_1"], rows["stem"]["strategy_2"], rows["odd"]["p50_ns_2"]) == ("30.0", "native/winograd", "")


def test_what_became_slower(client):
    (found,) = get(client, "regressions", model=MODEL)["items"]
    assert (found["before"]["id"], found["after"]["id"], found["growth_percent"]) == (1, 2, pytest.approx(50.0))
    assert found["noise_percent"] == pytest.approx(1.0)
    assert found["ops"][0]["name"] == "stem"
    assert get(client, "regressions", threshold_percent=60)["items"] == []


def test_history_goes_from_the_oldest_to_the_newest(client):
    (series,) = get(client, "history", model=MODEL)
    assert [run["id"] for run in series["runs"]] == [1, 2]
    assert (series["device"], series["threads"], series["precision"]) == (DEVICE.fingerprint, 2, "fp32")


def test_the_best_plan_and_what_others_miss(client):
    (found,) = get(client, "best", model=MODEL)
    assert found["plan"]["plan_id"] == plan().id
    assert "engine build" in found["misses"][0]  # made by another build than this service's
    (found,) = get(client, "best", model=MODEL, max_latency_ms=1e-9, max_memory_bytes=1)
    assert [miss.split(" is ")[0] for miss in found["misses"][1:]] == ["latency", "memory"]


def test_a_trace_is_a_download_for_perfetto(client):
    reply = client.get("/v1/profiles/1/trace")
    assert reply.headers["content-disposition"] == 'attachment; filename="edgewise-run-1.trace.json"'
    slices = [event["name"] for event in reply.json()["traceEvents"] if event["ph"] == "X"]
    assert {"stem", "=pool", "odd"} <= set(slices)
    assert client.get("/v1/profiles/3/trace").status_code == 404


def test_the_tensors_alive_at_the_peak_and_elsewhere(client):
    found = get(client, "profiles/1/memory")
    assert (found["at"], found["live_bytes"]) == (1, 500)
    assert [value["name"] for value in found["values"]] == ["large", "small"]
    assert [value["name"] for value in get(client, "profiles/1/memory", at=0)["values"]] == ["small"]
    assert client.get("/v1/profiles/1/memory", params={"at": 3}).status_code == 404


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("profiles/query", 400, "need one of them"),
        ("profiles/query?run=1&sort=speed", 400, "need one of position"),
        ("profiles/query?run=x", 400, "run"),
        ("profiles/query?run=1&cursor=y", 400, "cursor"),
        ("compare?runs=1", 400, "need 2..8"),
        ("compare?runs=1,99", 404, "profile 99"),
        ("history?model=00000000", 404, "not stored"),
        ("profiles/99/trace", 404, "profile 99"),
    ],
)
def test_a_bad_question_is_told_what_it_needs(client, path, status, says):
    reply = client.get(f"/v1/{path}")
    assert reply.status_code == status
    assert says in reply.text
