"""`edgewise --help` imports little, and describes each command as the command's own help does."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from app.cli.main import COMMANDS, command_line
from app.cli.overview import overview
from tests.processes import edgewise

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {  # a module more costs milliseconds: `python -c pass` takes 18, and `--help` may take three times that
    *("edgewise", "app", "app.cli", "app.cli.main", "app.cli.overview", "kernels", "kernels.version"),
    *("graph", "profiler", "scheduler", "migrations"),
    *(
        "__future__",
        "importlib",
        "importlib._abc",
        "importlib._bootstrap",
        "importlib._bootstrap_external",
        "importlib.machinery",
    ),
    *("importlib.util", "contextlib", "collections", "_collections", "functools", "_functools", "itertools", "keyword"),
    *("operator", "_operator", "reprlib", "types", "_types", "warnings"),
}


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_it_imports_few_modules(option: str) -> None:
    code = (
        "import sys; before = {*sys.modules}; sys.argv = ['edgewise', sys.argv[1]]; import edgewise; edgewise._main(); "
        "print(*{*sys.modules} - before, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, option], capture_output=True, text=True, check=True, cwd=ROOT)
    assert {*done.stderr.split()} - MAY_IMPORT == set()


def test_every_command_is_listed_with_its_own_first_sentence() -> None:
    commands = get_command(command_line()).commands  # type: ignore[attr-defined]
    modules = {path.stem: importlib.import_module(f"app.cli.{path.stem}") for path in (ROOT / "app" / "cli").glob("[a-z]*.py")}
    holding = {name for name, module in modules.items() if hasattr(module, "command") or hasattr(module, "group")}
    assert {*COMMANDS} == {*commands} == holding
    for name, command in commands.items():
        assert " ".join(command.help.split("\n\n")[0].split()) == COMMANDS[name]


@pytest.mark.parametrize("width", [20, 44, 80, 200])
def test_it_fits_its_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    lines = overview("A program.", COMMANDS).splitlines()
    assert max(map(len, lines)) == max(width, 44)
    words = " ".join(" ".join(line.strip("│ ") for line in lines).split())
    assert all(f"{name} {meaning}" in words for name, meaning in COMMANDS.items())


def test_it_is_plain_ascii_where_the_terminal_is() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "edgewise", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    assert "+- Commands -" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "Commands"),
        (["--help"], 0, "Commands"),
        (["--help", "run"], 0, "Commands"),
        (["run", "--help"], 0, "edgewise run model.onnx --input x=image.npy"),
        (["keys"], 2, "Create, list and revoke API keys."),
        (["rum"], 2, "No such command 'rum'. Did you mean 'run'?"),
        (["--bogus"], 2, "No such option: --bogus"),
    ],
)
def test_help_and_wrong_calls(arguments: list[str], code: int, says: str) -> None:
    done = edgewise(*arguments)
    assert done.returncode == code
    assert says in done.stdout + done.stderr
    assert "Usage: edgewise " in done.stdout + done.stderr
