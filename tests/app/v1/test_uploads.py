"""Uploaded models: loaded as a whole, or refused with nothing left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.settings import DEMO_MODELS, Settings
from bench.local import serving
from bench.waiting import until
from scheduler.store import Store
from tests.app.demo import SEVEN
from tests.app.http.raw import connect, read_answer, request
from tests.app.keys import bearer, make_key
from tests.app.servers import running, slow_model, start, text_model
from tests.disks import small_disk

DIGITS = (DEMO_MODELS / "digits.onnx").read_bytes()
MAX_BYTES = 4 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uploads") / "models"
    (folder / "echo" / "3").mkdir(parents=True)
    (folder / "echo" / "3" / "model.onnx").write_bytes(text_model())
    return folder


@pytest.fixture(scope="module")
def db(folder: Path) -> str:
    return f"sqlite:///{folder.parent / 'uploads.db'}"


@pytest.fixture(scope="module")
def client(folder: Path, db: str) -> Iterator[httpx.Client]:
    with serving(Settings(models=folder, db=db, max_upload_bytes=MAX_BYTES, max_control_bytes=1024)) as found:
        yield found


def upload(client: httpx.Client, name: str, body: bytes, **more: str | bool) -> httpx.Response:
    return client.post("/v1/models", params={"name": name, **more}, content=body)


def states(client: httpx.Client) -> dict[str, str]:
    return {row["name"]: row.get("state", "") for row in client.post("/v2/repository/index").json()}


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_model_is_served_and_stays(client: httpx.Client, folder: Path, db: str) -> None:
    reply = upload(client, "digits", DIGITS)  # larger than other bodies may be
    assert (reply.status_code, reply.json()["state"], reply.json()["version"]) == (200, "READY", "1"), reply.text
    assert (folder / "digits.onnx").read_bytes() == DIGITS
    assert client.post("/v2/models/digits/infer", content=SEVEN).json()["outputs"][0]["data"] == [7]
    assert client.post("/v2/repository/models/digits/unload").status_code == 200
    assert client.post("/v2/repository/models/digits/load").status_code == 200
    assert states(client)["digits"] == "READY"
    wait_for_audit(db, "model.upload", f"digits {len(DIGITS)} bytes")


def wait_for_audit(db: str, action: str, target: str) -> None:
    with Store(db) as store:
        for _ in range(600):
            if (action, target) in [(entry.action, entry.target) for entry in store.audit.page().items]:
                return
            time.sleep(0.05)
    raise AssertionError(f"not in the audit log: {action} {target}")


def test_a_name_that_is_taken_is_replaced_only_when_asked(client: httpx.Client, folder: Path) -> None:
    assert upload(client, "m", DIGITS).status_code == 200
    assert upload(client, "m", slow_model(2, 8)).status_code == 409
    replaced = upload(client, "m", slow_model(2, 8), replace=True)
    assert [tensor["name"] for tensor in replaced.json()["inputs"]] == ["x", "w"]
    refused = upload(client, "echo", DIGITS, replace=True)
    assert (refused.status_code, "versions in a folder" in refused.json()["error"]) == (409, True)
    assert {"echo", "m.onnx"} <= set(entries(folder))


@pytest.mark.parametrize("body", [b"", b"no model", DIGITS[:-100]], ids=["empty", "garbage", "cut"])
def test_what_cannot_be_loaded_leaves_nothing(client: httpx.Client, folder: Path, body: bytes) -> None:
    assert upload(client, "good", DIGITS, replace=True).status_code == 200
    before = entries(folder), states(client)
    for name, more in (("bad", {}), ("good", {"replace": True})):
        reply = upload(client, name, body, **more)
        assert reply.status_code == 400, reply.text
        assert str(folder) not in reply.text
        assert ".upload" not in reply.text
    assert (entries(folder), states(client)) == before
    assert client.post("/v2/models/good/infer", content=SEVEN).status_code == 200


@pytest.mark.parametrize("name", ["../up", "a/b", "stats", "", ".hidden", "n" * 200])
def test_names_are_checked(client: httpx.Client, folder: Path, name: str) -> None:
    before = sorted(folder.parent.rglob("*.onnx"))
    assert upload(client, name, DIGITS).status_code == 400
    assert sorted(folder.parent.rglob("*.onnx")) == before


def test_size_is_limited_told_and_untold(client: httpx.Client, folder: Path) -> None:
    before = entries(folder)
    assert upload(client, "big", bytes(MAX_BYTES + 1)).status_code == 413

    def parts() -> Iterator[bytes]:
        for _ in range(MAX_BYTES // 65_536 + 1):
            yield bytes(65_536)

    assert client.post("/v1/models", params={"name": "big"}, content=parts()).status_code == 413
    assert entries(folder) == before


def test_file_that_finds_no_room_leaves_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "models", 2 << 20) as models:
        (models / "first.onnx").write_bytes(DIGITS)
        with serving(Settings(models=models, db=f"sqlite:///{tmp_path / 'a.db'}", max_upload_bytes=MAX_BYTES)) as client:
            refused = upload(client, "large", bytes(MAX_BYTES))
            assert (refused.status_code, "No space left" in refused.json()["error"]) == (503, True)
            assert entries(models) == ["first.onnx"]
            assert upload(client, "digits", DIGITS).status_code == 200
            assert (models / "digits.onnx").stat().st_mode & 0o777 == 0o600


def test_who_leaves_leaves_nothing(client: httpx.Client, folder: Path) -> None:
    sent, leave = threading.Event(), threading.Event()
    before = entries(folder)

    def parts() -> Iterator[bytes]:
        yield DIGITS[:1000]
        sent.set()
        leave.wait(60)
        raise ConnectionAbortedError

    def call() -> None:
        with pytest.raises(ConnectionAbortedError):
            httpx.post(f"{client.base_url}/v1/models", params={"name": "half"}, content=parts(), timeout=60)

    caller = threading.Thread(target=call)
    caller.start()
    assert sent.wait(60)
    wait_for_entries(folder, len(before) + 1)
    leave.set()
    caller.join()
    wait_for_entries(folder, len(before))
    assert (entries(folder), "half" in states(client)) == (before, False)


def wait_for_entries(folder: Path, count: int) -> None:
    for _ in range(1200):
        if len(list(folder.iterdir())) == count:
            return
        time.sleep(0.05)
    raise AssertionError(list(folder.iterdir()))


def test_what_a_killed_process_left_is_removed_and_what_goes_on_stays(tmp_path: Path) -> None:
    """Two services share a folder, as in a rolling restart: one is killed within an upload, the next begins within another's."""
    folder, db = tmp_path / "models", f"sqlite:///{tmp_path / 'a.db'}"
    folder.mkdir()
    (folder / "digits.onnx").write_bytes(DIGITS)
    (folder / ".upload-file").write_bytes(b"not a folder that the service has made")
    head = request("POST", "/v1/models?name=half", DIGITS)[: -len(DIGITS)]

    def staged() -> int:
        return len([path for path in folder.glob(".upload-*") if path.is_dir()])

    killed = start(tmp_path, folder, db)
    with running(tmp_path, folder, db) as other, connect(killed.port) as lost, connect(other.port) as going_on:
        lost.sendall(head + DIGITS[:1000])
        until(lambda: staged() == 1)
        killed.process.kill()
        killed.process.wait()
        going_on.sendall(head + DIGITS[:1000])
        until(lambda: staged() == 2)
        with running(tmp_path, folder, db) as next_one:
            assert staged() == 1
            assert (folder / ".upload-file").exists()
            going_on.sendall(DIGITS[1000:])
            assert read_answer(going_on).status == 200
            with next_one.client() as client:
                assert client.post("/v2/repository/models/half/load").status_code == 200
        assert entries(folder) == [".upload-file", "digits.onnx", "half.onnx"]


@pytest.mark.parametrize(
    ("changes", "status", "why"),
    [
        ({"models": DEMO_MODELS}, 403, "bundled demo"),
        ({"max_upload_bytes": 0}, 403, "EDGEWISE_MAX_UPLOAD_BYTES"),
        ({"repository_control": False}, 503, "EDGEWISE_REPOSITORY_CONTROL"),
    ],
    ids=["demo", "no_uploads", "no_control"],
)
def test_a_service_may_take_none(folder: Path, tmp_path: Path, changes: dict, status: int, why: str) -> None:
    before = sorted(DEMO_MODELS.iterdir())
    with serving(Settings(**{"models": folder, "db": f"sqlite:///{tmp_path / 'a.db'}", **changes})) as client:
        reply = upload(client, "new", DIGITS if "max_upload_bytes" not in changes else b"")
        assert (reply.status_code, why in reply.text) == (status, True), reply.text
    assert sorted(DEMO_MODELS.iterdir()) == before


def test_only_administrators_upload(tmp_path: Path) -> None:
    folder, db = tmp_path / "models", f"sqlite:///{tmp_path / 'a.db'}"
    folder.mkdir()
    reader, admin = make_key(db, "read", "infer"), make_key(db, "admin")
    with serving(Settings(models=folder, db=db, key_refresh_s=0.1)) as client:
        asked: dict[str, Any] = {"params": {"name": "digits"}, "content": DIGITS}
        assert client.post("/v1/models", **asked).status_code == 401
        assert client.post("/v1/models", **asked, headers=bearer(reader)).status_code == 403
        assert client.post("/v1/models", **asked, headers=bearer(admin)).status_code == 200
