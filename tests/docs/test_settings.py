"""Every environment variable that the code reads is in the one table of settings."""

import re
from pathlib import Path

from app.settings import DEVELOPMENT, Settings, knobs

ROOT = Path(__file__).parents[2]
PRODUCT = ("app", "scheduler", "profiler", "graph", "kernels", "migrations")
NAME = re.compile(r"\bEDGEWISE_[A-Z0-9_]+\b")


def named_in(*folders: str) -> set[str]:
    """Return the environment variables that the Python files of these folders name."""
    files = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return {name for path in files for name in NAME.findall(path.read_text(encoding="utf-8"))}


def test_every_variable_of_the_product_is_a_knob() -> None:
    known = {name for name, *_ in knobs()}
    assert named_in(*PRODUCT) - known - DEVELOPMENT.keys() == set()


def test_every_variable_outside_the_settings_is_read() -> None:
    outside = {name for name, *_ in knobs()} - {f"EDGEWISE_{name.upper()}" for name in Settings.model_fields}
    assert outside - set(NAME.findall(_sources_but_settings())) == set()


def test_every_variable_of_tests_and_benchmarks_is_listed() -> None:
    known = {name for name, *_ in knobs()} | DEVELOPMENT.keys()
    assert named_in("tests", "bench", "docs", "examples") - known == set()
    assert DEVELOPMENT.keys() - named_in("tests", "bench") == set()


def _sources_but_settings() -> str:
    files = [path for folder in PRODUCT for path in (ROOT / folder).rglob("*.py") if path.name != "settings.py"]
    return "\n".join(path.read_text(encoding="utf-8") for path in files)
