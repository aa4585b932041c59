"""How much memory this process may use: the least of the installed memory, the limits of its cgroups, and RLIMIT_AS.

Linux is read from /proc and /sys below `root`, so that a test can describe any machine there. The budgets of models
(`graph.budget`) are shares of this number.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
UNLIMITED_BYTES = 1 << 60  # cgroup v1 says "no limit" with a number near 2^63


def usable_memory_bytes(root: Path = ROOT) -> int:
    """Return the bytes that this process may use before the system refuses memory or ends it. root: has its /proc and /sys."""
    limits = [installed_memory_bytes(root), cgroup_memory_bytes(root), _address_space_bytes()]
    return min(limit for limit in limits if limit is not None)


def installed_memory_bytes(root: Path = ROOT) -> int:
    """Return the memory of the machine, from /proc/meminfo or the C library."""
    for line in (read_text(root / "proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) << 10
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    import psutil  # noqa: PLC0415  of systems that are not Unix alone

    return int(psutil.virtual_memory().total)


def cgroup_memory_bytes(root: Path = ROOT) -> int | None:
    """Return the tightest memory limit (v1 or v2) from this process' own cgroup upwards; None where there is none."""
    found = [
        value
        for folder in cgroup_folders(root, "memory")
        for name in ("memory.max", "memory.limit_in_bytes")
        if (value := read_integer(folder / name)) is not None and 0 < value < UNLIMITED_BYTES
    ]
    return min(found, default=None)


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


def _address_space_bytes() -> int | None:
    """Return the soft limit on the size of this process' address space (`ulimit -v`); None where there is none."""
    try:
        import resource  # noqa: PLC0415  Unix alone has it
    except ImportError:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft
