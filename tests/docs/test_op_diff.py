"""The operator that docs/ops.md adds by a diff passes the generic suites in a copy of the tree with that diff."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
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


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the generic suites need, with the diff applied."""
    copy = tmp_path_factory.mktemp("tree")
    shutil.copy(ROOT / "pyproject.toml", copy)
    for folder in ("kernels", "graph", "tests"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", "app", "browser", "scheduler"))
    (diff,) = re.findall(r"```diff\n(.*?)```", (ROOT / "docs" / "ops.md").read_text(), re.S)
    old, new, hunk, *lines = diff.splitlines()
    assert old == "--- /dev/null"  # the op is one new file
    assert hunk == f"@@ -0,0 +1,{len(lines)} @@"
    assert all(line.startswith("+") for line in lines)
    target = copy / new.removeprefix("+++ b/")
    assert not target.exists()
    target.write_text("".join(f"{line[1:]}\n" for line in lines))
    return copy


def python(tree: Path, *arguments: str) -> str:
    """What Python says in the copy."""
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


def test_operator_is_formatted_as_the_others(tree: Path) -> None:
    file = str(tree / "kernels" / "ops" / "squared_relu.py")
    python(tree, "-m", "ruff", "check", file)
    python(tree, "-m", "ruff", "format", "--check", file)
