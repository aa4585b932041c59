"""A program: the kernel calls of a segment of a model as a table, which one native loop walks (`kernels.native.run.walk`).

Every address that a kernel gets is a slot plus a constant number of bytes. Slots are the caller's memory: an arena, inputs,
outputs, weights. Binding a slot to memory writes those addresses into the table and changes nothing else, so neither moving the
arena nor feeding other arrays needs new code. Kernels are shared by all programs of a process.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from kernels.native.code.cache import CodeCache, Source
from kernels.native.code.farm import compile_all
from kernels.native.code.library import Library
from kernels.native.code.resident import load_kernels
from kernels.native.emit.kernel import NativeKernel, Table
from kernels.native.errors import EmitError
from kernels.native.memory.buffers import LINE_BYTES, address, aligned
from kernels.native.run.runtime import runtime_ir
from kernels.native.run.thread_pool import ThreadPool
from kernels.native.run.walk import ENTRY, HEADER, STEP, walk_ir
from kernels.native.target.isa import Isa
from kernels.record import record
from kernels.size import PLAIN, Sizes, SizeVector, is_symbolic
from kernels.spec import Array

_WORD_BYTES = 8
_GOES_ON = aligned(4).view(np.int32)  # the word "stop" of runs that nobody can stop


@record
class Ref:
    """A place in memory: a slot of the program and bytes from there.

    block: number of the block in the slot that the bytes count from, whose own offset `Program` is given; None = the slot.
    """

    slot: int
    offset_bytes: int = 0
    block: int | None = None


@record
class KernelCall:
    """One kernel and the places of its arguments, by name. An argument that is missing is never read; "scratch" is the program's.

    grain: chunks taken at a time. barrier: whether all threads wait for the whole step to be done; the last step needs none.
    """

    kernel: NativeKernel
    refs: Mapping[str, Ref]
    grain: int = 1
    barrier: bool = True


@record
class _Places:
    """The words that are addresses in one slot: which ones, how many bytes each lies from the slot or its block, which block."""

    words: Array
    offsets: SizeVector
    blocks: Array

    @property
    def in_blocks(self) -> bool:
        """Whether they count from blocks: all of a slot do, or none."""
        return len(self.blocks) > 0 and self.blocks[0] >= 0


class ProgramCode:
    """The kernels of a program, loaded, and the places of its words. Sizes among the words may depend on symbols."""

    def __init__(self, steps: Sequence[KernelCall], slots: int, isa: Isa, *, cache: CodeCache | None = None) -> None:
        """Load the kernels; those that this process has not got are compiled.

        Raises CompileError, and EmitError when a step refers to a slot there is not.
        """
        _check(steps, slots)
        self.slots, self.steps = slots, len(steps)
        self._libraries = load_kernels({step.kernel.name: step.kernel.source for step in steps}, isa, cache)
        self.walk = _walker(isa).address(ENTRY)
        self.scratch_bytes = SizeVector([step.kernel.scratch_bytes for step in steps])
        self._tables: list[tuple[int, Table]] = []  # the word of each that depends on symbols
        self._kept: list[Array] = []  # other tables, whose addresses are words
        self.fixed: list[tuple[int, Array]] = []  # slots of the same memory in all programs, at offsets that depend on symbols
        counts = [len(step.kernel.arguments) + len(step.kernel.tables) + len(step.kernel.numbers) for step in steps]
        self._starts = np.cumsum(counts, dtype=np.int64) - counts
        self._words, self.places = self._lay_words(steps)
        self._rows = np.zeros((len(steps), len(STEP)), np.int64)
        self._rows[:, STEP["function"]] = [self._libraries[step.kernel.name].address(step.kernel.name) for step in steps]
        self._rows[:, STEP["grain"]] = [step.grain for step in steps]
        self._rows[:, STEP["barrier"]] = [step.barrier for step in steps]
        self._chunks = SizeVector([step.kernel.chunks for step in steps])

    def _lay_words(self, steps: Sequence[KernelCall]) -> tuple[SizeVector, list[_Places]]:
        """Return all words, 0 for addresses that are not known yet, and the words that are addresses in each slot."""
        words: list[int] = []
        found: list[list[tuple[int, int, int]]] = [[] for _ in range(self.slots)]
        for step in steps:
            for name in step.kernel.arguments:
                if (ref := step.refs.get(name)) is not None:
                    found[ref.slot].append((len(words), ref.offset_bytes, -1 if ref.block is None else ref.block))
                words.append(0)
            for table in step.kernel.tables.values():
                if any(map(is_symbolic, table.sizes)):
                    self._tables.append((len(words), table))
                    words.append(0)
                else:
                    self._kept.append(table.words)
                    words.append(table.words.ctypes.data)
            words += step.kernel.numbers
        places = [
            _Places(
                np.array([word for word, _, _ in each], np.int64),
                SizeVector([offset for _, offset, _ in each]),
                np.array([block for _, _, block in each], np.int64),
            )
            for each in found
        ]
        return SizeVector(words or [0]), places

    def fix(self, slot: int, memory: Array) -> None:
        """Set the memory of a slot for all programs, which keep it alive by this object."""
        places = self.places[slot]
        if not places.offsets.is_plain:
            self.fixed.append((slot, memory))
            return
        self._kept.append(memory)
        self._words.plain[places.words] = places.offsets.plain + memory.ctypes.data
        self.places[slot] = _Places(places.words[:0], SizeVector([]), places.blocks[:0])

    def new_words(self) -> Array:
        """Return memory for the words."""
        return aligned(_WORD_BYTES * len(self._words)).view(np.int64)

    def write_words(self, sizes: Sizes, words: Array) -> list[Array]:
        """Write the words for some values of all sizes. Returns the tables that they hold addresses of."""
        words[:] = self._words.at(sizes)
        tables = [table.at(sizes).words for _, table in self._tables]
        for (word, _), table in zip(self._tables, tables, strict=True):
            words[word] = table.ctypes.data
        return tables

    def new_rows(self, words: Array, barriers: Sequence[bool] | None) -> Array:
        """Return the steps as the walker reads them, but for their chunks. barriers: of each step; None = those of the calls."""
        rows = aligned(_WORD_BYTES * len(STEP) * self.steps).view(np.int64).reshape(self.steps, len(STEP))
        rows[:] = self._rows
        rows[:, STEP["arguments"]] = words.ctypes.data + _WORD_BYTES * self._starts
        if barriers is not None:
            rows[:, STEP["barrier"]] = barriers
        rows[-1:, STEP["barrier"]] = 0
        return rows

    def chunks(self, sizes: Sizes) -> Array:
        """Return the chunks of each step for some values of all sizes."""
        return self._chunks.at(sizes)


class Program:
    """A program that is ready to run, for some values of its sizes. One run at a time: its counters and table are its own.

    Args: blocks: offset in bytes of each block that its places count from. barriers: whether threads meet after each step; None =
          as its calls say. table: a row of words for each step, as `STEP` names them.
    """

    def __init__(
        self,
        code: ProgramCode,
        pool: ThreadPool,
        sizes: Sizes = PLAIN,
        blocks: Array | None = None,
        barriers: Sequence[bool] | None = None,
    ) -> None:
        self._code, self._pool, self._steps = code, pool, code.steps
        self._blocks = blocks
        self._times_bytes = _lines(3 * _WORD_BYTES * self._steps)
        self._header = aligned(_WORD_BYTES * len(HEADER)).view(np.int64)
        self._header_address = address(self._header)
        self._timed = False
        self._stop: Array | None = None  # whose address the header has
        self._words = code.new_words()
        self.table = code.new_rows(self._words, barriers)
        self._header[HEADER["steps"]], self._header[HEADER["step_count"]] = self.table.ctypes.data, self._steps
        self._counters = self._times = self._scratch = np.empty(0)
        self._threads = self._scratch_bytes = 0
        self.resize(sizes)

    def resize(self, sizes: Sizes) -> None:
        """Give all sizes other values. Every slot must be bound anew; blocks stay where they are."""
        code = self._code
        self._tables = code.write_words(sizes, self._words)
        self.table[:, STEP["chunks"]] = code.chunks(sizes)
        self._useful_threads = max(int(self.table[:, STEP["chunks"]].max(initial=1)), 1)
        self._offsets = [_offsets(places, sizes, self._blocks) for places in code.places]
        self._bound = [0] * code.slots
        for slot, memory in code.fixed:
            self.bind(slot, memory)
        scratch_bytes = _lines(int(code.scratch_bytes.at(sizes).max(initial=0)))
        if scratch_bytes > self._scratch_bytes or not self._threads:
            self._scratch_bytes = scratch_bytes
            self._grow(max(self._pool.threads, self._threads))

    def _grow(self, threads: int) -> None:
        """Allocate counters, timestamps and scratch for that many threads."""
        self._threads = threads
        self._counters = aligned(LINE_BYTES * (self._steps * (threads + 1) + 1))
        self._counted = (address(self._counters), self._counters.nbytes)
        self._times = aligned(self._times_bytes * threads)
        self._scratch = aligned(self._scratch_bytes * threads)
        header = {"counters": self._counters.ctypes.data, "scratch": self._scratch.ctypes.data,
                  "scratch_bytes": self._scratch_bytes, "times_bytes": self._times_bytes}  # fmt: skip
        for name, value in header.items():
            self._header[HEADER[name]] = value

    def bind(self, slot: int, memory: Array) -> None:
        """Set the memory of a slot, which the caller keeps alive and contiguous."""
        self.bind_all(slot, (memory,))

    def bind_all(self, first: int, memories: Sequence[Array]) -> None:
        """Set the memory of neighbouring slots, as `bind` does."""
        bound = self._bound
        for slot, memory in enumerate(memories, first):
            begin = address(memory)
            if begin == bound[slot]:
                continue
            words, offsets = self._code.places[slot].words, self._offsets[slot]
            if len(words) == 1:  # of most inputs and outputs; numpy takes ten times as long for it as for a number
                self._words[words.item()] = offsets.item() + begin
            else:
                self._words[words] = offsets + begin
            bound[slot] = begin

    def run(self, threads: int, *, timed: bool = False, stop: Array = _GOES_ON) -> None:
        """Run to the end on that many threads.

        timed: every thread writes the clock before and after every step's work and after its barrier (`times`). stop: a word
        (int32); once another thread makes it anything but 0, the steps that have not begun do no work, and results are invalid.
        Raises PoolError.
        """
        if threads > self._useful_threads and not timed:  # no thread takes part of a chunk, and waking one takes a µs
            threads = self._useful_threads
        if threads > self._threads:  # the pool has grown since
            self._grow(threads)
        if timed or self._timed:
            self._header[HEADER["times"]] = address(self._times) if timed else 0
            self._timed = timed
        if stop is not self._stop:
            self._header[HEADER["stop"]] = address(stop)
            self._stop = stop
        self._pool.run(self._code.walk, self._header_address, threads, self._counted)

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


def _offsets(places: _Places, sizes: Sizes, blocks: Array | None) -> Array:
    """Return the bytes from a slot to each of its places. blocks: offsets of the blocks in it."""
    offsets = places.offsets.at(sizes)
    return offsets if blocks is None or not places.in_blocks else offsets + blocks[places.blocks]


def _lines(nbytes: int) -> int:
    """Return a size in whole cache lines, so that no two threads share one."""
    return -(-nbytes // LINE_BYTES) * LINE_BYTES


@functools.cache
def _walker(isa: Isa) -> Library:
    """Compile the loop that walks programs, once in a process for each instruction set."""
    sources = [Source.of(walk_ir(isa)), Source.of(runtime_ir(isa))]
    return Library([compiled.code for compiled in compile_all(sources, isa, cache=CodeCache.default())], [ENTRY])
