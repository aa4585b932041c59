"""One segment: its nodes lowered to calls, placed in memory, compiled, bound and run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from graph.choice import Choice
from graph.ir import Node, Specs
from graph.memory import Held
from graph.native.arena import lay_out
from graph.native.barriers import with_barriers
from graph.native.calls import Call, IndexWatch
from graph.native.constants import ConstantCache
from graph.native.facts import Facts
from graph.native.held import held_values
from graph.native.lowering import Lowering
from graph.native.partition import Part
from graph.native.place import PackedConstant, Storage
from graph.native.rules.table import RULES
from graph.timing import SegmentClock
from kernels.errors import IndexRangeError
from kernels.log import KERNELS, debug, debug_level
from kernels.native.code.cache import CodeCache, Source
from kernels.native.run.program import KernelCall, Program, ProgramCode, Ref
from kernels.native.run.thread_pool import ThreadPool
from kernels.record import record
from kernels.size import Size, Sizes, SizeVector, size_text, sizes_in
from kernels.spec import Array

SPACIOUS = 2  # a layout serves sizes that need half of its memory and more
MOST_LAYOUTS = 8  # that are kept of one segment
_BYTE = np.dtype(np.uint8)
_ARENA = 0  # the slot of the segment's own memory; then come its inputs, its outputs and its constants


def lower(part: Part, facts: Facts, constants: ConstantCache, choices: Mapping[str, Choice]) -> Lowering:
    """Return the lowering of a part with all its calls. No node of it may be refused, and each must have a choice."""
    facts = replace(facts, held=held_values(part, facts, choices))
    lowering = Lowering(part.nodes, facts, part.outputs, constants, choices)
    for name in part.inputs:
        if (shared := next((each for each in facts.kept.values() if each.input == name), None)) is None:
            lowering.values.enter(name)
        else:
            lowering.values.enter_kept(name, shared)
    for node in part.nodes:
        if (reserve := RULES[node.op].reserve) is not None:
            reserve(lowering, node)
    for at, node in enumerate(part.nodes):
        lowering.calls.node = at
        if node.name not in lowering.done:
            RULES[node.op].lower(lowering, node)
    for name in part.outputs:
        lowering.values.leave(name)
    return lowering


def complete_choices(part: Part, facts: Facts, choices: Mapping[str, Choice]) -> dict[str, Choice]:
    """Return a choice for each node of a part: the given one, or the first candidate of its rule."""
    hinted = facts.hinted
    return {node.name: choices.get(node.name) or RULES[node.op].candidates(node, hinted)[0] for node in part.nodes}


class LoweredSegment:
    """A part of a graph as kernel calls, whose sizes may depend on symbols. `bind` makes the program for some values."""

    def __init__(self, part: Part, facts: Facts, choices: Mapping[str, Choice], constants: ConstantCache) -> None:
        self.choices = complete_choices(part, facts, choices)
        self.facts = facts
        lowering = lower(part, facts, constants, self.choices)
        self.nodes: tuple[Node, ...] = part.nodes
        self.inputs, self.outputs = part.inputs, part.outputs
        self.calls: tuple[Call, ...] = tuple(lowering.calls)
        self.node_of = [call.node for call in self.calls]
        self.watches: tuple[IndexWatch, ...] = tuple(lowering.calls.watches)
        storages = list(dict.fromkeys(storage for call in self.calls for storage, _ in call.arguments.values()))
        self._own = [storage for storage in storages if storage.is_own]
        self._made = [storage for storage in storages if storage.table is not None]
        self.own_bytes = SizeVector([storage.nbytes for storage in self._own])
        self._where, self.slots = self._places(storages)
        self._code: ProgramCode | None = None
        self._layouts: list[SegmentLayout] = []  # the newest last
        self._show_kernels()

    def _places(self, storages: Sequence[Storage]) -> tuple[dict[Storage, Ref], int]:
        """Return the slot of each storage, or its block in the arena, and the number of slots."""
        ports = (*self.inputs, *(f">{name}" for name in self.outputs))
        slot_of = {name: slot for slot, name in enumerate(ports, _ARENA + 1)}
        blocks = {storage: block for block, storage in enumerate(self._own)}
        written = {call.arguments[name][0] for call in self.calls for name in call.writes if name in call.arguments}
        where: dict[Storage, Ref] = {}
        slots = _ARENA + 1 + len(ports)
        for storage in storages:
            if storage.constant is not None or storage.table is not None:
                where[storage] = Ref(slots)
                slots += 1
            elif storage.port:
                output = slot_of.get(f">{storage.port}") if storage in written else None
                where[storage] = Ref(slot_of[storage.port] if output is None else output)
            else:
                where[storage] = Ref(_ARENA, 0, blocks[storage])
        return where, slots

    @property
    def packed(self) -> tuple[PackedConstant, ...]:
        """The packed constants that its calls read."""
        watched = {watch.storage for watch in self.watches}
        return tuple(each.constant for each in self._where if each.constant is not None and each not in watched)

    @property
    def kernels(self) -> dict[str, Source]:
        """The sources of its kernels by their names."""
        return {call.kernel.name: call.kernel.source for call in self.calls}

    @property
    def steps(self) -> list[KernelCall]:
        """The calls as those of a program; `SegmentLayout.barriers` says where threads meet."""
        return [
            KernelCall(call.kernel, {name: replace(self._where[s], offset_bytes=at) for name, (s, at) in call.arguments.items()})
            for call in self.calls
        ]

    def replace_constants(self, specs: Specs, constants: Mapping[str, Array]) -> None:
        """Read these from now on: equal values, some of them stored in less memory."""
        self.facts = replace(self.facts, specs=specs, constants=constants)

    def find_sizes(self, found: dict[Size, None]) -> None:
        """Add what `bind` needs values of."""
        for call in self.calls:
            kernel = call.kernel
            sizes_in((kernel.chunks, kernel.scratch_bytes, kernel.numbers), found)
            sizes_in([table.sizes for table in kernel.tables.values()], found)
            sizes_in([first for _, first in call.arguments.values()], found)
        sizes_in([storage.nbytes for storage in self._own], found)
        sizes_in([watch.axis_size for watch in self.watches], found)
        sizes_in([storage.table for storage in self._made], found)

    def lay_out(self, nbytes: Sequence[int]) -> SegmentLayout:
        """Place its storages in memory. nbytes: of each of its own, in the order of its blocks."""
        sized = {storage: replace(storage, elements=size, dtype=_BYTE) for storage, size in zip(self._own, nbytes, strict=True)}
        storages = {storage: sized.get(storage) or replace(storage, elements=1) for storage in self._where}
        calls = [
            replace(call, arguments={name: (storages[s], 0) for name, (s, _) in call.arguments.items()}) for call in self.calls
        ]
        arena = lay_out(calls, len(self.nodes))
        offsets = [arena.offsets[sized[storage]] for storage in self._own]
        where = {storages[storage]: ref for storage, ref in self._where.items()}
        where |= {sized[storage]: Ref(_ARENA, offset) for storage, offset in zip(self._own, offsets, strict=True)}
        barriers = [step.barrier for step in with_barriers(calls, where)]
        return SegmentLayout(np.array(nbytes, np.int64), np.array(offsets, np.int64), arena.nbytes, arena.held, barriers)

    def bind(self, sizes: Sizes, pool: ThreadPool, cache: CodeCache | None, *, roomy: bool = True) -> Segment:
        """Return the program for some values of all sizes.

        roomy: where sizes have differed, lay memory out for somewhat larger ones too, which then need no layout of their own.
        """
        if self._code is None:
            self._code = ProgramCode(self.steps, self.slots, self.facts.isa, cache=cache)
            watched = {watch.storage for watch in self.watches}
            for storage, ref in self._where.items():
                if storage.constant is not None and storage not in watched:
                    self._code.fix(ref.slot, storage.constant.array)
        layout = self._laid_out(sizes, roomy)
        return Segment(self, layout, Program(self._code, pool, sizes, layout.offsets, layout.barriers), sizes)

    def _laid_out(self, sizes: Sizes, roomy: bool) -> SegmentLayout:
        """Return a layout that is known and neither too small nor much too large, or a new one."""
        nbytes = self.own_bytes.at(sizes)
        most = max(int(nbytes.sum()), 1) * (SPACIOUS if roomy else 1)
        for layout in self._layouts:
            if self.fits(layout, sizes) and int(layout.nbytes.sum()) <= most:
                return layout
        if self._layouts and roomy:
            nbytes = np.maximum(nbytes, self.own_bytes.at(sizes.roomy()))
        self._layouts = [*self._layouts[1 - MOST_LAYOUTS :], self.lay_out(nbytes.tolist())]
        return self._layouts[-1]

    def fits(self, layout: SegmentLayout, sizes: Sizes) -> bool:
        """Whether a layout has memory enough for these sizes."""
        return bool((self.own_bytes.at(sizes) <= layout.nbytes).all())

    def made(self, sizes: Sizes) -> list[tuple[int, Array]]:
        """Return the numbers that follow from sizes, each with its slot."""
        return [(self._where[s].slot, s.table.at(sizes).words) for s in self._made if s.table is not None]

    def watched(self, sizes: Sizes, words: Sequence[Array]) -> list[BoundWatch]:
        """Return what watches indices, with a word for each."""
        return [
            BoundWatch(watch, sizes.of(watch.axis_size), word, self._where[watch.storage].slot)
            for watch, word in zip(self.watches, words, strict=True)
        ]

    def _show_kernels(self) -> None:
        """Log the kernels that each node becomes where EDGEWISE_DEBUG asks for them."""
        if debug_level() >= KERNELS:
            for call in self.calls:
                node, kernel = self.nodes[call.node], call.kernel
                choice, chunks = self.choices[node.name], size_text(kernel.chunks)
                debug("kernel", node=node.name, op=node.op, choice=str(choice), kernel=kernel.name, chunks=chunks)


@record
class SegmentLayout:
    """The memory of a segment: for storages of `nbytes` and all smaller ones.

    offsets: of its own storages, in bytes. arena_bytes, held: as in `graph.native.arena.Arena`. barriers: whether threads meet
    after each call.
    """

    nbytes: Array
    offsets: Array
    arena_bytes: int
    held: Sequence[Held]
    barriers: Sequence[bool]


@record
class BoundWatch:
    """A watch of a segment, with the size that its indices are of, the word that kernels of a program write to, and its slot."""

    watch: IndexWatch
    axis_size: int
    word: Array
    slot: int


class Segment:
    """A part of a graph as one native program, for one set of sizes.

    A run works in `arena_bytes` of memory that the caller provides; `held` says what lies there while each node runs.
    Not thread-safe: one run at a time.
    """

    def __init__(self, lowered: LoweredSegment, layout: SegmentLayout, program: Program, sizes: Sizes) -> None:
        self.nodes, self.choices, self.calls = lowered.nodes, lowered.choices, lowered.calls
        self.arena_bytes, self.held = layout.arena_bytes, tuple(layout.held)
        self.at_work = frozenset(lowered.node_of)  # positions of the nodes that have calls
        self._facts, self._node_of = lowered.facts, lowered.node_of
        self._lowered, self._layout, self._program = lowered, layout, program
        self._watches = lowered.watched(sizes, [np.zeros(1, np.int64) for _ in lowered.watches])
        self._arena: Array | None = None  # that is bound
        self._bind_made(sizes)

    def resize(self, sizes: Sizes) -> bool:
        """Give all sizes other values in place. False, and nothing is done, where its memory has no room for them."""
        if not self._lowered.fits(self._layout, sizes):
            return False
        self._program.resize(sizes)
        self._arena = None
        self._watches = self._lowered.watched(sizes, [watch.word for watch in self._watches])
        self._bind_made(sizes)
        return True

    def _bind_made(self, sizes: Sizes) -> None:
        self._made = self._lowered.made(sizes)  # kept: the program holds their addresses
        for slot, words in [*self._made, *((watch.slot, watch.word) for watch in self._watches)]:
            self._program.bind(slot, words)

    def macs(self, node: Node) -> int | None:
        """Return the multiply–accumulates of a node's algorithm, or None where they are those of the op's definition."""
        return RULES[node.op].work(node, self._facts.hinted, self.choices[node.name]).macs

    def run(self, arena: Array, inputs: Sequence[Array], outputs: Sequence[Array], threads: int, stop: Array) -> None:
        """Run once. All arrays are contiguous. outputs: memory for the results. stop: see `Program.run`.

        Raises: IndexRangeError, naming its node, where a run-time index is out of range; the outputs are invalid then.
        """
        self._bind(arena, inputs, outputs)
        self._program.run(threads, stop=stop)
        if self._watches:
            self._check()

    def run_timed(self, arena: Array, inputs: Sequence[Array], outputs: Sequence[Array], threads: int) -> SegmentClock:
        """Run once as `run` does, with every thread reading the clock before and after every call."""
        self._bind(arena, inputs, outputs)
        began_ns = time.perf_counter_ns()
        self._program.run(threads, timed=True)
        ended_ns = time.perf_counter_ns()
        self._check()
        return SegmentClock(began_ns, ended_ns, self._program.times(threads), len(self.nodes), self._node_of)

    def _bind(self, arena: Array, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        for watch in self._watches:
            watch.word[0] = 0
        if arena is not self._arena:
            self._program.bind(_ARENA, arena)
            self._arena = arena
        self._program.bind_all(_ARENA + 1, (*inputs, *outputs))

    def _check(self) -> None:
        """Raise IndexRangeError where a kernel has reported an index out of range."""
        for bound in self._watches:
            if not bound.word[0]:  # no kernel wrote to it
                continue
            node, watch = bound.watch.node, bound.watch
            try:
                watch.check(f"{node.op}: {watch.what}", bound.word, bound.axis_size)
            except IndexRangeError as error:
                raise IndexRangeError(f"{error} (node {node.name!r})") from None
