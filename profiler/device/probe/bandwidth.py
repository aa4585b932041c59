"""Memory bandwidth per cache level: read, copy, update in place and triad, over working sets that fit that level and no smaller.

Bytes are counted as STREAM counts them, one per byte loaded or stored by the program: a copy or an update moves 2 arrays' worth,
a triad 3. Lines that the hardware reads in addition, to own them before they are written, are not counted; an update needs none.

Source: J. D. McCalpin, "STREAM: Sustainable Memory Bandwidth in High Performance Computers".
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from kernels.record import record
from kernels.spec import Array
from profiler.device.measure import Effort, Figure, PinnedThreads, sample_rates, summarise
from profiler.device.probe.loops import UNROLL, Compiled
from profiler.device.probe.peaks import aligned_bytes
from profiler.device.topology import Hardware, Record

Pattern = Literal["read", "copy", "update", "triad"]
PATTERNS: tuple[Pattern, ...] = ("read", "copy", "update", "triad")
ARRAYS: dict[Pattern, int] = {"read": 1, "copy": 2, "update": 1, "triad": 3}  # that a pattern touches
TRANSFERS: dict[Pattern, int] = {"read": 1, "copy": 2, "update": 2, "triad": 3}  # loads and stores of each element

FILL = 0.5  # share of a cache that is used; the rest is left for other data
DRAM_FACTOR = 4  # STREAM's rule: at least four times the caches
DRAM_MIN_BYTES, DRAM_MAX_BYTES = 64 << 20, 1 << 30
ASSUMED_LEVELS = (("L1", 16 << 10), ("L2", 256 << 10))


class Bandwidth(Record):
    """The best transfer rate that was measured. working_set_bytes: of all threads together."""

    level: str = Field(pattern=r"^(L[1-8]|DRAM)$")
    pattern: Pattern
    threads: int = Field(ge=1)
    working_set_bytes: int = Field(gt=0)
    rate: Figure


@record
class WorkingSet:
    """The memory that one thread streams through to measure one level. note: a remark on its size, for the record."""

    level: str
    bytes_per_thread: int
    note: str = ""


def working_sets(hardware: Hardware, threads: int, memory_bytes: int) -> tuple[WorkingSet, ...]:
    """Return half of each data cache (a thread's share of it) and, for DRAM, four times all caches in use, capped.

    Args: memory_bytes: memory that may be allocated in all; DRAM takes at most a quarter of it.
    """
    caches = [cache for level in range(1, 9) if (cache := hardware.data_cache(level)) is not None]
    sets, last_bytes = [], 0
    for cache in caches:
        cores_beside = max(1, cache.shared_by * hardware.physical_cores // hardware.logical_cores)
        share = int(cache.nbytes * FILL) // min(threads, cores_beside)
        if share > last_bytes:  # a small share of a big cache may fit in the level before
            sets.append(WorkingSet(f"L{cache.level}", share))
            last_bytes = share
    if not caches:
        sets = [WorkingSet(level, nbytes, "cache sizes unknown, size assumed") for level, nbytes in ASSUMED_LEVELS]
    outermost_bytes = caches[-1].nbytes * min(threads, caches[-1].instances) if caches else 0
    wanted = max(DRAM_FACTOR * outermost_bytes, DRAM_MIN_BYTES)
    total = min(wanted, DRAM_MAX_BYTES, memory_bytes // 4)
    note = f"capped below {DRAM_FACTOR} times the caches ({wanted} bytes)" if total < wanted else ""
    return (*sets, WorkingSet("DRAM", total // threads, note))


def measure_bandwidth(
    compiled: Compiled, pattern: Pattern, working_set: WorkingSet, team: PinnedThreads, effort: Effort
) -> Bandwidth:
    """Stream through a working set on every thread of the team; each thread allocates its own (first touch)."""
    vector_bytes = compiled.bits // 8
    step = UNROLL * vector_bytes
    arrays = ARRAYS[pattern]
    array_bytes = max(step, working_set.bytes_per_thread // arrays // step * step)
    memories: list[Array] = [np.empty(0, np.uint8)] * team.threads

    def allocate(index: int) -> None:
        memories[index] = aligned_bytes(array_bytes * arrays + vector_bytes)
        memories[index].fill(1)  # zeros would be one shared page

    team.run([functools.partial(allocate, index) for index in range(team.threads)])
    function = compiled.streaming(pattern)
    pointers = [_pointers(memory, array_bytes, arrays) for memory in memories]

    def run_ns(passes: int) -> int:
        return team.run([functools.partial(function, passes, array_bytes, *pointer) for pointer in pointers])

    samples = sample_rates(run_ns, float(array_bytes * TRANSFERS[pattern] * team.threads), effort)
    how = f"{pattern} over {array_bytes} bytes × {arrays} arrays a thread in vectors of {compiled.bits} bits, JIT-compiled"
    details = "; ".join(part for part in (how, f"{team.threads} threads", f"best of {effort}", working_set.note) if part)
    return Bandwidth(
        level=working_set.level,
        pattern=pattern,
        threads=team.threads,
        working_set_bytes=array_bytes * arrays * team.threads,
        rate=summarise(samples, "B/s", "max", details),
    )


def _pointers(memory: Array, array_bytes: int, arrays: int) -> Sequence[int]:
    """Return the addresses of x, y and z, one after another; an unused one is that of the spare vector at the end."""
    base = memory.ctypes.data
    return [base + array_bytes * min(index, arrays) for index in range(3)]
