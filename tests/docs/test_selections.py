"""The selections of `make` name files that exist, and the general ones name tests of every folder but the browser's."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SLOW = {"browser", "conformance", "docs"}  # starting a browser, running all of ONNX's cases, running examples


def selected(name: str) -> list[str]:
    return (ROOT / "tests" / name).read_text().split()


@pytest.mark.parametrize("name", ["attack.txt", "fast.txt", "smoke.txt"])
def test_selection_names_what_exists(name: str) -> None:
    named = selected(name)
    assert named == sorted(set(named))
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("name", ["fast.txt", "smoke.txt"])
def test_selection_has_tests_of_every_folder(name: str) -> None:
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/__init__.py")}
    assert folders - SLOW - {Path(path).parts[1] for path in selected(name)} == set()
