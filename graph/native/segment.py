"""One segment: its nodes lowered to calls, placed in memory, compiled, bound and run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from graph.choice import Choice
from graph.ir import Node
from graph.native.arena import Arena, lay_out
from graph.native.barriers import with_barriers
from graph.native.calls import Call, IndexWatch
from graph.native.constants import ConstantCache
from graph.native.facts import Facts
from graph.native.lowering import Lowering
from graph.native.partition import Part
from graph.native.place import PackedConstant, Storage
from graph.native.rules.table import RULES
from graph.timing import SegmentClock
from kernels.errors import IndexRangeError
from kernels.log import KERNELS, debug, debug_level
from kernels.native.code.cache import CodeCache, Source
from kernels.native.run.program import KernelCall, Program, Ref
from kernels.native.run.thread_pool import ThreadPool
from kernels.operands import check_indices
from kernels.size import Size, Sizes, sizes_in
from kernels.spec import Array

_ARENA = 0  # the slot of the segment's own memory; then come its inputs, its outputs and its constants


def lower(part: Part, facts: Facts, constants: ConstantCache, choices: Mapping[str, Choice]) -> Lowering:
    """Return the lowering of a part with all its calls. No node of it may be refused, and each must have a choice."""
    lowering = Lowering(part.nodes, facts, part.outputs, constants, choices)
    for name in part.inputs:
        lowering.values.enter(name)
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
        self.watches: tuple[IndexWatch, ...] = tuple(lowering.calls.watches)
        self.storages = tuple(dict.fromkeys(storage for call in self.calls for storage, _ in call.arguments.values()))
        self._show_kernels()

    @property
    def packed(self) -> tuple[PackedConstant, ...]:
        """The packed constants that its calls read."""
        watched = {id(watch.storage) for watch in self.watches}
        return tuple(each.constant for each in self.storages if each.constant is not None and id(each) not in watched)

    @property
    def kernels(self) -> dict[str, Source]:
        """The sources of its kernels by their names."""
        return {call.kernel.name: call.kernel.source for call in self.calls}

    def find_sizes(self, found: dict[Size, None]) -> None:
        """Add what `bind` needs values of."""
        for call in self.calls:
            kernel = call.kernel
            sizes_in((kernel.chunks, kernel.scratch_bytes, kernel.numbers), found)
            sizes_in([table.sizes for table in kernel.tables.values()], found)
            sizes_in([first for _, first in call.arguments.values()], found)
        sizes_in([storage.elements for storage in self.storages], found)
        sizes_in([watch.axis_size for watch in self.watches], found)

    def lay_out(self, sizes: Sizes) -> SegmentLayout:
        """Return its calls with values for all sizes, and their memory."""
        watched = {id(watch.storage) for watch in self.watches}
        storages = {
            storage: replace(storage, constant=PackedConstant.of(np.zeros(1, np.int64)))
            if id(storage) in watched
            else storage.at(sizes)
            for storage in self.storages
        }
        calls = [call.at(sizes, storages) for call in self.calls]
        watches = [IndexWatch(each.node, sizes.of(each.axis_size), storages[each.storage]) for each in self.watches]
        arena = lay_out(calls, len(self.nodes))
        ports = (*self.inputs, *(f">{name}" for name in self.outputs))
        where = self._where(calls, list(storages.values()), {name: n for n, name in enumerate(ports, _ARENA + 1)}, arena)
        constants = [(where[each].slot, each.constant) for each in storages.values() if each.constant is not None]
        slots = max(len(ports), *(ref.slot for ref in where.values())) + 1 if where else len(ports) + 1
        return SegmentLayout(calls, with_barriers(calls, where), slots, constants, watches, arena)

    @staticmethod
    def _where(calls: Sequence[Call], storages: Sequence[Storage], ports: Mapping[str, int], arena: Arena) -> dict[Storage, Ref]:
        """Return the slot and offset of each storage in the program's table of addresses. ports: slots of inputs and outputs."""
        where: dict[Storage, Ref] = {}
        next_slot = _ARENA + 1 + len(ports)
        written = {call.arguments[name][0] for call in calls for name in call.writes}
        for storage in storages:
            if storage.constant is not None:
                where[storage] = Ref(next_slot)
                next_slot += 1
            elif storage.port:
                where[storage] = Ref(ports[f">{storage.port}" if storage in written else storage.port])
            else:
                where[storage] = Ref(_ARENA, arena.offsets[storage])
        return where

    def bind(self, sizes: Sizes, pool: ThreadPool, cache: CodeCache | None) -> Segment:
        """Return the program for some values of all sizes."""
        return Segment(self, self.lay_out(sizes), pool, cache)

    def _show_kernels(self) -> None:
        """Log the kernels that each node becomes where EDGEWISE_DEBUG asks for them."""
        if debug_level() >= KERNELS:
            for call in self.calls:
                node, kernel = self.nodes[call.node], call.kernel
                choice = self.choices[node.name]
                debug("kernel", node=node.name, op=node.op, choice=str(choice), kernel=kernel.name, chunks=kernel.chunks)


@dataclass(frozen=True, slots=True)
class SegmentLayout:
    """The calls of a segment for one set of sizes, placed in memory.

    steps: the calls as a program has them, with barriers. slots: of the program. constants: the slot of each.
    """

    calls: Sequence[Call]
    steps: Sequence[KernelCall]
    slots: int
    constants: Sequence[tuple[int, PackedConstant]]
    watches: Sequence[IndexWatch]
    arena: Arena


class Segment:
    """A part of a graph as one native program, for one set of sizes.

    A run works in `arena_bytes` of memory that the caller provides; `held` says what lies there while each node runs.
    Not thread-safe: one run at a time.
    """

    def __init__(self, lowered: LoweredSegment, layout: SegmentLayout, pool: ThreadPool, cache: CodeCache | None) -> None:
        self.nodes, self.choices = lowered.nodes, lowered.choices
        self.arena_bytes, self.held = layout.arena.nbytes, layout.arena.held
        self._facts, self._watches = lowered.facts, layout.watches
        self.calls = layout.calls
        self._node_of = [call.node for call in layout.calls]
        self.at_work = frozenset(self._node_of)  # positions of the nodes that have calls
        self._program = Program(layout.steps, layout.slots, lowered.facts.isa, pool, cache=cache)
        self._constants = layout.constants  # kept: the program holds their addresses
        for slot, constant in layout.constants:
            self._program.bind(slot, constant.array)

    def macs(self, node: Node) -> int | None:
        """Return the multiply–accumulates of a node's algorithm, or None where they are those of the op's definition."""
        return RULES[node.op].work(node, self._facts.hinted, self.choices[node.name]).macs

    def run(self, arena: Array, inputs: Sequence[Array], outputs: Sequence[Array], threads: int, stop: Array) -> None:
        """Run once. All arrays are contiguous. outputs: memory for the results. stop: see `Program.run`.

        Raises: IndexRangeError, naming its node, where a run-time index is out of range; the outputs are invalid then.
        """
        self._bind(arena, inputs, outputs)
        self._program.run(threads, stop=stop)
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
            _word(watch)[0] = 0
        self._program.bind(_ARENA, arena)
        for slot, array in enumerate((*inputs, *outputs), _ARENA + 1):
            self._program.bind(slot, array)

    def _check(self) -> None:
        """Raise IndexRangeError where a kernel has reported an index out of range."""
        for watch in self._watches:
            try:
                check_indices(f"{watch.node.op}: indices", _word(watch), watch.axis_size)
            except IndexRangeError as error:
                raise IndexRangeError(f"{error} (node {watch.node.name!r})") from None


def _word(watch: IndexWatch) -> Array:
    """Return the word in which kernels report an index."""
    if watch.storage.constant is None:
        raise ValueError(f"watch of {watch.node.name!r}: its storage holds no word")
    return watch.storage.constant.array
