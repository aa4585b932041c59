"""Machines as data. What is chosen for a machine is asserted for one that is described here, so that it holds wherever tests run.

`MACHINES` are instruction sets: an emitter or a lowering that is given one depends on nothing else. Where code looks for its
machine by itself, `describe` gives it one. `TUNED` has the widest set for certain processors too, as it is generated on them: how
LLVM schedules, and with that whether registers suffice, depends on the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from kernels.native.target.host import Host
from kernels.native.target.isa import ISAS, Isa, host_isas

MACHINES = tuple(ISAS[name] for name in ("sse", "avx2", "avx512", "neon"))  # one of each vector width and architecture
TUNED = (*MACHINES, *(replace(ISAS["avx512"], cpu=model) for model in ("znver5", "sapphirerapids")))
HOSTS: Mapping[str, Host] = {isa.name: Host(isa.arch, isa.cpu, tuple(sorted(isa.requires))) for isa in MACHINES}


def describe(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let code that asks for the processor find the described one.

    It is planned and compiled for; whether this machine can run the result is another matter.
    """
    monkeypatch.setattr("kernels.native.target.isa.host", lambda: HOSTS[name])
    monkeypatch.setattr("kernels.native.target.isa.sys.platform", "linux")
    monkeypatch.delenv("EDGEWISE_ISA", raising=False)


def as_here(machine: Isa) -> Isa | None:
    """The set of this machine that is as wide as a described one, if it has that."""
    sets = (isa for isa in reversed(host_isas()) if (isa.arch, isa.vector_bits) == (machine.arch, machine.vector_bits))
    return next(sets, None)


def label(isa: Isa) -> str:
    """The name of a described machine in a test's id."""
    return isa.name if isa == ISAS[isa.name] else f"{isa.name}-{isa.cpu}"
