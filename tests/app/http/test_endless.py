"""A service whose model does not end: its requests, its clients, its other models, its readiness, and SIGTERM."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from app.engine.loaded import LoadedModels
from app.http import server as http_server
from app.http.server import EXIT_CODE, EXIT_S, ExitGuard, configure
from app.main import create_app
from app.settings import DEMO_MODELS, Settings
from bench.local import serving
from bench.waiting import until
from tests.app.demo import SEVEN
from tests.app.servers import ROOT, Server, running, slow_model
from tests.graph.loops import endless, nested_loops

ASK = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [0]}]}
MODES = pytest.mark.parametrize("workers", ["0", "1"], ids=["in-process", "process"])


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("digits.onnx", "digits.json"):
        (folder / name).write_bytes((DEMO_MODELS / name).read_bytes())
    (folder / "endless.onnx").write_bytes(endless())
    return folder


@pytest.fixture
def client(tmp_path: Path, models: Path) -> Iterator[httpx.Client]:
    """A service with two cores, of which each run takes one."""
    app = create_app(Settings(models=models, db=f"sqlite:///{tmp_path / 'a.db'}", threads=1, drain_s=1))
    budget = app.state.service.engine._shared.budget
    budget.cores = budget.free = 2
    with serving(app.state.service.settings, app) as found:
        yield found


def seven(client: httpx.Client) -> int:
    return client.post("/v2/models/digits/infer", content=SEVEN).status_code


def gauge(client: httpx.Client, name: str) -> float:
    return next(float(line.split()[1]) for line in client.get("/metrics").text.splitlines() if line.startswith(f"{name} "))


def computing(client: httpx.Client) -> bool:
    time.sleep(0.1)
    return gauge(client, "edgewise_engine_running") == 1


def asking(address: str, **body: Any) -> threading.Thread:
    """A client that waits for the endless model; its answer is no matter."""

    def ask() -> None:
        with httpx.Client(base_url=f"http://{address}", timeout=120) as own:
            try:
                own.post("/v2/models/endless/infer", json={**ASK, **body})
            except httpx.TransportError:
                return

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


def test_a_request_with_a_timeout_is_504_when_its_run_takes_longer(client: httpx.Client) -> None:
    began = time.monotonic()
    reply = client.post("/v2/models/endless/infer", json={**ASK, "parameters": {"timeout": 1_500_000}})
    assert (reply.status_code, list(reply.json())) == (504, ["error"])
    assert reply.json()["error"].startswith("run: not done at its deadline")
    assert 1.4 < time.monotonic() - began < 10
    assert seven(client) == 200
    assert client.get("/v2/health/ready").status_code == 200


def test_a_run_ends_with_its_client_and_another_model_answers(client: httpx.Client) -> None:
    body = json.dumps(ASK).encode()
    head = f"POST /v2/models/endless/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((client.base_url.host, client.base_url.port)) as leaving:
        leaving.sendall(head.encode() + body)
        until(lambda: gauge(client, "edgewise_engine_running") == 1)
        assert seven(client) == 200
    until(lambda: gauge(client, "edgewise_engine_running") == 0)
    assert seven(client) == 200
    metrics = client.get("/metrics").text
    assert 'nv_inference_request_failure{model="endless",reason="CANCELED",version="1"} 1.0' in metrics


def test_an_unloaded_model_ends_its_runs_after_the_drain(client: httpx.Client) -> None:
    replies: list[httpx.Response] = []
    with httpx.Client(base_url=client.base_url, timeout=60) as own:
        thread = threading.Thread(target=lambda: replies.append(own.post("/v2/models/endless/infer", json=ASK)))
        thread.start()
        until(lambda: gauge(client, "edgewise_engine_running") == 1)
        assert client.post("/v2/repository/models/endless/unload").status_code == 200
        thread.join(60)
    assert (replies[0].status_code, replies[0].headers["retry-after"]) == (503, "1")
    assert "It was unloaded, model 'endless' was interrupted" in replies[0].json()["error"]
    until(lambda: gauge(client, "edgewise_engine_running") == 0)
    states = {row["name"]: row["state"] for row in client.post("/v2/repository/index").json()}
    assert states == {"digits": "READY", "endless": "UNAVAILABLE"}
    assert seven(client) == 200


@MODES
def test_the_memory_of_an_unloaded_model_that_ran_is_freed(tmp_path: Path, models: Path, workers: str) -> None:
    """It carries 32 MB round its loops."""
    (models / "endless.onnx").write_bytes(nested_loops(999_999, 999_999, width=2**23).SerializeToString())
    array = np.zeros(2**23, np.float32)
    tensor = {"name": "x", "shape": [2**23], "datatype": "FP32", "parameters": {"binary_data_size": array.nbytes}}
    body = json.dumps({"inputs": [tensor]}).encode()
    environment = {"EDGEWISE_WORKERS": workers, "EDGEWISE_DRAIN_S": "1"}

    def own_bytes(server: Server) -> int:
        """Of the service and its engine process, without the memory that they share, which stays."""
        process = psutil.Process(server.process.pid)
        return sum(each.memory_full_info().uss for each in (process, *process.children()))

    def ask(server: Server) -> None:
        with server.client() as own:
            headers = {"Inference-Header-Content-Length": str(len(body))}
            assert own.post("/v2/models/endless/infer", content=body + array.tobytes(), headers=headers).status_code == 503

    with running(tmp_path, models, environment=environment) as server, server.client() as client:
        assert seven(client) == 200
        before = own_bytes(server)
        thread = threading.Thread(target=ask, args=(server,))
        thread.start()
        until(lambda: own_bytes(server) > before + 60 * 2**20)
        client.post("/v2/repository/models/endless/unload")
        thread.join(60)
        until(lambda: own_bytes(server) < before + 30 * 2**20)
        assert seven(client) == 200


def test_the_service_is_not_ready_while_a_run_overstays(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    may_end, real = threading.Event(), LoadedModels.run

    def deaf(loaded: LoadedModels, number: int, feeds: Any, bounds: Any, *, build: bool) -> Any:
        may_end.wait(60)  # as a step that takes that long
        return real(loaded, number, feeds, bounds, build=build)

    monkeypatch.setattr(LoadedModels, "run", deaf)
    try:
        reply = client.post("/v2/models/endless/infer", json={**ASK, "parameters": {"timeout": 200_000}})
        assert (reply.status_code, "one of its steps goes on" in reply.json()["error"]) == (504, True)
        refused = client.get("/v2/health/ready")
        reason = "a run of model 'endless' has not ended 1 s after its deadline"
        assert (refused.status_code, refused.json()) == (503, {"error": f"server: {reason}"})
        assert client.get("/v2/health/live").status_code == 200
        assert client.get("/v1/live").json()["health"]["reason"] == f"server: {reason}"
        assert client.get("/v2/models/endless/ready").json() == {"error": f"model 'endless' is not ready: {reason}"}
        assert client.get("/v2/models/digits/ready").status_code == 200
        assert gauge(client, "edgewise_engine_overdue_runs") == 1
    finally:
        may_end.set()
    until(lambda: client.get("/v2/health/ready").status_code == 200)
    assert client.get("/v2/models/endless/ready").status_code == 200
    assert gauge(client, "edgewise_engine_overdue_runs") == 0


GRACE_S, DRAIN_S = 0.5, 1
LEAVING = {"EDGEWISE_GRACE_S": str(GRACE_S), "EDGEWISE_DRAIN_S": str(DRAIN_S)}


def seconds_to_end(server: Server) -> float:
    began = time.monotonic()
    server.stop()
    return time.monotonic() - began


@MODES
def test_sigterm_ends_a_service_whose_run_does_not_end(tmp_path: Path, models: Path, workers: str) -> None:
    with running(tmp_path, models, environment={**LEAVING, "EDGEWISE_WORKERS": workers}) as server, server.client() as client:
        thread = asking(server.address)
        until(lambda: gauge(client, "edgewise_engine_running") == 1)
        assert seconds_to_end(server) < GRACE_S + DRAIN_S + 5
        thread.join(60)
        assert not [child for child in psutil.process_iter() if child.ppid() == server.process.pid]


@MODES
def test_sigterm_ends_a_service_that_is_in_native_code(tmp_path: Path, models: Path, workers: str) -> None:
    """One native segment of minutes."""
    width = 2048
    (models / "endless.onnx").write_bytes(slow_model(repeats=1000, width=width))
    matrix = np.zeros((width, width), np.float32)
    tensors = [
        {"name": name, "shape": [width, width], "datatype": "FP32", "parameters": {"binary_data_size": matrix.nbytes}}
        for name in ("x", "w")
    ]
    head = json.dumps({"inputs": tensors}).encode()

    def ask(server: Server) -> None:
        with httpx.Client(base_url=f"http://{server.address}", timeout=300) as own:
            headers = {"Inference-Header-Content-Length": str(len(head))}
            try:
                own.post("/v2/models/endless/infer", content=head + matrix.tobytes() * 2, headers=headers)
            except httpx.TransportError:
                return

    with running(tmp_path, models, environment={**LEAVING, "EDGEWISE_WORKERS": workers}) as server, server.client() as client:
        thread = threading.Thread(target=ask, args=(server,))
        thread.start()
        until(lambda: all(computing(client) for _ in range(10)))  # not only for the moment that finds its code missing
        assert seconds_to_end(server) < GRACE_S + DRAIN_S + 5
        thread.join(60)


def guarded(work: str) -> "subprocess.CompletedProcess[str]":
    """A process with a child that arms its guard and then does work that does not end."""
    code = f"""
import ctypes, subprocess, sys, time
from app import logs
from app.http.server import ExitGuard
logs.configure()
child = subprocess.Popen([sys.executable, "-c", "import os, time; os.close(1); os.close(2); time.sleep(300)"])
print(child.pid, flush=True)
ExitGuard().arm(0.5)
{work}
"""
    command = [sys.executable, "-P", "-c", code]
    environment = {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_a_guard_ends_a_process_that_computes_in_native_code_and_its_children() -> None:
    done = guarded("ctypes.CDLL(None).sleep(300)")
    assert done.returncode == EXIT_CODE
    assert "process ended by force" in done.stderr
    child = int(done.stdout)
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_a_guard_ends_a_process_whose_thread_keeps_the_interpreter() -> None:
    done = guarded("ctypes.PyDLL(None).sleep(300)")
    psutil.Process(int(done.stdout)).kill()
    assert done.returncode == 1
    assert "Timeout" in done.stderr


def test_a_guard_is_armed_for_the_grace_and_the_drain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = Settings(models=DEMO_MODELS, db=f"sqlite:///{tmp_path / 'a.db'}", grace_s=7, drain_s=11)
    app = create_app(settings)

    armed: list[float] = []
    monkeypatch.setattr(ExitGuard, "arm", lambda _, seconds: armed.append(seconds))
    for first, expected in ((signal.SIGTERM, 7 + 11 + EXIT_S), (signal.SIGINT, 11 + EXIT_S)):
        armed.clear()
        server = http_server.Server(configure(app, settings), app.state.service, ExitGuard())
        server.handle_exit(first, None)
        server.handle_exit(signal.SIGTERM, None)
        assert armed == [expected]
