"""Simplification of views: chains become one, transposes that move no data become reshapes, elementwise ops move before them."""

from __future__ import annotations

from dataclasses import replace

from graph.ir import CONTROL_FLOW, Node
from graph.passes.editor import Editor, origins
from kernels.registry import find
from kernels.spec import Spec, size_array

_RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})


def collapse_views(editor: Editor) -> None:
    """Let the second of two views read the input of the first, which is dead if it has no other reader."""
    for name in [node.name for node in editor.graph.nodes]:
        node = editor.nodes[name]
        before = editor.producer(node.inputs[0]) if node.inputs else None
        if before is None or before.epilogue or node.epilogue:
            continue
        if node.op in _RESHAPES and before.op in _RESHAPES:
            _reshape(editor, before, node)
        elif node.op == before.op == "Transpose":
            _transpose(editor, before, node)


def reshape_unmoved(editor: Editor) -> None:
    """Replace transposes that keep the order of all dimensions of more than one element by reshapes."""
    for name in [node.name for node in editor.graph.nodes if node.op == "Transpose" and not node.epilogue]:
        node = editor.nodes[name]
        spec, out = editor.spec(node.inputs[0]), editor.specs.get(node.outputs[0])
        if spec is None or out is None:
            continue
        axes = node.attrs["perm"] or tuple(reversed(range(spec.rank)))
        moved = [axis for axis in axes if spec.shape[axis] != 1]
        if moved == sorted(moved):
            editor.put(_as_reshape(editor, node, node.inputs[0], out.shape))


def sink_views(editor: Editor) -> None:
    """Compute an elementwise op before the reshape in front of it, so that it can join the op that made the value.

    The other operands are single numbers, or have its shape and are reshaped instead.
    """
    for name in [node.name for node in editor.graph.nodes]:
        node = editor.nodes[name]
        out = editor.specs.get(node.outputs[0]) if node.outputs else None
        if out is None or node.op in CONTROL_FLOW or node.epilogue or not find(node.op).elementwise or len(node.outputs) != 1:
            continue
        for value in node.inputs:
            view = editor.sole_writer(value, node) if value else None
            if view is None or view.op not in _RESHAPES or list(node.inputs).count(value) != 1:
                continue
            inner, others = editor.spec(view.inputs[0]), [other for other in node.inputs if other != value]
            computed = editor.producer(view.inputs[0]) is not None
            if computed and inner is not None and editor.spec(value) == out and all(_is_like(editor, o, out) for o in others):
                _sink(editor, node, view, inner.shape)
                break


def _is_like(editor: Editor, value: str, out: Spec) -> bool:
    spec = editor.spec(value)
    return spec is not None and (spec.shape == out.shape or (spec.elements == 1 and value in editor.constants))


def _sink(editor: Editor, node: Node, view: Node, shape: tuple[int, ...]) -> None:
    """Apply the op to the input of the view, and the view to its result."""
    inputs = []
    for position, value in enumerate(node.inputs):
        spec = editor.spec(value)
        if value == view.outputs[0]:
            inputs.append(view.inputs[0])
        elif spec is None or spec.elements == 1:
            inputs.append(value)
        elif value in editor.constants:
            inputs.append(editor.add_constant(f"{node.name}/operand", editor.constants[value].reshape(shape)))
        else:
            made = f"{node.name}/operand{position}"
            constant = editor.add_constant(f"{made}/shape", size_array(shape))
            editor.put_early(Node(made, "Reshape", (value, constant), (made,), find("Reshape").bind({"allowzero": 1})))
            inputs.append(made)
    result = f"{node.name}/unshaped"
    out = editor.specs[node.outputs[0]]
    editor.drop(view)
    editor.put(replace(node, inputs=tuple(inputs), outputs=(result,)))
    constant = editor.add_constant(f"{view.name}/shape", size_array(out.shape if out else ()))
    attrs = find("Reshape").bind({"allowzero": 1})
    editor.put(Node(view.name, "Reshape", (result, constant), node.outputs, attrs, origins=origins(view)))


def _as_reshape(editor: Editor, node: Node, source: str, shape: tuple[int, ...]) -> Node:
    constant = editor.add_constant(f"{node.name}/shape", size_array(shape))
    attrs = find("Reshape").bind({"allowzero": 1})  # a size of 0 means 0 here, not "as before"
    return replace(node, op="Reshape", inputs=(source, constant), attrs=attrs)


def _reshape(editor: Editor, before: Node, node: Node) -> None:
    spec = editor.specs.get(node.outputs[0])
    if spec is None:
        return
    editor.put(replace(_as_reshape(editor, node, before.inputs[0], spec.shape), origins=origins(node, before)))


def _transpose(editor: Editor, before: Node, node: Node) -> None:
    spec = editor.specs.get(node.outputs[0])
    if spec is None:
        return
    backwards = tuple(reversed(range(spec.rank)))
    first, second = tuple(before.attrs["perm"] or backwards), tuple(node.attrs["perm"] or backwards)
    attrs = find("Transpose").bind({"perm": tuple(first[axis] for axis in second)})
    editor.put(replace(node, inputs=before.inputs, attrs=attrs, origins=origins(node, before)))
