"""Every script in examples/ runs and prints the expected result."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from app.settings import DEMO_MODELS, Settings
from bench.local import serving
from profiler.device.profile import DeviceProfile
from scheduler.store import Store

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
STANDALONE = {  # script: arguments, and a line that its output holds
    "profile_model.py": ([], "parameters"),
    "sweep_batch.py": ([], "peak bytes"),
    "run_session.py": ([], "the digit is 7"),
    "plan_and_explain.py": ([], "chosen"),
    "tune_with_budget.py": (["0.5"], "candidates"),
}
ASKING = {"call_http.py": "the digit is 7", "call_http.sh": '"plan_id"'}


@pytest.fixture
def database(tmp_path: Path, this_machine: DeviceProfile) -> str:
    """Return the URL of a database that holds this machine's profile, so that no script measures it again."""
    url = f"sqlite:///{tmp_path / 'examples.db'}"
    with Store(url) as store:
        store.devices.save(this_machine)
    return url


def output(name: str, arguments: list[str], environment: dict[str, str]) -> str:
    """Run a script and return its output. The test fails if the script does."""
    program = sys.executable if name.endswith(".py") else "sh"
    done = subprocess.run(
        [program, str(EXAMPLES / name), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", STANDALONE)
def test_example_runs(name: str, database: str) -> None:
    arguments, says = STANDALONE[name]
    assert says in output(name, arguments, {"EDGEWISE_DB": database})


def test_examples_ask_a_service(database: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    with serving(Settings(models=DEMO_MODELS, db=database)) as client:
        for name, says in ASKING.items():
            assert says in output(name, [str(client.base_url).rstrip("/")], {}), name


def test_every_example_is_listed_and_run() -> None:
    scripts = {path.name for path in EXAMPLES.iterdir() if path.suffix in {".py", ".sh"}}
    assert scripts == STANDALONE.keys() | ASKING.keys()
    listed = (EXAMPLES / "README.md").read_text()
    assert [name for name in sorted(scripts) if f"({name})" not in listed] == []
