"""What all tests share: one cache of compiled code, and one measurement of this machine for all processes of a session."""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from kernels.native.code.folder import FOLDER
from profiler.device.profile import DeviceProfile, probe
from profiler.device.quiet import WHEN_BUSY


def pytest_configure(config: pytest.Config) -> None:
    """Keep compiled code under .pytest_cache, so that tests neither need nor fill the user's own cache.

    Later tests, processes and sessions use the code that an earlier one compiled. Remove the folder to compile everything anew.
    The machine is never quiet while tests run side by side: times are stored all the same, unless a test asks for another way.
    What tests leave in the user's state directory, such as that a database held keys, is removed with the session.
    """
    if FOLDER not in os.environ:
        os.environ[FOLDER] = str(config.rootpath / ".pytest_cache" / "code")
    os.environ[WHEN_BUSY] = "store"
    if "PYTEST_XDIST_WORKER" not in os.environ:  # workers take the one of the process that starts them
        state = tempfile.mkdtemp(prefix="edgewise-state-")
        os.environ["XDG_STATE_HOME"] = state
        config.add_cleanup(lambda: shutil.rmtree(state))


@pytest.fixture(scope="session")
def this_machine(tmp_path_factory: pytest.TempPathFactory) -> DeviceProfile:
    """Return this machine's profile. It is measured once for all processes of a session, since this takes 10 s on every core."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    measured = Path(shared, "machine.json")
    with Path(shared, "machine.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not measured.exists():
            measured.write_text(probe(0.3).to_json())
    return DeviceProfile.from_json(measured.read_text())
