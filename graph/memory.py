"""The memory plan: where every value of a run lives.

Intermediate values and node workspaces share one arena, placed so that no two that are alive at once overlap. Outside of it
are graph inputs and constants (somebody else's memory, never written), graph outputs (allocated anew by every run, for they
become the caller's), and whatever only a run can size: outputs of data-dependent and control-flow nodes, and strings.

Values share storage in two ways. A view (Reshape, Squeeze…) is its input's memory under another shape. An elementwise op
writes over an input of equal spec that nobody reads afterwards.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from graph.ir import SEGMENT, Graph, Node, Specs
from kernels.registry import find
from kernels.spec import STRING, Array, DType

ALIGNMENT_BYTES = 64  # a cache line, and the widest vector register
Kind = Literal["arena", "output", "input", "constant"]

_CLIMB_BLOCKS = 400  # hill-climbing stops paying when each try takes milliseconds
_CLIMB_TRIES = 48


@dataclass(frozen=True, slots=True)
class Placement:
    """Bytes offset_bytes … offset_bytes + nbytes of the arena, held from step `first` to step `last`, both included."""

    offset_bytes: int
    nbytes: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Held:
    """Activation memory that one value takes from step `first` to step `last`, both included.

    What is held in one step is held at one moment of it (`held_by_step`): it adds up, and no two overlap.
    name: of the value it was made for, where several share it. offset_bytes: in the arena; None for graph inputs and outputs.
    """

    name: str
    nbytes: int
    first: int
    last: int
    offset_bytes: int | None


@dataclass(frozen=True, slots=True)
class Moment:
    """What is alive while one step runs.

    live_bytes: in the arena, the step's workspace included. outside_bytes: graph inputs, and graph outputs written so far.
    values: the arena values alive.
    """

    node: str
    live_bytes: int
    outside_bytes: int
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Where every value lives.

    placements: every value of the arena; those that share storage have one placement. workspaces: the same by node name.
    owners: value -> the value whose storage it shares (itself when it has its own), whatever kind of memory that is;
    values that only a run can size are absent. returned: owners of storage that holds a graph output.
    arena_bytes: what this plan needs. lower_bound_bytes: what any plan with this sharing needs, the most that is alive at
    once. peak_bytes: the most alive at once with graph inputs and outputs. order: the placement order that won. held: every
    storage that takes activation memory, workspaces left out.
    """

    placements: Mapping[str, Placement]
    workspaces: Mapping[str, Placement]
    owners: Mapping[str, str]
    returned: frozenset[str]
    arena_bytes: int
    lower_bound_bytes: int
    peak_bytes: int
    timeline: tuple[Moment, ...]
    order: str
    held: tuple[Held, ...]


def is_static(node: Node, specs: Specs) -> bool:
    """Whether a node's memory can be planned: every spec known, no strings to write, no subgraph to run."""
    if any(True for _ in node.subgraphs()) or any(specs.get(name) is None for name in node.reads()):
        return False
    outputs = [specs.get(name) for name in node.writes()]
    return all(spec is not None and spec.dtype != STRING for spec in outputs)


def plan_memory(graph: Graph, specs: Specs, workspace_bytes: Mapping[str, int]) -> MemoryPlan:
    """Place every intermediate value and workspace of a graph whose nodes run in order.

    Args:    specs: of every value, None where only a run decides. workspace_bytes: node name -> scratch its kernel wants.
    Returns: the best of several placement orders; the same graph always gives the same plan.
    """
    sharing = _Sharing(graph, specs)
    storages = sharing.storages
    arena = [storage for storage in storages if storage.kind == "arena"]
    scratch = [(step, node.name) for step, node in enumerate(graph.nodes) if workspace_bytes.get(node.name, 0)]
    blocks = [Block(_aligned(storage.nbytes), storage.first, storage.last) for storage in arena]
    blocks += [Block(_aligned(workspace_bytes[name]), step, step) for step, name in scratch]

    lower_bound_bytes = max(_sums(len(graph.nodes), [(b.nbytes, b.first, b.last) for b in blocks]), default=0)
    order, offsets, arena_bytes = _place(blocks, lower_bound_bytes)

    placements, workspaces = {}, {}
    for storage, offset in zip(arena, offsets, strict=False):
        placement = Placement(offset, storage.nbytes, storage.first, storage.last)
        placements.update(dict.fromkeys(storage.members, placement))
    for (step, name), offset in zip(scratch, offsets[len(arena) :], strict=True):
        workspaces[name] = Placement(offset, workspace_bytes[name], step, step)

    timeline = _timeline(graph, specs, storages, workspaces)
    return MemoryPlan(
        placements=placements,
        workspaces=workspaces,
        owners={member: storage.owner for storage in storages for member in storage.members},
        returned=frozenset(storage.owner for storage in storages if storage.kind == "output"),
        arena_bytes=arena_bytes,
        lower_bound_bytes=lower_bound_bytes,
        peak_bytes=max((moment.live_bytes + moment.outside_bytes for moment in timeline), default=0),
        timeline=timeline,
        order=order,
        held=tuple(_held(storages, placements, len(graph.nodes))),
    )


@dataclass(slots=True)
class _Storage:
    """One piece of memory and the values that live in it; all have one dtype and one size."""

    owner: str
    kind: Kind
    dtype: DType
    nbytes: int
    first: int
    last: int
    members: list[str] = field(default_factory=list)


class _Sharing:
    """Walks the nodes in order and gives every value a storage: its own, or one it may share."""

    def __init__(self, graph: Graph, specs: Specs) -> None:
        self.specs = specs
        self.storages: list[_Storage] = []
        self._of: dict[str, _Storage] = {}
        self._outputs = {port.name for port in graph.outputs}
        self._last_read = {name: step for step, node in enumerate(graph.nodes) for name in node.reads()}
        self._last_read.update(dict.fromkeys(self._outputs, len(graph.nodes)))

        for port in graph.inputs:
            self._start(port.name, "input", 0)
        for name in graph.constants:
            self._start(name, "constant", 0)
        for step, node in enumerate(graph.nodes):
            if is_static(node, specs):
                self._write(step, node)

    def _start(self, value: str, kind: Kind, step: int) -> None:
        spec = self.specs.get(value)
        if spec is not None:
            storage = _Storage(value, kind, spec.dtype, spec.nbytes, step, self._last_read.get(value, step), [value])
            self.storages.append(storage)
            self._of[value] = storage

    def _write(self, step: int, node: Node) -> None:
        shared = self._shared(step, node)
        for value in node.writes():
            if value not in self._last_read and value != node.outputs[0]:
                continue  # kernels are told that nobody wants it; output 0 they always write
            is_output = value in self._outputs
            if shared is not None and value == node.outputs[0]:
                shared.members.append(value)
                shared.last = max(shared.last, self._last_read.get(value, step))
                shared.kind = "output" if is_output else shared.kind
                self._of[value] = shared
            else:
                self._start(value, "output" if is_output else "arena", step)

    def _shared(self, step: int, node: Node) -> _Storage | None:
        """The storage that output 0 may share, or None."""
        value = node.outputs[0]
        if node.op == SEGMENT or not value:
            return None
        op = find(node.op)
        if op.view and not node.epilogue:
            return self._viewed(node, value)
        candidates = node.inputs if op.elementwise else node.inputs[:1] if op.view else ()
        for name in candidates:
            if name and self._may_overwrite(step, node, name, value):
                return self._of[name]
        return None

    def _viewed(self, node: Node, value: str) -> _Storage | None:
        """A view shares any storage, except that a returned array may be no part of memory that others hold."""
        storage = self._of.get(node.inputs[0])
        if storage is None or not self._same_bytes(storage, value):
            return None
        return None if value in self._outputs and storage.kind != "arena" else storage

    def _may_overwrite(self, step: int, node: Node, name: str, value: str) -> bool:
        """Nobody reads the storage later, nobody else reads it now, and it is ours."""
        storage = self._of.get(name)
        if storage is None or storage.kind != "arena" or storage.last > step or not self._same_bytes(storage, value):
            return False
        read_now = sum(self._of.get(read) is storage for read in node.reads())
        return read_now == 1 and (self.specs[name] == self.specs[value] or find(node.op).view)

    def _same_bytes(self, storage: _Storage, value: str) -> bool:
        spec = self.specs[value]
        return spec is not None and spec.dtype == storage.dtype and spec.nbytes == storage.nbytes


@dataclass(frozen=True, slots=True)
class Block:
    """Something to place: bytes and the steps, both included, in which they are held."""

    nbytes: int
    first: int
    last: int


def place_blocks(blocks: Sequence[Block]) -> tuple[list[int], int]:
    """Offsets of blocks such that no two held at once overlap, and the bytes they need together; sizes are rounded up."""
    rounded = [Block(_aligned(block.nbytes), block.first, block.last) for block in blocks]
    steps = max((block.last for block in blocks), default=-1) + 1
    lower_bound_bytes = max(_sums(steps, [(b.nbytes, b.first, b.last) for b in rounded]), default=0)
    _, offsets, arena_bytes = _place(rounded, lower_bound_bytes)
    return offsets, arena_bytes


def held_by_step(blocks: Sequence[Block], step_of: Sequence[int]) -> list[tuple[int, int] | None]:
    """The first and the last step that each block is counted in, where a step has several moments and blocks come and go between.

    A step counts what is held at the moment of it at which most is, the first of equals: blocks of one step that are never held
    together may share memory, and their sum would be more than is ever used. None: a block held at no such moment.

    Args: blocks: held from a moment to a moment. step_of: of every moment its step, ascending; every step has one at least.
    """
    sums = _sums(len(step_of), [(block.nbytes, block.first, block.last) for block in blocks])
    fullest: dict[int, int] = {}  # step -> moment
    for moment, step in enumerate(step_of):
        if sums[moment] > sums[fullest.setdefault(step, moment)]:
            fullest[step] = moment
    steps, moments = list(fullest), list(fullest.values())
    found: list[tuple[int, int] | None] = []
    for block in blocks:
        first, behind = bisect.bisect_left(moments, block.first), bisect.bisect_right(moments, block.last)
        found.append((steps[first], steps[behind - 1]) if first < behind else None)
    return found


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _sums(steps: int, held: Iterable[tuple[int, int, int]]) -> list[int]:
    """Bytes held in each step, from (bytes, first, last)."""
    change = [0] * (steps + 1)
    for nbytes, first, last in held:
        change[first] += nbytes
        change[min(last + 1, steps)] -= nbytes
    total, sums = 0, []
    for delta in change[:steps]:
        total += delta
        sums.append(total)
    return sums


def _place(blocks: Sequence[Block], lower_bound_bytes: int) -> tuple[str, list[int], int]:
    """Try the orders, then swaps in the best of them, until the lower bound is met. Returns order, offsets, arena bytes."""
    best_name, best_order = "none", list(range(len(blocks)))
    best_offsets, best_bytes = _fit(blocks, best_order)
    for name, order in _orders(blocks):
        if best_bytes == lower_bound_bytes and best_name != "none":
            break
        offsets, arena_bytes = _fit(blocks, order)
        if arena_bytes < best_bytes or best_name == "none":
            best_name, best_order, best_offsets, best_bytes = name, order, offsets, arena_bytes
    if len(blocks) > _CLIMB_BLOCKS:
        return best_name, best_offsets, best_bytes

    rng = random.Random(0)  # noqa: S311  a search, repeatable on purpose
    for _ in range(_CLIMB_TRIES):
        if best_bytes == lower_bound_bytes:
            break
        order = best_order.copy()
        top = max(range(len(blocks)), key=lambda i: best_offsets[i] + blocks[i].nbytes)
        order.remove(top)
        order.insert(rng.randrange(len(blocks)), top)
        a, b = rng.randrange(len(blocks)), rng.randrange(len(blocks))
        order[a], order[b] = order[b], order[a]
        offsets, arena_bytes = _fit(blocks, order)
        if arena_bytes < best_bytes:
            best_name, best_order, best_offsets, best_bytes = "climbed", order, offsets, arena_bytes
    return best_name, best_offsets, best_bytes


def _orders(blocks: Sequence[Block]) -> Iterable[tuple[str, list[int]]]:
    """Names and orders to try; the first is the best on most networks."""
    indices = range(len(blocks))
    steps = max((block.last for block in blocks), default=-1) + 1
    breadth = _sums(steps, [(b.nbytes, b.first, b.last) for b in blocks])
    yield "size", sorted(indices, key=lambda i: (-blocks[i].nbytes, blocks[i].first))
    widest = [max(breadth[b.first : b.last + 1]) for b in blocks]
    yield "breadth", sorted(indices, key=lambda i: (-widest[i], -blocks[i].nbytes, blocks[i].first))
    yield "execution", sorted(indices, key=lambda i: (blocks[i].first, -blocks[i].nbytes))
    yield "area", sorted(indices, key=lambda i: (-blocks[i].nbytes * (blocks[i].last - blocks[i].first + 1), blocks[i].first))


def _fit(blocks: Sequence[Block], order: Sequence[int]) -> tuple[list[int], int]:
    """Put each block, in order, into the smallest gap that holds it between the blocks placed before and held meanwhile."""
    first = np.array([blocks[i].first for i in order], np.int64)
    last = np.array([blocks[i].last for i in order], np.int64)
    start = np.zeros(len(order), np.int64)
    end = np.zeros(len(order), np.int64)
    arena_bytes = 0
    for position, index in enumerate(order):
        block = blocks[index]
        rivals = np.flatnonzero((first[:position] <= block.last) & (last[:position] >= block.first))
        offset = _smallest_gap(start[rivals], end[rivals], block.nbytes)
        start[position], end[position] = offset, offset + block.nbytes
        arena_bytes = max(arena_bytes, offset + block.nbytes)
    offsets = [0] * len(order)
    for position, index in enumerate(order):
        offsets[index] = int(start[position])
    return offsets, arena_bytes


def _smallest_gap(start: Array, end: Array, nbytes: int) -> int:
    """Offset of the tightest gap of at least `nbytes` between the intervals, or the end of them all."""
    if not len(start):
        return 0
    order = np.argsort(start, kind="stable")
    start, reach = start[order], np.maximum.accumulate(end[order])
    gap_start = np.concatenate(([0], reach[:-1]))
    gap_bytes = start - gap_start
    fits = np.flatnonzero(gap_bytes >= nbytes)
    return int(gap_start[fits[np.argmin(gap_bytes[fits])]]) if len(fits) else int(reach[-1])


def _held(storages: Iterable[_Storage], placements: Mapping[str, Placement], steps: int) -> Iterable[Held]:
    """What takes activation memory: as long as it is needed in the arena, to the end of the run outside of it."""
    for storage in storages:
        if storage.kind == "arena":
            last, offset_bytes = min(storage.last, steps - 1), placements[storage.owner].offset_bytes
            yield Held(storage.owner, storage.nbytes, storage.first, last, offset_bytes)
        elif storage.kind in ("input", "output"):
            yield Held(storage.owner, storage.nbytes, storage.first, steps - 1, None)


def _timeline(
    graph: Graph, specs: Specs, storages: Sequence[_Storage], workspaces: Mapping[str, Placement]
) -> tuple[Moment, ...]:
    """What is alive step by step."""
    steps = len(graph.nodes)
    held = [(s.nbytes, s.first, s.last) for s in storages if s.kind == "arena"]
    live = _sums(steps, [*held, *((p.nbytes, p.first, p.last) for p in workspaces.values())])
    outside = _sums(steps, [(s.nbytes, s.first, steps) for s in storages if s.kind in ("input", "output")])
    alive: list[list[str]] = [[] for _ in range(steps)]
    for storage in storages:
        if storage.kind == "arena":
            for step in range(storage.first, min(storage.last + 1, steps)):
                alive[step].extend(storage.members)
    return tuple(Moment(node.name, live[step], outside[step], tuple(alive[step])) for step, node in enumerate(graph.nodes))
