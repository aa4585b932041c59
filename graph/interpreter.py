"""Node after node on fresh arrays: no plan, no arena. Bodies of If, Loop and Scan run this way, and so do checks of rewrites."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from graph.errors import CorruptModelError, LimitError
from graph.ir import CONTROL_FLOW, Graph, Node
from kernels.errors import EdgewiseError
from kernels.registry import evaluate, find
from kernels.spec import Array

MAX_ITERATIONS = 1_000_000  # of one Loop: an endless one must end

Values = Mapping[str, Array]


def interpret(graph: Graph, feeds: Values, outer: Values | None = None) -> dict[str, Array]:
    """Run a graph and return its outputs by name. outer: values of the graphs around it that its nodes may read."""
    values: dict[str, Array] = {**(outer or {}), **graph.constants, **feeds}
    for node in graph.nodes:
        made = run_node(node, values)
        values.update((name, array) for name, array in zip(node.outputs, made, strict=False) if name)
    return {port.name: values[port.name] for port in graph.outputs}


def run_node(node: Node, values: Values, algorithm: str | None = None) -> tuple[Array, ...]:
    """Run one node and its epilogue on the values it reads. Errors carry the node's name."""
    try:
        if node.op in CONTROL_FLOW:
            return tuple(_CONTROL[node.op](node, values))
        inputs = [values[name] if name else None for name in node.inputs]
        made = evaluate(find(node.op), inputs, node.attrs, algorithm)
        for fused in node.epilogue:
            operands = [values[name] if name else made[0] for name in fused.inputs]
            made = (*evaluate(find(fused.op), operands, fused.attrs), *made[1:])
    except EdgewiseError as error:
        raise type(error)(f"{error} (node {node.name!r})") from None
    return made


def _body(node: Node, name: str) -> Graph:
    body = node.attrs.get(name)
    if not isinstance(body, Graph):
        raise CorruptModelError(f"{node.op}: attribute {name!r} is missing, need a graph")
    return body


def _call(body: Graph, arguments: Sequence[Array], values: Values) -> list[Array]:
    if len(arguments) != len(body.inputs):
        raise CorruptModelError(f"{body.name}: {len(arguments)} values for {len(body.inputs)} inputs of the body")
    return list(interpret(body, {port.name: a for port, a in zip(body.inputs, arguments, strict=True)}, values).values())


def _if(node: Node, values: Values) -> list[Array]:
    condition = values[node.inputs[0]]
    if condition.size != 1:
        raise CorruptModelError(f"If: the condition has shape {condition.shape}, need one element")
    return _call(_body(node, "then_branch" if condition.item() else "else_branch"), (), values)


def _loop(node: Node, values: Values) -> Iterator[Array]:
    """Carried values, then what every round stacked. Ends at the trip count or when the condition turns false."""
    body = _body(node, "body")
    given = [values[name] if name else None for name in (*node.inputs, "", "")]
    limit = MAX_ITERATIONS + 1 if given[0] is None else int(given[0].item())
    going = True if given[1] is None else bool(given[1].item())
    carried = [values[name] for name in node.inputs[2:]]
    stacks: list[list[Array]] = [[] for _ in range(len(body.outputs) - 1 - len(carried))]
    round_ = 0
    while going and round_ < limit:
        if round_ >= MAX_ITERATIONS:
            raise LimitError(f"Loop: still going after {MAX_ITERATIONS} rounds, the limit")
        made = _call(body, [np.array(round_, np.int64), np.array(going), *carried], values)
        going, carried = bool(made[0].item()), made[1 : 1 + len(carried)]
        for stack, array in zip(stacks, made[1 + len(carried) :], strict=True):
            stack.append(array)
        round_ += 1
    yield from carried
    for stack, port in zip(stacks, body.outputs[1 + len(carried) :], strict=True):
        dims = [dim if isinstance(dim, int) else 0 for dim in port.dims or ()]
        yield np.stack(stack) if stack else np.empty((0, *dims), port.dtype)


def _scan(node: Node, values: Values) -> Iterator[Array]:
    """State values, then the stacked outputs; axes and directions as the attributes say (opset 9 and newer)."""
    body, scanned = _body(node, "body"), int(node.attrs["num_scan_inputs"])
    states = [values[name] for name in node.inputs[: len(node.inputs) - scanned]]
    sequences = [values[name] for name in node.inputs[len(states) :]]
    axes = node.attrs.get("scan_input_axes") or (0,) * scanned
    backward = node.attrs.get("scan_input_directions") or (0,) * scanned
    lengths = {sequence.shape[axis] for sequence, axis in zip(sequences, axes, strict=True)}
    if len(lengths) != 1:
        raise CorruptModelError(f"Scan: its sequences have lengths {sorted(lengths)}, need one length")
    outputs = len(body.outputs) - len(states)
    stacks: list[list[Array]] = [[] for _ in range(outputs)]
    (length,) = lengths
    for i in range(length):
        slices = [
            np.take(sequence, length - 1 - i if back else i, axis)
            for sequence, axis, back in zip(sequences, axes, backward, strict=True)
        ]
        made = _call(body, [*states, *slices], values)
        states = made[: len(states)]
        for stack, array in zip(stacks, made[len(states) :], strict=True):
            stack.append(array)
    yield from states
    out_axes = node.attrs.get("scan_output_axes") or (0,) * outputs
    out_backward = node.attrs.get("scan_output_directions") or (0,) * outputs
    for stack, axis, back in zip(stacks, out_axes, out_backward, strict=True):
        yield np.stack(stack[::-1] if back else stack, axis)


_CONTROL = {"If": _if, "Loop": _loop, "Scan": _scan}
