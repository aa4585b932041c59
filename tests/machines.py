"""Machines as data. Tests of what the program chooses for a machine use one described here, so that they hold on any machine.

`MACHINES` are instruction sets; an emitter or a lowering depends only on the set that it is given. Some code looks for its
machine by itself: `describe` lets it find a described one. `TUNED` also has the widest set for certain processor models, because
LLVM's schedule, and thereby whether registers suffice, depends on the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from kernels.confinement import parse_cpu_list
from kernels.native.target.host import Host
from kernels.native.target.isa import ISAS, Isa, host_isas

MACHINES = tuple(ISAS[name] for name in ("sse", "avx2", "avx512", "neon"))  # one of each vector width and architecture
TUNED = (*MACHINES, *(replace(ISAS["avx512"], cpu=model) for model in ("znver5", "sapphirerapids")))
HOSTS: Mapping[str, Host] = {isa.name: Host(isa.arch, isa.cpu, tuple(sorted(isa.requires))) for isa in MACHINES}


GIB = 1 << 30


def describe(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let code that asks for the processor find the described one.

    Code is planned and compiled for that processor. This machine may be unable to run it.
    """
    monkeypatch.setattr("kernels.native.target.isa.host", lambda: HOSTS[name])
    monkeypatch.setattr("kernels.native.target.isa.sys.platform", "linux")
    monkeypatch.delenv("EDGEWISE_ISA", raising=False)


def as_here(machine: Isa) -> Isa | None:
    """Return this machine's instruction set of the same architecture and vector width, or None if it has none."""
    sets = (isa for isa in reversed(host_isas()) if (isa.arch, isa.vector_bits) == (machine.arch, machine.vector_bits))
    return next(sets, None)


def label(isa: Isa) -> str:
    """Return the name of a described machine in a test's id."""
    return isa.name if isa == ISAS[isa.name] else f"{isa.name}-{isa.cpu}"


def tree(root: Path, cgroups: str, files: dict[str, str], memory_kib: int = 16 << 20, cores: tuple[str, ...] = ()) -> Path:
    """Write /proc and /sys of a machine. cgroups: /proc/self/cgroup. files: below /sys/fs/cgroup. cores: CPUs of each core."""
    for core in cores:
        for cpu in parse_cpu_list(core):
            topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
            topology.mkdir(parents=True)
            (topology / "core_cpus_list").write_text(core)
    if cores:
        (root / "sys/devices/system/cpu/online").write_text(",".join(cores))
    written = {"proc/self/cgroup": cgroups, "proc/meminfo": f"MemFree: 5 kB\nMemTotal: {memory_kib} kB\n"}
    for name, text in (written | {f"sys/fs/cgroup/{name}": text for name, text in files.items()}).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root
