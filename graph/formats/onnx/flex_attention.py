"""FlexAttention of ai.onnx.preview, written as nodes of the graph around it: two products, a softmax, its graphs in between."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from graph.errors import CorruptModelError
from graph.formats.onnx.messages import AttributeProto
from kernels.record import record

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto, TensorProto

FLEX_ATTENTION = "ai.onnx.preview.FlexAttention"

_DOMAIN, _NAME = FLEX_ATTENTION.rsplit(".", 1)


@record
class Written:
    """Nodes without any FlexAttention, and the constants that they read beside those of their graph."""

    nodes: Sequence[NodeProto]
    constants: Sequence[TensorProto]


def expand(nodes: Sequence[NodeProto]) -> Written:
    """Replace every FlexAttention; nothing that is given is changed. Raises CorruptModelError where it is not well formed."""
    if not any(map(_is_flex, nodes)):
        return Written(nodes, ())
    made: list[NodeProto] = []
    constants: list[TensorProto] = []
    for index, node in enumerate(nodes):
        try:
            written = _expanded(node, f"{node.name or _NAME}_{index}") if _is_flex(node) else Written([node], ())
        except (TypeError, ValueError):  # protobuf reads such names and does not write them
            raise CorruptModelError(f"FlexAttention: a name in it is not UTF-8 (node {node.name!r})") from None
        made += written.nodes
        constants += written.constants
    return Written(made, constants)


def _is_flex(node: NodeProto) -> bool:
    return node.op_type == _NAME and node.domain == _DOMAIN


def _expanded(node: NodeProto, prefix: str) -> Written:
    if len(node.input) != 3 or len(node.output) != 1 or not all((*node.input, *node.output)):
        raise CorruptModelError(
            f"FlexAttention: {len(node.input)} inputs, {len(node.output)} outputs, need 3 and 1 (node {prefix!r})"
        )
    q, k, v = node.input
    attrs = {attribute.name: attribute for attribute in node.attribute}
    graphs = {name: attrs.pop(name).g for name in ("score_mod", "prob_mod") if name in attrs}
    scores = _node(node, "FlexScores", "edgewise", [q, k], f"{prefix}/scores")
    scores.attribute.extend(attrs.values())  # those that it does not have are refused as it is read
    made, value = [scores], scores.output[0]
    constants: list[TensorProto] = []
    for step in ("score_mod", "softmax", "prob_mod"):
        if step == "softmax":
            made.append(_node(node, "Softmax", "", [value], f"{prefix}/softmax"))
            value = made[-1].output[0]
        elif step in graphs:
            body, names = _inlined(graphs[step], value, f"{prefix}/{step}")
            made += body.nodes
            constants += body.constants
            result = graphs[step].output[0].name
            value = names.get(result, result)
    made.append(_node(node, "FlexValues", "edgewise", [value, v], node.output[0]))
    return Written(made, constants)


def _node(like: NodeProto, op: str, domain: str, inputs: Iterable[str], output: str) -> NodeProto:
    """Return a new node, named by the value that it writes."""
    return type(like)(op_type=op, domain=domain, name=output, input=inputs, output=[output])


def _inlined(graph: GraphProto, given: str, prefix: str) -> tuple[Written, Mapping[str, str]]:
    """Return the nodes of a graph that reads `given` in place of its one input, and the new names of its values."""
    if len(graph.input) != 1 or len(graph.output) != 1 or graph.sparse_initializer:
        found = f"{len(graph.input)} inputs, {len(graph.output)} outputs and {len(graph.sparse_initializer)} sparse constants"
        raise CorruptModelError(f"FlexAttention: a graph in it has {found}, need 1, 1 and 0 ({prefix!r})")
    body = expand(graph.node)
    tensors = [*graph.initializer, *body.constants]
    own = [tensor.name for tensor in tensors] + [value for node in body.nodes for value in node.output if value]
    names = {name: f"{prefix}/{name}" for name in own} | {graph.input[0].name: given}
    constants: list[TensorProto] = []
    for tensor in tensors:
        copy = type(tensor)()
        copy.CopyFrom(tensor)
        copy.name = names[tensor.name]
        constants.append(copy)
    return Written([_renamed(node, names) for node in body.nodes], constants), names


def _renamed(node: NodeProto, names: Mapping[str, str]) -> NodeProto:
    """Return a copy of a node that reads and writes values under other names, in its own graphs too."""
    copy = type(node)()
    copy.CopyFrom(node)
    for values in (copy.input, copy.output):
        values[:] = [names.get(value, value) for value in values]
    for attribute in copy.attribute:
        if attribute.type == AttributeProto.GRAPH:
            _rename_captured(attribute.g, names)
    return copy


def _rename_captured(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Rename the values that a graph reads from the graphs around it."""
    own = {value.name for value in (*graph.input, *graph.initializer)} | {value for node in graph.node for value in node.output}
    outer = {name: new for name, new in names.items() if name not in own}
    renamed = [_renamed(node, outer) for node in graph.node]
    del graph.node[:]
    graph.node.extend(renamed)
    for port in graph.output:
        port.name = outer.get(port.name, port.name)
