"""Modules that many others import load no heavy packages. A new process shows what each of them loads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.settings import DEMO_MODELS

HEAVY = {"llvmlite.binding", "onnx", "pydantic", "sqlalchemy"}


def loaded_by(module: str) -> set[str]:
    """Import a module in a new process and return all modules that this loads."""
    code = f"import sys, {module}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("module", ["scheduler.errors", "scheduler.strategy", "profiler.errors", "profiler.units"])
def test_leaf_modules_bring_no_heavy_package(module: str) -> None:
    assert not loaded_by(module) & HEAVY


def test_a_session_brings_no_heavy_package() -> None:
    assert not loaded_by("scheduler.session") & HEAVY


NEEDLESS = {
    "decimal",
    "email",
    "fractions",
    "importlib.metadata",
    "kernels.cuda",
    "kernels.native.emit.remez",
    "llvmlite.binding",
    "numpy.ma",
    "onnx",
    "platformdirs",
    "profiler.run",
    "pydantic",
    "sqlalchemy",
    "structlog",
    "tempfile",
}
RUN = f"""
import sys
import numpy as np
import edgewise
edgewise.Session({str(DEMO_MODELS / "digits.onnx")!r}, threads=2).run({{"image": np.zeros((1, 1, 8, 8), np.float32)}})
print(*sys.modules)
"""


def test_a_run_whose_code_is_on_disk_imports_only_what_it_needs(tmp_path: Path) -> None:
    environment = {**os.environ, "EDGEWISE_CODE_CACHE": str(tmp_path)}
    first, second = (
        {*subprocess.run([sys.executable, "-c", RUN], env=environment, capture_output=True, text=True, check=True).stdout.split()}
        for _ in range(2)
    )
    assert "llvmlite.binding" in first
    assert sorted(second & NEEDLESS) == []
    files = {name.rpartition(".")[2] for name in second if name.startswith("kernels.ops.")}
    assert {"conv", "gemm"} <= files
    assert not files & {"recurrent", "resize", "attention", "nms", "signal", "quantize", "qlinear", "weight_blocks"}
    assert not second & {"graph.native.rules.recurrent", "graph.native.rules.resize", "graph.native.rules.attention"}
