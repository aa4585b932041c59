"""Steps of quantisation are folded into what is quantised, so that nothing is divided when a network runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from graph.ir import Node
from graph.passes.editor import Editor, origins
from kernels.errors import EdgewiseError
from kernels.expression import FLOAT
from kernels.quantisation import LEAST_SCALE
from kernels.spec import Array

# The op of x times a positive number is the op of x, times that number
HOMOGENEOUS = frozenset(("AveragePool", "GlobalAveragePool", "LeakyRelu", "MaxPool", "PRelu", "ReduceMean", "ReduceSum", "Relu"))
_MOST_OPS = 16  # between the numbers and what quantises


def fold_steps(editor: Editor) -> None:
    """Let QuantizeLinear have the scale 1 where what it reads can be made in units of the scale instead.

    That is so where a positive factor reaches, through sums and ops that it may pass, constants, products with constants and
    scales of DequantizeLinear. Results differ from those of a division in the last bit, which decides ties.
    """
    one = ""
    for name in [node.name for node in editor.graph.nodes if node.op == "QuantizeLinear" and not node.epilogue]:
        node = editor.settle(name)
        scale = _number(editor.constant(node.inputs[1]))
        if scale is None or scale == 1 or editor.producer(node.inputs[0]) is None:
            continue
        factor = np.float32(1) / scale
        if _can(editor, node.inputs[0], node, _MOST_OPS) and np.isfinite(factor):
            one = one or editor.add_constant("one", np.ones((), FLOAT))
            made = _scaled(editor, node.inputs[0], factor)
            editor.put(replace(node, inputs=(made, one, *node.inputs[2:])))


def _number(array: Array | None) -> np.float32 | None:
    """Return the one number of a float32 constant, None where it is no such constant, or so small that its inverse overflows."""
    if array is None or array.size != 1 or array.dtype != FLOAT:
        return None
    number = np.float32(array.reshape(()))
    return number if number >= LEAST_SCALE else None


def _can(editor: Editor, value: str, reader: Node, depth: int) -> bool:
    """Whether a value can be made times a factor, for its only reader; constants and what is dequantised may have several."""
    array, node = editor.constant(value), editor.producer(value)
    if array is not None:
        return array.dtype == FLOAT
    if node is None or node.epilogue or not depth:
        return False
    if node.op == "DequantizeLinear":
        return _number(editor.constant(node.inputs[1])) is not None
    if editor.only_reader(value) is not reader or not editor.single_output(node):
        return False
    if node.op == "Add":
        return node.inputs[0] != node.inputs[1] and all(_can(editor, each, node, depth - 1) for each in node.inputs)
    if node.op == "Mul":
        return any(_can(editor, each, node, depth - 1) for each in node.inputs) and node.inputs[0] != node.inputs[1]
    return node.op in HOMOGENEOUS and _can(editor, node.inputs[0], node, depth - 1)


def _scaled(editor: Editor, value: str, factor: np.float32, depth: int = _MOST_OPS) -> str:
    """Make a value times a factor, anew where it has other readers, and return its name."""
    array = editor.constant(value)
    if array is not None:
        return editor.add_constant(f"{value}/scaled", np.asarray(array * factor, FLOAT))
    node = editor.producer(value)
    if node is None:
        raise EdgewiseError(f"{value}: nothing makes it, need a value that can be made times a factor")
    if node.op == "DequantizeLinear":
        scale = editor.add_constant(f"{value}/scale", np.asarray(editor.constants[node.inputs[1]] * factor, FLOAT))
        made = editor.fresh(f"{value}/scaled")
        read = (node.inputs[0], scale, *node.inputs[2:])
        editor.put(Node(made, node.op, read, (made,), node.attrs, origins=origins(node)))
        return made
    inputs = list(node.inputs)
    if node.op == "Add":
        inputs = [_scaled(editor, each, factor, depth - 1) for each in inputs]
    elif node.op == "Mul":
        at = next(at for at, each in enumerate(inputs) if _can(editor, each, node, depth - 1))
        inputs[at] = _scaled(editor, inputs[at], factor, depth - 1)
    else:
        inputs[0] = _scaled(editor, inputs[0], factor, depth - 1)
    editor.put(replace(node, inputs=tuple(inputs)))
    return value
