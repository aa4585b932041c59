"""The service is killed at each step of an upload, a job and a plan: what it had, or all of the new, is there afterwards.

A kill is SIGKILL of a real process, sent by itself before or after a function that is one step of the work. Then a second process
serves the same folder and database.
"""

from __future__ import annotations

import contextlib
import os
import pkgutil
import signal
import sqlite3
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.settings import DEMO_MODELS, Settings
from bench.jobs import add, wait_for
from bench.local import answers, free_port
from bench.waiting import until
from profiler.device.topology import read_hardware
from scheduler.store import Store
from tests.app.demo import SEVEN
from tests.app.servers import slow_model
from tests.processes import start
from tests.profiler.devices import device

DIGITS, OTHER = (DEMO_MODELS / "digits.onnx").read_bytes(), slow_model(2, 8)


def _deadly(function: Any, when: str) -> Any:
    """Return a function that does what `function` does, if `when` is "after", and then ends the process."""

    def dies(*arguments: Any, **named: Any) -> None:
        if when == "after":
            function(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)

    return dies


def _serve(port: int, models: Path, db: str, when: str, step: str) -> None:
    """Serve, and die before or after the first call of the function that `step` names; empty: of none."""
    from app.http.server import run
    from app.main import create_app

    settings = Settings(models=models, db=db, port=port, grace_s=0, job_lease_s=1)
    app = create_app(settings)
    if step:
        owner, _, name = step.rpartition(".")
        found = pkgutil.resolve_name(owner)
        setattr(found, name, _deadly(getattr(found, name), when))
    run(app, settings)


class Place:
    """A folder of models and a database, which one process after the other serves."""

    def __init__(self, folder: Path) -> None:
        self.models, self.file = folder / "models", folder / "edgewise.sqlite"
        self.models.mkdir()
        (self.models / "digits.onnx").write_bytes(DIGITS)
        with Store(self.db) as store:
            store.devices.save(device(hardware=read_hardware()))  # as if measured, which saves the time

    @property
    def db(self) -> str:
        return f"sqlite:///{self.file}"

    @contextlib.contextmanager
    def served(self, when: str = "", step: str = "") -> Iterator[tuple[httpx.Client, BaseProcess]]:
        port = free_port()
        process = start(_serve, port, self.models, self.db, when, step)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                until(lambda: answers(client, "/v2/health/ready") or not process.is_alive())
                yield client, process
        finally:
            process.kill()
            process.join(60)

    def check_database(self) -> None:
        with contextlib.closing(sqlite3.connect(self.file)) as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert database.execute("PRAGMA foreign_key_check").fetchall() == []


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def ask_and_lose(client: httpx.Client, process: BaseProcess, path: str, **asked: Any) -> None:
    """Send a request that the service does not live to answer."""
    with pytest.raises(httpx.TransportError):
        client.post(path, **asked)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("name", "when", "step", "is_new"),
    [
        ("fresh", "before", "app.v1.uploads._finish", False),
        ("digits", "after", "app.v1.uploads._finish", False),
        ("digits", "before", "pathlib.Path.replace", False),
        ("fresh", "after", "pathlib.Path.replace", True),
        ("digits", "after", "app.models.repository.Repository.admit", True),
    ],
)
def test_an_upload_is_there_as_a_whole_or_not_at_all(place: Place, name: str, when: str, step: str, is_new: bool) -> None:
    before = None if name == "fresh" else DIGITS
    with place.served(when, step) as (client, process):
        ask_and_lose(client, process, "/v1/models", params={"name": name, "replace": True}, content=OTHER)
    with place.served() as (client, _):
        file = place.models / f"{name}.onnx"
        assert (file.read_bytes() if file.exists() else None) == (OTHER if is_new else before)
        served = {row["name"] for row in client.post("/v2/repository/index", json={"ready": True}).json()}
        there = {"digits.onnx", *([file.name] if is_new or before else [])}
        assert {path.name for path in place.models.iterdir()} == there
        assert {f"{model}.onnx" for model in served} == there
        again = client.post("/v1/models", params={"name": name, "replace": True}, content=DIGITS)
        assert again.status_code == 200, again.text
        assert client.post(f"/v2/models/{name}/infer", content=SEVEN).json()["outputs"][0]["data"] == [7]


def test_an_upload_that_was_answered_stays(place: Place) -> None:
    with place.served() as (client, process):
        assert client.post("/v1/models", params={"name": "fresh"}, content=OTHER).status_code == 200
        process.kill()
        process.join(60)
    with place.served() as (client, _):
        assert (place.models / "fresh.onnx").read_bytes() == OTHER
        assert client.get("/v2/models/fresh/ready").status_code == 200


@pytest.mark.parametrize(
    ("when", "step", "attempts"),
    [
        ("before", "scheduler.store.profiles._op_columns", 2),
        ("after", "scheduler.store.profiles.Profiles.save", 2),
        ("after", "scheduler.store.jobs.Jobs.finish", 2),
        ("after", "scheduler.store.Store.together", 1),
    ],
)
def test_a_job_that_was_queued_ends_once_with_one_result(place: Place, when: str, step: str, attempts: int) -> None:
    with place.served(when, step) as (client, process):
        number = add(client, kind="profile", model="digits", request={"dims": {"batch": 1}})["id"]
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
    place.check_database()
    with place.served() as (client, _):
        job = wait_for(client, number)
        assert (job["state"], job["attempts"]) == ("done", attempts), job
        runs = [run["id"] for run in client.get("/v1/profiles").json()["items"]]
        assert runs == [job["result"]["profile_id"]]
        assert client.get(f"/v1/profiles/{runs[0]}").status_code == 200


@pytest.mark.parametrize(
    ("when", "step", "is_stored"),
    [
        ("before", "scheduler.store.plans._link_signatures", False),
        ("after", "scheduler.store.plans._link_signatures", False),
        ("after", "scheduler.store.plans.Plans.save", True),
    ],
)
def test_a_plan_is_stored_as_a_whole_or_not_at_all(place: Place, when: str, step: str, is_stored: bool) -> None:
    asked = {"model": "digits", "dims": {"batch": 1}}
    with place.served(when, step) as (client, process):
        ask_and_lose(client, process, "/v1/plans", json=asked)
    place.check_database()
    with place.served() as (client, _):
        before = [plan["id"] for plan in client.get("/v1/plans").json()["items"]]
        assert len(before) == is_stored
        assert all(client.get(f"/v1/plans/{plan}").status_code == 200 for plan in before)
        made = client.post("/v1/plans", json=asked)
        assert made.status_code == 200, made.text
        assert [plan["id"] for plan in client.get("/v1/plans").json()["items"]] == [made.json()["id"]]
