"""Machines and containers described in folders, and a cgroup of this machine where the tests may make one."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from graph.budget import model_share_bytes, process_share_bytes
from kernels.confinement import (
    cgroup_memory_bytes,
    cpu_list,
    free_memory_bytes,
    installed_memory_bytes,
    parse_cpu_list,
    read_cpus,
    usable_cores,
    usable_cpus,
    usable_memory_bytes,
)
from tests.machines import GIB, tree


def test_without_a_limit_all_installed_memory_is_usable(tmp_path: Path) -> None:
    root = tree(tmp_path, "0::/", {"memory.max": "max"})
    assert cgroup_memory_bytes(root) is None
    assert usable_memory_bytes(root) == installed_memory_bytes(root) == 16 * GIB


def test_version_2_takes_the_tightest_limit_on_the_way_up(tmp_path: Path) -> None:
    files = {"memory.max": str(9 * GIB), "a/memory.max": str(2 * GIB), "a/b/memory.max": "max", "other/memory.max": "4096"}
    assert usable_memory_bytes(tree(tmp_path, "0::/a/b", files)) == 2 * GIB


def test_version_2_within_a_namespace_of_its_own(tmp_path: Path) -> None:
    assert usable_memory_bytes(tree(tmp_path, "0::/", {"memory.max": str(3 * GIB)})) == 3 * GIB


def test_version_1_is_mounted_by_controller(tmp_path: Path) -> None:
    files = {"memory/memory.limit_in_bytes": str(2**63 - 4096), "memory/docker/x/memory.limit_in_bytes": str(5 * GIB)}
    assert usable_memory_bytes(tree(tmp_path, "9:cpu:/\n4:memory:/docker/x", files)) == 5 * GIB


def test_version_1_of_a_container_that_sees_its_own_group_as_the_top(tmp_path: Path) -> None:
    files = {"memory/memory.limit_in_bytes": str(5 * GIB)}
    assert usable_memory_bytes(tree(tmp_path, "4:memory:/docker/unseen", files)) == 5 * GIB


def test_both_versions_at_once_take_the_least(tmp_path: Path) -> None:
    files = {"memory/memory.limit_in_bytes": str(5 * GIB), "unified/a/memory.max": str(4 * GIB)}
    assert usable_memory_bytes(tree(tmp_path, "4:memory:/\n0::/a", files)) == 4 * GIB


def test_a_limit_above_the_installed_memory_does_not_count(tmp_path: Path) -> None:
    assert usable_memory_bytes(tree(tmp_path, "0::/", {"memory.max": str(64 * GIB)})) == 16 * GIB


def test_parents_in_a_path_do_not_leave_the_mount(tmp_path: Path) -> None:
    files = {"memory.max": str(7 * GIB)}
    (tmp_path / "sys/fs/memory.max").parent.mkdir(parents=True)
    (tmp_path / "sys/fs/memory.max").write_text("4096")
    assert usable_memory_bytes(tree(tmp_path, "0::/../..", files)) == 7 * GIB


def test_without_proc_the_library_tells_the_installed_memory(tmp_path: Path) -> None:
    assert installed_memory_bytes(tmp_path) == pytest.approx(installed_memory_bytes(), rel=0.05)


def test_the_address_space_is_a_limit_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (GIB, resource.RLIM_INFINITY))
    assert usable_memory_bytes(tree(tmp_path, "0::/", {"memory.max": str(3 * GIB)})) == GIB


def test_shares_of_the_usable_memory() -> None:
    assert model_share_bytes(16 * GIB) == 8 * GIB
    assert process_share_bytes(16 * GIB) == 12 * GIB
    assert 0 < model_share_bytes() < process_share_bytes() < usable_memory_bytes()


def allow(monkeypatch: pytest.MonkeyPatch, cpus: str) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(parse_cpu_list(cpus)), raising=False)


SMT = ("0,4", "1,5", "2,6", "3,7")  # four cores of two threads each, numbered as Linux does on x86


@pytest.mark.parametrize(
    ("affinity", "cores", "cpus"),
    [("0-7", 4, 8), ("0-3", 4, 4), ("0,4", 1, 2), ("0-1", 2, 2), ("3", 1, 1), ("0-2,4", 3, 4)],
)
def test_cores_are_those_of_the_allowed_cpus(tmp_path, monkeypatch, affinity, cores, cpus) -> None:
    root = tree(tmp_path, "0::/", {}, cores=SMT)
    allow(monkeypatch, affinity)
    assert (usable_cores(root), usable_cpus(root)) == (cores, cpus)
    assert str(read_cpus(root)) == f"CPUs {affinity} on {cores} cores"


@pytest.mark.parametrize(
    ("quota", "cores", "cpus"),
    [("max 100000", 4, 8), ("600000 100000", 4, 6), ("250000 100000", 2, 2), ("50000 100000", 1, 1), ("100000 50000", 2, 2)],
)
def test_a_quota_keeps_whole_cpus_busy(tmp_path, monkeypatch, quota, cores, cpus) -> None:
    root = tree(tmp_path, "0::/a/b", {"a/cpu.max": quota, "a/b/cpu.max": "max 100000"}, cores=SMT)
    allow(monkeypatch, "0-7")
    assert (usable_cores(root), usable_cpus(root)) == (cores, cpus)


def test_the_tightest_quota_is_named(tmp_path, monkeypatch) -> None:
    files = {"cpu.max": "700000 100000", "a/cpu.max": "150000 100000", "a/b/cpu.max": "300000 100000"}
    root = tree(tmp_path, "0::/a/b", files, cores=SMT)
    allow(monkeypatch, "0-7")
    assert str(read_cpus(root)) == f"CPUs 0-7 on 4 cores, a quota of 1.5 CPUs ({root}/sys/fs/cgroup/a/cpu.max)"


def test_a_quota_of_version_1(tmp_path, monkeypatch) -> None:
    files = {"cpu,cpuacct/x/cpu.cfs_quota_us": "250000", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"}
    files |= {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"}
    root = tree(tmp_path, "7:memory:/x\n3:cpu,cpuacct:/x", files, cores=SMT)
    allow(monkeypatch, "0-7")
    assert usable_cores(root) == 2


@pytest.mark.parametrize(
    ("cgroups", "file"),
    [
        ("0::/x", "x/cpuset.cpus.effective"),
        ("4:cpuset:/x", "cpuset/x/cpuset.effective_cpus"),
        ("4:cpuset:/x", "cpuset/x/cpuset.cpus"),
        ("4:cpuset:/docker/unseen", "cpuset/cpuset.cpus"),
    ],
)
def test_a_cpuset_limits_the_affinity(tmp_path, monkeypatch, cgroups, file) -> None:
    allow(monkeypatch, "0-7")
    assert read_cpus(tree(tmp_path, cgroups, {file: "0-1,4-5"}, cores=SMT)).allowed == {0, 1, 4, 5}
    assert usable_cores(tmp_path) == 2


def test_a_cpuset_that_says_nothing_of_these_cpus_is_no_limit(tmp_path, monkeypatch) -> None:
    allow(monkeypatch, "0-3")
    assert usable_cores(tree(tmp_path, "0::/", {"cpuset.cpus.effective": "8-11"}, cores=SMT)) == 4


def test_cores_where_the_system_describes_none(tmp_path, monkeypatch) -> None:
    allow(monkeypatch, "0-3")
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 8 if logical else 4)
    assert (usable_cores(tmp_path), usable_cpus(tmp_path)) == (2, 4)


def test_counting_cpus_for_threads_reads_no_topology(tmp_path, monkeypatch) -> None:
    """The pool and the compiler ask often, and a large machine has hundreds of files there."""
    read: list[Path] = []
    plain = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, **how: read.append(path) or plain(path, **how))
    usable_cpus(tree(tmp_path, "0::/", {"cpu.max": "max 100000"}, cores=SMT))
    assert read
    assert not [path for path in read if "devices" in path.parts]


@pytest.mark.parametrize("cpus", ["", "0", "0-3", "0,2,4", "0-1,3-5,9"])
def test_lists_of_cpus_are_written_as_they_are_read(cpus) -> None:
    assert cpu_list(parse_cpu_list(cpus)) == cpus


def test_free_memory_is_what_the_tightest_cgroup_leaves(tmp_path) -> None:
    files = {
        "a/memory.max": str(4 * GIB),
        "a/memory.current": str(3 * GIB),
        "a/memory.stat": f"anon 7\ninactive_file {GIB}",
        "memory.max": str(9 * GIB),
        "memory.current": str(5 * GIB),
    }
    root = tree(tmp_path, "0::/a", files)
    (root / "proc/meminfo").write_text(f"MemTotal: {16 << 20} kB\nMemAvailable: {8 << 20} kB\n")
    assert free_memory_bytes(root) == 2 * GIB
    (root / "sys/fs/cgroup/a/memory.current").write_text(str(6 * GIB))
    assert free_memory_bytes(root) == 0


def test_free_memory_of_version_1_and_without_limits(tmp_path) -> None:
    files = {"memory/x/memory.limit_in_bytes": str(3 * GIB), "memory/x/memory.usage_in_bytes": str(GIB)}
    root = tree(tmp_path, "4:memory:/x", files)
    (root / "proc/meminfo").write_text(f"MemTotal: {16 << 20} kB\nMemAvailable: {8 << 20} kB\n")
    assert free_memory_bytes(root) == 2 * GIB
    (root / "proc/self/cgroup").write_text("")
    assert free_memory_bytes(root) == 8 * GIB


@contextlib.contextmanager
def real_cgroup() -> Iterator[Path]:
    """Make a cgroup of this machine with a quota of half a CPU; skip where that is not allowed."""
    base = Path("/sys/fs/cgroup")
    version_1 = (base / "cpu").is_dir()
    folder = (base / "cpu" if version_1 else base) / f"edgewise-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        try:
            if version_1:
                (folder / "cpu.cfs_period_us").write_text("100000")
                (folder / "cpu.cfs_quota_us").write_text("50000")
            else:
                (folder / "cpu.max").write_text("50000 100000")
        except OSError as error:
            pytest.skip(f"the cgroup takes no quota: {error}")
        yield folder
    finally:
        folder.rmdir()


def test_a_real_cgroup_limits_a_process() -> None:
    code = (
        "import json, sys; from pathlib import Path; Path(sys.argv[1], 'cgroup.procs').write_text('0'); "
        "from kernels.confinement import read_cpus; cpus = read_cpus(); "
        "from scheduler.session import Session; session = Session('app/demo/models/digits.onnx'); "
        "print(json.dumps([cpus.quota.cpus, cpus.usable, cpus.usable_cores, session.threads]))"
    )
    with real_cgroup() as folder:
        done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [0.5, 1, 1, 1]
