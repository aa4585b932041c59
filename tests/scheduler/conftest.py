"""Fixtures of databases: SQLite, and a private PostgreSQL server if its programs are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from bench.local import free_port
from scheduler.store import Store
from tests.scheduler.samples import DEVICE, MODEL


@pytest.fixture(scope="session", autouse=True)
def own_lock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let measurements of tests wait for each other, but not for those of other programs on this machine."""
    path = tmp_path_factory.mktemp("lock") / "measuring.lock"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scheduler.exclusive.lock_path", lambda: path)
        yield


def _programs() -> Path | None:
    """Return the folder of initdb and postgres, or None. Debian keeps it off the PATH."""
    folders = [Path(found).resolve().parent] if (found := shutil.which("initdb")) else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "postgres").exists() and (folder / "initdb").exists()), None)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """Run a private PostgreSQL server for the session and return its URL, without a database name."""
    programs = _programs()
    if programs is None:
        pytest.skip("no PostgreSQL server programs (initdb, postgres) on this machine")
    as_user: list[str] = []
    folder = Path(tempfile.mkdtemp(prefix="edgewise-pg-"))
    if os.getuid() == 0:  # the server refuses to run as root
        if shutil.which("runuser") is None or subprocess.run(["id", "postgres"], capture_output=True, check=False).returncode:
            shutil.rmtree(folder)
            pytest.skip("running as root, and there is no user postgres to run the server as")
        as_user = ["runuser", "-u", "postgres", "--"]
        shutil.chown(folder, "postgres")
    data, port = folder / "data", free_port()
    make = [*as_user, str(programs / "initdb"), "-D", str(data), "-U", "edgewise", "-A", "trust", "--no-sync", "-E", "UTF8"]
    subprocess.run([*make, "--locale=C"], check=True, capture_output=True, cwd=folder)
    settings = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": folder, "fsync": "off"}
    arguments = [argument for name, value in settings.items() for argument in ("-c", f"{name}={value}")]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [*as_user, str(programs / "postgres"), "-D", str(data), *arguments], stdout=log, stderr=log, cwd=folder
        )
        try:
            _wait(port, server, folder / "log")
            yield f"postgresql://edgewise@127.0.0.1:{port}"
        finally:
            subprocess.run(
                [*as_user, str(programs / "pg_ctl"), "-D", str(data), "-m", "immediate", "stop"],
                check=True,
                capture_output=True,
                cwd=folder,
            )
            server.wait(30)
            shutil.rmtree(folder)


def _wait(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    import time

    for _ in range(300):
        if server.poll() is not None:
            raise RuntimeError(f"the PostgreSQL server ended:\n{log.read_text()}")
        try:
            psycopg.connect(host="127.0.0.1", port=port, user="edgewise", dbname="postgres").close()
        except psycopg.OperationalError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"the PostgreSQL server does not answer:\n{log.read_text()}")


@pytest.fixture(scope="session")
def postgres_template(postgres_server: str) -> str:
    """Return the name of a database that has the schema, from which tests make copies."""
    Store(_create(postgres_server, "migrated")).close()
    return "migrated"


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a database file that has the schema, which tests copy."""
    path = tmp_path_factory.mktemp("template") / "migrated.db"
    Store(f"sqlite:///{path}").close()
    return path


def _create(server: str, name: str, template: str = "template1") -> str:
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    return f"{server}/{name}"


@pytest.fixture
def postgres_url(postgres_server: str) -> str:
    """Create an empty PostgreSQL database for one test and return its URL."""
    return _create(postgres_server, f"t{uuid.uuid4().hex}")


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of an empty database of each kind. If the test uses the fixture `store`, the database has the schema."""
    migrated = "store" in request.fixturenames
    if request.param == "sqlite":
        path = tmp_path / "store.db"
        if migrated:
            shutil.copyfile(request.getfixturevalue("sqlite_template"), path)
        return f"sqlite:///{path}"
    server: str = request.getfixturevalue("postgres_server")
    template: str = request.getfixturevalue("postgres_template") if migrated else "template1"
    return _create(server, f"t{uuid.uuid4().hex}", template)


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    """Open a store that holds the sample device and model."""
    with Store(url) as opened:
        opened.devices.save(DEVICE)
        opened.models.save(MODEL, "tiny.onnx", 1234)
        yield opened
