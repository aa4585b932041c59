"""One segment on a GPU: its launches placed in memory, recorded as a graph, and replayed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from graph.choice import Choice
from graph.cuda.constants import DeviceConstants
from graph.cuda.facts import Facts
from graph.cuda.gpu import Gpu
from graph.cuda.lowering import Call, Lowering, Option
from graph.cuda.rules.table import rule_of
from graph.ir import Node, Specs
from graph.memory import Held
from graph.native.partition import Part
from graph.native.place import PackedConstant, Storage, Viewed
from graph.placement import Block, place_blocks
from graph.timing import SegmentClock
from kernels.cuda.driver import Device, Memory
from kernels.cuda.families.product_work import Precision
from kernels.cuda.program import Launch, Program, Replay
from kernels.errors import IndexRangeError
from kernels.record import record
from kernels.size import Size, Sizes
from kernels.spec import Array

ALIGNMENT_BYTES = 256  # of every storage


def lower(part: Part, facts: Facts, precision: Precision, device: Device, constants: DeviceConstants) -> Lowering:
    """Return the lowering of a part with all its launches. No node of it may be refused."""
    b = Lowering(part.nodes, facts, part.inputs, part.outputs, precision, device, constants)
    rules = [rule_of(node.op) for node in part.nodes]
    for node, rule in zip(part.nodes, rules, strict=True):
        if rule is not None and rule.reserve is not None:
            rule.reserve(b, node)
    for b.node, (node, rule) in enumerate(zip(part.nodes, rules, strict=True)):
        if rule is not None and node.name not in b.done:
            rule.lower(b, node)
    return b


@record
class Layout:
    """The memory of a segment. offsets: of storages in the arena, in bytes.  arena_bytes: of all."""

    offsets: Mapping[Storage, int]
    arena_bytes: int


class LoweredSegment:
    """A part of a graph as launches. `bind` makes what runs."""

    def __init__(
        self,
        part: Part,
        facts: Facts,
        choices: Mapping[str, Choice],
        precision: Precision,
        device: Device,
        constants: DeviceConstants,
    ) -> None:
        self.nodes: tuple[Node, ...] = part.nodes
        self.precision: Precision = precision
        self.constants = constants
        self.facts = facts
        b = lower(part, facts, precision, device, constants)
        self.inputs = {name: b.raw(name) for name in part.inputs}
        self.outputs = {name: b.leave(name) for name in part.outputs}
        self.calls: tuple[Call, ...] = tuple(b.calls)
        self.watches, self.kept, self.where = tuple(b.watches), tuple(b.kept), b.where
        self.choose(choices)

    def choose(self, choices: Mapping[str, Choice]) -> None:
        """Take these options from now on; the likely best where nothing is chosen. choices: by node name."""
        self.chosen: tuple[Option, ...] = tuple(call.option(choices.get(self.nodes[call.node].name)) for call in self.calls)
        by_options = sorted(zip(self.calls, self.chosen, strict=True), key=lambda pair: len(pair[0].options))
        self.choices = {  # of a node with several calls, that of the call with the most options
            self.nodes[call.node].name: Choice("cuda", call.algorithm, option.params, self.precision)
            for call, option in by_options
        }

    @property
    def launches(self) -> tuple[Launch, ...]:
        """The launches of the chosen options, in order."""
        return tuple(option.launch for option in self.chosen)

    @property
    def packed(self) -> tuple[PackedConstant, ...]:
        """Constants that it holds in the host's memory: none."""
        return ()

    def find_sizes(self, found: dict[Size, None]) -> None:
        """Add what `bind` needs values of: nothing, sizes are plain here."""

    def replace_constants(self, specs: Specs, constants: Mapping[str, Array]) -> None:
        """Read these from now on: nothing is read after the weights were packed."""

    def lay_out(self) -> Layout:
        """Place its storages so that none that are held at the same time overlap. Inputs and results stay for a whole run."""
        last_call = len(self.calls)
        held: dict[Storage, tuple[int, int]] = {}
        for place in self.inputs.values():
            held[place.storage] = 0, last_call
        for at, launch in enumerate(self.launches):
            for name in launch.names.values():
                storage, _ = self.where[name]
                if storage not in self.constants and storage not in self.kept:
                    held[storage] = held[storage][0] if storage in held else at, max(at, held.get(storage, (at, at))[1])
        for place in self.outputs.values():
            if place.storage in held:
                held[place.storage] = held[place.storage][0], last_call
        blocks = [Block(_aligned(storage.nbytes), first, last) for storage, (first, last) in held.items()]
        offsets, arena_bytes = place_blocks(blocks)
        return Layout(dict(zip(held, offsets, strict=True)), arena_bytes)

    def bind(self, gpu: Gpu) -> Segment:
        """Return what runs on a GPU. Raises DeviceMemoryError where it has no memory for it."""
        return Segment(self, gpu)


def _aligned(n_bytes: int) -> int:
    return -(-max(n_bytes, 1) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


class Segment:
    """A part of a graph on a GPU. Not thread-safe: one run at a time.

    Its memory is the GPU's: it takes none of the caller's.
    """

    arena_bytes = 0
    held: tuple[Held, ...] = ()

    def __init__(self, lowered: LoweredSegment, gpu: Gpu) -> None:
        self.nodes, self.choices = lowered.nodes, lowered.choices
        self.at_work = frozenset(call.node for call in lowered.calls)
        self._lowered, self._gpu = lowered, gpu
        layout = lowered.lay_out()
        self.device_bytes = layout.arena_bytes
        self._arena = gpu.context.allocate(max(layout.arena_bytes, 1))
        self._arena.fill(0)  # a replay before the first run finds indices that there are
        self._kept = {storage: gpu.context.allocate(_aligned(storage.nbytes)) for storage in lowered.kept}
        for memory in self._kept.values():
            memory.fill(0)
        self._offsets = layout.offsets
        self.addresses = {
            name: self.address(*lowered.where[name]) for launch in lowered.launches for name in launch.names.values()
        }
        self._given, self._made = (
            [self._copied(place) for place in places.values()] for places in (lowered.inputs, lowered.outputs)
        )
        self._stream = gpu.context.stream()
        gpu.load(lowered.launches)
        self._replay = Replay(gpu.kernels, Program(lowered.launches), self.addresses, self._stream)
        self._call_ns: list[float] | None = None

    def holds(self, storage: Storage) -> bool:
        """Whether a storage has memory in this segment."""
        return storage in self._offsets or storage in self._kept or storage in self._lowered.constants

    def close(self) -> None:
        """Free its memory on the GPU, now rather than when it is collected; weights stay, other segments may read them."""
        self._replay.close()
        self._stream.close()
        for memory in (self._arena, *self._kept.values()):
            memory.close()

    def address(self, storage: Storage, first_byte: int) -> int:
        """Return an address on the GPU."""
        memory, at = self._memory(storage)
        return memory.address + at + first_byte

    def _memory(self, storage: Storage) -> tuple[Memory, int]:
        """Return the memory that holds a storage, and where in it that begins."""
        if storage in self._lowered.constants:
            return self._lowered.constants.memory(storage, self._gpu.context), 0
        if storage in self._kept:
            return self._kept[storage], 0
        return self._arena, self._offsets[storage]

    def _copied(self, place: Viewed) -> tuple[Memory, int]:
        """Return where an input is copied to, or a result from."""
        memory, at = self._memory(place.storage)
        return memory, at + place.first_byte

    def resize(self, sizes: Sizes) -> bool:
        """Serve other sizes: never, a segment is for one set of shapes."""
        return False

    def macs(self, node: Node) -> int | None:
        """Return None: the multiply–accumulates of a node are those of the op's definition."""
        return None

    def run(self, arena: Array, inputs: Sequence[Array], outputs: Sequence[Array], threads: int, stop: Array) -> None:
        """Run once. All arrays are contiguous. outputs: memory for the results. A run that has begun is not interrupted.

        Raises: IndexRangeError, naming its node, where a run-time index is out of range; the outputs are invalid then.
        GpuLostError.
        """
        for (memory, at), array in zip(self._given, inputs, strict=True):
            memory.write(array, self._stream, at=at)
        self._replay.launch(self._stream)
        for (memory, at), array in zip(self._made, outputs, strict=True):
            memory.read(array, self._stream, at=at)
        self._stream.synchronize()
        self._check()

    def replay(self) -> None:
        """Launch the recorded graph on what was copied to the GPU last, without waiting."""
        self._replay.launch(self._stream)

    def time_ns(self) -> float:
        """Return the nanoseconds of a replay on the GPU, the median of several."""
        return self._gpu.time_graph_ns(self._replay.launch, self._stream, repeats=51)

    def call_ns(self) -> list[float]:
        """Return the nanoseconds of each launch, measured by itself the first time."""
        if self._call_ns is None:
            with self._gpu.lock:
                self._call_ns = [self._gpu.time_launch_ns(launch, self.addresses) for launch in self._lowered.launches]
        return self._call_ns

    def run_timed(self, arena: Array, inputs: Sequence[Array], outputs: Sequence[Array], threads: int) -> SegmentClock:
        """Run once; the clock shares out the time among launches as they take by themselves."""
        shares = np.array(self.call_ns(), np.float64)
        began_ns = time.perf_counter_ns()
        self.run(arena, inputs, outputs, threads, np.zeros(1, np.int64))
        ended_ns = time.perf_counter_ns()
        ends = np.rint(np.cumsum(shares)).astype(np.int64)
        ticks = np.stack([np.concatenate(([0], ends[:-1])), ends, ends], -1)[None]
        return SegmentClock(began_ns, ended_ns, ticks, len(self.nodes), [call.node for call in self._lowered.calls])

    def _check(self) -> None:
        """Raise IndexRangeError where a gather has reported an index out of range."""
        for watch in self._lowered.watches:
            word = self._kept[watch.place.storage].read(np.zeros(1, np.int32))
            if word[0]:
                self._kept[watch.place.storage].fill(0)
                node = self.nodes[watch.node]
                raise IndexRangeError(
                    f"{node.op}: element {word[0] - 1} of {watch.indices!r} is an index out of range, need -{watch.size} to "
                    f"{watch.size - 1} (node {node.name!r})"
                )
