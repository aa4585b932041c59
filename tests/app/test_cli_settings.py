"""Settings hold for every command: the command line beats the environment, and the environment the default."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from app.cli.main import COMMANDS, command_line
from app.settings import DEMO_MODELS, Settings
from bench.jobs import add, wait_for
from bench.local import free_port
from profiler.device.profile import DeviceProfile
from scheduler.store import Store
from tests.app import servers
from tests.app.demo import MODEL
from tests.processes import edgewise

OPTIONS = {"--db": "EDGEWISE_DB", "--threads": "EDGEWISE_THREADS", "--max-threads": "EDGEWISE_THREADS"}
SOURCE = "a database"
WITH_DB = {  # command: arguments with which it opens its database
    "profile": (MODEL, "--dim", "batch=1", "--measure", "--runs", "1"),
    "plan": (MODEL, "--dim", "batch=1"),
    "tune": (MODEL, "--dim", "batch=1", "--budget", "0.5"),
    "run": (MODEL, "--plan", "0" * 12),
    "device": ("--list",),
    "agent": ("--server", "http://127.0.0.1:9", "--once"),
    "bench": (),
    "db info": (),
    "db upgrade": (),
    "db prune": ("--stale",),
    "db export": ("-",),
    "db import": ("/dev/null",),
    "db merge": (SOURCE,),
    "keys create": ("--name", "n", "--scope", "read"),
    "keys list": (),
    "keys revoke": ("unknown",),
}
WITH_THREADS = {  # command: its option, and arguments with which it uses cores
    "profile": ("--threads", MODEL, "--dim", "batch=1", "--measure", "--runs", "1", "--no-store"),
    "plan": ("--max-threads", MODEL, "--dim", "batch=1"),
    "tune": ("--threads", MODEL, "--dim", "batch=1", "--budget", "5"),
    "run": ("--threads", MODEL, "--runs", "1"),
}
SERVED = {  # setting: option, a value for the environment, another for the command line
    "models": ("--models", str(DEMO_MODELS.parent), str(DEMO_MODELS)),
    "host": ("--host", "localhost", "127.0.0.2"),
    "port": ("--port", "8123", "8124"),
    "db": ("--db", "sqlite:///one.sqlite", "sqlite:///two.sqlite"),
    "threads": ("--threads", "1", "2"),
}


def commands(group: Any = None, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in (group or get_command(command_line())).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{name} ")
        else:
            yield f"{before}{name}", command


def with_option(*names: str) -> set[str]:
    return {command for command, found in commands() for parameter in found.params if set(names) & _settings(command, parameter)}


def _settings(command: str, parameter: Any) -> set[str]:
    """Return the options of a parameter. The thread counts that `bench` compares are no setting."""
    return set() if (command, parameter.opts) == ("bench", ["--threads"]) else set(parameter.opts)


@pytest.fixture
def database(tmp_path: Path, machine: DeviceProfile) -> str:
    url = f"sqlite:///{tmp_path / 'cli.sqlite'}"
    with Store(url) as store:
        store.devices.save(machine)
    return url


def test_every_option_that_is_a_setting_reads_its_variable() -> None:
    assert with_option("--db") == {*WITH_DB, "serve"}
    assert with_option("--threads", "--max-threads") == {*WITH_THREADS, "serve", "agent"}
    assert {name.partition(" ")[0] for name, _ in commands()} == COMMANDS.keys()
    for command, found in commands():
        for parameter in found.params:
            for option in OPTIONS.keys() & _settings(command, parameter):
                assert parameter.envvar == OPTIONS[option], (command, option)


@pytest.mark.parametrize("command", WITH_DB)
def test_a_command_uses_the_database_of_the_environment_unless_another_is_given(command: str, database: str) -> None:
    words = [database if word == SOURCE else word for word in (*command.split(), *WITH_DB[command])]
    environment = {"EDGEWISE_DB": "mysql://nowhere/at-all"}
    refused = edgewise(*words, environment=environment)
    assert (refused.returncode, "database: mysql is not supported" in refused.stderr) == (1, True), refused.stderr
    given = edgewise(*words, "--db", "oracle://nowhere/at-all", environment=environment)
    assert (given.returncode, "database: oracle is not supported" in given.stderr) == (1, True), given.stderr


@pytest.mark.parametrize("command", WITH_THREADS)
def test_a_command_uses_the_cores_of_the_environment_unless_others_are_given(command: str, database: str) -> None:
    option, *words = WITH_THREADS[command]
    environment = {"EDGEWISE_DB": database, "EDGEWISE_THREADS": "none"}
    refused = edgewise(command, *words, environment={**environment, "COLUMNS": "200"})
    assert (refused.returncode, "(env var: 'EDGEWISE_THREADS')" in refused.stderr) == (2, True), refused.stderr
    given = edgewise(command, *words, option, "1", environment=environment)
    assert given.returncode == 0, given.stderr


def test_a_plan_takes_the_cores_of_the_environment_for_this_machine_alone(database: str, machine: DeviceProfile) -> None:
    def made(*words: str) -> dict[str, Any]:
        done = edgewise("plan", MODEL, "--dim", "batch=1", "--json", *words, environment=environment)
        return json.loads(done.stdout)["constraints"]

    environment = {"EDGEWISE_DB": database, "EDGEWISE_THREADS": "1"}
    assert made()["max_threads"] == 1
    assert made("--device", machine.fingerprint)["max_threads"] is None


def test_the_database_of_the_environment_is_the_librarys_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEWISE_DB", f"sqlite:///{tmp_path / 'own.sqlite'}")
    with Store():
        assert (tmp_path / "own.sqlite").exists()


@pytest.mark.parametrize("setting", SERVED)
def test_serve_takes_the_command_line_then_the_environment_then_the_default(
    setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    option, of_environment, given = SERVED[setting]
    for name in SERVED:
        monkeypatch.delenv(f"EDGEWISE_{name.upper()}", raising=False)

    def served(*words: str) -> object:
        found: list[Settings] = []
        with monkeypatch.context() as patched:
            patched.setattr("app.http.server.run", lambda _app, settings: found.append(settings))
            patched.setattr("app.logs.configure", lambda: None)
            done = CliRunner().invoke(command_line(["serve"]), ["serve", *words])
        assert done.exit_code == 0, done.output
        return getattr(found[0], setting)

    assert served() == Settings.model_fields[setting].default
    monkeypatch.setenv(f"EDGEWISE_{setting.upper()}", of_environment)
    assert str(served()) == of_environment
    assert str(served(option, given)) == given


def test_a_server_and_its_jobs_run_on_the_settings_of_its_environment_alone(tmp_path: Path, database: str) -> None:
    models, port = servers.write_models(tmp_path), free_port()
    environment = {
        "EDGEWISE_PORT": str(port),
        "EDGEWISE_HOST": "localhost",
        "EDGEWISE_MODELS": str(models),
        "EDGEWISE_DB": database,
        "EDGEWISE_THREADS": "1",
    }
    with servers.ending(servers.launch(tmp_path, models, port, environment)) as server, server.client() as client:
        assert {"digits", "versioned"} <= {model["name"] for model in client.get("/v1/models").json()["models"]}
        asked = {"kind": "trace", "model": "digits", "request": {"dims": {"batch": 1}, "runs": 1}}
        done = wait_for(client, add(client, **asked)["id"])
    with Store(database) as store:
        setup = store.profiles.get(done["result"]["profile_id"]).report.setup
    assert setup.threads == 1


def test_models_are_listed_from_the_folder_of_the_environment_unless_another_is_given(tmp_path: Path) -> None:
    empty = {"EDGEWISE_MODELS": str(tmp_path)}
    assert json.loads(edgewise("models", "--json", environment=empty).stdout) == []
    listed = json.loads(edgewise("models", str(DEMO_MODELS), "--json", environment=empty).stdout)
    assert [model["name"] for model in listed] == ["digits"]
