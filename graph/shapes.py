"""Shape propagation: binding of dynamic dimensions, then inference node by node.

`Op.infer` is the only source of shapes and dtypes. Values known before the run (constants, results of Shape, arithmetic on
these) are kept in `Spec.value`, so that the shape arithmetic of exporters is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from graph.binding import bind_inputs
from graph.budget import MOST_BYTES, model_share_bytes
from graph.errors import LimitError
from graph.ir import BATCHED, CONTROL_FLOW, Graph, Node, Specs
from graph.limits import Check, Limits, go_on
from graph.ratios import compute_ratios, is_scaled
from graph.shape_arithmetic import compute_sizes
from kernels.errors import (
    AttributeValueError,
    DataDependentError,
    EdgewiseError,
    InvalidError,
    ShapeError,
    UnsupportedError,
)
from kernels.registry import evaluate, evaluation_bytes, find
from kernels.size import is_symbolic, surely_equal
from kernels.spec import STRING, Array, SizeArray, Spec, fixed_array, size_array

FOLD_ELEMENTS = 65_536  # shape arithmetic is far smaller; larger constants are the constant-folding pass's business
FOLD_BYTES = 64 << 20  # that values computed here take together, and that computing one of them takes; the others stay unknown
MAX_VALUE_BYTES = min(MOST_BYTES, model_share_bytes())  # of one value that a run computes

_LIMITS = Limits()


def bind(
    graph: Graph, shapes: Mapping[str, tuple[int, ...]] | None = None, dims: Mapping[str, int] | None = None
) -> dict[str, Spec]:
    """Give every graph input a concrete spec.

    Args:    shapes: input name -> whole shape. dims: dynamic dimension name -> size. Fixed dimensions need not be given, and the
             batch, the first axis of an input, is 1 where it is not.
    Raises:  FeedError naming the input, the dimension and both sizes where they differ; or every other dimension that is open,
             with sizes to pass that fit the model.
    """
    return bind_inputs(graph.inputs, shapes, dims, lambda inputs: _fits(graph, inputs))


def _fits(graph: Graph, inputs: Mapping[str, Spec]) -> bool:
    """Return whether shapes follow from these inputs for every node."""
    try:
        propagate(graph, inputs)
    except EdgewiseError:
        return False
    return True


def propagate(
    graph: Graph,
    inputs: Mapping[str, Spec],
    outer: Specs | None = None,
    check: Check = go_on,
    before: tuple[Graph, Specs] | None = None,
) -> dict[str, Spec | None]:
    """Infer the spec of every value: inputs, constants and outputs of nodes. None where only a run knows it.

    Args:    inputs: spec of every graph input. outer: specs of the values of enclosing graphs, for a subgraph; those that it
             captures are among the result. check: called between nodes; what it raises ends the work. before: a graph that this
             one was made from, and its specs for the same inputs: those of nodes that have not changed, nor what they read, are
             kept, and so are those that say the same as before.
    Raises:  the errors of each op's `infer`, with the name of the node; LimitError for a value past the size limit.
    """
    known = before[1].symbols if before is not None and isinstance(before[1], _Propagated) else _Symbols()
    symbols = _Symbols(known.fixed, known.withheld, False, dict(known.ratios))
    specs = _propagate(graph, inputs, outer, check, symbols, before)
    return _propagate(graph, inputs, outer, check, _Symbols(fixed=True), None) if symbols.missed else specs


@dataclass(slots=True)
class _Symbols:
    """What has become of values that follow from symbols and have no rule in shape arithmetic.

    fixed: symbols get their plain values there, so that all values are known. Else such a value is left for the run to compute;
    `withheld` says that there are some, `missed` that a shape may depend on one. ratios: sizes that are floats, by their values.
    """

    fixed: bool = False
    withheld: bool = False
    missed: bool = False
    ratios: dict[str, Array] = field(default_factory=dict)


class _Propagated(dict[str, Spec | None]):
    """Specs, and what became of symbols on the way to them, which a graph that is made from this one needs to know."""

    symbols: _Symbols


def _propagate(
    graph: Graph,
    inputs: Mapping[str, Spec],
    outer: Specs | None,
    check: Check,
    symbols: _Symbols,
    before: tuple[Graph, Specs] | None,
) -> _Propagated:
    specs = _Propagated()
    specs.symbols = symbols
    if outer is not None:
        specs.update((name, outer[name]) for name in graph.captures() if name in outer)
    specs.update(inputs)
    known = _Known(before)
    specs.update((name, known.constant(name, array)) for name, array in graph.constants.items())
    room_bytes = FOLD_BYTES
    for node in graph.nodes:
        check()
        try:
            if (made := known.outputs(node, specs)) is None:
                made = _infer_control(node, specs, check) if node.op in CONTROL_FLOW else _infer(node, specs, room_bytes, symbols)
            symbols.missed |= symbols.withheld and node.op in CONTROL_FLOW
        except DataDependentError:
            made = ()
            symbols.missed |= symbols.withheld
        except EdgewiseError as error:
            raise type(error)(f"{error} (node {node.name!r})") from None
        if made and len(made) < len(node.outputs):
            raise UnsupportedError(f"{node.op}: {len(node.outputs)} outputs are needed, it has {len(made)} (node {node.name!r})")
        room_bytes -= sum(spec.nbytes for spec in made if spec is not None and spec.value is not None)
        for index, value in enumerate(node.outputs):
            if value:
                spec = specs[value] = known.kept(value, made[index], symbols) if made else None
                if spec is not None and spec.nbytes > MOST_BYTES:
                    raise LimitError(
                        f"{node.op}: output {value!r} is {spec}, {spec.nbytes} bytes, the limit of any value is {MOST_BYTES} "
                        f"(node {node.name!r}); use smaller shapes"
                    )
    return specs


class _Known:
    """The specs of a graph before it was changed, where they hold still: a spec is kept as the same object."""

    def __init__(self, before: tuple[Graph, Specs] | None) -> None:
        self._nodes: Mapping[str, Node] = {}
        self._constants: Mapping[str, Array] = {}
        self._specs: Specs = {}
        if before is not None:
            graph, self._specs = before
            self._nodes, self._constants = {node.name: node for node in graph.nodes}, graph.constants

    def constant(self, name: str, array: Array) -> Spec:
        """Return the spec of a constant."""
        spec = self._specs.get(name) if self._constants.get(name) is array else None
        return Spec.of(array) if spec is None else spec

    def outputs(self, node: Node, specs: Specs) -> tuple[Spec | None, ...] | None:
        """Return the specs of a node's outputs, or None where the node, or the spec of a value that it reads, is another one."""
        if self._nodes.get(node.name) is not node or any(specs.get(name) is not self._specs[name] for name in node.reads()):
            return None
        return tuple(self._specs[name] if name else None for name in node.outputs)

    def kept(self, value: str, spec: Spec | None, symbols: _Symbols) -> Spec | None:
        """Return the spec of a value as it was where the inferred one says the same: its readers are not inferred again then."""
        old = self._specs.get(value)
        if old is None or spec is None or value in symbols.ratios:
            return spec
        return old if old is spec or _says_the_same(old, spec) else spec


def _says_the_same(a: Spec, b: Spec) -> bool:
    """Whether specs have one shape for all values of symbols, one dtype, and the same bits as their known value, or none."""
    if a.dtype != b.dtype or not surely_equal(a.shape, b.shape):
        return False
    if a.value is None or b.value is None:
        return a.value is b.value
    if isinstance(a.value, SizeArray) or isinstance(b.value, SizeArray) or a.dtype == STRING:
        return a.value is b.value
    return a.value.tobytes() == b.value.tobytes()


def _infer(node: Node, specs: Specs, room_bytes: int, symbols: _Symbols) -> tuple[Spec | None, ...]:
    """Infer the specs of a node's outputs, with their values where all inputs are known and the outputs are small.

    room_bytes: that values may take; where computing them takes more, they stay unknown.
    """
    op = find(node.op)
    inputs = [specs[name] if name else None for name in node.inputs]
    if any(name and spec is None for name, spec in zip(node.inputs, inputs, strict=True)):
        raise DataDependentError(f"{node.op}: an input's shape is known at run time only")
    made = op.infer_specs(inputs, node.attrs)
    if node.converts:
        return (_converted(node, made[0], specs), *made[1:])
    if not op.deterministic or node.epilogue or any(_is_open_or_large(spec) for spec in made):
        return made
    if all(spec.value is not None for spec in made[: len(node.outputs)]):
        return made
    scaled = [symbols.ratios.get(name) for name in node.inputs]
    values = [
        None if spec is None else spec.value if ratio is None else ratio for spec, ratio in zip(inputs, scaled, strict=True)
    ]
    if any(name and value is None for name, value in zip(node.inputs, values, strict=True)):
        return made
    if any(value is not None and value.size > FOLD_ELEMENTS for value in values):
        return made
    ratios = any(ratio is not None for ratio in scaled)
    if ratios or any(isinstance(value, SizeArray) for value in values):
        if not symbols.fixed and is_scaled(node.op, values, made, ratios=ratios):
            return _scale(node, values, made, symbols)
        if (computed := compute_sizes(node.op, values, node.attrs, made)) is not None:
            return tuple(map(Spec.of, computed))
        if not symbols.fixed:
            symbols.withheld = True
            return made
        values = [None if value is None else fixed_array(value) for value in values]
        inputs = [None if value is None else Spec.of(value) for value in values]
    if evaluation_bytes(op, inputs, made, node.attrs) > room_bytes:
        return made
    return tuple(Spec.of(array) for array in evaluate(op, values, node.attrs))


def _converted(node: Node, spec: Spec, specs: Specs) -> Spec:
    """Return the spec that a node's epilogue makes of its result."""
    for fused in node.epilogue:
        spec = find(fused.op).infer_specs([specs[name] if name else spec for name in fused.inputs], fused.attrs)[0]
    return spec


def _scale(node: Node, values: Sequence[Array | None], made: tuple[Spec, ...], symbols: _Symbols) -> tuple[Spec, ...]:
    """Return the specs of a node that computes with sizes as floats. Only sizes are known values; floats are kept aside."""
    found = compute_ratios(node.op, values, node.attrs, made)
    if found is not None and made[0].dtype == np.int64:
        return (Spec.of(size_array(found)),)
    symbols.withheld = True
    if found is not None:
        symbols.ratios[node.outputs[0]] = found
    return made


def _is_open_or_large(spec: Spec) -> bool:
    """Whether a value of that spec is not computed with the shapes: its own shape depends on symbols, or it is large."""
    return any(map(is_symbolic, spec.shape)) or spec.elements > FOLD_ELEMENTS


def _infer_control(node: Node, specs: Specs, check: Check) -> tuple[Spec | None, ...]:
    if node.op == "SequenceMap":
        raise DataDependentError("SequenceMap: the tensors of its sequences have shapes that only a run knows")
    infer = {"If": _infer_if, "Loop": _infer_loop, "Scan": _infer_scan}[node.op]
    return infer(node, specs, check)


def _body(node: Node, name: str) -> Graph:
    body = node.attrs.get(name)
    if not isinstance(body, Graph):
        raise UnsupportedError(f"{node.op}: attribute {name!r} is missing, need a graph")
    return body


def _outputs(body: Graph, inputs: Mapping[str, Spec], specs: Specs, check: Check) -> list[Spec | None]:
    inner = propagate(body, inputs, specs, check)
    return [inner[port.name] for port in body.outputs]


def _infer_if(node: Node, specs: Specs, check: Check) -> tuple[Spec | None, ...]:
    """Return the specs of the taken branch where the condition is known, else those on which both branches agree.

    A branch that refuses its inputs does not stop a model that never takes it: the other one's specs hold then. A run that takes
    it is refused when it does.
    """
    condition = specs[node.inputs[0]]
    branches = [_body(node, "then_branch"), _body(node, "else_branch")]
    if condition is not None and condition.value is not None:
        return tuple(_outputs(branches[0 if bool(condition.value.reshape(-1)[0]) else 1], {}, specs, check))
    found: list[list[Spec | None]] = []
    refusals: list[EdgewiseError] = []
    for branch in branches:
        try:
            found.append(_outputs(branch, {}, specs, check))
        except (InvalidError, UnsupportedError) as error:
            refusals.append(error)
    if not found:
        raise refusals[0]
    pairs = zip(found[0], found[-1], strict=False)
    return tuple(Spec(a.shape, a.dtype) if a is not None and a == b else None for a, b in pairs)


def _infer_loop(node: Node, specs: Specs, check: Check) -> tuple[Spec | None, ...]:
    """Infer carried values where no iteration changes their specs, and stacked outputs where the trip count is known."""
    body = _body(node, "body")
    carried = _known_inputs(node.inputs[2:], specs, "Loop: a carried value")
    scalars = [Spec((), np.dtype(np.int64)), Spec((), np.dtype(np.bool_))]
    made = _iteration(body, [*scalars, *carried], specs, "Loop", check)
    states, stacked = made[1 : 1 + len(carried)], made[1 + len(carried) :]
    _require_stable(carried, states, "Loop")
    iterations = _iterations(node, specs, made[0] if made else None)
    names = [port.name for port in body.outputs[1 + len(carried) :]]
    return (*carried, *(_stacked(name, spec, iterations, 0) for name, spec in zip(names, stacked, strict=True)))


def _iterations(node: Node, specs: Specs, goes_on: Spec | None) -> int:
    """Return the number of iterations where the trip count alone decides it; 0 where it is not known."""
    trips, condition = (specs[name] if name else None for name in (*node.inputs, "", "")[:2])
    if trips is None or trips.value is None or trips.elements != 1:
        return 0
    flags = [goes_on, *([condition] if any(node.inputs[1:2]) else [])]
    for flag in flags:
        if flag is None or flag.value is None or flag.elements != 1 or not flag.value.item():
            return 0
    return max(int(trips.value.item()), 0)


def _infer_scan(node: Node, specs: Specs, check: Check) -> tuple[Spec | None, ...]:
    """Infer states where no iteration changes their specs, and outputs stacked along the scanned length."""
    body, scanned = _body(node, "body"), node.attrs.get("num_scan_inputs")
    if node.attrs.get(BATCHED):
        raise DataDependentError("Scan: its rows have lengths of their own")
    inputs = _known_inputs(node.inputs, specs, "Scan: an input")
    if not isinstance(scanned, int) or not 0 < scanned <= len(inputs):
        raise AttributeValueError(f"Scan: num_scan_inputs is {scanned}, need 1…{len(inputs)}")
    states, sequences = inputs[: len(inputs) - scanned], inputs[len(inputs) - scanned :]
    axes = _axes(node, "scan_input_axes", len(sequences))
    for spec, axis in zip(sequences, axes, strict=True):
        if not -spec.rank <= axis < spec.rank:
            raise ShapeError(f"Scan: axis {axis} of a sequence with shape {spec.shape}, need one of its axes")
    lengths = {spec.shape[axis] for spec, axis in zip(sequences, axes, strict=True)}
    if len(lengths) != 1:
        raise ShapeError(f"Scan: its sequences have lengths {sorted(lengths)}, need one length")
    (length,) = lengths
    made = _iteration(body, [*states, *map(_slice, sequences, axes)], specs, "Scan", check)
    _require_stable(states, made[: len(states)], "Scan")
    stacked, names = made[len(states) :], [port.name for port in body.outputs[len(states) :]]
    places = _axes(node, "scan_output_axes", len(stacked))
    return (*states, *(_stacked(*each) for each in zip(names, stacked, [length] * len(names), places, strict=True)))


def _slice(spec: Spec, axis: int) -> Spec:
    return Spec(tuple(size for i, size in enumerate(spec.shape) if i != axis % spec.rank), spec.dtype)


def _known_inputs(names: Sequence[str], specs: Specs, subject: str) -> list[Spec]:
    """Return the specs without values, since a body gets other values in every iteration."""
    found = [specs[name] if name else None for name in names]
    known = [Spec(spec.shape, spec.dtype) for spec in found if spec is not None]
    if len(known) < len(found):
        raise DataDependentError(f"{subject} has a shape that is known at run time only")
    return known


def _iteration(body: Graph, arguments: Sequence[Spec], specs: Specs, subject: str, check: Check) -> list[Spec | None]:
    if len(arguments) != len(body.inputs):
        raise ShapeError(f"{subject}: {len(arguments)} values for its body {body.name!r}, which takes {len(body.inputs)}")
    return _outputs(body, {port.name: spec for port, spec in zip(body.inputs, arguments, strict=True)}, specs, check)


def _require_stable(before: Sequence[Spec], after: Sequence[Spec | None], subject: str) -> None:
    """Raise DataDependentError where the spec of a state changes: it may change any other one in the next iteration."""
    if list(before) != list(after):
        raise DataDependentError(f"{subject}: a state changes its shape between iterations")


def _stacked(name: str, spec: Spec | None, length: int, axis: int) -> Spec | None:
    """Return the spec of a body's output stacked over all iterations. Without any, the run decides by the declared shape."""
    if spec is None or not length:
        return None
    if not -spec.rank - 1 <= axis <= spec.rank:
        raise ShapeError(f"{name}: stacked along axis {axis}, it has {spec.rank + 1} axes then")
    axis %= spec.rank + 1
    return Spec((*spec.shape[:axis], length, *spec.shape[axis:]), spec.dtype)


def _axes(node: Node, name: str, count: int) -> tuple[int, ...]:
    """Return an axis for each value, 0 where the attribute is absent."""
    given = tuple(node.attrs.get(name) or (0,) * count)
    if len(given) != count:
        raise AttributeValueError(f"Scan: {name} has {len(given)} values, need {count}")
    return given
