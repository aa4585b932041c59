"""Activation memory step by step, when every value lives from its writer to its last reader.

Model inputs are held throughout, model outputs from their writer to the end. A view is its input's memory. Nothing is computed
in place, so an executor that does so needs less.
"""

from __future__ import annotations

from graph.ir import Graph, Specs
from kernels.errors import UnknownOpError
from kernels.registry import find


def live_bytes(graph: Graph, specs: Specs) -> list[int]:
    """Bytes alive while each node runs. Values whose size only a run tells count nothing."""
    end = len(graph.nodes)
    owner = {name: name for name in (port.name for port in graph.inputs)}
    first, last = dict.fromkeys(owner, 0), dict.fromkeys(owner, end)
    for step, node in enumerate(graph.nodes):
        for name in node.reads():
            if name in owner:
                last[owner[name]] = max(last[owner[name]], step)
        for value in node.writes():
            if value == node.outputs[0] and node.inputs and node.inputs[0] in owner and _is_view(node.op):
                owner[value] = owner[node.inputs[0]]
            else:
                owner[value], first[value], last[value] = value, step, step
    for port in graph.outputs:
        if port.name in owner:
            last[owner[port.name]] = end
    change = [0] * (end + 2)
    for value, start in first.items():
        spec = specs.get(value)
        if spec is not None:
            change[start] += spec.nbytes
            change[last[value] + 1] -= spec.nbytes
    total, alive = 0, []
    for step in range(end):
        total += change[step]
        alive.append(total)
    return alive


def _is_view(op: str) -> bool:
    try:
        return find(op).view
    except UnknownOpError:
        return False
