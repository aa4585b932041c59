"""The memory plan: where every value of a run is stored.

Intermediate values and node workspaces share one arena, placed such that no two that are alive at the same time overlap. Other
values are stored outside of it: graph inputs and constants, which are never written; graph outputs, which every run allocates,
since they become the caller's; and values whose size only a run knows, which are outputs of data-dependent and control-flow
nodes, strings and sequences.

Values share storage in two ways. A view (Reshape, Squeeze…) is its input's memory under another shape. An elementwise op
overwrites an input of equal spec that no later node reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from graph.ir import SEGMENT, Graph, Node, Specs
from graph.placement import Block, aligned, bytes_by_step, place
from kernels.record import record
from kernels.registry import find
from kernels.spec import DType

Kind = Literal["arena", "output", "input", "constant"]


@record
class Placement:
    """A range of the arena: `nbytes` bytes from `offset_bytes` on, held from step `first` to step `last`, both included."""

    offset_bytes: int
    nbytes: int
    first: int
    last: int


@record
class Held:
    """Activation memory that one value takes from step `first` to step `last`, both included.

    All that is held in one step is held at one moment of it (`held_by_step`), so sizes may be added and ranges do not overlap.
    name: of the value; of the first one where several share storage. offset_bytes: in the arena, None outside of it.
    """

    name: str
    nbytes: int
    first: int
    last: int
    offset_bytes: int | None


@record
class Moment:
    """The memory that is alive while one step runs.

    live_bytes: in the arena, the step's workspace included. outside_bytes: graph inputs, and graph outputs written so far.
    """

    node: str
    live_bytes: int
    outside_bytes: int


@record
class MemoryPlan:
    """Where every value of a run is stored.

    placements: of every value in the arena; values that share storage have the same one. workspaces: placements by node name.
    owners: value -> the value whose storage it uses (itself when it has its own), in the arena or outside; values whose size only
    a run knows are absent. returned: owners of storage that holds a graph output.
    arena_bytes: size of the arena. lower_bound_bytes: the most bytes alive at once, which no placement can undercut.
    peak_bytes: the most bytes alive at once, graph inputs and outputs included. order: name of the placement order that was
    kept. held: every storage of activations, without workspaces.
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
    """Whether the memory of a node can be planned: every spec is known, it writes no strings or sequences and has no subgraph."""
    if any(True for _ in node.subgraphs()) or any(specs.get(name) is None for name in node.reads()):
        return False
    outputs = [specs.get(name) for name in node.writes()]
    return all(spec is not None and not spec.dtype.hasobject for spec in outputs)


def plan_memory(graph: Graph, specs: Specs, workspace_bytes: Mapping[str, int]) -> MemoryPlan:
    """Place every intermediate value and workspace of a graph whose nodes run in order.

    Args:    specs: of every value, None where only a run knows it. workspace_bytes: node name -> scratch memory of its kernel.
    Returns: the best plan of several placement orders. Equal graphs get equal plans.
    """
    sharing = _Sharing(graph, specs)
    storages = sharing.storages
    arena = [storage for storage in storages if storage.kind == "arena"]
    scratch = [(step, node.name) for step, node in enumerate(graph.nodes) if workspace_bytes.get(node.name, 0)]
    blocks = [Block(aligned(storage.nbytes), storage.first, storage.last) for storage in arena]
    blocks += [Block(aligned(workspace_bytes[name]), step, step) for step, name in scratch]

    lower_bound_bytes = max(bytes_by_step(len(graph.nodes), [(b.nbytes, b.first, b.last) for b in blocks]), default=0)
    order, offsets, arena_bytes = place(blocks, lower_bound_bytes)

    placements, workspaces = {}, {}
    for storage, offset in zip(arena, offsets, strict=False):
        placement = Placement(offset, storage.nbytes, storage.first, storage.last)
        placements.update(dict.fromkeys(storage.members, placement))
    for (step, name), offset in zip(scratch, offsets[len(arena) :], strict=True):
        workspaces[name] = Placement(offset, workspace_bytes[name], step, step)

    timeline = _timeline(graph, storages, workspaces)
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
    """A block of memory and the values stored in it, which all have its dtype and size."""

    owner: str
    kind: Kind
    dtype: DType
    nbytes: int
    first: int
    last: int
    members: list[str] = field(default_factory=list)


class _Sharing:
    """Assigns every value a storage, its own or one that it may share, node by node in order."""

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
                continue  # kernels get None for an output that is not read, but for output 0, which they always write
            is_output = value in self._outputs
            if shared is not None and value == node.outputs[0]:
                shared.members.append(value)
                shared.last = max(shared.last, self._last_read.get(value, step))
                shared.kind = "output" if is_output else shared.kind
                self._of[value] = shared
            else:
                self._start(value, "output" if is_output else "arena", step)

    def _shared(self, step: int, node: Node) -> _Storage | None:
        """Return the storage that output 0 may share, or None."""
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
        """Return the storage that a view shares; None for a graph output of storage outside the arena: it must be new."""
        storage = self._of.get(node.inputs[0])
        if storage is None or not self._same_bytes(storage, value):
            return None
        return None if value in self._outputs and storage.kind != "arena" else storage

    def _may_overwrite(self, step: int, node: Node, name: str, value: str) -> bool:
        """Whether the storage is in the arena, no later node reads it, and this node reads it through one input only."""
        storage = self._of.get(name)
        if storage is None or storage.kind != "arena" or storage.last > step or not self._same_bytes(storage, value):
            return False
        read_now = sum(self._of.get(read) is storage for read in node.reads())
        return read_now == 1 and (self.specs[name] == self.specs[value] or find(node.op).view)

    def _same_bytes(self, storage: _Storage, value: str) -> bool:
        spec = self.specs[value]
        return spec is not None and spec.dtype == storage.dtype and spec.nbytes == storage.nbytes


def _held(storages: Iterable[_Storage], placements: Mapping[str, Placement], steps: int) -> Iterable[Held]:
    """Yield the storages of activations: in the arena for as long as they are needed, outside of it to the end of the run."""
    for storage in storages:
        if storage.kind == "arena":
            last, offset_bytes = min(storage.last, steps - 1), placements[storage.owner].offset_bytes
            yield Held(storage.owner, storage.nbytes, storage.first, last, offset_bytes)
        elif storage.kind in ("input", "output"):
            yield Held(storage.owner, storage.nbytes, storage.first, steps - 1, None)


def _timeline(graph: Graph, storages: Sequence[_Storage], workspaces: Mapping[str, Placement]) -> tuple[Moment, ...]:
    """Return the memory that is alive in each step."""
    steps = len(graph.nodes)
    held = [(s.nbytes, s.first, s.last) for s in storages if s.kind == "arena"]
    live = bytes_by_step(steps, [*held, *((p.nbytes, p.first, p.last) for p in workspaces.values())])
    outside = bytes_by_step(steps, [(s.nbytes, s.first, steps) for s in storages if s.kind in ("input", "output")])
    return tuple(Moment(node.name, live[step], outside[step]) for step, node in enumerate(graph.nodes))
