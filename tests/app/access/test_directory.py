"""A server whose keys are lost with their database stays closed; a server that never had any lets local callers in."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest

from app.settings import DEMO_MODELS, Settings
from bench.local import serving
from bench.waiting import until
from scheduler.store import Store
from tests.app.keys import bearer, make_key
from tests.app.servers import Server, running
from tests.processes import edgewise
from tests.scheduler.conftest import postgres_server, postgres_url  # noqa: F401  fixtures

LOAD = "/v2/repository/models/digits/load"
LOST = "keys were made for this server, and its database holds none"


@contextlib.contextmanager
def served(db: str, models: Path = DEMO_MODELS, **changes: object) -> Iterator[httpx.Client]:
    with serving(Settings(models=models, db=db, key_refresh_s=0.1, **changes)) as client:  # type: ignore[arg-type]
        yield client


@pytest.fixture
def db(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'data' / 'keys.db'}"


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory of the test's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def models_in(folder: Path) -> Path:
    shutil.copytree(DEMO_MODELS, folder)
    return folder


def statuses(client: httpx.Client) -> tuple[int, int]:
    return client.get("/v2").status_code, client.post(LOAD).status_code


def test_a_deleted_database_lets_no_local_caller_in(tmp_path: Path) -> None:
    """By real processes: a key is made, the service stopped, its database deleted, and the service started again."""
    url, environment = f"sqlite:///{tmp_path / 'keys.db'}", {"EDGEWISE_KEY_REFRESH_S": "0.1", "EDGEWISE_GRACE_S": "0"}

    def asked(server: Server) -> tuple[int, int]:
        with server.client() as client:
            return statuses(client)

    with running(tmp_path, DEMO_MODELS, url, environment) as server:
        assert asked(server) == (200, 200)
        made = edgewise("keys", "create", "--name", "n", "--scope", "admin", "--db", url, "--json")
        assert (made.returncode, "the first key of this database" in made.stderr) == (0, True)
        until(lambda: asked(server) == (401, 401))
        server.stop()
    for file in tmp_path.glob("keys.db*"):
        file.unlink()
    with running(tmp_path, DEMO_MODELS, url, environment) as server, server.client() as client:
        assert statuses(client) == (401, 401)
        error = client.get("/v2").json()["error"]
        assert (LOST in error, "edgewise keys create" in error, "EDGEWISE_KEYLESS=true" in error) == (True, True, True)
        assert client.get("/v2", headers=bearer(json.loads(made.stdout)["key"])).status_code == 401
        until(lambda: "API keys are lost" in server.log.read_text())
        key = json.loads(edgewise("keys", "create", "--name", "n", "--scope", "admin", "--db", url, "--json").stdout)["key"]
        until(lambda: client.post(LOAD, headers=bearer(key)).status_code == 200)
        assert LOST not in client.get("/v2").json()["error"]


def test_a_database_that_cannot_be_read_lets_no_local_caller_in_where_keys_were_made(db: str) -> None:
    make_key(db, "admin")
    file = Path(db.removeprefix("sqlite:///"))
    file.write_bytes(b"damaged" * 1000)
    for suffix in ("-wal", "-shm"):
        Path(f"{file}{suffix}").unlink(missing_ok=True)
    with served(db) as client:
        assert statuses(client) == (401, 401)


@pytest.mark.parametrize("lost", ["beside", "state", "both"])
def test_one_mark_is_enough(db: str, tmp_path: Path, state: Path, lost: str) -> None:
    make_key(db, "admin")
    shutil.rmtree(tmp_path / "data") if lost != "state" else [file.unlink() for file in (tmp_path / "data").glob("keys.db*")]
    if lost != "beside":
        shutil.rmtree(state)
    with served(db) as client:
        assert statuses(client) == ((200, 200) if lost == "both" else (401, 401))
    if lost == "both":
        with served(db, keyless=False) as client:
            assert statuses(client) == (401, 401)


def test_another_database_of_the_same_models_lets_no_local_caller_in(db: str, tmp_path: Path) -> None:
    """As where the setting that named the database is lost, and the default one is taken."""
    models, other = models_in(tmp_path / "models"), f"sqlite:///{tmp_path / 'other.db'}"
    with served(other, models) as client:
        assert statuses(client) == (200, 200)
    key = make_key(db, "admin")
    with served(db, models) as client:
        until(lambda: client.get("/v2", headers=bearer(key)).status_code == 200)
    with served(other, models) as client:
        assert statuses(client) == (401, 401)
    with served(other, models_in(tmp_path / "more")) as client:
        assert statuses(client) == (200, 200)


def test_keyless_says_so_explicitly(db: str) -> None:
    make_key(db, "admin")
    with served(db, keyless=True) as client:  # keys that are there count
        until(lambda: statuses(client) == (401, 401))
    for file in Path(db.removeprefix("sqlite:///")).parent.glob("keys.db*"):
        file.unlink()
    with served(db, keyless=True) as client:
        until(lambda: statuses(client) == (200, 200))


def test_keyless_is_for_loopback_alone(db: str) -> None:
    with pytest.raises(ValueError, match=r"host is '0\.0\.0\.0'"):
        Settings(host="0.0.0.0", keyless=True)
    refused = edgewise("serve", "--host", "0.0.0.0", "--db", db, environment={"EDGEWISE_KEYLESS": "true"})
    assert (refused.returncode, "EDGEWISE_KEYLESS" in refused.stderr) == (2, True)


def test_keys_deleted_while_the_server_runs_let_no_local_caller_in(db: str) -> None:
    with served(db) as client:
        assert statuses(client) == (200, 200)
        make_key(db, "admin")
        until(lambda: statuses(client) == (401, 401))
        with Store(db) as store:
            store._database.write(lambda session: session.connection().exec_driver_sql("DELETE FROM api_keys"))
        until(lambda: LOST in client.get("/v2").json()["error"])
        assert statuses(client) == (401, 401)


def test_keys_of_postgres_are_remembered_on_the_machine_that_saw_them(postgres_url: str) -> None:  # noqa: F811
    with served(postgres_url) as client:
        assert statuses(client) == (200, 200)
    make_key(postgres_url, "admin")
    server, _, name = postgres_url.rpartition("/")
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
        connection.execute(f"CREATE DATABASE {name}")
    with served(postgres_url.replace("edgewise@", "edgewise:secret@")) as client:
        assert statuses(client) == (401, 401)


def test_a_mark_that_cannot_be_kept_is_told_and_costs_no_key(tmp_path: Path, db: str) -> None:
    blocked = tmp_path / "state"
    blocked.write_text("a file where the folder would be")
    environment = {"XDG_STATE_HOME": str(blocked)}
    made = edgewise("keys", "create", "--name", "n", "--scope", "read", "--db", db, "--json", environment=environment)
    assert (made.returncode, "key" in json.loads(made.stdout)) == (0, True)
    assert ("mark of API keys not kept" in made.stderr, "EDGEWISE_KEYLESS=false" in made.stderr) == (True, True)
    assert (tmp_path / "data" / ".keys.db.keyed").exists()


def test_marks_are_private_and_name_no_password(tmp_path: Path, state: Path, postgres_url: str) -> None:  # noqa: F811
    make_key(postgres_url.replace("edgewise@", "edgewise:secret@"), "admin")
    make_key(f"sqlite:///{tmp_path / 'a.db'}", "admin")
    marks = [*(state / "edgewise" / "keyed").iterdir(), tmp_path / ".a.db.keyed"]
    assert len(marks) == 3
    assert {mark.stat().st_mode & 0o777 for mark in marks} == {0o600}
    assert {(state / "edgewise" / "keyed").stat().st_mode & 0o777, state.stat().st_mode & 0o777} == {0o700}
    assert not [mark for mark in marks if "secret" in mark.read_text()]
