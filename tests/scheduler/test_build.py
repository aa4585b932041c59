from __future__ import annotations

import subprocess
import sys

import pytest

import kernels.registry
from scheduler import build
from scheduler.build import Build, build_of, current_build

SOURCES = {
    "kernels.ops.a": "from kernels.ops import shared\n",
    "kernels.ops.b": "import kernels.cost\n",
    "kernels.ops.shared": "from kernels.ops.deep import f\n",
    "kernels.ops.deep": "def f(): ...\n",
    "kernels.cost": "",
    "kernels.native.emit.builder": "",
    "kernels.native.tiles": "from kernels.native.emit import builder\n",
    "graph.run.executor": "import graph.native.rules.table\nimport kernels.native.emit.builder\n",
    "graph.native.rules.table": "from graph.native import products\n",
    "graph.native.products": "from kernels.native.tiles import emit\nfrom kernels.ops.b import infer\n",
}
HOMES = {"A": ("kernels.ops.a", ""), "B": ("kernels.ops.b", "graph.native.products")}


def changed(module: str, sources: dict[str, str] = SOURCES) -> set[str]:
    """Return what an edit of one module makes stale: names of ops, and "engine" if the build changes."""
    before = build_of("v", SOURCES, HOMES)
    after = build_of("v", {**sources, module: sources[module] + "# faster\n"}, HOMES)
    ops = {op for op in HOMES if after.kernel_source(op) != before.kernel_source(op)}
    return ops | ({"engine"} if after.id != before.id else set())


@pytest.mark.parametrize(
    ("module", "stale"),
    [
        ("kernels.ops.b", {"B"}),
        ("kernels.ops.a", {"A"}),
        ("kernels.ops.deep", {"A"}),
        ("kernels.cost", {"engine"}),
        ("kernels.native.emit.builder", {"engine"}),
        ("kernels.native.tiles", {"B"}),
        ("graph.native.products", {"B"}),
        ("graph.native.rules.table", {"engine"}),
        ("graph.run.executor", {"engine"}),
    ],
)
def test_editing_a_module_makes_stale_what_depends_on_it(module, stale):
    assert changed(module) == stale


def test_line_ends_change_nothing():
    windows = {name: source.replace("\n", "\r\n") for name, source in SOURCES.items()}
    assert build_of("v", windows, HOMES) == build_of("v", SOURCES, HOMES)


def test_families_of_native_kernels_are_not_of_the_engine():
    build = current_build()
    assert build.kernel_source("Conv") != build.kernel_source("ConvTranspose")
    assert build.kernel_source("MaxPool") != build.kernel_source("LpPool")


def test_current_build_knows_every_operator():
    assert set(current_build().kernels) == set(kernels.registry.operators())


def test_current_build_tells_ops_of_different_files_apart():
    build = current_build()
    assert build.kernel_source("Softmax") != build.kernel_source("Conv")
    assert build.kernel_source("Softmax") == build.kernel_source("LogSoftmax")


def test_editing_how_an_operator_is_expressed_makes_its_file_alone_stale(monkeypatch):
    edited, source_of, before = "kernels.ops.activations", build._source, current_build()

    def source(module: str) -> str:
        return source_of(module).replace('draft("relu", x)', 'draft("elu", x)') if module == edited else source_of(module)

    monkeypatch.setattr(build, "_source", source)
    after = build._read_build.__wrapped__()
    stale = {op for op in before.kernels if before.kernels[op] != after.kernels[op]}
    assert after.id == before.id
    assert {"Relu", "Swish"} <= stale
    others = {"kernels.ops.gated", "kernels.ops.fused_conv"}  # SwiGLU and FusedConv have formulas of that file
    assert {kernels.registry.home(op) for op in stale} == {edited, *others}


def test_control_flow_has_no_kernel_source():
    assert current_build().kernel_source("Loop") == ""


def test_kernel_source_of_fused_ops_changes_with_each_of_them():
    build = Build("b", {"Conv": "c1", "Relu": "r1"})
    sources = {build.kernel_source(op) for op in ("Conv", "Conv+Relu")}
    sources.add(Build("b", {"Conv": "c1", "Relu": "r2"}).kernel_source("Conv+Relu"))
    sources.add(Build("b", {"Conv": "c2", "Relu": "r1"}).kernel_source("Conv+Relu"))
    assert len(sources) == 4


def test_the_build_may_be_asked_for_by_several_threads_at_once():
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from scheduler.build import current_build\n"
        "with ThreadPoolExecutor(8) as pool:\n"
        "    assert len({build.id for build in pool.map(lambda _: current_build(), range(8))}) == 1\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )  # a process that has not read it yet
    assert ran.returncode == 0, ran.stderr
