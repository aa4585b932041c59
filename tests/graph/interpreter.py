"""Run a graph node by node on fresh arrays, without a plan or an arena. Rewrites of graphs are checked against the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graph.ir import CONTROL_FLOW, Graph, Node
from graph.run.bounds import RunBounds
from graph.run.control_flow import run_control_flow
from kernels.errors import EdgewiseError
from kernels.registry import evaluate, find
from kernels.spec import Array

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

    def run_body(body: Graph, arguments: Sequence[Array]) -> list[Array]:
        feeds = {port.name: array for port, array in zip(body.inputs, arguments, strict=True)}
        made = interpret(body, feeds, values)
        return [made[port.name] for port in body.outputs]

    inputs = [values[name] if name else None for name in node.inputs]
    try:
        if node.op in CONTROL_FLOW:
            return run_control_flow(node, inputs, run_body, RunBounds())
        made = evaluate(find(node.op), inputs, node.attrs, algorithm)
        for fused in node.epilogue:
            operands = [values[name] if name else made[0] for name in fused.inputs]
            made = (*evaluate(find(fused.op), operands, fused.attrs), *made[1:])
    except EdgewiseError as error:
        raise type(error)(f"{error} (node {node.name!r})") from None
    return made
