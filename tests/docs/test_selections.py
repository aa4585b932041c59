"""The selections of `make test-fast` and `make test-smoke` name files that exist, in every folder of tests but the browser's."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SLOW = {"browser", "docs"}  # starting a browser, running examples


@pytest.mark.parametrize("name", ["fast.txt", "smoke.txt"])
def test_selection_names_what_exists_in_every_folder(name: str) -> None:
    named = (ROOT / "tests" / name).read_text().split()
    assert named == sorted(set(named))
    assert [path for path in named if not (ROOT / path).exists()] == []
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/__init__.py")}
    assert folders - SLOW - {Path(path).parts[1] for path in named} == set()
