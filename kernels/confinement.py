"""How much of the machine this process may use: CPUs by affinity, cpuset and quota, cores of these CPUs, and memory.

A container is limited by its cgroups (v1 or v2), a process by its affinity and `ulimit`. Every thread count and every budget of
memory comes from here. Limits may change while a process runs, so they are read anew each time. Linux is read from /proc and /sys
below `root`, so that a test can describe any machine there.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from kernels.record import record

ROOT = Path("/")
UNLIMITED_BYTES = 1 << 60  # cgroup v1 says "no limit" with a number near 2^63
_CPUSETS = ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus")


@record
class Quota:
    """CPU seconds that a cgroup's processes may take each second, and the file that says so."""

    cpus: float
    source: Path


@record
class Cpus:
    """The CPUs of this process. allowed: logical CPUs by affinity and cpuset. cores: physical cores that these belong to.

    quota: the tightest of its cgroups; None = none.
    """

    allowed: frozenset[int]
    cores: int
    quota: Quota | None

    @property
    def usable(self) -> int:
        """Logical CPUs that it can keep busy, at least one: more threads would take turns."""
        return _whole(len(self.allowed), self.quota)

    @property
    def usable_cores(self) -> int:
        """Physical cores that it can keep busy, at least one: the default thread count of a run."""
        return _whole(self.cores, self.quota)

    def __str__(self) -> str:
        """Say what limits it."""
        text = f"CPUs {cpu_list(self.allowed)} on {self.cores} cores"
        return text if self.quota is None else f"{text}, a quota of {self.quota.cpus:g} CPUs ({self.quota.source})"


def within_quota(count: int, quota_cpus: float | None) -> int:
    """Return how many of so many CPUs or cores a quota keeps busy: the whole ones, at least one."""
    return max(1, count if quota_cpus is None else min(count, math.floor(quota_cpus)))


def read_cpus(root: Path = ROOT) -> Cpus:
    """Return the CPUs that this process may use."""
    allowed = allowed_cpus(root)
    return Cpus(allowed, _cores(allowed, root), cpu_quota(root))


def usable_cpus(root: Path = ROOT) -> int:
    """Return the number of logical CPUs that this process can keep busy, at least one."""
    return _whole(len(allowed_cpus(root)), cpu_quota(root))


def usable_cores(root: Path = ROOT) -> int:
    """Return the number of physical cores that this process can keep busy, at least one."""
    return read_cpus(root).usable_cores


def allowed_cpus(root: Path = ROOT) -> frozenset[int]:
    """Return the logical CPUs that this process may run on: its affinity, within the cpuset of its cgroup."""
    affinity = frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset(range(os.cpu_count() or 1))
    for folder in cgroup_folders(root, "cpuset"):
        for name in _CPUSETS:
            if text := read_text(folder / name):
                return affinity & parse_cpu_list(text) or affinity
    return affinity


def cpu_quota(root: Path = ROOT) -> Quota | None:
    """Return the tightest CPU quota (v1 or v2) from this process' own cgroup upwards; None where there is none."""
    quotas = []
    for folder in cgroup_folders(root, "cpu"):
        if (limit := read_text(folder / "cpu.max")) and not limit.startswith("max"):
            quota, period = limit.split()[:2]
            quotas.append(Quota(int(quota) / int(period), folder / "cpu.max"))
        quota_us, period_us = read_integer(folder / "cpu.cfs_quota_us"), read_integer(folder / "cpu.cfs_period_us")
        if quota_us and period_us and quota_us > 0:
            quotas.append(Quota(quota_us / period_us, folder / "cpu.cfs_quota_us"))
    return min(quotas, key=lambda quota: quota.cpus, default=None)


def core_of(cpu: int, root: Path = ROOT) -> object:
    """Return a value that is equal for two logical CPUs of one core. Without topology each CPU is its own core."""
    folder = _cpus_folder(root) / f"cpu{cpu}/topology"
    siblings = read_text(folder / "core_cpus_list") or read_text(folder / "thread_siblings_list")
    return parse_cpu_list(siblings) if siblings else cpu


def online_cpus(root: Path = ROOT) -> tuple[int, ...]:
    """Return the logical CPUs that are online and described in /sys, in order; none outside Linux."""
    online = read_text(_cpus_folder(root) / "online")
    return tuple(cpu for cpu in sorted(parse_cpu_list(online or "")) if (_cpus_folder(root) / f"cpu{cpu}").is_dir())


def parse_cpu_list(text: str) -> frozenset[int]:
    """CPU numbers of a kernel list such as "0-3,8": {0, 1, 2, 3, 8}."""
    cpus: set[int] = set()
    for part in text.replace("\n", "").split(","):
        if part:
            first, _, last = part.partition("-")
            cpus.update(range(int(first), int(last or first) + 1))
    return frozenset(cpus)


def cpu_list(cpus: Iterable[int]) -> str:
    """Write CPU numbers as the kernel does: {0, 1, 2, 3, 8} is "0-3,8"."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def usable_memory_bytes(root: Path = ROOT) -> int:
    """Return the bytes that this process may use before the system refuses memory or ends it."""
    limits = [installed_memory_bytes(root), cgroup_memory_bytes(root), address_space_bytes()]
    return min(limit for limit in limits if limit is not None)


def free_memory_bytes(root: Path = ROOT) -> int:
    """Return the bytes that this process can take now: the machine's available memory, or what its cgroups have left if less."""
    available = _meminfo("MemAvailable", root)
    if available is None:
        import psutil  # noqa: PLC0415  of systems that are not Linux

        available = int(psutil.virtual_memory().available)
    left = [free for folder in cgroup_folders(root, "memory") if (free := _left_bytes(folder)) is not None]
    return max(0, min([available, *left]))


def installed_memory_bytes(root: Path = ROOT) -> int:
    """Return the memory of the machine, from /proc/meminfo or the C library."""
    if (installed := _meminfo("MemTotal", root)) is not None:
        return installed
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    import psutil  # noqa: PLC0415  of systems that are not Unix alone

    return int(psutil.virtual_memory().total)


def cgroup_memory_bytes(root: Path = ROOT) -> int | None:
    """Return the tightest memory limit (v1 or v2) from this process' own cgroup upwards; None where there is none."""
    found = [limit for folder in cgroup_folders(root, "memory") if (limit := _limit_bytes(folder)) is not None]
    return min(found, default=None)


def address_space_bytes() -> int | None:
    """Return the soft limit on the size of this process' address space (`ulimit -v`); None where there is none."""
    try:
        import resource  # noqa: PLC0415  Unix alone has it
    except ImportError:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def cgroup_folders(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders whose limits bind this process for a controller, from its own group up to the mount point."""
    base = root / "sys/fs/cgroup"
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mounts = [base, base / "unified"]
        elif controller in controllers.split(","):
            mounts = [base / controllers, base / controller]
        else:
            continue
        parts = [part for part in path.split("/") if part and part != ".."]
        for mount in mounts:
            for depth in range(len(parts), -1, -1):
                yield mount.joinpath(*parts[:depth])


def read_text(path: Path) -> str | None:
    """Return the content of a small file; None where the kernel does not offer it."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").replace("\0", "").strip() or None
    except OSError:
        return None


def read_integer(path: Path) -> int | None:
    """Return the number in a small file; None where there is no such file, or another text such as "max" in it."""
    text = read_text(path)
    return int(text) if text is not None and text.lstrip("-").isdigit() else None


def _whole(count: int, quota: Quota | None) -> int:
    return within_quota(count, None if quota is None else quota.cpus)


def _cpus_folder(root: Path) -> Path:
    return root / "sys/devices/system/cpu"


def _cores(allowed: frozenset[int], root: Path) -> int:
    """Return how many physical cores these logical CPUs belong to."""
    if online_cpus(root):
        return len({core_of(cpu, root) for cpu in allowed})
    import psutil  # noqa: PLC0415  of systems that describe no topology in /sys

    logical, physical = psutil.cpu_count(logical=True) or 1, psutil.cpu_count(logical=False) or 1
    return math.ceil(len(allowed) * min(1.0, physical / logical))


def _meminfo(name: str, root: Path) -> int | None:
    """Return a value of /proc/meminfo in bytes."""
    for line in (read_text(root / "proc/meminfo") or "").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    return None


def _limit_bytes(folder: Path) -> int | None:
    """Return a cgroup's memory limit; None if it has none."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        if (limit := read_integer(folder / name)) is not None and 0 < limit < UNLIMITED_BYTES:
            return limit
    return None


def _left_bytes(folder: Path) -> int | None:
    """Return what a cgroup's limit leaves. Pages of files that are in no active use can be dropped, and count as left."""
    limit = _limit_bytes(folder)
    for name, dropped in (("memory.current", "inactive_file"), ("memory.usage_in_bytes", "total_inactive_file")):
        if limit is not None and (used := read_integer(folder / name)) is not None:
            lines = (read_text(folder / "memory.stat") or "").splitlines()
            return limit - used + sum(int(line.split()[1]) for line in lines if line.split()[0] == dropped)
    return limit
