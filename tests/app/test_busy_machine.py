"""A machine that other work keeps busy: every command that measures says so, stores nothing wrong, and ends in time."""

import json
import subprocess
import time
from pathlib import Path

import pytest

from profiler.device.profile import DeviceProfile
from profiler.device.quiet import Quietness
from scheduler.store import Store
from tests.app.demo import MODEL
from tests.burning import burning
from tests.processes import edgewise
from tests.scheduler.samples import HERE

START_S = 25.0  # for a process to start and to read, bind and lower a model on cores that it shares with four others
WIDE = {"COLUMNS": "500"}
REFUSE = {"EDGEWISE_WHEN_BUSY": "refuse", **WIDE}
SIZE = ("--dim", "batch=256")  # runs that last longer than the scheduler lets a process have a core


@pytest.fixture
def database(tmp_path: Path, machine: DeviceProfile) -> str:
    url = f"sqlite:///{tmp_path / 'busy.sqlite'}"
    quiet = machine.stability.model_copy(update={"quietness": Quietness()})
    with Store(url) as store:
        store.devices.save(machine.model_copy(update={"stability": quiet}))
    return url


def while_burning(*words: str, database: str, budget_s: float) -> "subprocess.CompletedProcess[str]":
    """Run a command while every core is busy. It has to end within twice its budget, besides starting."""
    with burning():
        began_s = time.monotonic()
        done = edgewise(*words, environment={**REFUSE, "EDGEWISE_DB": database})
        assert time.monotonic() - began_s < 2 * budget_s + START_S
    assert "the machine was busy" in done.stderr, done.stdout + done.stderr
    return done


def test_profile_says_so_and_stores_nothing(database: str) -> None:
    done = while_burning("profile", MODEL, *SIZE, "--measure", "--runs", "200", database=database, budget_s=10)
    assert done.returncode == 1
    assert "they are not stored" in done.stderr
    assert "self-check: ok" not in done.stdout
    with Store(database) as store:
        assert store.profiles.page().items == ()


def test_profile_in_json_says_so_too(database: str) -> None:
    done = while_burning("profile", MODEL, *SIZE, "--measure", "--runs", "200", "--json", database=database, budget_s=10)
    assert json.loads(done.stdout)["quietness"]["level"] == "busy"


def test_tune_fails_says_why_and_stores_nothing(database: str) -> None:
    done = while_burning("tune", MODEL, *SIZE, "--budget", "5", database=database, budget_s=5)
    assert done.returncode == 1
    assert "nothing was measured in 5 s" in done.stderr
    with Store(database) as store:
        assert store.plans.page(HERE).items == ()


def test_device_fails_and_keeps_the_profile_that_is_stored(database: str, machine: DeviceProfile) -> None:
    with Store(database) as store:
        before = store.devices.get(machine.fingerprint).profile
    done = while_burning("device", "--seconds", "2", database=database, budget_s=2)
    assert done.returncode == 1
    with Store(database) as store:
        assert store.devices.get(machine.fingerprint).profile == before


def test_what_is_stored_all_the_same_is_marked(database: str) -> None:
    with burning():
        environment = {"EDGEWISE_WHEN_BUSY": "store", "EDGEWISE_DB": database, **WIDE}
        done = edgewise("profile", MODEL, *SIZE, "--measure", "--runs", "200", environment=environment)
    assert "they are stored with this mark" in done.stderr
    with Store(database) as store:
        (kept,) = store.profiles.page().items
        assert store.profiles.get(kept.id).report.quietness.level == "busy"
