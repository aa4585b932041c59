from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.confinement import parse_cpu_list
from profiler.device.topology import (
    Cluster,
    NumaNode,
    core_cpus,
    installed_memory_gib,
    parse_kernel_size,
    read_confinement,
    read_hardware,
)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def cpu_files(number: int, siblings: str, l2: str, capacity: int, l1_kib: int = 32) -> dict[str, str]:
    base = f"sys/devices/system/cpu/cpu{number}"
    return {
        f"{base}/topology/core_cpus_list": siblings,
        f"{base}/topology/physical_package_id": "0",
        f"{base}/cpu_capacity": str(capacity),
        f"{base}/cache/index0/level": "1",
        f"{base}/cache/index0/type": "Data",
        f"{base}/cache/index0/size": f"{l1_kib}K",
        f"{base}/cache/index0/shared_cpu_list": siblings,
        f"{base}/cache/index0/coherency_line_size": "64",
        f"{base}/cache/index0/ways_of_associativity": "8",
        f"{base}/cache/index1/level": "2",
        f"{base}/cache/index1/type": "Unified",
        f"{base}/cache/index1/size": "2M",
        f"{base}/cache/index1/shared_cpu_list": l2,
    }


@pytest.fixture
def hybrid(tmp_path) -> Path:
    """Write the system files of a machine with two slow single-thread cores (CPUs 0, 1) and two fast ones with two threads each.

    The fast cores have the CPUs 2-3 and 4-5. Return the files' root folder.
    """
    files = {"sys/devices/system/cpu/online": "0-5"}
    for number in (0, 1):
        files |= cpu_files(number, str(number), "0-1", 400, l1_kib=16)
    for number, siblings in ((2, "2-3"), (3, "2-3"), (4, "4-5"), (5, "4-5")):
        files |= cpu_files(number, siblings, "2-5", 1024)
    files["proc/cpuinfo"] = "processor : 0\nvendor_id\t: GenuineTest\nmodel name\t: Test(R) CPU @ 1GHz\n\nmodel name : other"
    files["proc/meminfo"] = "MemFree: 1 kB\nMemTotal:       16000000 kB"
    files["sys/devices/system/node/node0/cpulist"] = "0-3"
    files["sys/devices/system/node/node0/meminfo"] = "Node 0 MemTotal:       9000000 kB"
    files["sys/devices/system/node/node1/cpulist"] = "4-5"
    files["sys/devices/system/node/node1/meminfo"] = "Node 1 MemTotal:       7000000 kB"
    return write(tmp_path, files)


def test_hardware_of_a_hybrid_cpu_cores(hybrid):
    found = read_hardware(hybrid)
    assert (found.physical_cores, found.logical_cores) == (4, 6)
    assert found.clusters == (Cluster(cores=2, logical=2, capacity=400), Cluster(cores=2, logical=4, capacity=1024))


def test_hardware_of_a_hybrid_cpu_caches(hybrid):
    caches = [(c.level, c.kind, c.nbytes, c.shared_by, c.instances) for c in read_hardware(hybrid).caches]
    assert caches == [
        (1, "data", 16 << 10, 1, 2),
        (1, "data", 32 << 10, 2, 2),
        (2, "unified", 2 << 20, 2, 1),
        (2, "unified", 2 << 20, 4, 1),
    ]


def test_hardware_names_memory_and_nodes(hybrid):
    found = read_hardware(hybrid)
    assert (found.vendor, found.model) == ("GenuineTest", "Test(R) CPU @ 1GHz")
    assert found.memory_bytes == 16_000_000 << 10
    assert found.numa == (
        NumaNode(node=0, logical=4, memory_bytes=9_000_000 << 10),
        NumaNode(node=1, logical=2, memory_bytes=7_000_000 << 10),
    )


def test_hardware_of_an_arm_board_is_named_by_its_part(tmp_path):
    root = write(
        tmp_path,
        {
            "proc/cpuinfo": "CPU implementer : 0x41\nCPU variant : 0x4\nCPU part : 0xd0c",
            "sys/firmware/devicetree/base/model": "Board 5\0",
        },
    )
    found = read_hardware(root)
    assert found.vendor == "0x41"
    assert found.model == "Board 5 part 0xd0c variant 0x4"


def test_hardware_without_a_system_description_still_has_cores_and_memory(tmp_path):
    found = read_hardware(tmp_path)
    assert found.physical_cores >= 1
    assert found.logical_cores >= found.physical_cores
    assert found.memory_bytes > 0
    assert found.model


def test_hardware_skips_a_cache_the_kernel_describes_by_halves(hybrid):
    (hybrid / "sys/devices/system/cpu/cpu0/cache/index1/size").write_text("")
    assert (2, 2) not in {(c.level, c.shared_by) for c in read_hardware(hybrid).caches if c.instances > 1}


def test_core_cpus_takes_one_of_each_core_the_fast_first(hybrid, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3, 5}, raising=False)
    assert core_cpus(hybrid) == (2, 5, 0, 1)


def test_confinement_takes_the_tightest_cgroup_on_the_way_up(tmp_path):
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/outer/inner",
            "sys/fs/cgroup/outer/inner/cpu.max": "max 100000",
            "sys/fs/cgroup/outer/inner/memory.max": "4000000000",
            "sys/fs/cgroup/outer/cpu.max": "150000 100000",
            "sys/fs/cgroup/outer/memory.max": "max",
            "sys/fs/cgroup/memory.max": "3000000000",
        },
    )
    found = read_confinement(root)
    assert found.cgroup_cpus == 1.5
    assert found.cgroup_memory_bytes == 3_000_000_000


def test_confinement_of_cgroup_version_1(tmp_path):
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/box\n1:cpu,cpuacct:/box",
            "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "50000",
            "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "9223372036854771712",
        },
    )
    found = read_confinement(root)
    assert found.cgroup_cpus == 0.5
    assert found.cgroup_memory_bytes is None


def test_confinement_without_cgroups_is_unlimited(tmp_path):
    found = read_confinement(tmp_path)
    assert found.affinity >= 1
    assert found.cgroup_cpus is None
    assert found.cgroup_memory_bytes is None


def test_confinement_ignores_a_cgroup_path_that_leaves_its_mount(tmp_path):
    root = write(tmp_path / "root", {"proc/self/cgroup": "0::/../../../../outside"})
    write(tmp_path, {"outside/memory.max": "1000"})
    assert read_confinement(root).cgroup_memory_bytes is None


@given(st.sets(st.integers(0, 300)))
def test_parse_cpu_list_inverts_the_kernel_s_form(cpus):
    parts, run = list[Any](), list[Any]()
    for cpu in sorted(cpus):
        if run and cpu == run[-1] + 1:
            run.append(cpu)
        else:
            run = [cpu]
            parts.append(run)
    text = ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
    assert parse_cpu_list(text + "\n") == cpus


@pytest.mark.parametrize(("text", "nbytes"), [("48K", 49152), ("2M", 2 << 20), ("1G", 1 << 30), ("512", 512)])
def test_parse_kernel_size(text, nbytes):
    assert parse_kernel_size(text) == nbytes


@pytest.mark.parametrize(
    ("reported_gib", "installed"), [(15.49, 16), (15.3, 16), (31.2, 32), (0.93, 0.9375), (7.6, 8), (62.7, 64), (125.8, 128)]
)
def test_installed_memory_rounds_up_what_the_kernel_kept(reported_gib, installed):
    assert installed_memory_gib(int(reported_gib * (1 << 30))) == installed
