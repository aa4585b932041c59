"""Modules that everything imports stay light: what they bring into memory is looked at in a process of its own."""

import subprocess
import sys

import pytest

HEAVY = {"llvmlite", "onnx", "pydantic", "sqlalchemy"}


def loaded_by(module: str) -> set[str]:
    """Names of the top-level packages in memory once a fresh process has imported a module."""
    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("module", ["scheduler.errors", "scheduler.strategy", "profiler.errors", "profiler.units"])
def test_leaf_modules_bring_no_heavy_package(module: str) -> None:
    assert not loaded_by(module) & HEAVY


def test_a_session_brings_no_database_and_no_plans() -> None:
    assert not loaded_by("scheduler.session") & {"pydantic", "sqlalchemy"}
