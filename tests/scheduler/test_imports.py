"""Modules that many others import load no heavy packages. A new process shows what each of them loads."""

import subprocess
import sys

import pytest

HEAVY = {"llvmlite", "onnx", "pydantic", "sqlalchemy"}


def loaded_by(module: str) -> set[str]:
    """Import a module in a new process and return the top-level packages that this loads."""
    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("module", ["scheduler.errors", "scheduler.strategy", "profiler.errors", "profiler.units"])
def test_leaf_modules_bring_no_heavy_package(module: str) -> None:
    assert not loaded_by(module) & HEAVY


def test_a_session_brings_no_heavy_package() -> None:
    assert not loaded_by("scheduler.session") & HEAVY
