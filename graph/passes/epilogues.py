"""Epilogue fusion: elementwise ops behind a node run on its output while that is still at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from graph.ir import CONTROL_FLOW, INTEGER_PRODUCTS, Fused, Graph, Node
from graph.native.expressions import Sources, express_fused
from graph.native.facts import F32, VALUES, known
from graph.passes.editor import Editor, origins
from kernels.native.errors import EmitError
from kernels.record import record
from kernels.registry import find
from kernels.spec import DType

_QUANTISES = ("QuantizeLinear", "DequantizeLinear")  # elementwise where one scale serves all elements
MAX_FUSED = 32  # ops behind one node; the next one of a longer chain starts its own


def fuse_epilogues(editor: Editor) -> None:
    """Give every node the chain of elementwise ops that alone read its output and keep its shape and dtype.

    What converts the sums of a product of integers, or quantises, may change the dtype, where native kernels can do all of it.
    What they read besides must exist before the node runs: of the two branches of a residual, the later takes the addition. Only
    those are fused that native kernels can do before they store, or, of other types than float32, that maps can do.
    """
    order = _Order.of(editor.graph)
    for index, node in enumerate(editor.graph.nodes, 1):
        host = editor.nodes.get(node.name)
        while host is not None:
            host = _absorb(editor, host, index, order)


@record
class _Order:
    """Where values are made. made: by value, the position of the node that makes it, from 1; of an input or constant, none.

    newest: by node name, which of the values that it reads is made last. No other can be its host, so that of the producers of a
    thousand operands only one looks at all of them.
    """

    made: Mapping[str, int]
    newest: Mapping[str, str]

    @staticmethod
    def of(graph: Graph) -> _Order:
        """Return the order of a graph. What is dequantised counts as made with the bytes that it is made of."""
        made: dict[str, int] = {}
        for position, node in enumerate(graph.nodes, 1):
            at = made.get(node.inputs[0], 0) if node.op == "DequantizeLinear" else position
            made.update(dict.fromkeys(node.writes(), at))
        newest = {node.name: max(node.reads(), key=lambda value: made.get(value, 0), default="") for node in graph.nodes}
        return _Order(made, newest)


def _absorb(editor: Editor, host: Node, index: int, order: _Order) -> Node | None:
    """Return the host with its reader in its epilogue, or None. index: of the node that the host was in the graph, from 1."""
    if len(host.epilogue) >= MAX_FUSED or host.op in CONTROL_FLOW or find(host.op).view or not host.outputs[0]:
        return None
    if not editor.single_output(host) or (reader := _reader(editor, host, host.outputs[0], index, order)) is None:
        return None
    fused = _fused(reader, host.outputs[0])
    return editor.merge(replace(host, outputs=(reader.outputs[0],), epilogue=(*host.epilogue, fused, *reader.epilogue)), reader)


def _fused(reader: Node, value: str) -> Fused:
    return Fused(reader.op, tuple("" if name == value else name for name in reader.inputs), reader.attrs, origins(reader)[0])


def _reader(editor: Editor, host: Node, value: str, index: int, order: _Order) -> Node | None:
    """Return the node that reads a value which the host makes, if it can be fused to it, or None."""
    reader = editor.only_reader(value)
    if (
        reader is None
        or order.newest[reader.name] != value
        or reader.op in CONTROL_FLOW
        or not _is_elementwise(reader, editor)
        or not editor.single_output(reader)
    ):
        return None
    spec, made = editor.specs.get(value), editor.specs.get(reader.outputs[0])
    if spec is None or made is None or spec.shape != made.shape:
        return None
    if spec.dtype != made.dtype and not (spec.dtype in VALUES and _may_convert(host, reader.op, editor)):
        return None
    others = [name for name in reader.reads() if name != value and name not in editor.constants]
    if any(editor.specs.get(name) is None or order.made.get(name, 0) >= index for name in others):
        return None
    if not _is_native(editor, _fused(reader, value), spec.dtype, host):
        return None  # or the host could not run natively
    if reader.op == "DequantizeLinear" and _reader(editor, host, reader.outputs[0], index, order) is None:
        return None  # bytes are stored, and dequantised where they are read
    return reader


def _may_convert(host: Node, op: str, editor: Editor) -> bool:
    """Whether an op may be fused behind a host though it makes another dtype of its result. `Node.converts` finds such nodes."""
    return host.op in INTEGER_PRODUCTS or (op == "QuantizeLinear" and _is_elementwise(host, editor))


def _is_native(editor: Editor, fused: Fused, dtype: DType, host: Node) -> bool:
    """Whether native code can do the op behind another one, or does not know its type anyway. dtype: of what it is applied to."""
    if dtype not in VALUES:
        return True
    try:
        bound = express_fused(fused, dtype, Sources(lambda value: known(editor.specs, value), editor.constants))
    except EmitError:
        return False
    return dtype != F32 or set(bound.expression.operands) == {F32} or _may_convert(host, fused.op, editor)


def _is_elementwise(node: Node, editor: Editor) -> bool:
    """Whether it may run in place behind another node; an absent input has no sign in an epilogue, where "" is the output."""
    op = find(node.op)
    if node.op in _QUANTISES:
        return all(node.inputs) and all(
            (spec := editor.specs.get(name)) is not None and spec.elements == 1 for name in node.inputs[1:]
        )
    return op.elementwise and not op.view and all(node.inputs)
