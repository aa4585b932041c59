"""Whether requests may share a run: a proof that row i of every output depends on row i of every input, and on no other row.

Shapes are propagated for two batch sizes. A value whose axis 0 grows with the batch, and no other axis, holds rows. Every node
that reads rows must then keep them apart by its op's rule (`Op.mixes_rows`). An op without a rule ends the proof.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from graph.ir import CONTROL_FLOW, Graph, Node, Port, Specs
from graph.shapes import bind, propagate
from kernels.batch_axis import Application, Content, Operand
from kernels.errors import EdgewiseError
from kernels.record import record
from kernels.registry import find
from kernels.spec import Array, Spec

_SIZES = (5, 7)  # two batch sizes that no model has as fixed sizes by chance


@record
class _Proof:
    """The state of the proof.

    small, large: the specs of all values at both batch sizes. contents: how each value that was reached depends on the batch.
    """

    small: Specs
    large: Specs
    contents: dict[str, Content]

    def leads(self, value: str) -> bool:
        """Whether axis 0 is the batch, at both sizes, and no other axis depends on it."""
        small, large = self.small[value], self.large[value]
        if small is None or large is None or not small.shape or not large.shape:
            return False
        return (small.shape[0], large.shape[0]) == _SIZES and small.shape[1:] == large.shape[1:]


def mixes_rows(graph: Graph, row_shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Prove that the rows of a batch do not influence one another.

    Args:    row_shapes: input name -> its shape without axis 0.
    Returns: "" where it is proven, else the reason why rows may mix, or why the model takes no batch, and the node.
    """
    if reason := _declared(graph):
        return reason
    try:
        small, large = (
            propagate(graph, bind(graph, {name: (size, *shape) for name, shape in row_shapes.items()})) for size in _SIZES
        )
    except EdgewiseError as error:
        return f"batch size cannot vary, {error}"
    proof = _Proof(small, large, dict.fromkeys(graph.constants, Content.FREE))
    proof.contents.update((port.name, Content.ROWS) for port in graph.inputs)
    for node in graph.nodes:
        if reason := _step(node, proof):
            return f"{reason} (node {node.name!r}, {node.op})"
    for port in graph.outputs:
        if proof.contents[port.name] is not Content.ROWS or not proof.leads(port.name):
            return f"output {port.name!r}: axis 0 is not the batch"
    return ""


def _declared(graph: Graph) -> str:
    """Why the declared inputs and outputs cannot hold a batch; "" where they can."""
    if not graph.inputs:
        return "it has no inputs"
    for port in (*graph.inputs, *graph.outputs):
        if not port.dims or isinstance(port.dims[0], int):
            return f"{port}: axis 0 has a fixed size, need a dynamic dimension"
    names = {dim for dim in map(_lead, graph.inputs) if isinstance(dim, str)}
    return f"inputs lead with different dimensions, {', '.join(sorted(names))}" if len(names) > 1 else ""


def _lead(port: Port) -> int | str | None:
    return port.dims[0] if port.dims else None


def _step(node: Node, proof: _Proof) -> str:
    """Note the content of every output of a node. Returns the reason where that cannot be done, else ""."""
    outputs = list(node.writes())
    contents = [_content_of_known(proof.small[value], proof.large[value]) for value in outputs]
    if None in contents:
        found, reason = _by_rule(node, proof)
        if reason:
            return reason
        contents = [found if content is None else content for content in contents]
    for value, content in zip(outputs, contents, strict=True):
        if content is not None:
            proof.contents[value] = content
        if content is Content.ROWS and not proof.leads(value):
            return f"{value!r} is {proof.small[value]} for {_SIZES[0]} rows and {proof.large[value]} for {_SIZES[1]}"
    return ""


def _content_of_known(small: Spec | None, large: Spec | None) -> Content | None:
    """The content of a value that shape propagation computed, so that no input's data is in it; None where it did not."""
    if small is None or large is None or small.value is None or large.value is None:
        return None
    if _equal(small.value, large.value):
        return Content.FREE
    rows = [value for value, size in zip((small.value, large.value), _SIZES, strict=True) if value.shape[:1] == (size,)]
    if len(rows) == len(_SIZES) and all(_equal(row, rows[0][0]) for value in rows for row in value):
        return Content.ROWS
    return Content.SIZE


def _equal(a: Array, b: Array) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(np.all(a == b))


def _by_rule(node: Node, proof: _Proof) -> tuple[Content, str]:
    """The content of a node's outputs, from those of its inputs; and the reason why that is not known, else ""."""
    op = None if node.op in CONTROL_FLOW else find(node.op)
    if op is not None and not op.deterministic:
        return Content.ROWS, "its result is random"
    if all(proof.contents[value] is Content.FREE for value in node.reads()):
        return Content.FREE, ""
    if op is None or op.row_rule is None:
        return Content.ROWS, "nothing is known of how it treats rows"
    return Content.ROWS, op.row_rule(_application(node, proof))


def _application(node: Node, proof: _Proof) -> Application:
    """A node in the terms of `kernels/batch_axis.py`."""
    inputs = tuple(Operand(value, proof.contents[value], proof.small[value]) if value else None for value in node.inputs)
    spec = proof.small[node.outputs[0]] if node.outputs[0] else None
    return Application(inputs, node.attrs, 0 if spec is None else spec.rank, further_outputs=any(node.outputs[1:]))
