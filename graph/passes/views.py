"""View chains: two reshapes, or two transposes, in a row are one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from graph.ir import Graph, Node, Specs
from graph.rewrite import Editor, origins
from kernels.registry import find

_RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})


def collapse_views(graph: Graph, specs: Specs) -> Graph:
    """Read past the first of two; it becomes dead where nobody else reads it. A pair that cancels is a no-op afterwards."""
    editor = Editor(graph, specs)
    for name in [node.name for node in graph.nodes]:
        node = editor.nodes[name]
        before = editor.producer(node.inputs[0]) if node.inputs else None
        if before is None or before.epilogue or node.epilogue:
            continue
        if node.op in _RESHAPES and before.op in _RESHAPES:
            _reshape(editor, before, node)
        elif node.op == before.op == "Transpose":
            _transpose(editor, before, node)
    return editor.finish()


def _reshape(editor: Editor, before: Node, node: Node) -> None:
    spec = editor.specs.get(node.outputs[0])
    if spec is None:
        return
    shape = editor.add_constant(f"{node.name}/shape", np.array(spec.shape, np.int64))
    attrs = find("Reshape").bind({"allowzero": 1})  # a size of 0 means 0 here, not "as before"
    editor.put(replace(node, op="Reshape", inputs=(before.inputs[0], shape), attrs=attrs, origins=origins(node, before)))


def _transpose(editor: Editor, before: Node, node: Node) -> None:
    spec = editor.specs.get(node.outputs[0])
    if spec is None:
        return
    backwards = tuple(reversed(range(spec.rank)))
    first, second = tuple(before.attrs["perm"] or backwards), tuple(node.attrs["perm"] or backwards)
    attrs = find("Transpose").bind({"perm": tuple(first[axis] for axis in second)})
    editor.put(replace(node, inputs=before.inputs, attrs=attrs, origins=origins(node, before)))
