"""The examples and tables in the documents agree with the code."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from app.cli.main import command_line
from profiler.device.profile import DeviceProfile
from scheduler.store import Store

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "bench" / "README.md",
    ROOT / "examples" / "README.md",
]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_examples_run(page: Path, tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text("\n".join(blocks(page, "python")))
    done = subprocess.run(
        [sys.executable, script],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


WITH_COMMANDS = [page for page in PAGES if re.search(r"^edgewise ", "\n".join(blocks(page, "sh")), re.M)]


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.name)
def test_commands_and_options_exist(page: Path) -> None:
    commands = get_command(command_line()).commands  # type: ignore[attr-defined]
    for line in "\n".join(blocks(page, "sh")).splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] != ["edgewise"]:
            continue
        assert words[1] in commands, line
        command, rest = commands[words[1]], words[2:]
        while rest and hasattr(command, "commands"):
            assert rest[0] in command.commands, line
            command, rest = command.commands[rest[0]], rest[1:]
        known = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line


def test_the_readmes_commands_run_as_pasted(tmp_path: Path, this_machine: DeviceProfile) -> None:
    (pasted,) = (block for block in blocks(ROOT / "README.md", "sh") if ".venv/bin/activate" in block)
    url = f"sqlite:///{tmp_path / 'pasted.sqlite'}"
    with Store(url) as store:
        store.devices.save(this_machine)
    pasted = pasted.replace(". .venv/", f". {sys.prefix}/")  # of this interpreter, wherever that is
    environment = {**os.environ, "HOME": str(tmp_path), "EDGEWISE_DB": url}
    done = subprocess.run(["sh", "-e"], input=pasted, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "macs 452,864" in done.stdout


def links(page: Path) -> list[str]:
    """Return the targets of a page's links within the repository."""
    return [target for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()) if not target.startswith(("http:", "https:"))]


@pytest.mark.parametrize("page", [page for page in PAGES if links(page)], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page):
        assert (page.parent / target).exists(), target


def test_every_page_is_in_the_index() -> None:
    listed = {(ROOT / "docs" / target).resolve() for target in links(ROOT / "docs" / "index.md")}
    pages = {page for page in (ROOT / "docs").glob("*.md") if page.name != "index.md"}
    assert {page.name for page in pages - listed} == set()


def test_decisions_are_numbered_once_and_say_their_number() -> None:
    files = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [int(path.name[:4]) for path in files] == list(range(1, len(files) + 1))
    for path in files:
        assert path.read_text().startswith(f"# {int(path.name[:4])}. "), path.name
