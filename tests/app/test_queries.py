"""What is asked of profiles, over a real socket, of a real trace of the demo."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.settings import DEMO_MODELS, Settings
from scheduler.store import Store
from tests.app.conftest import serving
from tests.app.test_cli import MODEL, edgewise


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('queries') / 'queries.sqlite'}"


@pytest.fixture(scope="module")
def printed(db: str) -> list[dict]:
    """Two runs as the command line measured, printed and stored them. Above a roof or not, they are printed."""
    edgewise("device", "--seconds", "0.3", "--db", db)
    call = ["profile", MODEL, "--dim", "batch=1", "--measure", "--runs", "5", "--threads", "1", "--db", db, "--json"]
    found = [edgewise(*call), edgewise(*call)]
    assert all(done.stdout for done in found), found[0].stderr
    assert [done.returncode for done in found] == [0 if json.loads(done.stdout)["check"]["ok"] else 1 for done in found]
    return [json.loads(done.stdout) for done in found]


@pytest.fixture(scope="module")
def client(db: str, printed: list[dict]) -> Iterator[httpx.Client]:
    with serving(Settings(models=DEMO_MODELS, db=db, jobs=False)) as found:
        yield found


def test_the_document_is_the_same_everywhere(client: httpx.Client, db: str, printed: list[dict]) -> None:
    with Store(db) as store:
        payload = store.profiles.get(1).payload
    reply = client.get("/v1/profiles/1").json()
    assert printed[0] == json.loads(payload) == reply["profile"]
    totals = reply["profile"]["totals"]
    for name in ("macs", "flops", "wall_p50_ns", "first_ns", "wasted_ns", "peak_activation_bytes"):
        assert reply[name] == totals[name]


def test_ops_of_a_query_are_those_of_the_document(client: httpx.Client, printed: list[dict]) -> None:
    found = client.get("/v1/profiles/query", params={"run": 1, "sort": "position"}).json()
    assert found["runs"] == [1]
    for row, op in zip(found["items"], printed[0]["ops"], strict=True):
        for name in ("name", "op", "strategy", "backend", "bound", "p50_ns", "share_percent", "roof_percent", "wasted_ns"):
            assert row[name] == op[name]
    slowest = client.get("/v1/profiles/query", params={"run": 1, "limit": 1}).json()["items"][0]
    assert slowest["p50_ns"] == max(op["p50_ns"] for op in printed[0]["ops"])


def test_groups_and_csv(client: httpx.Client, printed: list[dict]) -> None:
    groups = client.get("/v1/profiles/query", params={"run": 1, "group": "op"}).json()["items"]
    convs = [op for op in printed[0]["ops"] if op["op"] == "Conv"]
    conv = next(group for group in groups if group["key"] == "Conv")
    assert conv["rows"] == len(convs)
    assert conv["p50_ns"] == pytest.approx(sum(op["p50_ns"] for op in convs))
    assert conv["share_percent"] == pytest.approx(sum(op["share_percent"] for op in convs))
    text = client.get("/v1/profiles/query", params={"run": 1, "format": "csv", "sort": "position"})
    assert text.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(text.text, newline="")))
    assert [row["name"] for row in rows] == [op["name"] for op in printed[0]["ops"]]


def test_trace_and_memory(client: httpx.Client, printed: list[dict]) -> None:
    events = client.get("/v1/profiles/1/trace").json()["traceEvents"]
    assert {event["name"] for event in events if event["ph"] == "X" and event["pid"] == 1} >= {printed[0]["ops"][0]["name"]}
    peak = client.get("/v1/profiles/1/memory").json()
    assert peak["live_bytes"] == printed[0]["totals"]["peak_activation_bytes"] == sum(v["nbytes"] for v in peak["values"])
    assert client.get("/v1/profiles/1/memory", params={"at": 0}).json()["at"] == 0
    assert client.get("/v1/profiles/1/memory", params={"at": 999}).status_code == 404


def test_compare(client: httpx.Client, printed: list[dict]) -> None:
    found = client.get("/v1/compare", params={"runs": "1,2"}).json()
    assert [run["id"] for run in found["runs"]] == [1, 2]
    assert len(found["rows"]) == len(printed[0]["ops"])
    assert sum(row["delta_ns"] for row in found["rows"]) == pytest.approx(
        sum(op["p50_ns"] for op in printed[1]["ops"]) - sum(op["p50_ns"] for op in printed[0]["ops"])
    )
    assert found["deltas"]["macs"] == 0


def test_lists_by_model(client: httpx.Client, printed: list[dict]) -> None:
    digest = printed[0]["model"]["digest"]
    assert [run["id"] for run in client.get("/v1/profiles", params={"model": digest, "kind": "trace"}).json()["items"]] == [2, 1]
    (series,) = client.get("/v1/history", params={"model": digest}).json()["series"]
    assert [run["id"] for run in series["runs"]] == [1, 2]
    grown = printed[1]["totals"]["wall_p50_ns"] > printed[0]["totals"]["wall_p50_ns"]
    assert len(client.get("/v1/regressions", params={"threshold_percent": 0}).json()["items"]) <= int(grown)


def test_best_says_why_plans_do_not_fit(client: httpx.Client, printed: list[dict]) -> None:
    made = client.post("/v1/plans", json={"model": "digits", "dims": {"batch": 1}}, timeout=120).json()
    asked = {"model": printed[0]["model"]["digest"]}
    (fitting,) = client.get("/v1/best", params=asked).json()["plans"]
    assert (fitting["id"], fitting["fits"], fitting["reasons"]) == (made["id"], True, [])
    (other,) = client.get("/v1/best", params={**asked, "max_memory_bytes": 10, "max_latency_ms": 1e-6}).json()["plans"]
    assert (other["fits"], len(other["reasons"])) == (False, 2)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/profiles/999", 404),
        ("/v1/profiles/999/trace", 404),
        ("/v1/profiles/query?sort=colour", 400),
        ("/v1/profiles/query?run=x", 400),
        ("/v1/profiles/query?group=colour", 400),
        ("/v1/profiles/query?cursor=x", 400),
        ("/v1/compare?runs=1", 400),
        ("/v1/compare?runs=1,999", 404),
        ("/v1/history", 400),
        ("/v1/regressions?threshold_percent=-1", 400),
        (f"/v1/best?model={'f' * 64}", 404),
    ],
)
def test_refusals(client: httpx.Client, path: str, status: int) -> None:
    reply = client.get(path)
    assert (reply.status_code, "error" in reply.json()) == (status, True), reply.text


def test_measuring_is_asked_rightly(tmp_path: Path) -> None:
    assert "need --measure" in edgewise("profile", MODEL, "--dim", "batch=1", "--threads", "1").stderr
    assert edgewise("profile", MODEL, "--dim", "batch=1,2", "--measure").returncode == 2
