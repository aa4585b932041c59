"""Tests of readiness, draining, a rolling restart behind nginx, memory after many loads, and a database that goes away."""

import gc
import json
import signal
import sqlite3
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from sqlalchemy import event

from app.access import auth
from app.access.journal import Journal
from app.engine.memory import release, settle
from app.errors import RequestError
from app.main import create_app
from app.models.repository import Repository, State
from app.settings import DEMO_MODELS, Settings
from bench.local import serving
from bench.waiting import until
from scheduler.errors import StoreUnreachableError
from scheduler.store import AuditEntry, Store
from scheduler.store.database import Database
from tests.app.demo import SEVEN
from tests.app.http.proxy import needs_nginx, nginx
from tests.app.servers import identity_model, running, slow_model, start, write_models


def seven(client: httpx.Client) -> int:
    return client.post("/v2/models/digits/infer", content=SEVEN).status_code


def readiness(client: httpx.Client) -> tuple[int, int, int]:
    paths = ("/v2/health/live", "/v2/health/ready", "/v2/models/digits/ready")
    found = tuple(client.get(path).status_code for path in paths)
    return found[0], found[1], found[2]


# The truth table of docs/serving.md, row by row: live, ready, ready of one model.


def test_ready_while_the_first_models_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_go_on = threading.Event()
    real = Repository.load_all

    def slow(self: Repository) -> None:
        may_go_on.wait(30)
        real(self)

    monkeypatch.setattr(Repository, "load_all", slow)
    app = create_app(Settings(models=DEMO_MODELS, db=f"sqlite:///{tmp_path / 'a.db'}"))
    with serving(app.state.service.settings, app, wait=False) as client:
        assert readiness(client) == (200, 503, 404)
        assert client.post("/v2/repository/models/digits/load").status_code == 503
        may_go_on.set()
        until(lambda: readiness(client) == (200, 200, 200))


def test_ready_after_unload_reload_and_failed_reload(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    write_models(models)
    with serving(Settings(models=models, db=f"sqlite:///{tmp_path / 'a.db'}")) as client:
        client.post("/v2/repository/models/digits/unload")
        assert readiness(client) == (200, 200, 503)
        client.post("/v2/repository/models/digits/load")
        assert readiness(client) == (200, 200, 200)
        (models / "digits.onnx").write_bytes(b"no model")
        assert client.post("/v2/repository/models/digits/load").status_code == 400
        assert readiness(client) == (200, 200, 200)
        assert seven(client) == 200


@pytest.mark.parametrize(("strict", "ready"), [(False, 200), (True, 503)])
def test_ready_with_a_model_that_failed_at_the_start(tmp_path: Path, strict: bool, ready: int) -> None:
    models = tmp_path / "models"
    models.mkdir()
    write_models(models)
    (models / "broken.onnx").write_bytes(b"no model")
    settings = Settings(models=models, db=f"sqlite:///{tmp_path / 'a.db'}", strict_ready=strict)
    with serving(settings, wait=False) as client:
        until(lambda: client.get("/v2/models/versioned/ready").status_code == 200)  # the last
        until(lambda: readiness(client) == (200, ready, 200))
        client.post("/v2/repository/models/broken/unload")
        assert readiness(client) == (200, 200, 200)


def test_sigterm_fails_readiness_first_and_finishes_what_runs(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    write_models(models)
    (models / "slow.onnx").write_bytes(slow_model(repeats=100))
    matrix = np.zeros((256, 256), np.float32)
    tensors = [
        {"name": name, "shape": [256, 256], "datatype": "FP32", "parameters": {"binary_data_size": matrix.nbytes}}
        for name in ("x", "w")
    ]
    head = json.dumps({"inputs": tensors}).encode()
    with running(tmp_path, models, environment={"EDGEWISE_GRACE_S": "8"}) as server, server.client() as client:
        statuses: list[int] = []

        def long() -> None:
            with server.client() as own:
                headers = {"Inference-Header-Content-Length": str(len(head))}
                statuses.append(
                    own.post(
                        "/v2/models/slow/infer", content=head + matrix.tobytes() * 2, headers=headers, timeout=60
                    ).status_code
                )

        threads = [threading.Thread(target=long) for _ in range(6)]
        for thread in threads:
            thread.start()
        time.sleep(0.2)
        server.process.send_signal(signal.SIGTERM)
        refused = until(lambda: not (found := client.get("/v2/health/ready")).is_success and found)
        assert client.get("/v2/health/live").status_code == 200
        assert (refused.status_code, list(refused.json())) == (503, ["error"])
        late = client.post("/v2/models/digits/infer", content=SEVEN)
        assert (late.status_code, late.headers["connection"]) == (200, "close")
        assert client.post("/v2/repository/models/digits/load").status_code == 503
        for thread in threads:
            thread.join()
        assert statuses == [200] * 6
        server.process.wait(30)
        with pytest.raises(httpx.TransportError):
            client.get("/v2/health/live")


@needs_nginx
def test_rolling_restart_behind_nginx_loses_no_request(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    write_models(models)
    db = f"sqlite:///{tmp_path / 'edgewise.db'}"
    environment = {"EDGEWISE_GRACE_S": "2"}
    servers = [start(tmp_path, models, db, environment) for _ in range(2)]
    failures: list[object] = []
    answered = 0
    stop = threading.Event()

    def load(port: int) -> None:
        nonlocal answered
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            while not stop.is_set():
                try:
                    status = seven(client)
                except httpx.TransportError as error:
                    failures.append(error)
                else:
                    answered += status == 200
                    if status != 200:
                        failures.append(status)

    try:
        with nginx(tmp_path, servers[0].port, servers[1].port) as port:
            clients = [threading.Thread(target=load, args=(port,)) for _ in range(4)]
            for client in clients:
                client.start()
            for place in range(2):
                time.sleep(1)
                old = servers[place]
                old.stop()
                servers[place] = start(tmp_path, models, db, environment, "--port", str(old.port))
            time.sleep(1)
            stop.set()
            for client in clients:
                client.join()
    finally:
        stop.set()
        for server in servers:
            if server.process.poll() is None:
                server.process.kill()
                server.process.wait()
    assert failures == []
    assert answered > 100


@pytest.mark.parametrize(
    ("model", "feeds", "kept_bytes"),
    [
        ("id", {"x": np.zeros((4, 1024), np.float32)}, 8 * 2**20),
        pytest.param("digits", {"image": np.zeros((1, 1, 8, 8), np.float32)}, 16 * 2**20, marks=pytest.mark.slow),
    ],
)
def test_memory_comes_back_over_500_loads(tmp_path: Path, model: str, feeds: dict[str, np.ndarray], kept_bytes: int) -> None:
    (tmp_path / "digits.onnx").write_bytes((DEMO_MODELS / "digits.onnx").read_bytes())
    (tmp_path / "id.onnx").write_bytes(identity_model(1))
    repository = Repository(tmp_path, threads=1)
    process = psutil.Process()
    settle()  # as the service does: the collection at every unload then looks at a few objects instead of 800,000

    def cycle() -> None:
        repository.load(model)
        with repository.lease(model) as (_, session):
            session.run(feeds)
        repository.unload(model)

    for _ in range(50):
        cycle()
    release()
    before_bytes = process.memory_info().rss
    for _ in range(500):
        cycle()
    release()
    grown = process.memory_info().rss - before_bytes
    gc.unfreeze()
    assert grown < kept_bytes, f"{grown / 2**20:.1f} MiB"


def test_an_unloaded_model_finishes_what_runs(tmp_path: Path) -> None:
    (tmp_path / "digits.onnx").write_bytes((DEMO_MODELS / "digits.onnx").read_bytes())
    repository = Repository(tmp_path, threads=1)
    repository.load_all()
    with repository.lease("digits") as (served, _):
        repository.unload("digits")
        repository.unload("digits")
        assert repository.find("digits").state is State.UNLOADING
        with pytest.raises(RequestError, match="unloaded"):
            repository.ready("digits")
        assert served.session is not None  # which the engine takes when its turn comes
        assert served.session.run({"image": np.zeros((1, 1, 8, 8), np.float32)})["digit"].shape == (1,)
    assert repository.find("digits").state is State.UNAVAILABLE
    repository.load("digits")
    assert repository.find("digits").state is State.READY


def test_reload_under_load_fails_no_request(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    write_models(models)
    with serving(Settings(models=models, db=f"sqlite:///{tmp_path / 'a.db'}")) as client:
        statuses: list[int] = []
        stop = threading.Event()

        def load() -> None:
            with httpx.Client(base_url=client.base_url, timeout=30) as own:
                while not stop.is_set():
                    statuses.append(seven(own))

        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        for turn in range(20):
            if turn % 2:
                (models / "digits.onnx").write_bytes((DEMO_MODELS / "digits.onnx").read_bytes())
            else:
                (models / "digits.onnx").write_bytes(b"no model")
            client.post("/v2/repository/models/digits/load")
        stop.set()
        for thread in threads:
            thread.join()
        assert set(statuses) == {200}
        assert len(statuses) > 20


class Broken:
    """Makes reads and writes of the database fail while `on`, as if it did not answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.on = False
        for name in ("read", "write"):
            monkeypatch.setattr(Database, name, self.guard(getattr(Database, name)))

    def guard(self, real):
        def call(database, work):
            if self.on:
                raise StoreUnreachableError("database: it does not answer (test)")
            return real(database, work)

        return call


def test_a_lost_database_stops_no_inference_and_writes_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    db = f"sqlite:///{tmp_path / 'a.db'}"
    text, prefix, digest = auth.new_key()
    with Store(db) as store:
        store.keys.add(prefix, "all", digest, {"admin"}, None, None)
    broken = Broken(monkeypatch)
    with serving(Settings(models=DEMO_MODELS, db=db, key_refresh_s=0.1)) as client:
        client.headers["X-API-Key"] = text
        assert seven(client) == 200
        broken.on = True
        time.sleep(0.3)
        assert {seven(client) for _ in range(20)} == {200}
        for _ in range(5):
            assert client.post("/v2/repository/models/digits/load").status_code == 200
        assert client.get("/v1/devices").status_code == 503
        until(lambda: client.get("/v2/health/ready").json().get("buffered_writes", 0) >= 5)
        health = client.get("/v2/health/ready")
        assert (health.status_code, health.json()["database"]) == (200, "unavailable")
        assert "edgewise_database_up 0.0" in client.get("/metrics").text
        broken.on = False
        until(lambda: client.get("/v2/health/ready").json() == {"ready": True})
        with Store(db) as store:
            assert [entry.action for entry in store.audit.page().items] == ["model.load"] * 5


def test_a_full_disk_is_a_lost_database(tmp_path: Path) -> None:
    """A real one: SQLite refuses to grow past max_page_count just as on a full disk (SQLITE_FULL)."""
    path = tmp_path / "full.db"
    journal = Journal(max_entries=50)
    with Store(f"sqlite:///{path}") as store:

        @event.listens_for(store._database._engine, "connect")
        def small(connection: sqlite3.Connection, _: object) -> None:
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count = {pages}")

        store._database._engine.dispose()
        for number in range(60):
            journal.add(AuditEntry(number, "a", "b", "c" * 1000))
        journal.attempt(lambda: store)
        assert (journal.database_up, journal.buffered, journal.dropped) == (False, 50, 10)
        event.remove(store._database._engine, "connect", small)
        store._database._engine.dispose()
        journal.attempt(lambda: store)
        assert (journal.database_up, journal.buffered) == (True, 0)
        assert [entry.at_us for entry in store.audit.page(limit=1).items] == [59]
