"""What the native tests share: the instruction sets of this machine, and a way to call what was emitted."""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kernels.native.compile import generate
from kernels.native.isa import Isa, host_isas
from kernels.native.library import Library

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
