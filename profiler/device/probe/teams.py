"""The costs of running one native program on several threads: starting and joining them, and waiting for one another's work."""

from __future__ import annotations

import functools
import time

import numpy as np
from pydantic import Field

from kernels.native.code.compile import generate
from kernels.native.code.library import Library
from kernels.native.emit.builder import Module
from kernels.native.emit.types import I8, I64, PTR
from kernels.native.memory.buffers import LINE_BYTES, aligned
from kernels.native.run.runtime import await_done, finish, runtime_ir
from kernels.native.run.thread_pool import ThreadPool, shared_thread_pool
from kernels.native.target.isa import Isa, host_isa, host_isas
from profiler.device.measure import Effort, Figure, summarise
from profiler.device.topology import Record

_ENTRY = "edgewise_barriers"
_RUNS = 20  # timed together, so that reading the clock is a small part
_BARRIERS = 200  # in one run


class TeamCost(Record):
    """Costs in nanoseconds. start: an empty program, from call to return. barrier: each thread finishes a piece of work and
    waits for those of the others."""

    threads: int = Field(ge=1)
    start: Figure
    barrier: Figure


def measure_team(threads: int, effort: Effort) -> list[TeamCost]:
    """Time a team of that many threads; an empty list where native code does not run."""
    if not host_isas():
        return []
    library, pool = _program(host_isa()), shared_thread_pool(threads)
    start_ns = _samples(library, pool, threads, 0, effort)
    full_ns = _samples(library, pool, threads, _BARRIERS, effort)
    floor = min(start_ns)
    barrier_ns = [max(0.0, sample - floor) / _BARRIERS for sample in full_ns]
    how = f"native program on {threads} threads of the pool, {_RUNS} runs timed together"
    return [
        TeamCost(
            threads=threads,
            start=summarise(start_ns, "ns", "median", f"an empty {how}"),
            barrier=summarise(barrier_ns, "ns", "median", f"{_BARRIERS} barriers in a {how}, less the least empty run"),
        )
    ]


@functools.cache
def _program(isa: Isa) -> Library:
    """Compile a function that meets at as many barriers as its argument says."""
    module = Module(isa)
    with module.function(_ENTRY, {"word": PTR, "thread": I64, "threads": I64, "team": PTR}) as (k, *arguments):
        word, _, threads, team = arguments
        lines, never = k.load(PTR, word, 1), k.offset(word, 2, I64)
        with k.loop("meeting", 0, k.load(I64, word, 0)) as n:
            arrived = k.offset(lines, n * LINE_BYTES, I8)
            finish(k, team, arrived, 1, threads)
            await_done(k, team, arrived, threads, never)
    return Library([generate(module.text, isa).code, generate(runtime_ir(isa), isa).code], [_ENTRY])


def _samples(library: Library, pool: ThreadPool, threads: int, barriers: int, effort: Effort) -> list[float]:
    lines = aligned(LINE_BYTES * max(barriers, 1))
    word = np.array([barriers, lines.ctypes.data, 0], np.int64)
    samples: list[float] = []
    ends = time.perf_counter_ns() + round(effort.window_s * effort.repeats * 1e9 / 2)
    while len(samples) < effort.repeats or time.perf_counter_ns() < ends:
        start = time.perf_counter_ns()
        for _ in range(_RUNS):
            pool.run(library.address(_ENTRY), word.ctypes.data, threads, (lines.ctypes.data, lines.nbytes))
        samples.append((time.perf_counter_ns() - start) / _RUNS)
    return samples
