"""Peak arithmetic rates: of the units alone (loops of independent multiply–adds), and of matrix products by numpy's BLAS."""

from __future__ import annotations

import ctypes
import functools
from typing import Any, Literal

import numpy as np
import threadpoolctl
from pydantic import Field

from graph.run.blas import BlasThreads
from kernels.cost import FLOPS_PER_MAC
from kernels.precision import Precision
from kernels.spec import Array
from profiler.device.measure import Effort, Figure, PinnedThreads, sample_rates, summarise
from profiler.device.probe.loops import ALIGNMENT_BYTES, OPERAND_BYTES, Compiled, PeakLoop
from profiler.device.topology import Record

FLOAT_DTYPES: dict[Precision, type[Any]] = {"fp32": np.float32, "fp64": np.float64}
GEMM_SIZE = 768  # three square matrices: 7 MB of fp32, some 5 ms on a core of 2020


class Peak(Record):
    """The best arithmetic rate that was measured. kind: instruction = a loop without memory; gemm = numpy's matrix product."""

    kind: Literal["instruction", "gemm"]
    precision: Precision
    isa: str = Field(max_length=50)
    threads: int = Field(ge=1)
    rate: Figure


def aligned_bytes(nbytes: int) -> Array:
    """Allocate zeroed bytes (uint8) that start on a cache line."""
    raw = np.zeros(nbytes + ALIGNMENT_BYTES, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT_BYTES
    return raw[start : start + nbytes]


def _operands(loop: PeakLoop) -> Array:
    """Allocate operands of a peak loop so that its numbers stay finite and normal: acc = acc · ½ + ½."""
    memory = aligned_bytes(OPERAND_BYTES)
    if loop.precision in FLOAT_DTYPES:
        memory[: 2 * ALIGNMENT_BYTES].view(FLOAT_DTYPES[loop.precision])[:] = 0.5
    return memory


def measure_instruction_peak(compiled: Compiled, loop: PeakLoop, team: PinnedThreads, effort: Effort) -> Peak:
    """Run one arithmetic loop on every thread of the team."""
    function = compiled.peak(loop)
    memories = [_operands(loop) for _ in range(team.threads)]

    def run_ns(turns: int) -> int:
        return team.run([functools.partial(function, ctypes.c_int64(turns), memory.ctypes.data) for memory in memories])

    samples = sample_rates(run_ns, loop.operations_per_turn * team.threads, effort)
    how = f"{loop.accumulators} independent chains of {loop.unit.instruction} on {loop.vector}, JIT-compiled"
    pinned = "pinned" if team.pinned else "not pinned"
    unit: Literal["OP/s", "FLOP/s"] = "OP/s" if loop.precision == "int8" else "FLOP/s"
    figure = summarise(samples, unit, "max", f"{how}; {team.threads} threads, {pinned}; best of {effort}")
    return Peak(kind="instruction", precision=loop.precision, isa=loop.name, threads=team.threads, rate=figure)


def measure_gemm_peak(precision: Precision, threads: int, effort: Effort) -> Peak:
    """Multiply square matrices with numpy on `threads` BLAS threads."""
    rng = np.random.default_rng(0)
    dtype = FLOAT_DTYPES[precision]
    a, b = (rng.random((GEMM_SIZE, GEMM_SIZE)).astype(dtype) for _ in range(2))
    out = np.empty_like(a)

    def multiply(turns: int) -> None:
        for _ in range(turns):
            np.matmul(a, b, out=out)

    with BlasThreads(threads), PinnedThreads(1, ()) as caller:
        samples = sample_rates(lambda turns: caller.run([lambda: multiply(turns)]), FLOPS_PER_MAC * GEMM_SIZE**3, effort)
        name, used = blas_threads()
    method = f"numpy.matmul {GEMM_SIZE}×{GEMM_SIZE}×{GEMM_SIZE} through {name}; best of {effort}"
    return Peak(
        kind="gemm", precision=precision, isa="blas", threads=used or threads, rate=summarise(samples, "FLOP/s", "max", method)
    )


def blas_threads() -> tuple[str, int | None]:
    """Return name and version of numpy's BLAS, and the threads that it uses now; None where that is unknown."""
    for library in threadpoolctl.threadpool_info():
        if library["user_api"] == "blas":
            architecture = library.get("architecture") or "?"
            return f"{library['internal_api']} {library['version']} ({architecture})", int(library["num_threads"])
    return "numpy's BLAS", None
