"""A program: the kernels of a segment of a model composed into one native function, which every thread of a team runs.

    denormals count as 0 from here on, until the end
    for each step:  do this thread's share of the chunks, then help with the others';  barrier, where the next step needs it

A program is called with a table of addresses: counters, timestamps, scratch memory, then the caller's slots (an arena, inputs,
outputs, weights). Every pointer a kernel gets is a slot plus a constant number of bytes, so that moving the arena or feeding
other arrays changes the table and nothing else, and kernels of one shape are shared between layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kernels.native.code.cache import CodeCache, Source
from kernels.native.code.farm import compile_all
from kernels.native.code.library import Library
from kernels.native.emit.builder import Function, Module, Value
from kernels.native.emit.kernel import SCRATCH, NativeKernel, signature
from kernels.native.emit.types import I8, I64, PTR, VOID
from kernels.native.errors import EmitError
from kernels.native.memory.buffers import LINE_BYTES, aligned
from kernels.native.run.runtime import barrier, denormals_as_zero, runtime_ir, shares
from kernels.native.run.thread_pool import ThreadPool
from kernels.native.target.isa import Isa
from kernels.spec import Array

ENTRY = "edgewise_program"
_COUNTERS, _TIMES, _SCRATCH, _SLOTS = 0, 1, 2, 3  # indices into the table


@dataclass(frozen=True, slots=True)
class Ref:
    """A place in memory: a slot of the program's table and bytes from there."""

    slot: int
    offset_bytes: int = 0


@dataclass(frozen=True, slots=True)
class KernelCall:
    """One kernel and the places of its arguments, by name. An argument that is missing is never read; "scratch" is the program's.

    grain: chunks taken at a time. barrier: whether all threads wait for the whole step to be done; the last step needs none.
    """

    kernel: NativeKernel
    refs: Mapping[str, Ref]
    grain: int = 1
    barrier: bool = True


def emit_program(steps: Sequence[KernelCall], isa: Isa, *, timed: bool) -> str:
    """The IR of a program. timed: every thread writes the clock before and after every step's work and after its barrier."""
    module = Module(isa)
    for step in steps:
        module.declare(step.kernel.name, VOID, list(signature(step.kernel.arguments).values()))
    with module.function(ENTRY, {"table": PTR, "thread": I64, "threads": I64, "team": PTR}) as (k, *arguments):
        table, thread, threads, team = arguments
        counters, times = k.load(PTR, table, _COUNTERS), k.load(PTR, table, _TIMES)
        scratch = k.offset(k.load(PTR, table, _SCRATCH), thread * _scratch_bytes(steps), I8)
        mine = k.offset(times, thread * _times_per_thread(len(steps)), I64)
        with denormals_as_zero(k):
            for n, step in enumerate(steps):
                k.comment(f"step {n}: {step.kernel.name}")
                pointers = [
                    scratch if name == SCRATCH else _pointer(k, table, step.refs.get(name)) for name in step.kernel.arguments
                ]
                if timed:
                    _stamp(k, mine, 3 * n)
                counter, total = k.offset(counters, n * LINE_BYTES, I8), step.kernel.chunks
                with shares(k, counter, len(steps), thread, threads, total, step.grain) as (begin, end):
                    k.call(step.kernel.name, VOID, *pointers, begin, end)
                if timed:
                    _stamp(k, mine, 3 * n + 1)
                if step.barrier and n + 1 < len(steps):
                    barrier(k, team)
                if timed:
                    _stamp(k, mine, 3 * n + 2)
    return module.text


def _times_per_thread(steps: int) -> int:
    """Elements of i64 a thread has for its timestamps, in lines of its own."""
    per_line = LINE_BYTES // 8
    return -(-3 * steps // per_line) * per_line


def _scratch_bytes(steps: Sequence[KernelCall]) -> int:
    """Scratch of one thread, in cache lines of its own: the largest that any kernel needs."""
    return -(-max((step.kernel.scratch_bytes for step in steps), default=0) // LINE_BYTES) * LINE_BYTES


def _pointer(k: Function, table: Value, ref: Ref | None) -> Value:
    if ref is None:
        return Value(k, PTR, "null")
    return k.offset(k.load(PTR, table, _SLOTS + ref.slot), ref.offset_bytes, I8)


def _stamp(k: Function, times: Value, index: int) -> None:
    counter = "llvm.readcyclecounter" if k.isa.arch == "x86_64" else "llvm.readsteadycounter"
    k.store(k.call(counter, I64), times, index)


class Program:
    """A compiled program. One run at a time: its counters and table are its own."""

    def __init__(
        self,
        steps: Sequence[KernelCall],
        slots: int,
        isa: Isa,
        pool: ThreadPool,
        *,
        timed: bool = False,
        cache: CodeCache | None = None,
    ) -> None:
        """Compile and link. Raises CompileError, and EmitError when a step refers to a slot there is not."""
        for step in steps:
            if foreign := set(step.refs) - set(step.kernel.arguments):
                raise EmitError(f"program: step {step.kernel.name} has no argument {sorted(foreign)}")
            for ref in step.refs.values():
                if not 0 <= ref.slot < slots:
                    raise EmitError(f"program: step {step.kernel.name} refers to slot {ref.slot}, it has {slots}")
        kernels = {step.kernel.name: step.kernel.source for step in steps}
        modules = [*kernels.values(), Source.of(emit_program(steps, isa, timed=timed)), Source.of(runtime_ir(isa))]
        objects = [compiled.code for compiled in compile_all(modules, isa, cache=cache)]
        self._library = Library(objects, [ENTRY])
        self._pool = pool
        self._steps = len(steps)
        self._scratch_bytes = _scratch_bytes(steps)
        self._table = aligned(8 * (_SLOTS + slots)).view(np.uint64)
        self._counters = self._times = self._scratch = np.empty(0)
        self._threads = 0
        self._grow(pool.threads)

    def _grow(self, threads: int) -> None:
        """Allocate counters, timestamps and scratch for that many threads."""
        self._threads = threads
        self._counters = aligned(LINE_BYTES * max(self._steps, 1) * threads)
        self._table[_COUNTERS] = self._counters.ctypes.data
        self._times = aligned(8 * _times_per_thread(self._steps) * threads).view(np.int64)
        self._scratch = aligned(self._scratch_bytes * threads)
        self._table[_TIMES] = self._times.ctypes.data
        self._table[_SCRATCH] = self._scratch.ctypes.data

    def bind(self, slot: int, memory: Array) -> None:
        """Set the memory of a slot, which the caller keeps alive and contiguous."""
        self._table[_SLOTS + slot] = memory.ctypes.data

    def run(self, threads: int) -> None:
        """Run to the end on that many threads. Raises PoolError."""
        if threads > self._threads:  # the pool has grown since
            self._grow(threads)
        self._pool.run(self._library.address(ENTRY), self._table.ctypes.data, threads, self._counters)

    def times(self, threads: int) -> Array:
        """Return clock ticks of the last timed run, (threads, steps, 3): before the work, after it, after the barrier."""
        per_thread = _times_per_thread(self._steps)
        rows = self._times[: threads * per_thread].reshape(threads, per_thread)[:, : 3 * self._steps]
        return rows.reshape(threads, self._steps, 3).copy()
