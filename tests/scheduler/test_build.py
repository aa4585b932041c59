from __future__ import annotations

import kernels.registry
from scheduler.build import Build, current_build, source_hash

SOURCES = {
    "kernels.ops.a": "from kernels.ops import shared\n",
    "kernels.ops.b": "import kernels.cost\n",
    "kernels.ops.shared": "from kernels.ops.deep import f\n",
    "kernels.ops.deep": "def f(): ...\n",
}


def test_kernel_hash_changes_with_its_own_source():
    edited = {**SOURCES, "kernels.ops.b": "import kernels.cost  # faster\n"}
    assert source_hash("kernels.ops.b", edited) != source_hash("kernels.ops.b", SOURCES)


def test_kernel_hash_is_untouched_by_another_ops_source():
    edited = {**SOURCES, "kernels.ops.b": "import kernels.cost  # faster\n"}
    assert source_hash("kernels.ops.a", edited) == source_hash("kernels.ops.a", SOURCES)


def test_kernel_hash_follows_imports():
    edited = {**SOURCES, "kernels.ops.deep": "def f(): return 1\n"}
    assert source_hash("kernels.ops.a", edited) != source_hash("kernels.ops.a", SOURCES)


def test_kernel_hash_ignores_line_ends():
    windows = {name: source.replace("\n", "\r\n") for name, source in SOURCES.items()}
    assert source_hash("kernels.ops.a", windows) == source_hash("kernels.ops.a", SOURCES)


def test_current_build_knows_every_operator():
    assert set(current_build().kernels) == set(kernels.registry.operators())


def test_current_build_tells_ops_of_different_files_apart():
    build = current_build()
    assert build.kernel_source("Softmax") != build.kernel_source("Conv")
    assert build.kernel_source("Softmax") == build.kernel_source("LogSoftmax")


def test_control_flow_has_no_kernel_source():
    assert current_build().kernel_source("Loop") == ""


def test_kernel_source_of_fused_ops_changes_with_each_of_them():
    build = Build("b", {"Conv": "c1", "Relu": "r1"})
    sources = {build.kernel_source(op) for op in ("Conv", "Conv+Relu")}
    sources.add(Build("b", {"Conv": "c1", "Relu": "r2"}).kernel_source("Conv+Relu"))
    sources.add(Build("b", {"Conv": "c2", "Relu": "r1"}).kernel_source("Conv+Relu"))
    assert len(sources) == 4
