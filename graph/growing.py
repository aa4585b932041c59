"""Values that grow: a graph input, and the graph output that appends to it, such as the keys of a decoder's attention."""

from __future__ import annotations

from graph.ir import Graph
from kernels.record import record


@record
class Growing:
    """A graph input and the output that is the input with more behind it. axis: along which it grows."""

    input: str
    output: str
    axis: int


def find_growing(graph: Graph) -> list[Growing]:
    """Return the values that grow, in the order of the outputs: those that a Concat makes of an input and something else."""
    producers = {name: node for node in graph.nodes for name in node.writes()}
    ports = {port.name: port for port in graph.inputs}

    def source(name: str) -> str:
        """Return the value of which another is the same under a new name."""
        while (node := producers.get(name)) is not None and len(node.inputs) == 1 and node.op in ("Identity", "Concat"):
            name = node.inputs[0]
        return name

    found: dict[str, Growing] = {}
    for output in graph.outputs:
        node = producers.get(source(output.name))
        if node is None or node.op != "Concat" or len(node.inputs) != 2:
            continue
        port = ports.get(source(node.inputs[0]))
        if port is None or port.dims is None or port.name in found:
            continue
        axis = node.attrs["axis"] % len(port.dims)
        if not isinstance(port.dims[axis], int):
            found[port.name] = Growing(port.name, output.name, axis)
    return list(found.values())
