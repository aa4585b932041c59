"""A program: the kernel calls of a segment of a model as a table, which one native loop walks (`kernels.native.run.walk`).

Every address that a kernel gets is a slot plus a constant number of bytes. Slots are the caller's memory: an arena, inputs,
outputs, weights. Binding a slot to memory writes those addresses into the table and changes nothing else, so neither moving the
arena nor feeding other arrays needs new code. Kernels are shared by all programs of a process.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kernels.native.code.cache import CodeCache, Source
from kernels.native.code.farm import compile_all
from kernels.native.code.library import Library
from kernels.native.code.resident import load_kernels
from kernels.native.emit.kernel import NativeKernel
from kernels.native.errors import EmitError
from kernels.native.memory.buffers import LINE_BYTES, aligned
from kernels.native.run.runtime import runtime_ir
from kernels.native.run.thread_pool import ThreadPool
from kernels.native.run.walk import ENTRY, HEADER, STEP, walk_ir
from kernels.native.target.isa import Isa
from kernels.spec import Array

_WORD_BYTES = 8
_GOES_ON = aligned(4).view(np.int32)  # the word "stop" of runs that nobody can stop


@dataclass(frozen=True, slots=True)
class Ref:
    """A place in memory: a slot of the program and bytes from there."""

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


class Program:
    """A program that is ready to run. One run at a time: its counters and table are its own.

    table: a row of words for each step, as `STEP` names them.
    """

    def __init__(
        self, steps: Sequence[KernelCall], slots: int, isa: Isa, pool: ThreadPool, *, cache: CodeCache | None = None
    ) -> None:
        """Compile the kernels that this process has not got, and make the table.

        Raises CompileError, and EmitError when a step refers to a slot there is not.
        """
        _check(steps, slots)
        self._libraries = load_kernels({step.kernel.name: step.kernel.source for step in steps}, isa, cache)
        self._walk = _walker(isa).address(ENTRY)
        self._pool = pool
        self._steps = len(steps)
        self._scratch_bytes = _lines(max((step.kernel.scratch_bytes for step in steps), default=0))
        self._times_bytes = _lines(3 * _WORD_BYTES * self._steps)
        self._header = aligned(_WORD_BYTES * len(HEADER)).view(np.int64)
        counts = [len(step.kernel.arguments) + len(step.kernel.tables) + len(step.kernel.numbers) for step in steps]
        self._words = aligned(_WORD_BYTES * max(sum(counts), 1)).view(np.int64)
        self._tables: list[Array] = []  # kept, since words hold their addresses
        self._places = self._fill_words(steps, slots)
        self._bound = [0] * slots
        self.table = self._make_table(steps, counts)
        self._header[HEADER["steps"]], self._header[HEADER["step_count"]] = self.table.ctypes.data, self._steps
        self._counters = self._times = self._scratch = np.empty(0)
        self._threads = 0
        self._grow(pool.threads)

    def _fill_words(self, steps: Sequence[KernelCall], slots: int) -> list[tuple[Array, Array]]:
        """Write what is no address in a slot. Returns, for each slot, which words are addresses in it, and how many bytes on."""
        places: list[tuple[list[int], list[int]]] = [([], []) for _ in range(slots)]
        at = 0
        for step in steps:
            for name in step.kernel.arguments:
                if (ref := step.refs.get(name)) is not None:
                    places[ref.slot][0].append(at)
                    places[ref.slot][1].append(ref.offset_bytes)
                at += 1
            tables = [table.words for table in step.kernel.tables.values()]
            self._tables += tables
            words = [*(table.ctypes.data for table in tables), *step.kernel.numbers]
            self._words[at : at + len(words)] = words
            at += len(words)
        return [(np.array(words, np.int64), np.array(offsets, np.int64)) for words, offsets in places]

    def _make_table(self, steps: Sequence[KernelCall], counts: Sequence[int]) -> Array:
        """Return the steps as the walker reads them. counts: words of each step's arguments."""
        rows = aligned(_WORD_BYTES * len(STEP) * len(steps)).view(np.int64).reshape(len(steps), len(STEP))
        rows[:, STEP["function"]] = [self._libraries[step.kernel.name].address(step.kernel.name) for step in steps]
        rows[:, STEP["arguments"]] = self._words.ctypes.data + _WORD_BYTES * (np.cumsum(counts, dtype=np.int64) - counts)
        rows[:, STEP["chunks"]] = [step.kernel.chunks for step in steps]
        rows[:, STEP["grain"]] = [step.grain for step in steps]
        rows[:, STEP["barrier"]] = [step.barrier and at + 1 < len(steps) for at, step in enumerate(steps)]
        return rows

    def _grow(self, threads: int) -> None:
        """Allocate counters, timestamps and scratch for that many threads."""
        self._threads = threads
        self._counters = aligned(LINE_BYTES * max(self._steps, 1) * threads)
        self._times = aligned(self._times_bytes * threads)
        self._scratch = aligned(self._scratch_bytes * threads)
        header = {"counters": self._counters.ctypes.data, "scratch": self._scratch.ctypes.data,
                  "scratch_bytes": self._scratch_bytes, "times_bytes": self._times_bytes}  # fmt: skip
        for name, value in header.items():
            self._header[HEADER[name]] = value

    def bind(self, slot: int, memory: Array) -> None:
        """Set the memory of a slot, which the caller keeps alive and contiguous."""
        address = memory.ctypes.data
        if address != self._bound[slot]:
            words, offsets = self._places[slot]
            self._words[words] = offsets + address
            self._bound[slot] = address

    def run(self, threads: int, *, timed: bool = False, stop: Array = _GOES_ON) -> None:
        """Run to the end on that many threads.

        timed: every thread writes the clock before and after every step's work and after its barrier (`times`). stop: a word
        (int32); once another thread makes it anything but 0, the steps that have not begun do no work, and results are invalid.
        Raises PoolError.
        """
        if threads > self._threads:  # the pool has grown since
            self._grow(threads)
        self._header[HEADER["times"]] = self._times.ctypes.data if timed else 0
        self._header[HEADER["stop"]] = stop.ctypes.data
        self._pool.run(self._walk, self._header.ctypes.data, threads, self._counters)

    def times(self, threads: int) -> Array:
        """Return clock ticks of the last timed run, (threads, steps, 3): before the work, after it, after the barrier."""
        rows = self._times.view(np.int64).reshape(self._threads, self._times_bytes // _WORD_BYTES)[:threads, : 3 * self._steps]
        return rows.reshape(threads, self._steps, 3).copy()


def _check(steps: Sequence[KernelCall], slots: int) -> None:
    """Raise EmitError for an argument that a kernel does not have, or a slot that the program does not have."""
    for step in steps:
        if foreign := set(step.refs) - set(step.kernel.arguments):
            raise EmitError(f"program: step {step.kernel.name} has no argument {sorted(foreign)}")
        for ref in step.refs.values():
            if not 0 <= ref.slot < slots:
                raise EmitError(f"program: step {step.kernel.name} refers to slot {ref.slot}, it has {slots}")


def _lines(nbytes: int) -> int:
    """Return a size in whole cache lines, so that no two threads share one."""
    return -(-nbytes // LINE_BYTES) * LINE_BYTES


@functools.cache
def _walker(isa: Isa) -> Library:
    """Compile the loop that walks programs, once in a process for each instruction set."""
    sources = [Source.of(walk_ir(isa)), Source.of(runtime_ir(isa))]
    return Library([compiled.code for compiled in compile_all(sources, isa, cache=CodeCache.default())], [ENTRY])
