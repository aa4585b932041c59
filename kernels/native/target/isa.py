"""Instruction sets as data: what an emitter may assume of the machine, and what LLVM is told of it.

An emitter asks an `Isa` for its vector width, how many registers it may fill, and which instructions exist; nothing else
in an emitter depends on the machine. Narrower sets run on wider machines, so every x86 set this host has can be tested on it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace

from kernels.native.errors import IsaError
from kernels.native.target.host import Host, host

OVERRIDE = "EDGEWISE_ISA"  # environment variable: run as this narrower set instead of the widest the host has


@dataclass(frozen=True, slots=True)
class Isa:
    """One instruction set.

    vector_bits, vector_registers: width and number of the architectural vector registers.
    fma: fused multiply–add exists. masks: loads and stores take a lane mask at no cost.
    dot_i8: the instruction that adds four 8-bit products to a 32-bit lane ("vpdpbusd", "sdot", "smmla"), or None.
    dot_bf16: the instruction that adds two bf16 products to an fp32 lane ("vdpbf16ps", "bfdot"), or None.
    requires: LLVM feature names the machine must have. features: LLVM feature string that code is generated with.
    """

    name: str
    arch: str
    vector_bits: int
    vector_registers: int
    fma: bool
    masks: bool
    dot_i8: str | None
    dot_bf16: str | None
    requires: tuple[str, ...]
    triple: str
    cpu: str
    features: str

    @property
    def lanes(self) -> int:
        """32-bit lanes of one vector register."""
        return self.vector_bits // 32

    @property
    def flops_per_cycle(self) -> int:
        """Of a core with two multiply–add units, which port models assume."""
        return 4 * self.lanes

    @property
    def key(self) -> str:
        """What generated code depends on, as one string: part of every cache key."""
        return f"{self.name}|{self.triple}|{self.cpu}|{self.features}"


def _x86(name: str, bits: int, registers: int, requires: str, cpu: str, **more: str | bool) -> Isa:
    features = ",".join(f"+{feature}" for feature in requires.split())
    given = {"fma": False, "masks": False, "dot_i8": None, "dot_bf16": None, **more}
    return Isa(name, "x86_64", bits, registers, **given, requires=tuple(requires.split()),  # type: ignore[arg-type]
               triple="x86_64-unknown-linux-gnu", cpu=cpu, features=features)  # fmt: skip


def _arm(name: str, requires: str, **more: str) -> Isa:
    features = ",".join(f"+{feature}" for feature in requires.split())
    given = {"dot_i8": None, "dot_bf16": None, **more}
    return Isa(name, "aarch64", 128, 32, True, False, **given, requires=tuple(requires.split()),
               triple="aarch64-unknown-linux-gnu", cpu="generic", features=features)  # fmt: skip


_SSE = "sse2 ssse3 sse4.1 sse4.2 popcnt"
_AVX2 = f"{_SSE} avx avx2 fma f16c bmi bmi2"
_AVX512 = f"{_AVX2} avx512f avx512bw avx512cd avx512dq avx512vl"

# From the narrowest to the widest of each architecture: a host gets the last whose features it has.
ISAS: Mapping[str, Isa] = {
    isa.name: isa
    for isa in (
        _x86("sse", 128, 16, _SSE, "x86-64-v2"),
        _x86("avx2", 256, 16, _AVX2, "x86-64-v3", fma=True),
        _x86("avx512", 512, 32, _AVX512, "x86-64-v4", fma=True, masks=True),
        _x86("avx512_vnni", 512, 32, f"{_AVX512} avx512vnni", "x86-64-v4", fma=True, masks=True, dot_i8="vpdpbusd"),
        _x86("avx512_bf16", 512, 32, f"{_AVX512} avx512vnni avx512bf16", "x86-64-v4", fma=True, masks=True,
             dot_i8="vpdpbusd", dot_bf16="vdpbf16ps"),
        _arm("neon", "neon"),
        _arm("neon_dotprod", "neon dotprod", dot_i8="sdot"),
        _arm("neon_i8mm", "neon dotprod i8mm bf16", dot_i8="smmla", dot_bf16="bfdot"),
    )
}  # fmt: skip


def find_isa(name: str) -> Isa:
    """The described set of that name. Raises IsaError naming those that exist."""
    if name not in ISAS:
        raise IsaError(f"isa: {name!r} is unknown, need one of {sorted(ISAS)}")
    return ISAS[name]


def host_isas() -> tuple[Isa, ...]:
    """Every described set this machine can run, the narrowest first, each generated for this machine's processor model.

    Empty on a machine none fits: the native backend then does not exist there.
    """
    if sys.platform != "linux":  # threads wait by futex, and code is linked as Linux loads it
        return ()
    here = host()
    fitting = [isa for isa in ISAS.values() if isa.arch == here.arch and set(isa.requires) <= set(here.features)]
    return tuple(_for_host(isa, here) for isa in fitting)


def _for_host(isa: Isa, here: Host) -> Isa:
    """The widest sets may use all the machine has; a narrower one keeps its own features, so that it stays what it says."""
    if isa.vector_bits == 512 or isa.arch == "aarch64":
        allowed = set(isa.requires) | {name for name in here.features if not _beyond(name, isa)}
        features = ",".join(f"+{name}" for name in sorted(allowed))
        return replace(isa, cpu=here.cpu, features=f"{features},-prefer-256-bit" if isa.masks else features)
    return isa


def _beyond(feature: str, isa: Isa) -> bool:
    """Whether the feature belongs to a wider described set than this one."""
    described = {name for other in ISAS.values() if other.arch == isa.arch for name in other.requires}
    return feature in described and feature not in isa.requires


def host_isa() -> Isa:
    """The set to generate code for: the widest this machine runs, or the one named by EDGEWISE_ISA.

    Raises IsaError when the machine runs none, or not the named one.
    """
    runs = {isa.name: isa for isa in host_isas()}
    wanted = os.environ.get(OVERRIDE)
    if wanted:
        find_isa(wanted)
        if wanted not in runs:
            raise IsaError(f"isa: {wanted!r} was asked for, this machine runs {list(runs)} ({OVERRIDE})")
        return runs[wanted]
    if not runs:
        raise IsaError(f"isa: {host().cpu} on {sys.platform} has none of {sorted(ISAS)}, the numpy backend serves it")
    return list(runs.values())[-1]


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
