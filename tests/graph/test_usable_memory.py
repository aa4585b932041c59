from __future__ import annotations

import resource
from pathlib import Path

import pytest

from graph.budget import model_share_bytes, process_share_bytes
from graph.usable_memory import cgroup_memory_bytes, installed_memory_bytes, usable_memory_bytes

GIB = 1 << 30


def tree(root: Path, cgroups: str, files: dict[str, str], memory_kib: int = 16 << 20) -> Path:
    """Write /proc and /sys of a machine. cgroups: /proc/self/cgroup. files: below /sys/fs/cgroup."""
    written = {"proc/self/cgroup": cgroups, "proc/meminfo": f"MemFree: 5 kB\nMemTotal: {memory_kib} kB\n"}
    for name, text in (written | {f"sys/fs/cgroup/{name}": text for name, text in files.items()}).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


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
