"""Jobs over a real socket: queued, run by the service, followed, cancelled, and claimed by another worker."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.settings import DEMO_MODELS, Settings
from bench.jobs import add, wait_for
from bench.local import serving
from bench.waiting import until
from profiler.device.profile import DeviceProfile
from profiler.device.quiet import WHEN_BUSY, Quietness
from scheduler.jobs import KINDS, JobOutcome, Kind, ProbeRequest, Task
from scheduler.local import local_fingerprint
from scheduler.store import Store
from tests.profiler.devices import device, hardware
from tests.scheduler.samples import report, run_op

NUMBERS = itertools.count()
WORK = {"kind": "profile", "model": "digits", "request": {"dims": {"batch": 2}}}


def _count(task: Task) -> JobOutcome:
    """Run a job that counts to `seconds` in steps of 0.05 s and can be stopped."""
    for done in range(round(task.request.seconds)):
        task.report({"done": done})
        if task.stop():
            return JobOutcome(summary={"counted": done})
        time.sleep(0.05)
    return JobOutcome(summary={"counted": round(task.request.seconds)})


def _fail(task: Task) -> JobOutcome:
    raise ZeroDivisionError


COUNTING = {**KINDS, "count": Kind(ProbeRequest, False, _count), "fail": Kind(ProbeRequest, False, _fail)}


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('jobs') / 'jobs.sqlite'}"


@pytest.fixture(scope="module")
def client(db: str, machine: DeviceProfile) -> Iterator[httpx.Client]:
    with Store(db) as store:
        store.devices.save(machine)
    with serving(Settings(models=DEMO_MODELS, db=db, job_lease_s=1, max_listeners=2), kinds=COUNTING) as found:
        yield found


@pytest.fixture
def far(db: str, client: httpx.Client) -> DeviceProfile:
    """Store another machine, for whose jobs only this test asks, and return its profile."""
    made = device(hardware=hardware(model=f"Far {next(NUMBERS)}"))
    with Store(db) as store:
        store.devices.save(made)
    return made


def test_a_profile_and_a_trace_are_run_and_stored(client: httpx.Client) -> None:
    queued = add(client, **WORK)
    assert (queued["state"], queued["device"]) == ("queued", local_fingerprint())
    assert queued["request"] == {"shapes": {}, "dims": {"batch": 2}}
    done = wait_for(client, queued["id"])
    assert (done["state"], done["result"]["macs"]) == ("done", 905728)
    assert client.get(f"/v1/profiles/{done['result']['profile_id']}").json()["profile"]["totals"]["macs"] == 905728
    traced = wait_for(client, add(client, kind="trace", model="digits", request={"dims": {"batch": 1}, "runs": 5})["id"])
    assert traced["state"] == "done", traced
    stored = client.get(f"/v1/profiles/{traced['result']['profile_id']}").json()
    assert (stored["kind"], stored["profile"]["setup"]["runs"]) == ("trace", 5)


def test_tuning_leaves_a_plan(client: httpx.Client) -> None:
    asked = {"budget_s": 10, "dims": {"batch": 1}, "threads": 1}
    done = wait_for(client, add(client, kind="tune", model="digits", request=asked)["id"])
    assert done["state"] == "done", done
    assert client.get(f"/v1/plans/{done['result']['plan_id']}").status_code == 200
    assert client.get("/v1/strategies").json()["items"]


def test_a_job_that_cannot_be_done_fails_with_its_reason(client: httpx.Client) -> None:
    failed = wait_for(client, add(client, kind="profile", model="digits", request={"dims": {"depth": 2}})["id"])
    assert failed["state"] == "failed"
    assert "dimension 'depth' does not exist" in failed["error"]
    failed = wait_for(client, add(client, kind="fail")["id"])
    assert (failed["state"], "ZeroDivisionError" in failed["error"]) == ("failed", True)


def test_one_runs_at_a_time_and_a_cancelled_one_stops(client: httpx.Client) -> None:
    first, second, third = (add(client, kind="count", request={"seconds": 500})["id"] for _ in range(3))
    wait_for(client, first, "running")
    until(lambda: client.get(f"/v1/jobs/{first}").json()["progress"].get("done", 0) > 0)  # a new machine is measured before
    assert client.get(f"/v1/jobs/{second}").json()["state"] == "queued"
    assert client.post(f"/v1/jobs/{third}/cancel").json()["state"] == "cancelled"
    assert client.post(f"/v1/jobs/{first}/cancel").json()["cancel_asked"] is True
    stopped = wait_for(client, first)
    assert stopped["state"] == "cancelled"
    assert 0 < stopped["result"]["counted"] < 500
    client.post(f"/v1/jobs/{second}/cancel")
    assert wait_for(client, second)["state"] == "cancelled"
    assert client.get("/v2/health/live").status_code == 200


def events(client: httpx.Client, number: int, last: str = "") -> Generator[dict[str, str]]:
    headers = {"Last-Event-ID": last} if last else {}
    with client.stream("GET", f"/v1/jobs/{number}/events", headers=headers) as stream:
        assert stream.status_code == 200, stream.read()
        assert stream.headers["content-type"].startswith("text/event-stream")
        event: dict[str, str] = {}
        for line in stream.iter_lines():
            if line.startswith(":"):  # a comment that keeps the connection awake
                continue
            if line:
                name, _, value = line.partition(": ")
                event[name] = value
            elif event:
                yield event
                event = {}


def test_events_tell_every_change_and_the_end(client: httpx.Client) -> None:
    number = add(client, kind="count", request={"seconds": 40})["id"]
    told = list(events(client, number))
    assert [event["event"] for event in told] == ["progress"] * (len(told) - 1) + ["end"]
    ids = [int(event["id"]) for event in told]
    assert ids == sorted(set(ids))
    assert any(json.loads(event["data"])["progress"].get("done", 0) > 0 for event in told)
    assert json.loads(told[-1]["data"])["result"] == {"counted": 40}
    assert [event["event"] for event in events(client, number, told[0]["id"])] == ["end"]
    again = client.get(f"/v1/jobs/{number}/events", headers={"Last-Event-ID": told[-1]["id"]})
    assert (again.status_code, again.content) == (204, b"")


def test_listeners_are_bounded_and_those_who_leave_make_room(client: httpx.Client) -> None:
    number = add(client, kind="count", request={"seconds": 400})["id"]
    listening = [events(client, number) for _ in range(2)]
    for listener in listening:
        assert next(listener)["event"] == "progress"
    refused = client.get(f"/v1/jobs/{number}/events")
    assert (refused.status_code, list(refused.json()), refused.headers["retry-after"]) == (503, ["error"], "5")
    for listener in listening:
        listener.close()

    def is_let_in() -> bool:
        with client.stream("GET", f"/v1/jobs/{number}/events") as stream:
            return stream.status_code == 200

    until(is_let_in)
    client.post(f"/v1/jobs/{number}/cancel")
    wait_for(client, number)


def test_a_job_of_another_device_waits_for_its_worker(client: httpx.Client, far: DeviceProfile) -> None:
    number = add(client, **WORK, device=far.fingerprint)["id"]
    mine = {"device": far.fingerprint, "owner": "far away"}
    claim = client.post("/v1/jobs/claim", json=mine).json()
    assert (claim["job"]["id"], claim["job"]["state"], claim["lease_s"]) == (number, "running", 1)
    assert client.post("/v1/jobs/claim", json={**mine, "wait_s": 0.4}).json()["job"] is None
    lease = claim["lease"]
    assert client.post(f"/v1/jobs/{number}/beat", json={"lease": lease, "progress": {"at": 1}}).json() == {"cancel": False}
    assert client.post(f"/v1/jobs/{number}/beat", json={"lease": "0" * 32}).status_code == 409
    run = {
        "engine_build": "b",
        "report": json.loads(report(wall_p50_ns=5.0, model=claim["job"]["model_digest"], device=far.fingerprint).to_json()),
    }
    end = {"lease": lease, "state": "done", "outcome": {"summary": {"x": 1}, "run": run}}
    done = client.post(f"/v1/jobs/{number}/end", json=end).json()
    assert client.post(f"/v1/jobs/{number}/end", json=end).json() == done
    assert done["result"]["x"] == 1
    profiles = client.get("/v1/profiles", params={"model": done["model_digest"]}).json()["items"]
    assert [item["id"] for item in profiles if item["kind"] == "trace"].count(done["result"]["profile_id"]) == 1


def test_a_claim_waits_for_a_job_to_come(client: httpx.Client, far: DeviceProfile) -> None:
    later = threading.Timer(0.3, lambda: add(client, kind="probe", device=far.fingerprint))
    later.start()
    claim = client.post("/v1/jobs/claim", json={"device": far.fingerprint, "owner": "w", "wait_s": 20}).json()
    later.join()
    assert claim["job"]["kind"] == "probe"
    refused = {"lease": claim["lease"], "state": "done", "outcome": {"plan": "{}"}}
    assert client.post(f"/v1/jobs/{claim['job']['id']}/end", json=refused).status_code == 400
    given_back = client.post(f"/v1/jobs/{claim['job']['id']}/end", json={"lease": claim["lease"], "state": "queued"}).json()
    assert (given_back["state"], given_back["attempts"]) == ("queued", 0)


@pytest.mark.parametrize(
    ("asked", "status", "says"),
    [
        ({"kind": "bake"}, 400, "need one of tune, trace, profile, probe"),
        ({"kind": "profile"}, 400, "needs a model"),
        ({"kind": "probe", "model": "digits"}, 400, "takes no model"),
        ({"kind": "profile", "model": "nope"}, 404, "unknown model"),
        ({"kind": "trace", "model": "digits", "request": {"runs": 10**9}}, 400, "runs"),
        ({"kind": "trace", "model": "digits", "request": {"what": 1}}, 400, "what"),
        ({"kind": "probe", "device": "f" * 16}, 404, "device ffff"),
        ({"kind": "probe", "device": "../x"}, 400, "device"),
    ],
)
def test_jobs_that_make_no_sense_are_refused(client: httpx.Client, asked: dict, status: int, says: str) -> None:
    reply = client.post("/v1/jobs", json=asked)
    assert (reply.status_code, list(reply.json())) == (status, ["error"])
    assert says in reply.json()["error"]


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("report",), "no report"),
        (("report", "schema_version"), 1),
        (("report", "totals", "flops"), 2**63),
        (("report", "ops", 0, "macs"), -1),
        (("report", "ops", 0, "p50_ns"), 1e30),
        (("report", "setup", "device"), "f" * 16),
        (("report", "setup"), None),
        (("report", "model", "digest"), "0" * 64),
        (("report", "totals", "wall_p50_ns"), -1),
        (("engine_build",), "a\0b"),
    ],
    ids=str,
)
def test_runs_that_break_a_rule_are_not_stored(
    client: httpx.Client, far: DeviceProfile, where: tuple[str | int, ...], value: object
) -> None:
    number = add(client, **WORK, device=far.fingerprint)["id"]
    claim = client.post("/v1/jobs/claim", json={"device": far.fingerprint, "owner": "liar"}).json()
    assert claim["job"]["id"] == number
    ops, digest = [run_op(p50_ns=1.0)], claim["job"]["model_digest"]
    found = {
        "engine_build": "b",
        "report": json.loads(report(ops, wall_p50_ns=5.0, model=digest, device=far.fingerprint).to_json()),
    }
    place: Any = found
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    end = {"lease": claim["lease"], "state": "done", "outcome": {"run": found}}
    assert client.post(f"/v1/jobs/{number}/end", json=end).status_code == 400
    failed = client.post(f"/v1/jobs/{number}/end", json={"lease": claim["lease"], "state": "failed", "error": "a\0b"}).json()
    assert (failed["state"], failed["error"]) == ("failed", "a\ufffdb")


@pytest.mark.parametrize("path", [f"/v1/jobs/{10**30}", "/v1/jobs/0", "/v1/jobs/x"])
def test_numbers_that_are_none_are_400(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 400


@pytest.mark.parametrize("path", ["/v1/jobs/9999", "/v1/jobs/9999/events"])
def test_unknown_jobs_are_404(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 404


def test_jobs_survive_a_restart(tmp_path: Path) -> None:
    settings = Settings(models=DEMO_MODELS, db=f"sqlite:///{tmp_path / 'db.sqlite'}", job_lease_s=20)
    with serving(settings, kinds=COUNTING) as client:
        running = add(client, kind="count", request={"seconds": 60})["id"]
        waiting = add(client, **WORK)["id"]
        wait_for(client, running, "running")
    with serving(settings, kinds=COUNTING) as client:
        done = wait_for(client, running)
        assert (done["state"], done["attempts"]) == ("done", 1)  # given back when the service ended
        assert wait_for(client, waiting)["state"] == "done"


def test_a_service_that_runs_no_jobs_leaves_them(tmp_path: Path) -> None:
    settings = Settings(models=DEMO_MODELS, db=f"sqlite:///{tmp_path / 'db.sqlite'}", jobs=False)
    with serving(settings) as client:
        number = add(client, **WORK)["id"]
        time.sleep(1.5)
        assert client.get(f"/v1/jobs/{number}").json()["state"] == "queued"
        assert [job["id"] for job in client.get("/v1/jobs", params={"state": "queued"}).json()["items"]] == [number]


class BusyWatch:
    """A watch that always sees other work."""

    def __init__(self, threads: int) -> None:
        pass

    def seen(self, runs_ns: Sequence[float] = ()) -> Quietness:
        return Quietness(level="busy", reasons=("other processes used 1.9 of 2 cores",), lost=0.9)


def test_a_trace_of_a_busy_machine_fails_and_says_why(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.profile_run.Watch", BusyWatch)
    work: dict[str, Any] = {"kind": "trace", "model": "digits", "request": {"dims": {"batch": 1}, "runs": 2}}
    kept = wait_for(client, add(client, **work)["id"])  # the tests' setting stores what a busy machine gives, with a mark
    assert client.get(f"/v1/profiles/{kept['result']['profile_id']}").json()["profile"]["quietness"]["level"] == "busy"
    monkeypatch.setenv(WHEN_BUSY, "refuse")
    failed = wait_for(client, add(client, **work)["id"])
    assert failed["state"] == "failed"
    assert "trace: the machine was busy: other processes used 1.9 of 2 cores; nothing was stored" in failed["error"]


def test_a_field_that_a_request_does_not_have_is_answered_with_those_that_it_has(client: httpx.Client) -> None:
    refused = client.post("/v1/jobs", json={"kind": "tune", "model": "digits", "request": {"budget": 5}})
    assert refused.status_code == 400
    assert "need only shapes, dims, budget_s, threads, max_error" in refused.text
