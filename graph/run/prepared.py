"""Preparation of a graph for one set of specs. All decisions are made here, so that a run is a loop over prepared calls.

Every value has a slot (`graph.run.slots`). Constants and arena values are put into theirs once. Graph inputs, graph outputs and
values whose shape only a run knows change with each run. A call that uses slots of the first kind alone is bound to its arrays.
Bodies of If, Loop and Scan are prepared graphs too.

A prepared graph is not thread-safe: `graph.run.executor` runs it once at a time.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from graph.backend import Segment
from graph.budget import RunBudget
from graph.choice import Choice
from graph.ir import CONTROL_FLOW, SEGMENT, Graph, Node, Port, Specs
from graph.mapped import resident
from graph.memory import Held, MemoryPlan, is_static, plan_memory
from graph.order import without_unread
from graph.run.bounds import RunBounds
from graph.run.control_flow import run_control_flow
from graph.run.dynamic import Body, allocate, compute
from graph.run.footprint import Footprint
from graph.run.single import SingleSegment
from graph.run.slots import Slots, aligned_empty
from graph.timing import SegmentClock
from kernels.containers import is_container
from kernels.errors import EdgewiseError, ShapeError, exhausted
from kernels.record import record
from kernels.registry import Kernel, find
from kernels.size import Sizes
from kernels.spec import Array, Spec

VIEW = "view"  # algorithm of a step without work of its own: it renames memory, or steps before it did the work
DYNAMIC = "dynamic"  # algorithm of a step that infers its shapes and allocates its outputs while it runs

Call = Callable[[], None]


@record
class PreparedStep:
    """One node as it will run.

    algorithm: of its numpy kernel, VIEW or DYNAMIC; that of a node in a native segment begins with "native/".
    macs: multiply-accumulates of a native algorithm, where these differ from the op's cost.
    """

    node: Node
    algorithm: str
    macs: int | None = None


@record
class _Chosen:
    """The kernel of a node or of an op in its epilogue, with its inputs and attributes."""

    kernel: Kernel
    inputs: tuple[str, ...]
    attrs: Mapping[str, Any]
    workspace_bytes: int
    scratch_bytes: int


class PreparedGraph:
    """The prepared calls of a graph, and the memory they use.

    Args:    specs: of every value; None or absent where only a run knows it. algorithms: node name -> name of the kernel; by
             default each op's first one that applies. segments: node name -> native code, for the nodes whose op is SEGMENT.
             threads: of segments. budget: of the memory that it keeps and that its runs take, those of bodies included.
    Raises:  UnsupportedError when a node has no kernel for its specs, or not the named one; LimitError, with the value or kernel
             that takes the most memory, where the budget has not enough; OutOfMemoryError where the process or system has not.
    """

    def __init__(
        self,
        graph: Graph,
        specs: Specs,
        algorithms: Mapping[str, str] | None = None,
        segments: Mapping[str, Segment] | None = None,
        threads: int = 1,
        budget: RunBudget | None = None,
    ) -> None:
        graph = without_unread(graph)
        self._budget = RunBudget() if budget is None else budget
        self._graph = graph
        self._segments = segments or {}
        self._threads = threads
        self._specs = specs
        self._algorithms = algorithms or {}
        kernels = {node.name: self._kernels(node) for node in graph.nodes}
        workspace = {name: max((chosen.workspace_bytes for chosen in found), default=0) for name, found in kernels.items()}
        workspace |= {name: segment.arena_bytes for name, segment in self._segments.items()}
        scratch = {name: max((chosen.scratch_bytes for chosen in found), default=0) for name, found in kernels.items()}
        self.memory: MemoryPlan = plan_memory(graph, specs, workspace)
        self.footprint = Footprint.of(graph, specs, self.memory, self._segments, workspace, scratch)
        self._budget.require(self.footprint.kept_bytes + self.footprint.run_bytes, self.footprint.largest)
        self._budget.keep(self.footprint.kept_bytes, self.footprint.largest)
        self._arena = aligned_empty(self.memory.arena_bytes)
        self._slots = Slots()
        self._bounds = RunBounds()  # of the run under way
        self._allocated: set[str] = set()
        self._last_read = {name: step for step, node in enumerate(graph.nodes) for name in node.reads()}
        self._last_read.update((port.name, len(graph.nodes)) for port in graph.outputs)
        self._inputs = [self._slots.of(port.name) for port in graph.inputs]
        self._returned: list[tuple[int, Spec]] = []
        self._renamed: list[tuple[int, int, tuple[int, ...]]] = []
        self._place()
        self._positions = tuple(PreparedStep(node, self._algorithm(node, kernels[node.name])) for node in graph.nodes)
        calls = [self._call(step, kernels[step.node.name]) for step in self._positions]
        self._calls = [self._releasing(i, call) for i, call in enumerate(calls)]
        self._outputs = self._output_slots()
        self._clocks: dict[int, SegmentClock] = {}
        self._slots.complete()

    @property
    def uses_numpy(self) -> bool:
        """Whether any step runs outside of native segments, where numpy may use BLAS."""
        return len(self._segments) < len(self._positions)

    @functools.cached_property
    def steps(self) -> tuple[PreparedStep, ...]:
        """Every node in the order in which it runs; the nodes of a segment one by one."""
        return tuple(step for position in self._positions for step in self._expanded(position))

    def _expanded(self, position: PreparedStep) -> Sequence[PreparedStep]:
        if (segment := self._segments.get(position.node.name)) is None:
            return (position,)
        return [
            PreparedStep(node, _label(segment.choices[node.name]), segment.macs(node))
            if at in segment.at_work
            else PreparedStep(node, VIEW)
            for at, node in enumerate(segment.nodes)
        ]

    def _width(self, position: PreparedStep) -> int:
        segment = self._segments.get(position.node.name)
        return 1 if segment is None else len(segment.nodes)

    @property
    def held(self) -> tuple[Held, ...]:
        """The activation memory that values take, and during which of `steps`; each value of a segment's memory by itself."""
        counts = [self._width(position) for position in self._positions]
        firsts = [0, *itertools.accumulate(counts)]
        found = [replace(item, first=firsts[item.first], last=firsts[item.last + 1] - 1) for item in self.memory.held]
        for name, place in self.memory.workspaces.items():
            step, segment = firsts[place.first], self._segments.get(name)
            if segment is None:
                found.append(Held(f"{name} workspace", place.nbytes, step, step, place.offset_bytes))
                continue
            for item in segment.held:
                offset_bytes = place.offset_bytes + (item.offset_bytes or 0)
                found.append(replace(item, first=step + item.first, last=step + item.last, offset_bytes=offset_bytes))
        return tuple(found)

    def single(self, ports: Sequence[Port]) -> SingleSegment | None:
        """Return the graph as one native segment, None where it is more. ports: of its inputs, with the shapes of a run."""
        if len(self._graph.nodes) != 1 or len(self._segments) != 1 or self._renamed:
            return None
        (node,), (segment,) = self._graph.nodes, self._segments.values()
        made = dict(zip([name for name, _ in self._returned_names()], [spec for _, spec in self._returned], strict=True))
        names = [port.name for port in self._graph.outputs]
        if sorted(names) != sorted(node.outputs) or set(made) != set(names) or {port.name for port in ports} != set(node.inputs):
            return None
        outputs = {name: made[name] for name in node.outputs}
        return SingleSegment(segment, self._workspace(node), self._threads, ports, node.inputs, outputs, names)

    def _workspace(self, node: Node) -> Array:
        """Return the part of the arena that a node works in."""
        place = self.memory.workspaces.get(node.name)
        return self._arena[place.offset_bytes : place.offset_bytes + place.nbytes] if place else self._arena[:0]

    def resize(self, specs: Specs, sizes: Sizes) -> bool:
        """Give all sizes other values in place. False where the graph must be prepared anew for them; it is of no use then.

        That works where one native segment is all of the graph, and its memory has room. specs: of every value, for these sizes.
        """
        alone = len(self._graph.nodes) == 1 and len(self._segments) == 1 and not self._renamed
        if not alone or not all(segment.resize(sizes) for segment in self._segments.values()):
            return False
        returned = [(slot, specs.get(name)) for name, slot in self._returned_names()]
        self._specs, self._returned = specs, [(slot, spec) for slot, spec in returned if spec is not None]
        run_bytes = sum(spec.nbytes for _, spec in self._returned)
        self.footprint = replace(self.footprint, run_bytes=run_bytes)
        return True

    def _returned_names(self) -> list[tuple[str, int]]:
        return [(name, self._slots.of(name)) for name, owner in self.memory.owners.items()
                if name == owner and owner in self.memory.returned and name not in self.memory.placements]  # fmt: skip

    def run(self, feeds: Sequence[Array], bounds: RunBounds) -> list[Array]:
        """Run once. feeds: every graph input in order. Returns every graph output in order, in new memory.

        Raises: RunStoppedError, naming the next node, where the bounds end the run between two steps; the errors of the steps.
        """
        position = -1
        try:
            self._begin(feeds, bounds)
            for position, call in enumerate(self._calls):  # noqa: B007  the error below asks for it
                if bounds.watched:
                    bounds.check()
                call()
            return self._end()
        except (EdgewiseError, MemoryError) as error:
            raise self._placed(error, position) from error
        finally:
            self._slots.clear()

    def run_timed(self, feeds: Sequence[Array]) -> tuple[list[Array], list[int], dict[int, SegmentClock]]:
        """Run once, in default bounds, reading the clock. Returns the outputs, and marks and segment clocks of a `RunClock`."""
        clock = time.perf_counter_ns
        marks: list[int] = []
        try:
            self._begin(feeds, RunBounds())
            marks.append(clock())
            for call in self._timed_calls():
                call()
                marks.append(clock())
            return self._end(), marks, dict(self._clocks)
        except (EdgewiseError, MemoryError) as error:
            raise self._placed(error, len(marks) - 1) from error
        finally:
            self._slots.clear()

    def _placed(self, error: EdgewiseError | MemoryError, position: int) -> EdgewiseError:
        """Return the error with the name of the node; errors of segments name the node already. position: -1 before the first."""
        if position < 0:
            subject, where = self._graph.name, " (allocation of the outputs)"
        else:
            node = self._positions[position].node
            subject, where = node.op, f" (node {node.name!r})"
        if isinstance(error, MemoryError):
            return exhausted(f"{subject}{where}", error)
        return error if subject == SEGMENT else type(error)(f"{error}{where}")

    def _timed_calls(self) -> Iterator[Call]:
        """Yield the calls; those of segments also keep the clock readings of their threads."""
        for at, (position, call) in enumerate(zip(self._positions, self._calls, strict=True)):
            segment = self._segments.get(position.node.name)
            yield call if segment is None else self._segment_call(position.node, segment, timed_as=at)

    def _segment_call(self, node: Node, segment: Segment, *, timed_as: int | None = None) -> Call:
        """Make the call of a native segment, which the bounds of its run end between two kernels.

        timed_as: the position to keep clock readings under; None for an untimed call.
        """
        slots, threads = self._slots.arrays, self._threads
        read, written = [self._slots.of(name) for name in node.inputs], [self._slots.of(name) for name in node.outputs]
        arena = self._workspace(node)

        def call() -> None:
            inputs, bounds = [np.ascontiguousarray(slots[i]) for i in read], self._bounds
            segment.run(arena, inputs, [slots[i] for i in written], threads, bounds.stop)
            if bounds.watched:  # it may have ended early
                bounds.check()

        if timed_as is None:
            return call
        position = timed_as

        def timed_call() -> None:
            inputs = [np.ascontiguousarray(slots[i]) for i in read]
            self._clocks[position] = segment.run_timed(arena, inputs, [slots[i] for i in written], threads)

        return timed_call

    def _begin(self, feeds: Sequence[Array], bounds: RunBounds) -> None:
        slots, self._bounds = self._slots.arrays, bounds
        for slot, array in zip(self._inputs, feeds, strict=True):
            slots[slot] = array
        for slot, spec in self._returned:
            slots[slot] = bounds.empty(spec, "graph output")
        for slot, owner, shape in self._renamed:
            slots[slot] = slots[owner].reshape(shape)

    def _end(self) -> list[Array]:
        slots = self._slots.arrays
        return [slots[slot] if is_new else self._copied(slots[slot]) for slot, is_new in self._outputs]

    def _copied(self, array: Array) -> Array:
        copy = self._bounds.empty(Spec(array.shape, array.dtype), "graph output")
        copy[...] = array
        return copy

    def _output_slots(self) -> list[tuple[int, bool]]:
        """Return the slot of every graph output, and whether it is new: not an input, a constant or another output."""
        borrowed = {port.name for port in self._graph.inputs} | set(self._graph.constants)
        outputs = []
        for port in self._graph.outputs:
            owner = self.memory.owners.get(port.name, port.name)
            outputs.append((self._slots.of(port.name), owner not in borrowed))
            borrowed.add(owner)
        return outputs

    def _place(self) -> None:
        """Put the array of every planned value into its slot, or note how a run makes the array."""
        placements = self.memory.placements
        read = {name for node in self._graph.nodes for name in node.reads()} | {port.name for port in self._graph.outputs}
        read |= {self.memory.owners.get(name, name) for name in read}
        constants = {name: resident(array) for name, array in self._graph.constants.items() if name in read}
        for name, array in constants.items():
            self._slots.fix(name, array)
        for value, owner in self.memory.owners.items():
            if (spec := self._specs[value]) is None:
                continue
            if value in placements:
                start = placements[value].offset_bytes
                self._slots.fix(value, self._arena[start : start + spec.nbytes].view(spec.dtype).reshape(spec.shape))
            elif owner in constants:
                self._slots.fix(value, constants[owner].reshape(spec.shape))
            elif value != owner:
                self._renamed.append((self._slots.of(value), self._slots.of(owner), spec.shape))
            elif owner in self.memory.returned:
                self._returned.append((self._slots.of(value), spec))

    def _kernels(self, node: Node) -> list[_Chosen]:
        """Choose the kernel of a node, then one for each op of its epilogue; none for segments and dynamic nodes.

        A node whose epilogue converts its result, which does not fit where the converted one goes, is dynamic.
        """
        if node.op == SEGMENT or not is_static(node, self._specs) or self._converts(node):
            return []
        wanted = [(node.op, node.inputs, node.attrs, self._algorithms.get(node.name))]
        for fused in node.epilogue:
            wanted.append((fused.op, tuple(name or node.outputs[0] for name in fused.inputs), fused.attrs, None))
        found = []
        for op, names, attrs, algorithm in wanted:
            specs = tuple(self._specs[name] if name else None for name in names)
            try:
                kernel = find(op).choose(specs, attrs, algorithm)
            except EdgewiseError as error:
                raise type(error)(f"{error} (node {node.name!r})") from None
            workspace_bytes = 0 if kernel.workspace_bytes is None else kernel.workspace_bytes(*specs, **attrs)
            scratch_bytes = kernel.scratch_bytes(find(op).infer_specs(specs, attrs), *specs, **attrs)
            found.append(_Chosen(kernel, names, attrs, workspace_bytes, scratch_bytes))
        return found

    def _converts(self, node: Node) -> bool:
        """Whether the epilogue of a node, whose shapes are known, converts its result to another type."""
        if not node.converts or not is_static(node, self._specs):
            return False
        own = find(node.op).infer_specs([self._specs[name] if name else None for name in node.inputs], node.attrs)[0]
        spec = self._specs[node.outputs[0]]
        return spec is not None and own.dtype != spec.dtype

    def _algorithm(self, node: Node, kernels: Sequence[_Chosen]) -> str:
        if node.op == SEGMENT:
            return SEGMENT
        if not kernels:
            return DYNAMIC
        owners, value = self.memory.owners, node.outputs[0]
        shares = value in owners and bool(node.inputs) and owners[value] == owners.get(node.inputs[0])
        return VIEW if find(node.op).view and shares else kernels[0].kernel.algorithm

    def _call(self, step: PreparedStep, kernels: Sequence[_Chosen]) -> Call:
        node = step.node
        if (segment := self._segments.get(node.name)) is not None:
            return self._segment_call(node, segment)
        if node.op in CONTROL_FLOW:
            return self._control_flow_call(node)
        if not kernels:
            return self._dynamic_call(node)
        workspace = self._workspace(node)
        own, *fused = kernels
        calls = [] if step.algorithm == VIEW else [self._kernel_call(own, self._written(node), workspace)]
        calls += [self._kernel_call(chosen, node.outputs[:1], workspace) for chosen in fused]
        return _in_turn(calls)

    def _written(self, node: Node) -> tuple[str, ...]:
        """Return the outputs to pass to the kernel, "" for one that is not read, but for output 0: kernels always write it."""
        names = [name if name in self.memory.owners else "" for name in node.outputs]
        if not names[0]:
            inputs = [self._specs[name] if name else None for name in node.inputs]
            spec = find(node.op).infer_specs(inputs, node.attrs)[0]
            names[0] = f"{node.name}/unread"
            while names[0] in self._slots:
                names[0] += "'"
            self._slots.fix(names[0], np.empty(spec.shape, spec.dtype))
        return tuple(names)

    def _kernel_call(self, chosen: _Chosen, outputs: Sequence[str], workspace: Array) -> Call:
        """Make the call of a kernel, bound to the arrays of its slots where these never change."""
        run, slots = chosen.kernel.run, self._slots.arrays
        keywords = dict(chosen.attrs)
        if chosen.kernel.workspace_bytes is not None:
            keywords["workspace"] = workspace[: chosen.workspace_bytes]
        written, read = [self._slots.of(name) for name in outputs], [self._slots.of(name) for name in chosen.inputs]
        if self._slots.are_fixed((*written, *read)):
            return functools.partial(run, tuple(slots[i] for i in written), *(slots[i] for i in read), **keywords)

        def call() -> None:
            run(tuple([slots[i] for i in written]), *[slots[i] for i in read], **keywords)

        return call

    def _dynamic_call(self, node: Node) -> Call:
        """Make a call that infers, allocates and runs one node on the arrays present at run time."""
        slots, op, algorithm = self._slots.arrays, find(node.op), self._algorithms.get(node.name)
        read = [self._slots.of(name) for name in node.inputs]
        fused = [(find(f.op), [self._slots.of(name) if name else None for name in f.inputs], f.attrs) for f in node.epilogue]
        wanted = [not i or name in self._last_read for i, name in enumerate(node.outputs)]
        placed = self._slots.of(node.outputs[0]) if self._converts(node) else None

        def call() -> None:
            inputs = [slots[i] for i in read]
            bounds = self._bounds
            made = allocate(op, inputs, node.attrs, wanted, bounds)
            compute(op, made, inputs, node.attrs, bounds, algorithm)
            if made[0] is not None and is_container(made[0].dtype):
                bounds.hold(made[0])
            for follower, operands, attrs in fused:
                arguments = [made[0] if i is None else slots[i] for i in operands]
                if placed is not None:
                    made = [*allocate(follower, arguments, attrs, [True], bounds), *made[1:]]
                compute(follower, made[:1], arguments, attrs, bounds)
            if placed is None:
                self._keep(node, made)
            else:
                slots[placed][...] = made[0]

        return call

    def _control_flow_call(self, node: Node) -> Call:
        slots, read = self._slots.arrays, [self._slots.of(name) for name in node.inputs]
        prepare = functools.partial(PreparedGraph, budget=self._budget)
        bodies = {id(body): Body(body, self._specs, prepare) for body in node.subgraphs()}
        captured = {key: [self._slots.of(name) for name in body.captures] for key, body in bodies.items()}

        def run_body(body: Graph, arguments: Sequence[Array]) -> list[Array]:
            return bodies[id(body)].run([*arguments, *(slots[i] for i in captured[id(body)])], self._bounds)

        def call() -> None:
            self._keep(node, run_control_flow(node, [slots[i] for i in read], run_body, self._bounds))

        return call

    def _keep(self, node: Node, made: Sequence[Array | None]) -> None:
        """Put the outputs of a dynamic node into their slots. Raises ShapeError where one differs from its inferred spec."""
        if len(made) < len(node.outputs):
            raise ShapeError(f"{node.op}: {len(node.outputs)} outputs are needed, it made {len(made)}")
        for name, array in zip(node.outputs, made, strict=False):
            if not name or array is None:
                continue
            promised = self._specs.get(name)
            if promised is not None and (promised.shape, promised.dtype) != (array.shape, array.dtype):
                raise ShapeError(f"{node.op}: output {name!r} is {Spec.of(array)}, it was inferred as {promised}")
            self._slots.arrays[self._slots.of(name)] = array

    def _releasing(self, step: int, call: Call) -> Call:
        """Make a call that also releases arrays allocated by the run that no later step reads."""
        node = self._positions[step].node
        written = set(node.writes()) if self._positions[step].algorithm == DYNAMIC else set()
        last_read = self._last_read
        dead = {name for name in node.reads() if name in self._allocated and last_read[name] == step}
        dead |= {name for name in written if name not in last_read}
        self._allocated |= written
        if not dead:
            return call
        slots, dying = self._slots.arrays, [self._slots.of(name) for name in sorted(dead)]

        def releasing() -> None:
            call()
            for slot in dying:
                slots[slot] = None

        return releasing


def _label(choice: Choice) -> str:
    """Return the algorithm to list for a step of a segment; VIEW has no backend before it."""
    return VIEW if choice.algorithm == VIEW else str(choice)


def _in_turn(calls: Sequence[Call]) -> Call:
    if len(calls) == 1:
        return calls[0]

    def in_turn() -> None:
        for call in calls:
            call()

    return in_turn
