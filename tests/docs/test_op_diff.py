"""The operator and the native family that docs/ops.md adds by diffs pass their tests in copies of the tree with these diffs."""

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.kernels.native.conftest import HOST_ISAS

ROOT = Path(__file__).parents[2]
OPERATOR, FAMILY = 0, 1  # the diffs of docs/ops.md, in order
FUSED = """
import numpy as np

import kernels
from graph.ir import Graph, Node, Port
from graph.native.facts import Facts
from graph.native.rules.table import refusal
from graph.passes.optimise import optimise
from kernels.native.target.isa import ISAS
from kernels.registry import find
from kernels.spec import Spec

f32 = np.dtype(np.float32)
nodes = (
    Node("conv", "Conv", ("x", "w"), ("c",), find("Conv").bind({})),
    Node("act", "org.example.SquaredRelu", ("c",), ("y",), find("org.example.SquaredRelu").bind({})),
)
graph = Graph("g", (Port("x", f32, (1, 4, 6, 6)),), (Port("y", f32, None),), nodes, {"w": np.ones((8, 4, 3, 3), np.float32)})
ready = optimise(graph, {"x": Spec((1, 4, 6, 6), f32)})
(node,) = ready.graph.nodes
assert [fused.op for fused in node.epilogue] == ["org.example.SquaredRelu"], node
assert refusal(node, Facts(ready.specs, ready.graph.constants, ISAS["avx2"])) is None
print(kernels.__file__)
"""


def new_files(number: int) -> dict[str, str]:
    """Return the files that a diff of docs/ops.md adds, by path. Assert that it changes no existing file."""
    diffs = re.findall(r"```diff\n(.*?)```", (ROOT / "docs" / "ops.md").read_text(), re.S)
    before, *parts = diffs[number].split("--- /dev/null\n")
    assert not before
    files = {}
    for part in parts:
        new, hunk, *lines = part.splitlines()
        assert hunk == f"@@ -0,0 +1,{len(lines)} @@"
        assert all(line.startswith("+") for line in lines)
        files[new.removeprefix("+++ b/")] = "".join(f"{line[1:]}\n" for line in lines)
    return files


def copy_with(files: Mapping[str, str], copy: Path) -> Path:
    """Copy the part of the tree that the generic suites need, add these files, and return the copy's folder."""
    shutil.copy(ROOT / "pyproject.toml", copy)
    for folder in ("kernels", "graph", "tests"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", "app", "browser", "scheduler"))
    for name, text in files.items():
        assert not (copy / name).exists()
        (copy / name).write_text(text)
    return copy


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the tree with the operator."""
    return copy_with(new_files(OPERATOR), tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the tree with the native family."""
    return copy_with(new_files(FAMILY), tmp_path_factory.mktemp("family"))


def python(tree: Path, *arguments: str) -> str:
    """Run Python in the copy, assert success, and return its output."""
    done = subprocess.run([sys.executable, *arguments], cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_generic_suites_pass_on_the_operator(tree: Path) -> None:
    suites = ("tests/kernels/ops/test_cases.py", "tests/graph/native/test_cases.py")
    said = python(tree, "-m", "pytest", "-n0", "-v", "-p", "no:cacheprovider", "-k", "SquaredRelu", *suites)
    for test in ("kernel_agrees_with_float64", "elementwise_kernel_runs_in_place", "case_runs_natively_as_in_numpy"):
        assert re.search(rf"test_{test}\[.*SquaredRelu.* PASSED", said), said
    assert "SKIPPED" not in said, said


def test_operator_is_fused_behind_a_convolution(tree: Path) -> None:
    assert Path(python(tree, "-c", FUSED).strip()).is_relative_to(tree)


def test_family_takes_two_files() -> None:
    assert list(new_files(FAMILY)) == ["kernels/native/families/trilu.py", "graph/native/rules/trilu.py"]


def test_family_computes_its_operator_natively(family: Path) -> None:
    suites = ("tests/docs/added_family.py", "tests/graph/native/test_cases.py")
    which = "added_family or (runs_natively and Trilu)"
    said = python(family, "-m", "pytest", "-n0", "-v", "-p", "no:cacheprovider", "-k", which, *suites)
    for test in (
        "triangles_are_those_of_numpy",
        "a_segment_holds_it",
        "a_refusal_says_why",
        "case_runs_natively_as_in_numpy",
    ):
        for isa in HOST_ISAS:
            assert re.search(rf"test_{test}.*\b{isa.name}\b.* PASSED", said), said
    assert "SKIPPED" not in said, said


@pytest.mark.parametrize(("copy", "diff"), [("tree", OPERATOR), ("family", FAMILY)], ids=["operator", "family"])
def test_files_are_formatted_as_the_others(copy: str, diff: int, request: pytest.FixtureRequest) -> None:
    where, files = request.getfixturevalue(copy), new_files(diff)
    python(where, "-m", "ruff", "check", *files)
    python(where, "-m", "ruff", "format", "--check", *files)
