"""What holds for all tests: one cache of compiled code, and one measurement of this machine for the processes of a session."""

import fcntl
import os
from pathlib import Path

import pytest

from kernels.native.code.folder import FOLDER
from profiler.device.profile import DeviceProfile, probe


def pytest_configure(config: pytest.Config) -> None:
    """Keep compiled code under .pytest_cache, so that tests neither need nor fill the user's own cache.

    What was compiled for one test, process or session is not compiled for the next. Remove the folder to begin anew.
    """
    if FOLDER not in os.environ:
        os.environ[FOLDER] = str(config.rootpath / ".pytest_cache" / "code")


@pytest.fixture(scope="session")
def this_machine(tmp_path_factory: pytest.TempPathFactory) -> DeviceProfile:
    """This machine, measured briefly and once for all processes of the session: measuring takes ten seconds of every core."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    measured = Path(shared, "machine.json")
    with Path(shared, "machine.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not measured.exists():
            measured.write_text(probe(0.3).to_json())
    return DeviceProfile.from_json(measured.read_text())
