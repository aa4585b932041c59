"""What readiness says of the database: of a file that is moved while a service writes to it, and of a server that is lost."""

import contextlib
import selectors
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from app.access import journal
from app.settings import DEMO_MODELS, Settings
from bench.local import serving
from bench.waiting import until
from scheduler.store import Store
from tests.app.demo import SEVEN
from tests.app.servers import running
from tests.scheduler.conftest import postgres_server, postgres_url  # noqa: F401  fixtures

MOVED = "database: the file that is open"
QUICK = {"EDGEWISE_JOBS": "false", "EDGEWISE_GRACE_S": "0"}


def infers(client: httpx.Client) -> bool:
    return client.post("/v2/models/digits/infer", content=SEVEN).status_code == 200


def ready(client: httpx.Client) -> tuple[int, dict[str, object]]:
    reply = client.get("/v2/health/ready")
    return reply.status_code, reply.json()


def queue(client: httpx.Client) -> httpx.Response:
    """A write of the database that the reply acknowledges."""
    return client.post("/v1/jobs", json={"kind": "probe"})


def jobs_in(url: str) -> list[int]:
    with Store(url) as store:
        return [job.id for job in store.jobs.page().items]


def test_a_moved_file_takes_no_writes_until_it_is_back(tmp_path: Path) -> None:
    path = tmp_path / "moved.db"
    with running(tmp_path, DEMO_MODELS, f"sqlite:///{path}", QUICK) as server, server.client() as client:
        acknowledged = [queue(client).json()["id"]]
        path.rename(tmp_path / "away.db")
        refused = queue(client)
        assert (refused.status_code, MOVED in refused.json()["error"]) == (503, True)
        until(lambda: ready(client)[0] == 503)
        assert MOVED in str(ready(client)[1]["error"])
        assert str(tmp_path) not in str(ready(client)[1])  # anyone may ask
        assert (infers(client), client.get("/v2/health/live").status_code) == (True, 200)
        assert client.get("/v2/models/digits/ready").status_code == 200
        assert client.get("/v1/devices").status_code == 503
        assert client.post("/v2/repository/models/digits/load").status_code == 200  # its audit entry waits
        (tmp_path / "away.db").rename(path)
        until(lambda: ready(client) == (200, {"ready": True}))
        acknowledged.append(queue(client).json()["id"])
        server.stop()
        log = server.log.read_text()
        assert (log.count("database lost"), log.count("database back"), str(path) in log) == (1, 1, True)
    assert jobs_in(f"sqlite:///{path}") == sorted(acknowledged, reverse=True)
    with Store(f"sqlite:///{path}") as store:
        assert [entry.action for entry in store.audit.page().items if entry.action == "model.load"] == ["model.load"]


def test_a_replaced_file_is_used_after_a_restart_only(tmp_path: Path) -> None:
    path, url = tmp_path / "replaced.db", f"sqlite:///{tmp_path / 'replaced.db'}"
    with Store(f"sqlite:///{tmp_path / 'other.db'}") as other:
        other.jobs.add("probe", "0" * 16)
    with running(tmp_path, DEMO_MODELS, url, QUICK) as server, server.client() as client:
        assert queue(client).status_code == 200
        shutil.copyfile(tmp_path / "other.db", tmp_path / "copy.db")
        (tmp_path / "copy.db").rename(path)
        assert queue(client).status_code == 503
        until(lambda: ready(client)[0] == 503)
        assert infers(client)
        server.stop()
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    with running(tmp_path, DEMO_MODELS, url, QUICK) as server, server.client() as client:
        assert queue(client).status_code == 200
    assert len(jobs_in(url)) == 2


class Line:
    """A line to a database server that can be cut, so that it refuses, or go silent, so that nothing is answered."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target, self._silent, self._cut = target, threading.Event(), threading.Event()
        self._closed = threading.Event()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(OSError):
                near, _ = self._listening.accept()
                if self._cut.is_set() or self._closed.is_set():
                    near.close()
                    continue
                pair = (near, socket.create_connection(self._target))
                self._pairs.append(pair)
                threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError), selectors.DefaultSelector() as ready_ones:
            ready_ones.register(near, selectors.EVENT_READ, far)
            ready_ones.register(far, selectors.EVENT_READ, near)
            while True:
                for key, _ in ready_ones.select(0.1):
                    while self._silent.is_set() and not self._closed.wait(0.05):
                        pass
                    data = key.fileobj.recv(1 << 16)
                    if not data:
                        near.close()
                        far.close()
                        return
                    key.data.sendall(data)

    def cut(self, *, on: bool) -> None:
        self._cut.set() if on else self._cut.clear()
        for pair in self._pairs if on else []:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def silence(self, *, on: bool) -> None:
        self._silent.set() if on else self._silent.clear()

    def close(self) -> None:
        self._closed.set()
        self.silence(on=False)
        self.cut(on=True)
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port)).close()
        self._listening.close()


@pytest.fixture
def line(postgres_url: str) -> Iterator[Line]:  # noqa: F811
    parts = urlsplit(postgres_url)
    made = Line((str(parts.hostname), int(parts.port or 0)))
    yield made
    made.close()


@pytest.mark.parametrize("how", ["cut", "silence"])
def test_a_lost_postgres_shows_and_stops_no_inference(
    line: Line,
    postgres_url: str,  # noqa: F811
    how: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journal, "ANSWER_S", 0.5)
    parts = urlsplit(postgres_url)
    through = f"postgresql://{parts.username}@127.0.0.1:{line.port}{parts.path}"
    with serving(Settings(models=DEMO_MODELS, db=through, jobs=False)) as client:
        assert queue(client).status_code == 200
        until(lambda: ready(client) == (200, {"ready": True}))
        getattr(line, how)(on=True)
        until(lambda: ready(client)[1].get("database") == "unavailable")
        assert (ready(client)[0], infers(client)) == (200, True)
        if how == "cut":  # what is silent is waited for
            assert queue(client).status_code == 503
        getattr(line, how)(on=False)
        until(lambda: ready(client) == (200, {"ready": True}))
        assert queue(client).status_code == 200
