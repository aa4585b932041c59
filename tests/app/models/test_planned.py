"""A running model takes up stored plans, names them in its replies, and watches them for drift."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from app.engine.policy import Rules
from app.main import create_app
from app.models.planned import Terms
from app.service import Service
from app.settings import DEMO_MODELS, Settings
from bench.local import serving
from profiler.device.profile import DeviceProfile
from scheduler.plan import Constraints, Plan, State
from scheduler.store import Store
from tests.scheduler.samples import plan as sample

ONE = {"model": "digits", "dims": {"batch": 1}}
WAIT_S = 120.0


@pytest.fixture
def db(tmp_path: Path, machine: DeviceProfile) -> str:
    url = f"sqlite:///{tmp_path / 'planned.sqlite'}"
    with Store(url) as store:
        store.devices.save(machine)
    return url


def settings(db: str, **changes: Any) -> Settings:
    return Settings(models=DEMO_MODELS, db=db, threads=1, plan_refresh_s=0.1, **changes)


def infer(client: httpx.Client, rows: int = 1) -> str:
    """Run the model, assert success, and return the id of the plan that ran."""
    data = np.zeros((rows, 1, 8, 8), np.float32)
    tensor = {"name": "image", "datatype": "FP32", "shape": data.shape, "data": data.ravel().tolist()}
    reply = client.post("/v2/models/digits/infer", json={"inputs": [tensor]})
    assert reply.status_code == 200, reply.text
    plan_id: str = reply.json()["parameters"]["plan_id"]
    return plan_id


def wait(found: Callable[[], Any]) -> Any:
    """Return the value of `found` once it is true. Fails after WAIT_S seconds."""
    ends = time.monotonic() + WAIT_S
    while not (what := found()):
        assert time.monotonic() < ends
        time.sleep(0.02)
    return what


def post_plan(client: httpx.Client, **asked: Any) -> dict[str, Any]:
    reply = client.post("/v1/plans", json={**ONE, **asked}, timeout=120)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def served_plans(client: httpx.Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get("/v1/models/digits").json()["plans"]
    return found


def test_a_tuned_plan_serves_without_a_restart_and_is_watched(db: str) -> None:
    with serving(settings(db)) as client:
        assert (infer(client), served_plans(client)) == ("default", [])
        request = {"budget_s": 2, "dims": {"batch": 1}, "threads": 1}
        job = client.post("/v1/jobs", json={"kind": "tune", "model": "digits", "request": request}).json()["id"]

        def ended() -> dict[str, Any] | None:
            assert infer(client)  # no request fails meanwhile
            found: dict[str, Any] = client.get(f"/v1/jobs/{job}").json()
            return found if found["state"] in ("done", "failed") else None

        done = wait(ended)
        assert done["state"] == "done", done
        tuned = done["result"]["plan_id"]
        wait(lambda: infer(client) == tuned)
        assert infer(client, rows=3) == "default"  # other shapes run on as they did
        label = {"plan_id": tuned, "inputs": {"image": [1, 1, 8, 8]}, "threads": 1}
        assert wait(lambda: served_plans(client)) == [label]

        def watched() -> list[dict[str, Any]]:
            infer(client)
            seen: list[dict[str, Any]] = client.get("/v1/plans/served").json()
            return seen

        (seen,) = wait(watched)
        assert (seen["plan_id"], seen["measured"], seen["expected_ns"]) == (tuned, True, done["result"]["measured_ns"])
        assert post_plan(client, max_threads=1)["id"] == tuned  # stays the answer
    with serving(settings(db)) as client:  # and the plan of a service that starts
        wait(lambda: infer(client) == tuned)


@pytest.fixture(params=[0, 1], ids=["service", "process"])
def app(db: str, request: pytest.FixtureRequest) -> Iterator[tuple[httpx.Client, Service]]:
    chosen = settings(db, workers=request.param)
    made = create_app(chosen)
    with serving(chosen, made) as client:
        yield client, made.state.service


def test_plans_swap_between_runs_and_outlive_a_process(app: tuple[httpx.Client, Service]) -> None:
    client, service = app
    assert infer(client) == "default"
    first = post_plan(client, max_threads=1)
    wait(lambda: infer(client) == first["id"])
    other = post_plan(client, max_threads=1, dims={"batch": 2})
    post_plan(client, max_threads=1, objective="memory")  # not what the model is asked for
    wait(lambda: infer(client, rows=2) == other["id"])
    assert infer(client) == first["id"]
    for process in service.engine._processes:
        link = process.link
        assert link is not None
        link.process.kill()
        wait(lambda process=process, link=link: process.link not in (None, link))
        assert infer(client) == first["id"]


def answer(threads: int | None, **changes: Any) -> Plan:
    limits = {"constraints": Constraints(max_threads=threads), "threads": 1}
    return sample(**{**limits, **changes})


@pytest.mark.parametrize(
    ("plan", "met"),
    [
        (answer(2), True),
        (answer(None), True),
        (answer(1), False),
        (answer(2, state=State(status="drifted", reason="slow")), True),
        (answer(2, state=State(status="stale", reason="another build")), False),
        (answer(2, state=State(status="predicted")), False),
        (answer(2, objective="throughput"), False),
        (answer(2, constraints=Constraints(max_threads=2, max_error=1e-3)), False),
        (answer(2, constraints=Constraints(max_threads=2, backend="numpy")), False),
    ],
    ids=["same", "all_cores", "fewer_threads", "drifted", "stale", "predicted", "objective", "error", "backend"],
)
def test_a_plan_serves_on_the_terms_of_the_model_alone(plan: Plan, met: bool) -> None:
    assert Terms(Rules(), threads=2, cores=2).met(plan) == met


def test_a_model_may_ask_for_other_plans() -> None:
    rules = Rules(objective="throughput", max_error=1e-3).over(Rules(objective="latency"))
    limits = Constraints(max_threads=1, max_error=1e-3)
    assert Terms(rules, threads=1, cores=2).met(answer(1, objective="throughput", constraints=limits))
    assert not Terms(rules, threads=1, cores=2).met(answer(None, objective="throughput", constraints=Constraints(max_error=1e-3)))


def test_a_pinned_plan_serves_whatever_it_was_made_for(db: str) -> None:
    with serving(settings(db)) as client:
        usual = post_plan(client, max_threads=1)
        wait(lambda: infer(client) == usual["id"])
        other = post_plan(client, max_threads=1, max_error=0.5)
        listed = {plan["id"]: plan["served"] for plan in client.get("/v1/plans").json()["items"]}
        assert listed == {usual["id"]: ["digits"], other["id"]: []}
        assert client.get(f"/v1/plans/{other['id'][:12]}").json()["id"] == other["id"]
    with serving(settings(db, plans=(other["id"][:12],))) as client:
        wait(lambda: infer(client) == other["id"])
        newer = post_plan(client, max_threads=1, dims={"batch": 2})
        wait(lambda: infer(client, rows=2) == newer["id"])  # of other shapes the newest is served
        assert infer(client) == other["id"]
        assert client.get(f"/v1/plans/{other['id']}").json()["served"] == ["digits"]


def test_the_rules_of_a_model_may_pin_a_plan(db: str, tmp_path: Path) -> None:
    with serving(settings(db)) as client:
        pinned = post_plan(client, max_threads=1, max_error=0.5)["id"]
        post_plan(client, max_threads=1)
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "digits.onnx").write_bytes((DEMO_MODELS / "digits.onnx").read_bytes())
    (folder / "digits.json").write_text(f'{{"plan": "{pinned[:12]}"}}')
    with serving(settings(db).model_copy(update={"models": folder})) as client:
        wait(lambda: infer(client) == pinned)
