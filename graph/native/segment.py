"""One segment: its nodes lowered to calls, placed in memory, compiled, bound and run."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from graph.choice import Choice
from graph.ir import Node
from graph.native.arena import lay_out
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
from kernels.native.code.cache import CodeCache
from kernels.native.run.program import Program, Ref
from kernels.native.run.thread_pool import ThreadPool
from kernels.operands import check_indices
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
    return {node.name: choices.get(node.name) or RULES[node.op].candidates(node, facts)[0] for node in part.nodes}


class Segment:
    """A part of a graph as one native program.

    A run works in `arena_bytes` of memory that the caller provides; `held` says what lies there while each node runs.
    Not thread-safe: one run at a time.
    """

    def __init__(
        self,
        part: Part,
        facts: Facts,
        choices: Mapping[str, Choice],
        pool: ThreadPool,
        constants: ConstantCache,
        cache: CodeCache | None,
    ) -> None:
        self.choices = complete_choices(part, facts, choices)
        self._facts = facts
        lowering = lower(part, facts, constants, self.choices)
        self.nodes: tuple[Node, ...] = part.nodes
        self.inputs, self.outputs = part.inputs, part.outputs
        self.calls: tuple[Call, ...] = tuple(lowering.calls)
        self._show_kernels()
        self._node_of = [call.node for call in self.calls]
        self.at_work = frozenset(self._node_of)  # positions of the nodes that have calls
        self._watches: tuple[IndexWatch, ...] = tuple(lowering.calls.watches)
        storages = list(dict.fromkeys(storage for call in self.calls for storage, _ in call.arguments.values()))
        arena = lay_out(self.calls, len(self.nodes))
        offsets, self.arena_bytes, self.held = arena.offsets, arena.nbytes, arena.held
        self._slots = {name: n for n, name in enumerate((*self.inputs, *(f">{name}" for name in self.outputs)), _ARENA + 1)}
        where = self._where(storages, offsets)
        self._constants = [(where[storage].slot, storage.constant) for storage in storages if storage.constant is not None]
        self.packed: tuple[PackedConstant, ...] = tuple(constant for _, constant in self._constants)
        slot_count = 1 + max((ref.slot for ref in where.values()), default=0)
        self.steps = with_barriers(self.calls, where)
        self._program = self._make_program(max(slot_count, len(self._slots) + 1), pool, cache)

    def macs(self, node: Node) -> int | None:
        """Return the multiply–accumulates of a node's algorithm, or None where they are those of the op's definition."""
        return RULES[node.op].work(node, self._facts, self.choices[node.name]).macs

    def _show_kernels(self) -> None:
        """Log the kernels that each node becomes where EDGEWISE_DEBUG asks for them."""
        if debug_level() >= KERNELS:
            for call in self.calls:
                node, kernel = self.nodes[call.node], call.kernel
                choice = self.choices[node.name]
                debug("kernel", node=node.name, op=node.op, choice=str(choice), kernel=kernel.name, chunks=kernel.chunks)

    def _where(self, storages: Iterable[Storage], offsets: Mapping[Storage, int]) -> dict[Storage, Ref]:
        """Return the slot and offset of each storage in the program's table of addresses."""
        where: dict[Storage, Ref] = {}
        next_slot = len(self._slots) + 1
        written = {call.arguments[name][0] for call in self.calls for name in call.writes}
        for storage in storages:
            if storage.constant is not None:
                where[storage] = Ref(next_slot)
                next_slot += 1
            elif storage.port:
                where[storage] = Ref(self._slots[f">{storage.port}" if storage in written else storage.port])
            else:
                where[storage] = Ref(_ARENA, offsets[storage])
        return where

    def _make_program(self, slot_count: int, pool: ThreadPool, cache: CodeCache | None) -> Program:
        """Compile the program while constants are packed, then give it their addresses."""
        program = Program(self.steps, slot_count, self._facts.isa, pool, cache=cache)
        for slot, constant in self._constants:
            program.bind(slot, constant.array)
        return program

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
            watch.word[0] = 0
        self._program.bind(_ARENA, arena)
        for slot, array in enumerate((*inputs, *outputs), _ARENA + 1):
            self._program.bind(slot, array)

    def _check(self) -> None:
        """Raise IndexRangeError where a kernel has reported an index out of range."""
        for watch in self._watches:
            try:
                check_indices(f"{watch.node.op}: indices", watch.word, watch.axis_size)
            except IndexRangeError as error:
                raise IndexRangeError(f"{error} (node {watch.node.name!r})") from None
