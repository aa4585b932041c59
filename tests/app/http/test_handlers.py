"""No reply names a folder of the host: each message that can reach a client is provoked, and its body searched for paths."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx
import onnx
import platformdirs
import pytest
from onnx import TensorProto, helper

from app.http import handlers
from app.main import create_app
from app.models.repository import Repository
from app.settings import DEMO_MODELS, Settings
from bench.jobs import add, wait_for
from bench.local import serving
from bench.waiting import until
from profiler.device.profile import DeviceProfile
from scheduler.errors import StoreReadOnlyError
from scheduler.jobs import KINDS, JobOutcome, Kind, ProbeRequest, Task
from scheduler.store import Store
from scheduler.store.database import Database

DIGITS = (DEMO_MODELS / "digits.onnx").read_bytes()


def secrets(*folders: Path) -> set[str]:
    """The folders that no body may name, also as a link's target and with the temporary and the data directory."""
    named = [*folders, Path(tempfile.gettempdir()), platformdirs.user_data_path("edgewise"), Path.home(), DEMO_MODELS.parents[2]]
    return {str(path) for found in named for path in (found, found.resolve()) if str(path) != "/"}


@dataclass
class Bodies:
    """A client that reads every body, and looks for what it must not hold."""

    client: httpx.Client
    hidden: set[str]
    seen: list[str] = field(default_factory=list)

    def ask(self, status: int, method: str, path: str, **options: Any) -> str:
        """Ask as a program and as a browser would. Returns the body that the program gets."""
        reply = self.client.request(method, path, **options)
        assert reply.status_code == status, (path, reply.text)
        headers = {**options.pop("headers", {}), "Accept": "text/html"}
        page = self.client.request(method, path, headers=headers, **options)
        for body in (reply.text, page.text):
            self.seen.append(body)
            assert not [name for name in self.hidden if name in body], (path, body)
        return reply.text


def with_external(location: str) -> bytes:
    """A model whose one weight lies in another file."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        weight.external_data.append(onnx.StringStringEntryProto(key=key, value=value))
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "external", ports[:1], ports[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "the models"
    folder.mkdir()
    (folder / "digits.onnx").write_bytes(DIGITS)
    return folder


@contextlib.contextmanager
def asking(models: Path, db: str = "", kinds: Mapping[str, Kind] = KINDS, **changes: Any) -> Iterator[Bodies]:
    url = db or f"sqlite:///{models.parent / 'the data' / 'a.db'}"
    settings = Settings(models=models, db=url, file_uploads=True, **changes)
    with serving(settings, kinds=kinds) as client:
        yield Bodies(client, secrets(models, models.parent))


def hostile_files(folder: Path) -> dict[str, bytes]:
    """Models that cannot be loaded, by name, for one reason each."""
    outside = folder.parent / "outside.bin"
    outside.write_bytes(bytes(16))
    (folder / "link.bin").symlink_to(outside)
    (folder / "folder.bin").mkdir()
    return {
        "empty": b"",
        "garbage": b"no model",
        "cut": DIGITS[:-100],
        "missing": with_external("weights.bin"),
        "absolute": with_external(str(folder / "weights.bin")),
        "outside": with_external("../outside.bin"),
        "linked": with_external("link.bin"),
        "irregular": with_external("folder.bin"),
        "below_a_file": with_external("link.bin/weights.bin"),
        "long": with_external("w" * 300),
    }


def test_models_that_cannot_be_loaded(models: Path) -> None:
    hostile = hostile_files(models)
    for name, data in hostile.items():
        (models / f"{name}.onnx").write_bytes(data)
    (models / "carded.onnx").write_bytes(DIGITS)
    (models / "carded.json").write_bytes(b"{")
    (models / "described.onnx").write_bytes(DIGITS)
    (models / "described.json").write_bytes(b'{"description": "' + b"x" * (5 << 20) + b'"}')
    os.mkfifo(models / "pipe.onnx")
    (models / "dangling.onnx").symlink_to(models / "nowhere.onnx")
    with asking(models) as bodies:
        for name in (*hostile, "carded", "described"):
            assert name in bodies.ask(400, "POST", f"/v2/repository/models/{name}/load")
            bodies.ask(503, "GET", f"/v2/models/{name}/ready")
            bodies.ask(503, "POST", f"/v2/models/{name}/infer", content=b"{}")
            bodies.ask(503, "GET", f"/v2/models/{name}/config")
        for name in ("pipe", "dangling"):
            bodies.ask(404, "POST", f"/v2/repository/models/{name}/load")
        for path in ("/v1/models", "/v1/live", "/v2/models/stats"):
            bodies.ask(200, "GET", path)
        index = bodies.ask(200, "POST", "/v2/repository/index")
        assert {row["name"] for row in json.loads(index) if row.get("reason")} == {*hostile, "carded", "described"}


def test_uploads(models: Path) -> None:
    with asking(models) as bodies:
        for name, data in hostile_files(models).items():
            bodies.ask(400, "POST", f"/v1/models?name={name}", content=data)
        for name in ("..%2fx", "a%2fb", "", "stats"):
            bodies.ask(400, "POST", f"/v1/models?name={name}", content=DIGITS)
        bodies.ask(409, "POST", "/v1/models?name=digits", content=DIGITS)
        models.rename(models.parent / "away")
        bodies.ask(403, "POST", "/v1/models?name=new", content=DIGITS)
        bodies.ask(404, "POST", "/v2/repository/models/digits/load")
        bodies.ask(200, "POST", "/v2/repository/index")


def test_files_of_load_requests(models: Path) -> None:
    def files(**named: bytes) -> dict[str, Any]:
        encoded = {f"file:{path}": base64.b64encode(data).decode() for path, data in named.items()}
        return {"parameters": {"config": "{}", **encoded}}

    load = "/v2/repository/models/sent/load"
    with asking(models) as bodies:
        for data in hostile_files(models).values():
            bodies.ask(400, "POST", load, json=files(**{"1/model.onnx": data}))
        bodies.ask(400, "POST", load, json=files(**{"1/model.onnx": DIGITS, "1/model.onnx/x": DIGITS}))
        bodies.ask(400, "POST", load, json=files(**{"../../x": DIGITS}))
        bodies.ask(404, "POST", load, json=files(**{"1/other.onnx": DIGITS}))
        bodies.ask(400, "POST", load, json={"parameters": {"config": "{", "file:1/model.onnx": "AAAA"}})


def test_reloads_in_engine_processes(models: Path) -> None:
    """A model that its process has to read again, after its file was spoilt and the process killed."""
    import psutil

    with asking(models, workers=1) as bodies:
        (models / "digits.onnx").write_bytes(b"no model")
        for process in psutil.Process().children(recursive=True):
            if "app.engine.worker" in " ".join(process.cmdline()):
                process.kill()
        body = json.dumps({"inputs": [{"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0] * 64}]})
        until(lambda: "cannot be loaded again" in bodies.ask(503, "POST", "/v2/models/digits/infer", content=body))


ASKS_THE_DATABASE = ["/v1/devices", "/v1/jobs", "/v1/plans", "/v1/profiles", "/v1/strategies"]


def broken_file(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this is no database" * 1000)


def newer_schema(path: Path) -> None:
    path.parent.mkdir()
    Store(f"sqlite:///{path}").close()
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE edgewise_version SET version_num = '9999'")


def another_programs(path: Path) -> None:
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE edgewise_version (version_num TEXT)")
        connection.execute("INSERT INTO edgewise_version VALUES ('0007')")


def file_for_a_folder(path: Path) -> None:
    path.parent.write_bytes(b"")


@pytest.mark.parametrize("spoil", [broken_file, newer_schema, another_programs, file_for_a_folder])
def test_databases_that_cannot_be_used(models: Path, spoil: Any) -> None:
    spoil(models.parent / "the data" / "a.db")
    with asking(models) as bodies:
        for path in ASKS_THE_DATABASE:
            assert json.loads(bodies.ask(503, "GET", path))["error"].startswith("database: ")
        bodies.ask(503, "POST", "/v1/jobs", json={"kind": "probe"})
        bodies.ask(200, "GET", "/v2/health/ready")


def test_a_database_that_is_damaged_while_it_is_used(models: Path) -> None:
    with asking(models) as bodies:
        until(lambda: bodies.client.get("/v1/devices").status_code == 200)
        for file in (models.parent / "the data").iterdir():
            file.write_bytes(b"this is no database" * 10_000)
        bodies.ask(503, "GET", "/v1/devices")


@pytest.mark.parametrize(
    "url", ["postgresql://x@127.0.0.1:1/none", "postgresql:///none?host={folder}", "mysql://a@b/c", "nonsense"]
)
def test_databases_that_do_not_answer(models: Path, url: str) -> None:
    with asking(models, url.format(folder=models.parent)) as bodies:
        bodies.ask(503, "GET", "/v1/devices")
        bodies.ask(503, "POST", "/v1/jobs", json={"kind": "probe"})


def test_jobs_that_fail(models: Path, machine: DeviceProfile) -> None:
    def full(task: Task) -> JobOutcome:
        raise Database(f"sqlite:///{models.parent / 'b.db'}").error(StoreReadOnlyError, "the disk is full", str(models))

    def lost(task: Task) -> JobOutcome:
        raise FileNotFoundError(2, "No such file or directory", str(models / "digits.onnx"))

    kinds = {"full": Kind(ProbeRequest, False, full), "lost": Kind(ProbeRequest, False, lost)}
    db = f"sqlite:///{models.parent / 'a.db'}"
    with Store(db) as store:
        store.devices.save(machine)
    with asking(models, db, kinds) as bodies:
        for kind, why in (("full", "database: the disk is full"), ("lost", "FileNotFoundError")):
            number = add(bodies.client, kind=kind)["id"]
            assert why in wait_for(bodies.client, number)["error"]
            bodies.ask(200, "GET", f"/v1/jobs/{number}")
        bodies.ask(200, "GET", "/v1/jobs")


def test_what_nobody_expected(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(self: Repository) -> None:
        raise PermissionError(13, "Permission denied", str(models))

    monkeypatch.setattr(Repository, "index", lost)
    monkeypatch.setattr(handlers, "log", Mock())  # drawing tracebacks takes seconds
    with asking(models) as bodies:
        for _ in range(3):
            assert "internal error" in bodies.ask(500, "POST", "/v2/repository/index")


def test_a_service_without_models(tmp_path: Path) -> None:
    app = create_app(Settings(models=tmp_path / "nowhere", db=f"sqlite:///{tmp_path / 'a.db'}"))
    with serving(app.state.service.settings, app, wait=False) as client:
        bodies = Bodies(client, secrets(tmp_path))
        until(app.state.service.repository.loaded.is_set)
        bodies.ask(404, "POST", "/v2/repository/models/digits/load")
        bodies.ask(403, "POST", "/v1/models?name=new", content=DIGITS)
