"""What the native tests share: the instruction sets of this machine, and a way to call what was emitted."""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kernels.native.builder import Module
from kernels.native.compile import generate
from kernels.native.isa import Isa, host_isas
from kernels.native.library import Library
from kernels.native.types import I64, PTR

HOST_ISAS = [isa for isa in host_isas() if isa.name in {"sse", "avx2", "avx512_bf16", "avx512", "neon"}]
if any(isa.name == "avx512_bf16" for isa in HOST_ISAS):
    HOST_ISAS = [isa for isa in HOST_ISAS if isa.name != "avx512"]


@pytest.fixture(params=HOST_ISAS, ids=lambda isa: isa.name)
def isa(request: pytest.FixtureRequest) -> Isa:
    """Every instruction set of distinct vector width that this machine runs."""
    return request.param


class Native:
    """A callable native function that keeps its code alive; arrays are passed by address."""

    def __init__(self, ir: str, isa: Isa, name: str = "f") -> None:
        self.library = Library([generate(ir, isa).code], [name])
        self.address = self.library.address(name)

    def __call__(self, *arguments: Any) -> None:
        kinds = [ctypes.c_void_p if isinstance(a, np.ndarray) else ctypes.c_int64 for a in arguments]
        raw = [a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments]
        ctypes.CFUNCTYPE(None, *kinds)(self.address)(*raw)


@pytest.fixture
def native() -> Callable[..., Native]:
    """Compile IR text and return its function."""
    return Native


@pytest.fixture
def apply(isa: Isa) -> Callable[..., np.ndarray]:
    """Run an emitter of one vector or two over arrays of as many elements."""

    def run(emitter: Callable[..., Any], *xs: np.ndarray) -> np.ndarray:
        module, count = Module(isa), len(xs[0])
        signature = {**{f"x{n}": PTR for n in range(len(xs))}, "y": PTR, "n": I64}
        with module.function("f", signature) as (k, *sources, target, n), k.loop("i", 0, n, isa.lanes) as i:
            k.store(emitter(k, *(k.load(k.f32, source, i) for source in sources)), target, i)
        padded = [np.resize(x.astype(np.float32), -(-count // isa.lanes) * isa.lanes) for x in xs]
        y = np.empty_like(padded[0])
        Native(module.text, isa)(*padded, y, len(y))
        return y[:count]

    return run
