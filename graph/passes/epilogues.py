"""Epilogue fusion: elementwise ops behind a node run on its output while that is still at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from graph.ir import CONTROL_FLOW, Fused, Node
from graph.native.expressions import express_fused
from graph.native.facts import F32, VALUES, known
from graph.passes.editor import Editor, origins
from kernels.native.errors import EmitError
from kernels.registry import find
from kernels.spec import DType

MAX_FUSED = 32  # ops behind one node; the next one of a longer chain starts its own


def fuse_epilogues(editor: Editor) -> None:
    """Give every node the chain of elementwise ops that alone read its output and keep its shape and dtype.

    What they read besides must exist before the node runs: of the two branches of a residual, the later takes the addition. Only
    those are fused that native kernels can do before they store, or, of other types than float32, that maps can do.
    """
    position = {value: index for index, node in enumerate(editor.graph.nodes, 1) for value in node.writes()}
    newest = {node.name: max(node.reads(), key=lambda value: position.get(value, 0), default="") for node in editor.graph.nodes}
    for index, node in enumerate(editor.graph.nodes, 1):
        host = editor.nodes.get(node.name)
        while host is not None:
            host = _absorb(editor, host, index, position, newest)


def _absorb(editor: Editor, host: Node, index: int, position: Mapping[str, int], newest: Mapping[str, str]) -> Node | None:
    """Return the host with its reader in its epilogue, or None.

    index: of the node that the host was in the graph, from 1. position: the same for the producer of each value.
    newest: by node name, which of the values that it reads is made last. No other can be its host, so that of the producers of a
    thousand operands only one looks at all of them.
    """
    value = host.outputs[0]
    if len(host.epilogue) >= MAX_FUSED:
        return None
    if host.op in CONTROL_FLOW or find(host.op).view or not value or not editor.single_output(host):
        return None
    reader = editor.only_reader(value)
    if (
        reader is None
        or newest[reader.name] != value
        or reader.op in CONTROL_FLOW
        or not _is_elementwise(reader)
        or not editor.single_output(reader)
    ):
        return None
    spec = editor.specs.get(value)
    if spec is None or spec != editor.specs.get(reader.outputs[0]):
        return None
    others = [name for name in reader.reads() if name != value]
    if any(editor.specs.get(name) is None or position.get(name, 0) >= index for name in others if name not in editor.constants):
        return None
    inputs = tuple("" if name == value else name for name in reader.inputs)
    fused = Fused(reader.op, inputs, reader.attrs, origin=origins(reader)[0])
    if not _is_native(editor, fused, spec.dtype):
        return None  # or the host could not run natively
    return editor.merge(replace(host, outputs=(reader.outputs[0],), epilogue=(*host.epilogue, fused, *reader.epilogue)), reader)


def _is_native(editor: Editor, fused: Fused, dtype: DType) -> bool:
    """Whether native code can do the op behind another one, or does not know its type anyway."""
    if dtype not in VALUES:
        return True
    try:
        bound = express_fused(fused, dtype, lambda value: known(editor.specs, value), editor.constants)
    except EmitError:
        return False
    return dtype != F32 or set(bound.expression.operands) == {F32}


def _is_elementwise(node: Node) -> bool:
    """Whether it may run in place behind another node; an absent input has no sign in an epilogue, where "" is the output."""
    op = find(node.op)
    return op.elementwise and not op.view and all(node.inputs)
