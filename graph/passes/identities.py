"""Removal of identities: nodes that return their input unchanged, at these shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from graph.ir import Node
from graph.passes.editor import Editor
from kernels.size import surely_equal
from kernels.spec import Array


def remove_identities(editor: Editor) -> None:
    """Let the readers of a no-op read its input. One between a graph input and a graph output stays: both keep their names.

    A Concat loses the inputs that add nothing first, such as a decoder's cache before its first step.
    """
    for name in [node.name for node in editor.graph.nodes]:
        node = _without_empty_parts(editor, editor.settle(name))
        index = _passes_through(editor, node)
        if index is not None:
            editor.bypass(node, node.inputs[index])


def _without_empty_parts(editor: Editor, node: Node) -> Node:
    """Remove the inputs of a Concat that have no element along its axis, where others have some."""
    if node.op != "Concat":
        return node
    kept = tuple(value for value in node.inputs if not _is_empty_along(editor, value, node.attrs["axis"]))
    if not kept or len(kept) == len(node.inputs):
        return node
    editor.put(replace(node, inputs=kept))
    return editor.nodes[node.name]


def _is_empty_along(editor: Editor, value: str, axis: int) -> bool:
    spec = editor.spec(value)
    return spec is not None and spec.shape[axis] == 0


def _passes_through(editor: Editor, node: Node) -> int | None:
    """Return the input that output 0 equals, or None."""
    rule = _RULES.get(node.op)
    if rule is None or node.epilogue or not node.inputs or not editor.single_output(node):
        return None
    index = rule(editor, node)
    if index is None:
        return None
    before, after = editor.spec(node.inputs[index]), editor.specs.get(node.outputs[0])
    if before is None or after is None or before.dtype != after.dtype:
        return None
    return index if surely_equal(before.shape, after.shape) else None


def _always(editor: Editor, node: Node) -> int | None:
    """Match ops whose output equals the input where shape and dtype do: Identity, casts, reshapes, expansions, Dropout."""
    return 0


def _alone(editor: Editor, node: Node) -> int | None:
    return 0 if sum(map(bool, node.inputs)) == 1 else None


def _transpose(editor: Editor, node: Node) -> int | None:
    perm = tuple(node.attrs["perm"] or ())
    return 0 if perm and perm == tuple(range(len(perm))) else None


def _pad(editor: Editor, node: Node) -> int | None:
    """Match a Pad without padding. Equal shapes do not suffice: it may cut one side and pad the other."""
    pads = editor.constant(node.inputs[1])
    return 0 if pads is not None and not pads.any() else None


def _slice(editor: Editor, node: Node) -> int | None:
    """Match a Slice of everything. Equal shapes do not suffice: it may reverse an axis."""
    if len(node.inputs) < 5 or not node.inputs[4]:
        return 0
    steps = editor.constant(node.inputs[4])
    return 0 if steps is not None and (steps == 1).all() else None


def _pool(editor: Editor, node: Node) -> int | None:
    ones = all(size == 1 for size in (*node.attrs["kernel_shape"], *(node.attrs["strides"] or ())))
    return 0 if ones and not any(node.attrs["pads"] or ()) else None


def _neutral(element: int, commutes: bool) -> Callable[[Editor, Node], int | None]:
    def rule(editor: Editor, node: Node) -> int | None:
        """x + 0, x - 0, x · 1, x / 1, x ** 1, and 0 + x, 1 · x."""
        for index in (0, 1) if commutes else (0,):
            other = editor.constant(node.inputs[1 - index])
            if other is not None and _is_all(other, element):
                return index
        return None

    return rule


def _is_all(array: Array, element: int) -> bool:
    return array.dtype.kind in "fiuV" and bool(np.all(array == element))


def _training(editor: Editor, node: Node) -> int | None:
    """Whether a run may ask a Dropout for training, where it does not return its input."""
    if len(node.inputs) < 3 or not node.inputs[2]:
        return 0
    mode = editor.constant(node.inputs[2])
    return 0 if mode is not None and not mode.any() else None


_RULES: dict[str, Callable[[Editor, Node], int | None]] = {
    **dict.fromkeys(
        ("Identity", "Cast", "CastLike", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Tile", "CenterCropPad"), _always
    ),
    **dict.fromkeys(("Concat", "Sum", "Max", "Min", "Mean"), _alone),
    **dict.fromkeys(("MaxPool", "AveragePool"), _pool),
    "Dropout": _training,
    "Transpose": _transpose,
    "Pad": _pad,
    "Slice": _slice,
    "Add": _neutral(0, commutes=True),
    "Sub": _neutral(0, commutes=False),
    "Mul": _neutral(1, commutes=True),
    "Div": _neutral(1, commutes=False),
    "Pow": _neutral(1, commutes=False),
}
