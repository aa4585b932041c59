"""Comparing plans, and what-if plans, over HTTP and from the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from profiler.device.profile import DeviceProfile
from scheduler.store import Store
from tests.app.demo import MODEL
from tests.app.servers import serving_demo
from tests.processes import edgewise


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, machine: DeviceProfile) -> Iterator[httpx.Client]:
    with serving_demo(tmp_path_factory.mktemp("plans"), machine) as found:
        yield found


@pytest.fixture(scope="module")
def plans(client: httpx.Client) -> list[str]:
    asked: list[dict[str, Any]] = [{"max_threads": 1}, {"max_threads": 1, "backend": "numpy"}]
    made = [client.post("/v1/plans", json={"model": "digits", "dims": {"batch": 1}, **one}, timeout=120) for one in asked]
    return [reply.json()["id"] for reply in made]


def test_diff_of_two_plans(client: httpx.Client, plans: list[str]) -> None:
    found = client.get(f"/v1/plans/{plans[0]}/diff/{plans[1]}").json()
    assert "constraints" in [change["what"] for change in found["changes"]]
    assert found["steps"]
    assert all(step["after"].startswith("numpy/") for step in found["steps"])
    assert found["ratio"] == pytest.approx(found["after_ns"] / found["before_ns"])
    same = client.get(f"/v1/plans/{plans[0]}/diff/{plans[0]}").json()
    assert (same["changes"], same["steps"], same["ratio"]) == ([], [], 1.0)
    assert client.get(f"/v1/plans/{plans[0]}/diff/{'0' * 64}").status_code == 404


def test_what_if(client: httpx.Client, plans: list[str]) -> None:
    def ask(**asked: object) -> httpx.Response:
        return client.post("/v1/plans/what-if", json={"plan_id": plans[0], **asked})

    plan = client.get(f"/v1/plans/{plans[0]}").json()["plan"]
    found = ask(everywhere="numpy").json()
    assert found["before_ns"] == plan["predicted_ns"]
    assert {step["node"] for step in found["steps"]} <= {step["node"] for step in plan["steps"]}
    assert found["after_ns"] - found["before_ns"] == pytest.approx(
        sum(step["after_ns"] - step["before_ns"] for step in found["steps"])
    )
    node = next(step["node"] for step in plan["steps"] if step["op"] == "Conv" and step["strategy"].startswith("native/"))
    (of_all,) = (step for step in found["steps"] if step["node"] == node)
    one = ask(nodes={node: "numpy"}).json()
    assert one["steps"] == [of_all]
    assert one["after_ns"] - one["before_ns"] == pytest.approx(of_all["after_ns"] - of_all["before_ns"])
    assert ask(nodes={node: "nonsense"}).status_code == 404
    assert ask(nodes={"nowhere": "numpy"}).status_code == 404
    assert ask(nodes=[1]).status_code == 400


@pytest.mark.usefixtures("plans")  # with which the model is stored
def test_best_strategies(client: httpx.Client) -> None:
    digest = client.get("/v1/models/digits").json()["digest"]
    assert client.get("/v1/strategies/best", params={"model": digest}).json()["next"] is None
    named = client.get("/v1/strategies/best", params={"model": "digits"})
    assert named.json() == client.get("/v1/strategies/best", params={"model": digest}).json()
    assert client.get("/v1/strategies/best", params={"model": "nowhere"}).status_code == 404
    assert client.get("/v1/strategies/best").status_code == 400
    assert client.get("/v1/strategies/best", params={"device": "f" * 16, "model": digest}).status_code == 404


def test_command_line(tmp_path: Path, machine: DeviceProfile) -> None:
    db = f"sqlite:///{tmp_path / 'cli.sqlite'}"
    with Store(db) as store:
        store.devices.save(machine)
    common = ["plan", MODEL, "--dim", "batch=1", "--db", db]
    plan = json.loads(edgewise(*common, "--json").stdout)
    (tmp_path / "a.json").write_text(json.dumps(plan))
    (tmp_path / "b.json").write_text(edgewise(*common, "--max-threads", "1", "--json").stdout)
    shown = edgewise("plan", "--diff", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--db", db)
    assert (shown.returncode, "constraints" in shown.stdout) == (0, True), shown.stderr
    found = json.loads(edgewise(*common, "--with", "*=numpy", "--json").stdout)
    assert found["before_ns"] == plan["predicted_ns"]
    assert "known by" in edgewise(*common, "--with", "*=numpy").stdout
    node = next(step["node"] for step in plan["steps"] if step["op"] == "Conv")
    assert edgewise(*common, "--with", f"{node}=native").returncode == 0
    assert edgewise(*common, "--with", "nothing").returncode == 2
    assert edgewise("plan", "--db", db).returncode == 2
