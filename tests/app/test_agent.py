"""Measuring agents in several processes with one service, all of which are killed and restarted, and with services that lie."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from multiprocessing.process import BaseProcess
from pathlib import Path
from urllib.parse import unquote

import httpx
import pytest

from app.agent import client as link
from app.agent.client import RefusedError, ServiceClient
from app.jobs.execution import DeskError
from app.settings import DEMO_MODELS, Settings
from bench.jobs import add, wait_for
from bench.local import answers, free_port, serving
from bench.waiting import until
from kernels.errors import InvalidError
from profiler.device.profile import DeviceProfile
from scheduler.build import Build
from scheduler.jobs import KINDS, JobOutcome, Kind, ProbeRequest, Task
from scheduler.local import local_fingerprint
from scheduler.store import Here, Store
from scheduler.store.records import now_us
from tests.processes import edgewise, start
from tests.profiler.devices import device
from tests.scheduler.conftest import postgres_server, postgres_url  # noqa: F401  fixtures
from tests.scheduler.samples import measurement

COUNT = 30
ANYWHERE = Here("feedfeed", Build("any", {}))


def _measure(task: Task) -> JobOutcome:
    """Measure COUNT signatures one by one, as the tuner does, except those that the agent's database already holds."""
    known = {found.measurement.signature for found in task.store.measurements.page(ANYWHERE, limit=200).items}
    for number in range(COUNT):
        if task.stop():
            return JobOutcome(summary={"measured": number})
        text = f"Conv(f32[{number}])"
        if text not in known:
            time.sleep(task.request.seconds / COUNT)
            taken = {"device_fingerprint": local_fingerprint(), "samples": 10 + os.getpid() % 7, "measured_us": now_us()}
            task.store.measurements.save([measurement(text, **taken)])
        task.report({"done": number + 1})
    return JobOutcome(summary={"measured": COUNT})


MEASURING = {**KINDS, "measure": Kind(ProbeRequest, False, _measure)}


def _serve(port: int, db: str) -> None:
    from app.http.server import run
    from app.main import create_app

    settings = Settings(models=DEMO_MODELS, db=db, jobs=False, job_lease_s=2, port=port, grace_s=0)
    run(create_app(settings, kinds=MEASURING), settings)


def _agent(server: str, folder: Path, salt: str, once: bool) -> None:
    from app.agent.agent import Agent

    link.LAST_PAUSE_S = 1.0
    db = f"sqlite:///{folder / 'own.sqlite'}"
    with Store(db) as store:  # measured by hand, which saves the time
        store.devices.save(_device(salt))
    os.environ["EDGEWISE_DEVICE_SALT"] = salt
    agent = Agent(server, None, db, folder, probe_s=0.2, kinds=MEASURING)
    signal.signal(signal.SIGTERM, lambda *_: agent.close())
    agent.run(once=once)


def _device(salt: str) -> DeviceProfile:
    from profiler.device.topology import read_hardware

    os.environ["EDGEWISE_DEVICE_SALT"] = salt
    try:
        return device(hardware=read_hardware())
    finally:
        del os.environ["EDGEWISE_DEVICE_SALT"]


def stop(process: BaseProcess, number: int = signal.SIGTERM) -> None:
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(60)
    assert not process.is_alive()


def agents_of(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).mkdir()
    return [folder / name for name in names]


@pytest.fixture
def db(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of the service's database: SQLite, or PostgreSQL if the test's parameter asks for it."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return f"sqlite:///{tmp_path / 'service.sqlite'}"
    found: str = request.getfixturevalue("postgres_url")
    return found


@pytest.fixture
def port() -> int:
    return free_port()


@contextlib.contextmanager
def running(client: httpx.Client, port: int, db: str) -> Iterator[None]:
    server = start(_serve, port, db)
    try:
        until(lambda: answers(client, "/v2/health/ready"))
        yield
    finally:
        stop(server)


@pytest.fixture
def client(port: int) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as opened:
        yield opened


def measured(url: str) -> dict[tuple[str, str], tuple[int, int]]:
    """Return (samples, time in µs) of each measurement by device and signature. Assert that no two rows have the same key."""
    with Store(url) as store:
        items = store.measurements.page(ANYWHERE, limit=200).items
    found = {(i.measurement.device_fingerprint, i.measurement.signature): i.measurement for i in items}
    assert len(found) == len(items)
    return {key: (item.samples, item.measured_us) for key, item in found.items()}


def registered(client: httpx.Client, fingerprint: str) -> None:
    """Wait until an agent has registered that device."""
    until(lambda: client.get(f"/v1/devices/{fingerprint}").status_code == 200)


@pytest.mark.parametrize("db", ["sqlite", "postgres"], indirect=True)
def test_a_killed_agents_job_is_finished_by_another_and_no_measurement_is_lost(
    tmp_path: Path, client: httpx.Client, port: int, db: str
) -> None:
    server = str(client.base_url)
    mine, theirs = _device("one").fingerprint, _device("two").fingerprint
    first, second, third = agents_of(tmp_path, "first", "second", "third")
    with running(client, port, db):
        agents = {folder: start(_agent, server, folder, salt, False) for folder, salt in ((first, "one"), (third, "two"))}
        for fingerprint in (mine, theirs):
            registered(client, fingerprint)
        number = add(client, kind="measure", device=mine, request={"seconds": 6})["id"]
        other = add(client, kind="measure", device=theirs, request={"seconds": 1})["id"]
        until(lambda: client.get(f"/v1/jobs/{number}").json()["progress"].get("done", 0) >= 5)
        stop(agents.pop(first), signal.SIGKILL)
        assert client.get(f"/v1/jobs/{number}").json()["state"] == "running"
        agents[second] = start(_agent, server, second, "one", False)
        done = wait_for(client, number)
        assert (done["state"], done["attempts"], done["result"]) == ("done", 2, {"measured": COUNT})
        assert wait_for(client, other)["attempts"] == 1  # by the agent of its own device
        again = start(_agent, server, first, "one", True)  # the killed one comes back and brings what it had
        again.join(60)
        assert again.exitcode == 0
        for agent in agents.values():
            stop(agent)
        assert [agent.exitcode for agent in agents.values()] == [0, 0]
    kept = measured(db)
    assert len(kept) == 2 * COUNT
    lost_agents = measured(f"sqlite:///{first / 'own.sqlite'}")
    assert 0 < len(lost_agents) < COUNT
    for folder in (first, second, third):
        for key, evidence in measured(f"sqlite:///{folder / 'own.sqlite'}").items():
            assert kept[key] >= evidence, key


def test_a_result_outlives_the_service(tmp_path: Path, client: httpx.Client, port: int, db: str) -> None:
    mine = _device("one").fingerprint
    (folder,) = agents_of(tmp_path, "agent")
    with running(client, port, db):
        agent = start(_agent, str(client.base_url), folder, "one", False)
        registered(client, mine)
        number = add(client, kind="measure", device=mine, request={"seconds": 2})["id"]
        wait_for(client, number, "running")
    until(lambda: list((folder / "outbox").glob("*.json")))  # the job ends while nobody listens
    stop(agent, signal.SIGKILL)
    with running(client, port, db):
        assert client.get(f"/v1/jobs/{number}").json()["state"] == "running"
        again = start(_agent, str(client.base_url), folder, "one", True)
        done = wait_for(client, number)
        again.join(60)
    assert (done["state"], done["attempts"], done["result"]) == ("done", 1, {"measured": COUNT})
    assert list((folder / "outbox").iterdir()) == []
    assert measured(db) == measured(f"sqlite:///{folder / 'own.sqlite'}")


def test_an_agent_that_is_asked_to_end_gives_its_job_back(tmp_path: Path, client: httpx.Client, port: int, db: str) -> None:
    mine = _device("one").fingerprint
    (folder,) = agents_of(tmp_path, "agent")
    with running(client, port, db):
        agent = start(_agent, str(client.base_url), folder, "one", False)
        registered(client, mine)
        number = add(client, kind="measure", device=mine, request={"seconds": 30})["id"]
        wait_for(client, number, "running")
        stop(agent)
        job = client.get(f"/v1/jobs/{number}").json()
        assert (job["state"], job["attempts"]) == ("queued", 0)
        client.post(f"/v1/jobs/{number}/cancel")


def test_a_service_with_a_new_database_gets_everything_again(tmp_path: Path, client: httpx.Client, port: int) -> None:
    mine = _device("one").fingerprint
    (folder,) = agents_of(tmp_path, "agent")
    first, second = (f"sqlite:///{tmp_path / name}" for name in ("first.sqlite", "second.sqlite"))
    with Store(f"sqlite:///{folder / 'own.sqlite'}") as store:
        store.devices.save(_device("one"))
        store.measurements.save([measurement(f"Conv({n})", device_fingerprint=mine) for n in range(5)])
    with running(client, port, first):
        agent = start(_agent, str(client.base_url), folder, "one", False)
        registered(client, mine)
        until(lambda: len(client.get("/v1/strategies", params={"device": mine}).json()["items"]) == 5)
    with running(client, port, second):
        registered(client, mine)  # it was told 404, and began anew
        number = add(client, kind="measure", device=mine, request={"seconds": 0.3})["id"]
        assert wait_for(client, number)["state"] == "done"
        stop(agent)
    assert agent.exitcode == 0
    assert measured(first).keys() < measured(second).keys()
    assert measured(second) == measured(f"sqlite:///{folder / 'own.sqlite'}")


def test_command_line_agent_traces_a_model_it_never_had(tmp_path: Path) -> None:
    settings = Settings(models=DEMO_MODELS, db=f"sqlite:///{tmp_path / 'service.sqlite'}", jobs=False)
    with serving(settings) as client:
        own = ["--folder", str(tmp_path / "agent"), "--db", f"sqlite:///{tmp_path / 'own.sqlite'}", "--seconds", "0.3"]
        call = ["agent", "--server", str(client.base_url), "--once", "--json", *own]

        def agent() -> dict:
            done = edgewise(*call, environment={"EDGEWISE_DEVICE_SALT": "elsewhere"})
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout)

        assert agent() == {"jobs": 0}
        (known,) = client.get("/v1/devices").json()["items"]
        assert known["name"].partition(",")[0].endswith("elsewhere")
        asked = {"model": "digits", "device": known["fingerprint"], "request": {"dims": {"batch": 1}}}
        numbers = [add(client, kind="trace", **asked)["id"], add(client, kind="profile", **asked)["id"]]
        numbers.append(add(client, kind="probe", device=known["fingerprint"], request={"seconds": 0.3})["id"])
        assert agent() == {"jobs": 3}
        jobs = [client.get(f"/v1/jobs/{number}").json() for number in numbers]
        assert [job["state"] for job in jobs] == ["done"] * 3, jobs
        stored = client.get(f"/v1/profiles/{jobs[0]['result']['profile_id']}").json()
        assert stored["kind"] == "trace"
        assert jobs[2]["result"]["device"] == known["fingerprint"]


def test_files_of_served_models_only(tmp_path: Path) -> None:
    with serving(Settings(models=DEMO_MODELS, db=f"sqlite:///{tmp_path / 'service.sqlite'}", jobs=False)) as client:
        digest = client.get("/v1/models/digits").json()["digest"]
        assert client.get(f"/v1/models/{digest}/file").content == (DEMO_MODELS / "digits.onnx").read_bytes()
        assert client.get(f"/v1/models/{'0' * 64}/file").status_code == 404
        assert client.get("/v1/models/digits/file").status_code == 400
        wrong = client.put(f"/v1/devices/{'0' * 16}", content=device().to_json())
        assert (wrong.status_code, "need 0000" in wrong.json()["error"]) == (400, True)
        assert client.put(f"/v1/devices/{'0' * 16}", content=b"{}").status_code == 400
        assert client.post("/v1/measurements", content=b"no json").status_code == 400


class _Liar(BaseHTTPRequestHandler):
    """A server that answers with the status and the body in the path: /<status>/<body>."""

    def do_GET(self) -> None:
        _, status, body = unquote(self.path).split("/", 2)
        raw = b"x" * (17 << 20) if body == "huge" else body.replace("_", '"').encode()
        if status == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"short")
            return
        self.send_response(int(status))
        self.send_header("Content-Length", str(len(raw)))
        self.send_header("Location", "http://127.0.0.1:1/")
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def lying() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Liar)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("path", "kind", "says"),
    [
        ("/401/{_error_:_no key_}", RefusedError, "401, no key"),
        ("/403/", RefusedError, "403, no reason"),
        ("/302/", RefusedError, "302"),
        ("/500/boom", RefusedError, "500"),
        ("/503/{_error_:_busy_}", DeskError, "busy"),
        ("/200/{}", RefusedError, "is this an Edgewise service"),
        ("/200/[", RefusedError, "is this an Edgewise service"),
        ("/200/huge", RefusedError, "the limit"),
        ("/cut/", DeskError, "GET"),
    ],
)
def test_answers_are_checked(lying: str, path: str, kind: type[Exception], says: str) -> None:
    from app.v1.jobs import BeatOut

    found = ServiceClient(lying, "k", threading.Event())
    with pytest.raises(kind, match=says):
        found.ask(BeatOut, "GET", path)
    found.close()


@pytest.mark.parametrize("server", ["", "localhost:8000", "ftp://x", "file:///etc/passwd", "http://"])
def test_addresses_that_are_none_are_refused(server: str) -> None:
    with pytest.raises(InvalidError, match="need an address"):
        ServiceClient(server, None, threading.Event())


def test_a_model_that_is_another_is_not_used(lying: str, tmp_path: Path) -> None:
    found = ServiceClient(lying, None, threading.Event())
    assert found.download("/200/abc", tmp_path / "m") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(RefusedError):
        found.download("/302/", tmp_path / "m")
    with pytest.raises(DeskError):
        found.download("/cut/", tmp_path / "m")
    found.close()


def test_patience_ends_with_the_agent() -> None:
    closing = threading.Event()
    found = ServiceClient("http://127.0.0.1:1", None, closing)
    threading.Timer(0.3, closing.set).start()
    started = time.monotonic()
    with pytest.raises(DeskError):
        found.insist(lambda: found.download("/x", Path(os.devnull)))
    assert 0.2 < time.monotonic() - started < 10
    found.close()
