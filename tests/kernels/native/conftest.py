"""Fixtures of the native kernels' tests: instruction sets, and native functions that are compiled from emitted code."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kernels.native.emit.builder import Module
from kernels.native.emit.types import I64, PTR
from kernels.native.target.isa import ISAS, Isa, host_isas
from tests.kernels.native.compiled import object_code
from tests.kernels.native.runner import MISSING_TOOLS, run
from tests.machines import MACHINES, TUNED, label

HOST_ISAS = [isa for isa in host_isas() if isa.name in {"sse", "avx2", "avx512_bf16", "avx512", "neon"}]
if any(isa.name == "avx512_bf16" for isa in HOST_ISAS):
    HOST_ISAS = [isa for isa in HOST_ISAS if isa.name != "avx512"]
EMULATED_ISAS = [isa for isa in (ISAS["neon"],) if all(isa.arch != host.arch for host in HOST_ISAS)]
needs_emulator = pytest.mark.skipif(bool(MISSING_TOOLS), reason=f"AArch64 is emulated, {' '.join(MISSING_TOOLS)} not found")


@pytest.fixture(
    params=[*HOST_ISAS, *(pytest.param(isa, marks=needs_emulator) for isa in EMULATED_ISAS)], ids=lambda isa: isa.name
)
def isa(request: pytest.FixtureRequest) -> Isa:
    """Return each instruction set that this machine runs, one for each vector width, and AArch64's, which an emulator runs."""
    return request.param


@pytest.fixture(params=HOST_ISAS, ids=lambda isa: isa.name)
def host(request: pytest.FixtureRequest) -> Isa:
    """Return each instruction set that this machine runs itself, for tests that the emulator cannot run."""
    return request.param


@pytest.fixture(params=MACHINES, ids=label)
def machine(request: pytest.FixtureRequest) -> Isa:
    """Return each described machine, whether or not this one is like it, for assertions about choices."""
    return request.param


@pytest.fixture(params=TUNED, ids=label)
def tuned(request: pytest.FixtureRequest) -> Isa:
    """Return each described machine, and some for certain processor models, for assertions about the code that LLVM makes."""
    return request.param


class Native:
    """A native function that Python can call. It receives arrays by address."""

    def __init__(self, ir: str, isa: Isa, name: str = "f") -> None:
        self.code, self.isa, self.name = object_code(ir, isa), isa, name

    def __call__(self, *arguments: Any) -> None:
        run(self.code, self.isa, self.name, [arguments])


@pytest.fixture
def native() -> Callable[..., Native]:
    """Return a callable that compiles IR text and returns its function."""
    return Native


@pytest.fixture
def apply(isa: Isa) -> Callable[..., np.ndarray]:
    """Return a callable that runs an emitter of one vector operation over one or two arrays of the same length."""

    def over(emitter: Callable[..., Any], *xs: np.ndarray) -> np.ndarray:
        module, count = Module(isa), len(xs[0])
        signature = {**{f"x{n}": PTR for n in range(len(xs))}, "y": PTR, "n": I64}
        with module.function("f", signature) as (k, *sources, target, n), k.loop("i", 0, n, isa.lanes) as i:
            k.store(emitter(k, *(k.load(k.f32, source, i) for source in sources)), target, i)
        padded = [np.resize(x.astype(np.float32), -(-count // isa.lanes) * isa.lanes) for x in xs]
        y = np.empty_like(padded[0])
        Native(module.text, isa)(*padded, y, len(y))
        return y[:count]

    return over
