"""Loads of models that are stopped: by the end of the service, by unloading the model, and by taking too long."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from app.errors import RequestError
from app.models import repository as module
from app.models.repository import ModelLimits, Repository, State
from bench.local import free_port
from graph.formats.registry import read
from tests.app.servers import ROOT, identity_model
from tests.graph.large_models import chain

STOPPED = "the server is stopping"


class SlowReads:
    """Reads of models that go on until their check ends them, or until `open` is set."""

    def __init__(self) -> None:
        self.began, self.open = threading.Event(), threading.Event()

    def __call__(self, *arguments, check: Callable[[], None], **options):
        self.began.set()
        while not self.open.wait(0.005):
            check()
        return read(*arguments, check=check, **options)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> SlowReads:
    reads = SlowReads()
    monkeypatch.setattr(module, "read", reads)
    return reads


def folder_of(tmp_path: Path, *names: str) -> Path:
    for name in names:
        (tmp_path / f"{name}.onnx").write_bytes(identity_model(1))
    return tmp_path


def in_background(work: Callable[[], object]) -> tuple[threading.Thread, list[RequestError]]:
    errors: list[RequestError] = []

    def run() -> None:
        try:
            work()
        except RequestError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, errors


def test_a_stopped_repository_loads_nothing_more(tmp_path: Path, slow: SlowReads) -> None:
    repository = Repository(folder_of(tmp_path, "a", "b", "c"), threads=1)
    thread, _ = in_background(repository.load_all)
    assert slow.began.wait(30)
    repository.stop(STOPPED)
    thread.join(30)
    assert not thread.is_alive()
    assert repository.loaded.is_set()
    assert [served.session for served in repository.models] == [None] * 3
    slow.open.set()
    with pytest.raises(RequestError, match=f"load of model 'a': stopped, {STOPPED}") as refused:
        repository.load("a")
    assert refused.value.status == 503


def test_unloading_a_model_stops_its_load(tmp_path: Path, slow: SlowReads) -> None:
    repository = Repository(folder_of(tmp_path, "a"), threads=1)
    thread, errors = in_background(lambda: repository.load("a"))
    assert slow.began.wait(30)
    repository.unload("a")
    thread.join(30)
    assert [(error.status, str(error)) for error in errors] == [(503, "load of model 'a': stopped, the model was unloaded")]
    assert repository.find("a").state is State.UNAVAILABLE
    slow.open.set()
    assert [served.state for served in repository.load("a")] == [State.READY]


def test_other_models_are_unloaded_while_one_loads(tmp_path: Path, slow: SlowReads) -> None:
    repository = Repository(folder_of(tmp_path, "a", "b"), threads=1)
    slow.open.set()
    repository.load("b")
    slow.open.clear()
    slow.began.clear()
    thread, errors = in_background(lambda: repository.load("a"))
    assert slow.began.wait(30)
    repository.unload("b")
    assert repository.find("b").state is State.UNAVAILABLE
    slow.open.set()
    thread.join(30)
    assert errors == []
    assert repository.find("a").state is State.READY


def test_a_model_that_serves_goes_on_when_its_reload_is_stopped(tmp_path: Path, slow: SlowReads) -> None:
    repository = Repository(folder_of(tmp_path, "a"), threads=1)
    slow.open.set()
    repository.load("a")
    slow.open.clear()
    slow.began.clear()
    thread, errors = in_background(lambda: repository.load("a"))
    assert slow.began.wait(30)
    repository.stop(STOPPED)
    thread.join(30)
    assert len(errors) == 1
    assert repository.find("a").state is State.READY


def test_a_load_that_takes_too_long_is_given_up(tmp_path: Path, slow: SlowReads) -> None:
    repository = Repository(folder_of(tmp_path, "a"), threads=1, limits=ModelLimits(load_s=0.05))
    with pytest.raises(RequestError, match=r"not done after 0\.05 s, the limit load_timeout_s \(model 'a'\)") as refused:
        repository.load("a")
    assert refused.value.status == 400
    assert repository.find("a").state is State.UNAVAILABLE


def test_sigterm_ends_a_service_whose_models_load_slowly(tmp_path: Path) -> None:
    """Sixty models of 20,000 nodes: about a minute of loading on a core."""
    models = tmp_path / "models"
    models.mkdir()
    (models / "m0.onnx").write_bytes(chain(20_000).SerializeToString())
    for number in range(1, 60):
        (models / f"m{number}.onnx").hardlink_to(models / "m0.onnx")
    port = free_port()
    command = [sys.executable, "-P", "-m", "edgewise", "serve", "--models", str(models), "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "EDGEWISE_GRACE_S": "0", "EDGEWISE_JOBS": "false"}
    with subprocess.Popen([*command, "--db", f"sqlite:///{tmp_path / 'db'}"], cwd=ROOT, env=environment) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                wait_for(
                    lambda: client.post("/v2/repository/index").is_success and "READY" in client.post("/v2/repository/index").text
                )
                assert client.get("/v2/health/ready").status_code == 503
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) in (0, -signal.SIGTERM)
        finally:
            process.kill()


def wait_for(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 60
    while time.monotonic() < ends:
        try:
            if condition():
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError("not so within a minute")
