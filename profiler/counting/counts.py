"""Counting a model before it runs: arithmetic, bytes, parameters and activation memory, node by node.

The model is counted as imported, before any optimisation. A node whose outputs are known before the run (a weight's reshape,
shape arithmetic) never runs and costs nothing: it is listed as `constant`. A node that cannot be counted is listed in `uncounted`
with the reason, so that nothing is zero unnoticed. 1 MAC = 2 FLOPs (`kernels.cost`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx

from graph.formats.registry import read
from graph.ir import Graph, Model, Node, Specs
from graph.memory import Held, plan_memory
from graph.shapes import bind, propagate
from kernels.cost import FLOPS_PER_MAC, Cost
from kernels.errors import DataDependentError, UnknownOpError
from kernels.record import record
from kernels.registry import Op, find
from kernels.spec import Spec
from profiler.counting.bodies import Bodies, bodies_of
from profiler.counting.params import Params, copied_constants, count_params

NO_FORMULA = "no formula"
DATA_DEPENDENT = "data-dependent shape"


@record
class OpProfile:
    """The cost of one node.

    input_specs/output_specs: shapes and dtypes by position, None where absent or only known at run time.
    macs, other_flops: arithmetic. read_bytes, write_bytes: every distinct input and every output once, parameters among the
    inputs. param_bytes: of the inputs that are constants. params: trainable parameters first read by this node.
    live_bytes: activation memory held while it runs, model inputs and outputs included.
    constant: its outputs are known before the run, so it never runs. counted: whether the figures are its cost; if not, `reason`
    says why. attrs: the node's attributes without graphs. constant_inputs: positions of inputs that are constants.
    folded_norm: it is a convolution that holds a folded BatchNormalization.
    body: the nodes of a control flow node's body, counted for one execution. executions: how often the body runs; the figures of
    the control flow node are those of all executions together.
    """

    index: int
    name: str
    op: str
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    input_specs: tuple[Spec | None, ...]
    output_specs: tuple[Spec | None, ...]
    macs: int = 0
    other_flops: int = 0
    read_bytes: int = 0
    write_bytes: int = 0
    param_bytes: int = 0
    params: int = 0
    live_bytes: int = 0
    counted: bool = True
    constant: bool = False
    reason: str = ""
    attrs: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    constant_inputs: tuple[int, ...] = ()
    folded_norm: bool = False
    body: tuple[OpProfile, ...] = ()
    executions: int = 1

    @property
    def flops(self) -> int:
        """2·macs + other_flops."""
        return FLOPS_PER_MAC * self.macs + self.other_flops

    @property
    def moved_bytes(self) -> int:
        """Bytes read and written."""
        return self.read_bytes + self.write_bytes

    @property
    def intensity(self) -> float:
        """Arithmetic intensity in FLOPs per byte moved; 0 where nothing is moved."""
        return self.flops / self.moved_bytes if self.moved_bytes else 0.0

    @property
    def inputs(self) -> tuple[str, ...]:
        """Specs of the inputs as text: "f32[1,3,224,224]", "?" where known only at run time, "" where absent."""
        return _texts(self.input_names, self.input_specs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Specs of the outputs as text, like `inputs`."""
        return _texts(self.output_names, self.output_specs)


@record
class Uncounted:
    """A node that runs and whose cost is not known. Bodies of control flow are named "<node>/<inner node>"."""

    node: str
    op: str
    reason: str


@record
class LiveBytes:
    """Activation memory while one node runs: intermediate values, model inputs, and model outputs written so far."""

    node: str
    live_bytes: int


@record
class Profile:
    """The cost of a model for one set of input shapes. Totals are sums over `ops`, one for each node in order.

    params: trainable parameters of the source model, inferred as `params_note` says. initializer_elements: elements of all
    initializers of the file. param_bytes: constants that running nodes read, each stored tensor once.
    peak_activation_bytes: the most of `timeline`. arena_bytes: what the memory plan needs for intermediate values (elementwise
    ops in place, views shared, no kernel workspace); arena_lower_bound_bytes: what any plan needs.
    coverage_percent: counted share of the nodes that run. outputs: None where known only at run time. held: the values that
    take activation memory, by indices of `ops`.
    """

    model: str
    digest: str
    inputs: Mapping[str, Spec]
    outputs: Mapping[str, Spec | None]
    macs: int
    other_flops: int
    read_bytes: int
    write_bytes: int
    params: int
    params_note: str
    initializer_elements: int
    param_bytes: int
    peak_activation_bytes: int
    arena_bytes: int
    arena_lower_bound_bytes: int
    timeline: tuple[LiveBytes, ...]
    held: tuple[Held, ...]
    coverage_percent: float
    uncounted: tuple[Uncounted, ...]
    ops: tuple[OpProfile, ...]

    @property
    def flops(self) -> int:
        """2·macs + other_flops."""
        return FLOPS_PER_MAC * self.macs + self.other_flops

    @property
    def batch(self) -> int:
        """First dimension of the first input that has one; 1 where none has."""
        return next((spec.shape[0] for spec in self.inputs.values() if spec.rank), 1)

    @property
    def intensity(self) -> float:
        """FLOPs per byte moved, over the whole model."""
        moved_bytes = self.read_bytes + self.write_bytes
        return self.flops / moved_bytes if moved_bytes else 0.0


def profile(
    model: Model | str | Path | bytes | onnx.ModelProto,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    dims: Mapping[str, int] | None = None,
) -> Profile:
    """Count what a model costs, op by op and in total: arithmetic, bytes, parameters and activation memory. Nothing runs.

    Args:    model: the path of an ONNX file, its bytes, an onnx.ModelProto, or a model that is read already.
             shapes: the whole shape of an input by its name, as in {"x": (1, 3, 224, 224)}.
             dims: the size of a dynamic dimension by its name, as in {"batch": 8}. One of the two must settle every dimension.
    Returns: macs (multiply–accumulates), flops (2·macs + other_flops), params (elements), read_bytes, write_bytes, param_bytes,
             peak_activation_bytes; `ops` holds the figures of each node, `uncounted` the nodes that cannot be counted, and why.
    Raises:  ModelError for a file that is refused; ShapeError where a dimension is left open or an op refuses its inputs.
    """
    loaded = model if isinstance(model, Model) else read(model)
    inputs = bind(loaded.graph, shapes, dims)
    specs = propagate(loaded.graph, inputs)
    params = count_params(loaded)
    ops = count_nodes(loaded.graph, specs, params)
    running = [op for op in ops if not op.constant]

    memory = plan_memory(_running_graph(loaded.graph, ops), specs, {})
    moments = {moment.node: moment.live_bytes + moment.outside_bytes for moment in memory.timeline}
    ops = tuple(replace(op, live_bytes=moments.get(op.name, 0)) for op in ops)
    return Profile(
        model=loaded.source,
        digest=loaded.digest,
        inputs=inputs,
        outputs={port.name: specs.get(port.name) for port in loaded.graph.outputs},
        macs=sum(op.macs for op in running),
        other_flops=sum(op.other_flops for op in running),
        read_bytes=sum(op.read_bytes for op in running),
        write_bytes=sum(op.write_bytes for op in running),
        params=params.total,
        params_note=params.note,
        initializer_elements=params.initializer_elements,
        param_bytes=_param_bytes(loaded.graph, specs, ops),
        peak_activation_bytes=memory.peak_bytes,
        arena_bytes=memory.arena_bytes,
        arena_lower_bound_bytes=memory.lower_bound_bytes,
        timeline=tuple(LiveBytes(node, live_bytes) for node, live_bytes in moments.items()),
        held=tuple(
            replace(item, first=running[item.first].index, last=running[item.last].index) for item in memory.held if running
        ),
        coverage_percent=100 * sum(op.counted for op in running) / len(running) if running else 100.0,
        uncounted=tuple(_uncounted(running)),
        ops=ops,
    )


def count_nodes(graph: Graph, specs: Specs, params: Params | None = None) -> tuple[OpProfile, ...]:
    """Count every node of a graph, imported or optimised, with the specs of all its values.

    A fused epilogue is part of its node: its arithmetic is added, and the bytes that it reads besides the node's output.
    """
    constants = constant_values(graph, specs)
    sources = _Sources(graph, constants, params)
    return tuple(_count(index, node, specs, constants, sources) for index, node in enumerate(graph.nodes))


def constant_values(graph: Graph, specs: Specs) -> frozenset[str]:
    """Return the names of values known before the run: constants, and results of deterministic nodes on such values."""
    known = set(graph.constants) | {name for name, spec in specs.items() if spec is not None and spec.value is not None}
    for node in graph.nodes:
        op = _find(node.op)
        if op is not None and op.deterministic and all(name in known for name in node.reads()):
            known.update(node.writes())
    return frozenset(known)


def _count(index: int, node: Node, specs: Specs, constants: frozenset[str], sources: _Sources) -> OpProfile:
    bare = OpProfile(
        index=index,
        name=node.name,
        op=node.op,
        input_names=node.inputs,
        output_names=node.outputs,
        input_specs=_bare_specs(specs, node.inputs),
        output_specs=_bare_specs(specs, node.outputs),
        attrs=MappingProxyType({key: value for key, value in node.attrs.items() if not isinstance(value, Graph)}),
        constant_inputs=tuple(position for position, name in enumerate(node.inputs) if name in constants),
    )
    if all(name in constants for name in node.writes()):
        return replace(bare, constant=True)
    reads, writes = dict.fromkeys(node.reads()), tuple(node.writes())
    bare = replace(
        bare,
        read_bytes=_nbytes(specs, reads),
        write_bytes=_nbytes(specs, writes),
        param_bytes=_nbytes(specs, (name for name in reads if name in constants)),
        params=sources.claim(reads),
        folded_norm=sources.params is not None and node.name in sources.params.folded,
    )
    bodies = bodies_of(node, specs)
    if bodies is not None:
        return _count_bodies(bare, bodies, sources)
    cost, reason = _cost(node, specs)
    if cost is None:
        return replace(bare, counted=False, reason=reason)
    return replace(bare, macs=cost.macs, other_flops=cost.other_flops)


def _cost(node: Node, specs: Specs) -> tuple[Cost | None, str]:
    """Return the arithmetic of a node and its epilogue; None and the reason where it is not known."""
    if any(specs.get(name) is None for name in (*node.reads(), *node.writes())):
        return None, DATA_DEPENDENT
    total = Cost()
    applied = [(node.op, node.inputs, node.attrs), *((fused.op, fused.inputs, fused.attrs) for fused in node.epilogue)]
    outputs: tuple[Spec, ...] = ()
    for name, input_names, attrs in applied:
        op = _find(name)
        if op is None or op.cost is None:
            return None, NO_FORMULA if name == node.op else f"{NO_FORMULA} ({name} behind it)"
        inputs = [specs.get(value) if value else None for value in input_names]
        if outputs:  # of the node: an epilogue finds it where its own inputs name none
            inputs = [spec or outputs[0] for spec in inputs]
        try:
            outputs = op.infer_specs(inputs, attrs)
            total = total + op.cost(outputs, *inputs, **attrs)
        except DataDependentError:
            return None, DATA_DEPENDENT
    return total, ""


def _count_bodies(bare: OpProfile, bodies: Bodies, sources: _Sources) -> OpProfile:
    """Add the cost of a control flow node's bodies: of a loop body times its trips, or of the costliest branch."""
    if not bodies.runs:
        return replace(bare, counted=False, reason=bodies.reason)
    counted: list[tuple[OpProfile, ...]] = []
    for run in bodies.runs:
        inner = constant_values(run.graph, run.specs)
        inner_sources = sources.inside(run.graph, inner)
        nodes = enumerate(run.graph.nodes)
        counted.append(tuple(_count(index, node, run.specs, inner, inner_sources) for index, node in nodes))
    body = max(counted, key=lambda ops: sum(op.flops for op in ops))
    times = bodies.executions
    return replace(
        bare,
        body=body,
        executions=times,
        macs=times * sum(op.macs for op in body),
        other_flops=times * sum(op.other_flops for op in body),
        read_bytes=times * sum(op.read_bytes for op in body),
        write_bytes=times * sum(op.write_bytes for op in body),
        param_bytes=sum(op.param_bytes for op in body),
        params=bare.params + sum(op.params for op in body),
        counted=all(op.counted or op.constant for op in body),
        reason=bodies.reason,
    )


class _Sources:
    """The parameters that constants derive from, and those that a node has read already."""

    def __init__(self, graph: Graph, constants: frozenset[str], params: Params | None) -> None:
        self.params = params
        self._behind: dict[str, tuple[str, ...]] = {}  # a constant that is computed -> what from
        self._claimed: set[str] = set()  # parameters, and computed constants whose parameters all are
        self._learn(graph, constants)

    def inside(self, graph: Graph, constants: frozenset[str]) -> _Sources:
        """Return these sources extended by the constants of a body."""
        self._learn(graph, constants)
        return self

    def claim(self, names: Iterable[str]) -> int:
        """Return the number of trainable parameters that these values derive from, without those claimed before."""
        if self.params is None:
            return 0
        claimed, waiting = 0, list(names)
        while waiting:
            name = waiting.pop()
            if name not in self._claimed:
                self._claimed.add(name)
                claimed += self.params.by_value.get(name, 0)
                waiting.extend(self._behind.get(name, ()))
        return claimed

    def _learn(self, graph: Graph, constants: frozenset[str]) -> None:
        by_value = self.params.by_value if self.params is not None else {}
        for node in graph.nodes:
            for value in node.writes():
                if value in constants and value not in by_value:
                    self._behind[value] = tuple(node.reads())
                    self._claimed.discard(value)  # another body may have a value of that name


def _uncounted(ops: Iterable[OpProfile], prefix: str = "") -> Iterable[Uncounted]:
    for op in ops:
        if op.constant or op.counted:
            continue
        inner = tuple(_uncounted(op.body, f"{prefix}{op.name}/"))
        yield from inner or (Uncounted(f"{prefix}{op.name}", op.op, op.reason),)


def _running_graph(graph: Graph, ops: Sequence[OpProfile]) -> Graph:
    """Return the graph without nodes that never run: their outputs take no activation memory."""
    return replace(graph, nodes=tuple(node for node, op in zip(graph.nodes, ops, strict=True) if not op.constant))


def _param_bytes(graph: Graph, specs: Specs, ops: Sequence[OpProfile]) -> int:
    """Return the bytes of constants that running nodes read: copies of one tensor count once, those of bodies are added."""
    copies = copied_constants(list(graph.nodes), graph.constants)
    running = [op for op in ops if not op.constant and not op.body]
    read = {op.input_names[position] for op in running for position in op.constant_inputs if op.input_names[position]}
    inside = sum(op.param_bytes for op in ops if op.body)
    return _nbytes(specs, {copies.get(name, name) for name in read}) + inside


def _nbytes(specs: Specs, names: Iterable[str]) -> int:
    return sum(spec.nbytes for name in names if (spec := specs.get(name)) is not None)


def _bare_specs(specs: Specs, names: Iterable[str]) -> tuple[Spec | None, ...]:
    found = (specs.get(name) if name else None for name in names)
    return tuple(None if spec is None else spec.with_value(None) for spec in found)


def _texts(names: Iterable[str], specs: Iterable[Spec | None]) -> tuple[str, ...]:
    return tuple(str(spec) if spec else "?" if name else "" for name, spec in zip(names, specs, strict=True))


def _find(op: str) -> Op | None:
    try:
        return find(op)
    except UnknownOpError:
        return None
