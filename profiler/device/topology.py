"""The machine as its operating system describes it: CPU, cores, caches, memory, and how much of it this process may use.

Linux is read from /proc and /sys below `root`, so that a test can describe any machine there; caches that a container hides are
asked of the C library, and what neither tells stays absent. Nothing here is measured: `profiler.device.profile` does that.
"""

from __future__ import annotations

import math
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import psutil
from pydantic import BaseModel, ConfigDict, Field

from kernels.confinement import (
    allowed_cpus,
    cgroup_memory_bytes,
    core_of,
    installed_memory_bytes,
    online_cpus,
    parse_cpu_list,
    read_cpus,
    read_integer,
    read_text,
)
from kernels.native.target.host import host

CacheKind = Literal["data", "instruction", "unified"]
GLIBC_CACHES: tuple[tuple[int, CacheKind, int], ...] = (  # level, kind, glibc's _SC_LEVEL<n>…_SIZE; +1 is ways, +2 line bytes
    (1, "instruction", 185),
    (1, "data", 188),
    (2, "unified", 191),
    (3, "unified", 194),
)


class Record(BaseModel):
    """Base of everything stored: immutable, and unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Cache(Record):
    """One kind of cache. nbytes: of one instance. shared_by: logical CPUs on one instance. instances: how many there are."""

    level: int = Field(ge=1, le=8)
    kind: CacheKind
    nbytes: int = Field(gt=0)
    line_bytes: int | None = None
    ways: int | None = None
    shared_by: int = Field(ge=1)
    instances: int = Field(ge=1)
    source: Literal["sysfs", "sysconf", "sysctl", "entered"]


class Cluster(Record):
    """Cores that are alike and share their outermost cache. capacity: of 1024, Linux' relative speed of the core type."""

    cores: int = Field(ge=1)
    logical: int = Field(ge=1)
    capacity: int | None = None


class NumaNode(Record):
    """One memory node and the number of logical CPUs beside it."""

    node: int = Field(ge=0)
    logical: int = Field(ge=0)
    memory_bytes: int = Field(ge=0)


class Hardware(Record):
    """The hardware and its operating system, which stay the same from boot to boot; the device's fingerprint is a hash of it."""

    vendor: str = Field(max_length=200)
    model: str = Field(max_length=200)
    architecture: str = Field(max_length=50)
    system: str = Field(max_length=50)
    llvm_cpu: str = Field(max_length=100)
    isa: tuple[str, ...] = Field(max_length=1000)
    physical_cores: int = Field(ge=1)
    logical_cores: int = Field(ge=1)
    clusters: tuple[Cluster, ...] = Field(max_length=4096)
    caches: tuple[Cache, ...] = Field(max_length=64)
    memory_bytes: int = Field(gt=0)
    numa: tuple[NumaNode, ...] = Field(max_length=4096)

    def data_cache(self, level: int) -> Cache | None:
        """The cache of that level that holds data, if it is known."""
        return next((c for c in self.caches if c.level == level and c.kind != "instruction"), None)


class Confinement(Record):
    """The limits on this process. None: not limited, or unknown.

    affinity: logical CPUs it may run on. cores: physical cores that these are of; None in profiles of earlier versions.
    cgroup_cpus: CPU seconds a second. cgroup_memory_bytes: before it is killed.
    """

    affinity: int = Field(ge=1)
    cores: int | None = Field(default=None, ge=1)
    cgroup_cpus: float | None = Field(default=None, gt=0)
    cgroup_memory_bytes: int | None = Field(default=None, gt=0)


def read_hardware(root: Path = Path("/")) -> Hardware:
    """Describe this machine. root: the folder that has its /proc and /sys."""
    cpus = _cpu_folders(root)
    vendor, model = _names(root)
    if salt := os.environ.get("EDGEWISE_DEVICE_SALT"):  # for tests: one machine passes for several
        model = f"{model} {salt}"[:200]
    logical = len(cpus) or psutil.cpu_count(logical=True) or 1
    return Hardware(
        vendor=vendor,
        model=model,
        architecture=platform.machine(),
        system=platform.system(),
        llvm_cpu=host().cpu,
        isa=host().features,
        physical_cores=len({core_of(cpu, root) for cpu in online_cpus(root)}) or psutil.cpu_count(logical=False) or logical,
        logical_cores=logical,
        clusters=_clusters(cpus, root),
        caches=_caches(cpus, logical),
        memory_bytes=installed_memory_bytes(root),
        numa=_numa(root),
    )


def read_confinement(root: Path = Path("/")) -> Confinement:
    """Read the limits on this process; see `kernels.confinement`."""
    cpus = read_cpus(root)
    return Confinement(
        affinity=len(cpus.allowed),
        cores=cpus.cores,
        cgroup_cpus=None if cpus.quota is None else cpus.quota.cpus,
        cgroup_memory_bytes=cgroup_memory_bytes(root),
    )


def core_cpus(root: Path = Path("/")) -> tuple[int, ...]:
    """Return one logical CPU of every core that this process may run on, the fastest core types first, to pin threads to."""
    allowed = allowed_cpus(root)
    cores: dict[object, tuple[int, int]] = {}
    for cpu in online_cpus(root):
        if cpu in allowed:
            speed = read_integer(root / f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity") or 0
            cores.setdefault(core_of(cpu, root), (-speed, cpu))
    return tuple(number for _, number in sorted(cores.values())) or tuple(sorted(allowed))


def parse_kernel_size(text: str) -> int:
    """Bytes of a kernel size such as "32768K"."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return int(text[:-1]) * units[text[-1]] if text[-1:] in units else int(text)


def _cpu_folders(root: Path) -> tuple[Path, ...]:
    """/sys/devices/system/cpu/cpu<N> of every CPU that is online, in order; none outside Linux."""
    return tuple(root / f"sys/devices/system/cpu/cpu{cpu}" for cpu in online_cpus(root))


def _names(root: Path) -> tuple[str, str]:
    """Return vendor and model of the CPU, from /proc/cpuinfo, a board's device tree, sysctl, Python or LLVM."""
    fields: dict[str, str] = {}
    for line in (read_text(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    vendor = fields.get("vendor_id") or fields.get("CPU implementer")
    model = fields.get("model name") or fields.get("Hardware") or read_text(root / "sys/firmware/devicetree/base/model")
    if "CPU part" in fields:
        model = f"{model or 'Arm'} part {fields['CPU part']} variant {fields.get('CPU variant', '?')}"
    if platform.system() == "Darwin":
        vendor, model = "Apple", _sysctl("machdep.cpu.brand_string")
    return (vendor or "unknown")[:200], (model or platform.processor() or host().cpu)[:200]


def _clusters(cpus: Iterable[Path], root: Path) -> tuple[Cluster, ...]:
    """Group cores by the outermost cache they share and by relative speed; clusters that are alike stay apart."""
    groups: dict[tuple[object, int | None], list[Path]] = {}
    for cpu in cpus:
        shared = [read_text(index / "shared_cpu_list") for index in sorted(cpu.glob("cache/index[0-9]*"))]
        package = read_text(cpu / "topology/physical_package_id")
        groups.setdefault((shared[-1] if shared else package, read_integer(cpu / "cpu_capacity")), []).append(cpu)
    return tuple(
        Cluster(cores=len({core_of(int(cpu.name[3:]), root) for cpu in members}), logical=len(members), capacity=capacity)
        for (_, capacity), members in groups.items()
    )


def _caches(cpus: Iterable[Path], logical: int) -> tuple[Cache, ...]:
    """Return every kind of cache, from sysfs or, where that has none, sysctl or the C library."""
    found = tuple(_sysfs_caches(cpus)) or tuple(_sysctl_caches()) or tuple(_sysconf_caches(logical))
    return tuple(sorted(found, key=lambda cache: (cache.level, cache.kind, cache.nbytes)))


def _sysfs_caches(cpus: Iterable[Path]) -> Iterator[Cache]:
    kinds: dict[str, CacheKind] = {"Data": "data", "Instruction": "instruction", "Unified": "unified"}
    instances: dict[tuple[int, CacheKind, int, int | None, int | None, int], set[frozenset[int]]] = {}
    for cpu in cpus:
        for index in cpu.glob("cache/index[0-9]*"):
            level, size, kind = read_integer(index / "level"), read_text(index / "size"), read_text(index / "type")
            shared = read_text(index / "shared_cpu_list")
            if not (level and size and shared and kind in kinds) or parse_kernel_size(size) <= 0:
                continue
            line, ways = read_integer(index / "coherency_line_size"), read_integer(index / "ways_of_associativity")
            members = parse_cpu_list(shared)
            key = (level, kinds[kind], parse_kernel_size(size), line or None, ways or None, len(members))
            instances.setdefault(key, set()).add(members)
    for (level, cache_kind, nbytes, line, ways, shared_by), sets in instances.items():
        yield Cache(
            level=level,
            kind=cache_kind,
            nbytes=nbytes,
            line_bytes=line,
            ways=ways,
            shared_by=shared_by,
            instances=len(sets),
            source="sysfs",
        )


def _sysconf_caches(logical: int) -> Iterator[Cache]:
    """Yield the caches that the C library knows (on x86 from the CPU). Level 3 is assumed to be shared by all cores."""
    if platform.libc_ver()[0] != "glibc":
        return
    for level, kind, number in GLIBC_CACHES:
        nbytes, ways, line = (os.sysconf(number + offset) for offset in range(3))
        shared_by = logical if level == 3 else 1
        if nbytes > 0:
            yield Cache(
                level=level,
                kind=kind,
                nbytes=nbytes,
                line_bytes=line if line > 0 else None,
                ways=ways if ways > 0 else None,
                shared_by=shared_by,
                instances=logical // shared_by,
                source="sysconf",
            )


def _sysctl_caches() -> Iterator[Cache]:
    """macOS: the fast cores' caches."""
    if platform.system() != "Darwin":
        return
    cores = int(_sysctl("hw.perflevel0.logicalcpu") or _sysctl("hw.logicalcpu") or 1)
    sharing = int(_sysctl("hw.perflevel0.cpusperl2") or 1)
    for level, name, shared_by in ((1, "l1dcachesize", 1), (2, "l2cachesize", sharing)):
        size = int(_sysctl(f"hw.perflevel0.{name}") or _sysctl(f"hw.{name}") or 0)
        if size:
            yield Cache(
                level=level,
                kind="data" if level == 1 else "unified",
                nbytes=size,
                shared_by=shared_by,
                instances=max(1, cores // shared_by),
                source="sysctl",
            )


def _sysctl(name: str) -> str | None:
    done = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, check=False, timeout=5)  # noqa: S603  fixed path, no shell
    return done.stdout.strip() or None


def _numa(root: Path) -> tuple[NumaNode, ...]:
    nodes = []
    for folder in sorted((root / "sys/devices/system/node").glob("node[0-9]*"), key=lambda path: int(path.name[4:])):
        lines = [line.split() for line in (read_text(folder / "meminfo") or "").splitlines()]
        total = next((int(words[3]) << 10 for words in lines if len(words) > 3 and words[2] == "MemTotal:"), 0)
        cpus = parse_cpu_list(read_text(folder / "cpulist") or "")
        nodes.append(NumaNode(node=int(folder.name[4:]), logical=len(cpus), memory_bytes=total))
    return tuple(nodes)


def installed_memory_gib(memory_bytes: int) -> float:
    """Memory rounded up to the next eighth of a power of two, in GiB: the same after every boot.

    The kernel reports what is left after its own reservations, which changes by some megabytes between boots and kernels.
    """
    gib = memory_bytes / (1 << 30)
    step = 2.0 ** (math.floor(math.log2(gib)) - 3)
    return math.ceil(gib / step) * step
