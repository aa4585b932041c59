"""Instruction sets as data, for emitters, for LLVM and for the loops that measure a machine's peaks.

An emitter asks an `Isa` for its vector width, how many registers it may fill, and which instructions exist; nothing else
in an emitter depends on the machine. Narrower sets run on wider machines, so every x86 set this host has can be tested on it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import field, replace
from typing import Final

from kernels.native.errors import IsaError
from kernels.native.target.host import Host, host
from kernels.precision import Precision
from kernels.record import record

OVERRIDE = "EDGEWISE_ISA"  # environment variable: run as this narrower set instead of the widest the host has
FMA: Final = "fma"
MUL_ADD: Final = "mul+add"  # two instructions, where no fused one exists


@record
class Unit:
    """An instruction that multiplies and accumulates.

    name: the name of its measured peak in device profiles. precision: type of the factors; products are accumulated in fp32 for
    bf16, in int32 for int8, and in the factors' own type otherwise. depth: products added to each lane of the accumulator.
    requires: LLVM names of the features it needs. prefix: assembler prefix that selects its encoding.
    """

    name: str
    precision: Precision
    instruction: str
    depth: int
    requires: tuple[str, ...] = ()
    prefix: str = ""

    @property
    def lane_bits(self) -> int:
        """Bits of one lane of the accumulator."""
        return 64 if self.precision == "fp64" else 32


@record
class Isa:
    """One instruction set.

    vector_bits, vector_registers: width and number of the architectural vector registers.
    width_feature: the LLVM feature that by itself widens loads, stores and float arithmetic to `vector_bits`.
    units: its instructions that multiply and accumulate. One that requires more than the set exists on some machines only.
    masks: loads and stores take a lane mask at no cost.
    requires: LLVM feature names the machine must have. features: LLVM feature string that code is generated with.
    """

    name: str
    arch: str
    vector_bits: int
    vector_registers: int
    width_feature: str
    units: tuple[Unit, ...] = field(hash=False)
    masks: bool
    requires: tuple[str, ...]
    triple: str
    cpu: str
    features: str

    @property
    def lanes(self) -> int:
        """32-bit lanes of one vector register."""
        return self.vector_bits // 32

    @property
    def fma(self) -> bool:
        """Whether it has a fused multiply–add."""
        return any(unit.instruction == FMA for unit in self.units)

    @property
    def flops_per_cycle(self) -> int:
        """FLOPs of one core in a cycle if it has two multiply–add units, which port models assume."""
        return 4 * self.lanes

    @property
    def key(self) -> str:
        """Everything that generated code depends on, as one string: part of every cache key."""
        return f"{self.name}|{self.triple}|{self.cpu}|{self.features}"

    def macs(self, unit: Unit) -> int:
        """Multiply–accumulates of one instruction on a full vector."""
        return self.vector_bits // unit.lane_bits * unit.depth


def _floats(name: str, instruction: str, *requires: str) -> tuple[Unit, Unit]:
    """The units for fp32 and fp64."""
    return Unit(name, "fp32", instruction, 1, requires), Unit(name, "fp64", instruction, 1, requires)


def _x86(
    name: str,
    bits: int,
    width_feature: str,
    registers: int,
    requires: str,
    cpu: str,
    units: tuple[Unit, ...],
    *,
    masks: bool = False,
) -> Isa:
    features = ",".join(f"+{feature}" for feature in requires.split())
    return Isa(name, "x86_64", bits, registers, width_feature, units, masks, tuple(requires.split()),
               "x86_64-unknown-linux-gnu", cpu, features)  # fmt: skip


def _arm(name: str, requires: str, units: tuple[Unit, ...]) -> Isa:
    features = ",".join(f"+{feature}" for feature in requires.split())
    return Isa(name, "aarch64", 128, 32, "neon", units, False, tuple(requires.split()),
               "aarch64-unknown-linux-gnu", "generic", features)  # fmt: skip


_SSE = "sse2 ssse3 sse4.1 sse4.2 popcnt"
_AVX2 = f"{_SSE} avx avx2 fma f16c bmi bmi2"
_AVX512 = f"{_AVX2} avx512f avx512bw avx512cd avx512dq avx512vl"

_SSE_UNITS = _floats("sse2", MUL_ADD)
_AVX2_UNITS = (*_floats("avx2", FMA, "avx2", "fma"), Unit("avxvnni", "int8", "vpdpbusd", 4, ("avxvnni",), prefix="{vex}"))
_AVX512_UNITS = _floats("avx512", FMA, "avx512f")
_AVX512_VNNI_UNITS = (*_AVX512_UNITS, Unit("avx512vnni", "int8", "vpdpbusd", 4, ("avx512vnni",)))
_AVX512_BF16_UNITS = (*_AVX512_VNNI_UNITS, Unit("avx512bf16", "bf16", "vdpbf16ps", 2, ("avx512bf16",)))
_NEON_UNITS = _floats("neon", FMA)
_DOTPROD_UNITS = (*_NEON_UNITS, Unit("neon-dotprod", "int8", "sdot", 4, ("dotprod",)))
_I8MM_UNITS = (
    *_DOTPROD_UNITS,
    Unit("neon-i8mm", "int8", "smmla", 8, ("i8mm",)),
    Unit("neon-bf16", "bf16", "bfmmla", 4, ("bf16",)),
    Unit("neon-bfdot", "bf16", "bfdot", 2, ("bf16",)),
)

# From the narrowest to the widest of each architecture: a host gets the last whose features it has.
ISAS: Mapping[str, Isa] = {
    isa.name: isa
    for isa in (
        _x86("sse", 128, "sse2", 16, _SSE, "x86-64-v2", _SSE_UNITS),
        _x86("avx2", 256, "avx", 16, _AVX2, "x86-64-v3", _AVX2_UNITS),
        _x86("avx2_vnni", 256, "avx", 16, f"{_AVX2} avxvnni", "x86-64-v3", _AVX2_UNITS),
        _x86("avx512", 512, "avx512f", 32, _AVX512, "x86-64-v4", _AVX512_UNITS, masks=True),
        _x86("avx512_vnni", 512, "avx512f", 32, f"{_AVX512} avx512vnni", "x86-64-v4", _AVX512_VNNI_UNITS, masks=True),
        _x86("avx512_bf16", 512, "avx512f", 32, f"{_AVX512} avx512vnni avx512bf16", "x86-64-v4", _AVX512_BF16_UNITS, masks=True),
        _arm("neon", "neon", _NEON_UNITS),
        _arm("neon_dotprod", "neon dotprod", _DOTPROD_UNITS),
        _arm("neon_i8mm", "neon dotprod i8mm bf16", _I8MM_UNITS),
    )
}

# Stands for any other architecture, whose peaks are measured with vectors of 128 bits; no kernel is emitted for it.
GENERIC = Isa("generic", "", 128, 16, "", _floats("generic", FMA), False, (), "", "", "")


def isas_of(arch: str) -> tuple[Isa, ...]:
    """Return the described sets of an architecture (LLVM's name), the narrowest first; GENERIC where there is none."""
    return tuple(isa for isa in ISAS.values() if isa.arch == arch) or (GENERIC,)


def find_isa(name: str) -> Isa:
    """Return the described set of that name. Raises IsaError, listing those that exist."""
    if name not in ISAS:
        raise IsaError(f"isa: {name!r} is unknown, need one of {sorted(ISAS)}")
    return ISAS[name]


def host_isas() -> tuple[Isa, ...]:
    """Return every described set that this machine can run, the narrowest first, each tuned for this machine's processor model.

    Empty where none fits; the machine then has no native backend.
    """
    if sys.platform != "linux":  # threads wait by futex, and code is linked as Linux loads it
        return ()
    here = host()
    fitting = [isa for isa in ISAS.values() if isa.arch == here.arch and set(isa.requires) <= set(here.features)]
    return tuple(_for_host(isa, here) for isa in fitting)


def _for_host(isa: Isa, here: Host) -> Isa:
    """Let the widest sets use every feature of the machine; a narrower one keeps its own, so that tests of it mean something."""
    if isa.vector_bits == 512 or isa.arch == "aarch64":
        allowed = set(isa.requires) | {name for name in here.features if not _beyond(name, isa)}
        features = ",".join(f"+{name}" for name in sorted(allowed))
        return replace(isa, cpu=here.cpu, features=f"{features},-prefer-256-bit" if isa.masks else features)
    return isa


def _beyond(feature: str, isa: Isa) -> bool:
    """Whether a feature belongs to a wider described set."""
    described = {name for other in ISAS.values() if other.arch == isa.arch for name in other.requires}
    return feature in described and feature not in isa.requires


def host_isa() -> Isa:
    """Return the set to generate code for: the widest that this machine runs, or the one that EDGEWISE_ISA names.

    Raises IsaError where the machine runs none, or not the named one.
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
