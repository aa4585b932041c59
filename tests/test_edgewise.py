"""`import edgewise` shows the public names, loads little, and never imports a user's files that have our packages' names."""

import inspect
import json
import os
import pydoc
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import edgewise
from app.settings import DEMO_MODELS

ROOT = Path(__file__).parents[1]
MODEL = str(DEMO_MODELS / "digits.onnx")
PUBLIC = ["EdgewiseError", "Session", "TuneProgress", "__version__", "device", "plan", "profile", "tune"]
OURS = ["app", "scheduler", "profiler", "graph", "kernels", "migrations"]
CALLED = ["Session", "device", "plan", "profile", "tune"]


def python(*arguments: str, folder: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run Python with these arguments in that folder, in which it looks for modules first. Return its output and exit code."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EDGEWISE_")}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**kept, "PYTHONPATH": str(ROOT), "XDG_DATA_HOME": str(folder), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """Make a folder with a user's files that have the names of our packages. Importing one of them raises RuntimeError."""
    for name in OURS:
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('the user\\'s own {name}.py was imported')\n")
    return tmp_path


def test_dir_shows_the_public_names_alone() -> None:
    assert dir(edgewise) == sorted(edgewise.__all__) == PUBLIC
    with pytest.raises(AttributeError, match="no attribute 'quantise', it has EdgewiseError, Session"):
        _ = edgewise.quantise


def test_help_shows_every_public_name_and_nothing_else() -> None:
    text = pydoc.render_doc(edgewise, renderer=pydoc.plaintext)  # type: ignore[attr-defined]  # typeshed lacks it
    shown = {line.split("(")[0].split()[-1] for line in text.splitlines() if line.startswith(("    class ", "    def "))}
    shown |= {line.strip().split("(")[0] for line in text.partition("FUNCTIONS\n")[2].splitlines() if line[4:5].strip()}
    assert {*PUBLIC} - {"__version__"} <= shown
    for name in CALLED:
        assert inspect.getdoc(getattr(edgewise, name)).splitlines()[0] in text


@pytest.mark.parametrize("name", CALLED)
def test_a_public_docstring_names_every_argument_and_error(name: str) -> None:
    found = getattr(edgewise, name)
    text = inspect.getdoc(found) or ""
    assert [part for part in ("Args:", "Raises:") if part not in text] == []
    assert [argument for argument in inspect.signature(found).parameters if f"{argument}:" not in text] == []


def test_importing_loads_neither_a_database_library_nor_an_onnx_reader(tmp_path: Path) -> None:
    code = "import sys; before = {*sys.modules}; import edgewise; print(*{*sys.modules} - before)"
    loaded = python("-c", code, folder=tmp_path).stdout.split()
    assert {name.partition(".")[0] for name in loaded} - {*sys.stdlib_module_names} == {"edgewise", *OURS}
    assert "typing" not in loaded


LIBRARY = f"""
import numpy as np
import edgewise
counts = edgewise.profile({MODEL!r}, dims={{"batch": 1}})
session = edgewise.Session({MODEL!r}, threads=1)
outputs = session.run({{"image": np.zeros((1, 1, 8, 8), np.float32)}})
print(counts.macs, sorted(outputs))
"""
PLANNING = f"""
import edgewise
from scheduler.local import local_device
from scheduler.store import Store

db = "sqlite:///own.sqlite"
with Store(db) as store:
    local_device(store, 0.3)
planned = edgewise.plan({MODEL!r}, dims={{"batch": 1}}, db=db)
tuned = edgewise.tune({MODEL!r}, budget_s=1, dims={{"batch": 1}}, threads=1, db=db)
print(len(planned.steps) == len(tuned.steps))
"""


@pytest.mark.parametrize("as_script", [True, False], ids=["script", "-c"])
def test_the_library_counts_and_runs_beside_files_of_our_names(workplace: Path, as_script: bool) -> None:
    (workplace / "work.py").write_text(LIBRARY)
    done = python(*(["work.py"] if as_script else ["-c", LIBRARY]), folder=workplace)
    assert (done.returncode, done.stdout) == (0, "452864 ['digit', 'probabilities']\n"), done.stderr


def test_the_library_plans_and_tunes_beside_files_of_our_names(workplace: Path) -> None:
    (workplace / "work.py").write_text(PLANNING)
    done = python("work.py", folder=workplace)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


@pytest.fixture
def script(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write the console script that an installer makes from `pyproject.toml`, and return its path."""
    target = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]["edgewise"]
    module, function = target.split(":")
    file = tmp_path_factory.mktemp("bin") / "edgewise"
    file.write_text(f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    return str(file)


@pytest.mark.parametrize("installed", [True, False], ids=["console script", "-m"])
def test_the_command_line_works_beside_files_of_our_names(workplace: Path, script: str, installed: bool) -> None:
    before = (script,) if installed else ("-m", "edgewise")
    path = os.pathsep.join((str(workplace), str(ROOT)))  # a console script's own folder comes first: the user's by this alone
    for arguments in (["run", MODEL, "--runs", "1", "--json"], ["keys", "list", "--db", "sqlite:///own.sqlite", "--json"]):
        done = python(*before, *arguments, folder=workplace, PYTHONPATH=path)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)


@pytest.mark.parametrize("name", OURS)
def test_a_module_that_hides_ours_is_named_in_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.py").write_text("")
    done = python("-c", f"import {name}\nimport edgewise", folder=tmp_path)
    said = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert said.startswith(
        f"ImportError: edgewise: the module '{name}' imported from {tmp_path / name}.py hides Edgewise's package of that name, "
        "rename it"
    )


def test_a_folder_that_hides_ours_is_named_too(tmp_path: Path) -> None:
    (tmp_path / "graph").mkdir()
    (tmp_path / "graph" / "__init__.py").write_text("")
    done = python("-c", "import graph\nimport edgewise", folder=tmp_path)
    assert f"the module 'graph' imported from {tmp_path / 'graph' / '__init__.py'} hides" in done.stderr


def test_our_own_packages_may_be_imported_first(tmp_path: Path) -> None:
    done = python("-c", "import kernels.spec, graph.ir, edgewise; print(edgewise.Session)", folder=tmp_path)
    assert done.stdout == "<class 'scheduler.session.Session'>\n", done.stderr
