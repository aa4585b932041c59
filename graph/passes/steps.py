"""Steps of quantisation are folded into what is quantised, so that nothing is divided when a network runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from graph.ir import Node
from graph.passes.editor import Editor
from kernels.expression import FLOAT
from kernels.quantisation import LEAST_SCALE
from kernels.record import record
from kernels.spec import Array

# The op of x times a positive number is the op of x, times that number
HOMOGENEOUS = frozenset(("AveragePool", "GlobalAveragePool", "LeakyRelu", "MaxPool", "PRelu", "ReduceMean", "ReduceSum", "Relu"))
_PASSED = HOMOGENEOUS | {"Add", "Mul"}
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
        way = _way(editor, node.inputs[0], node, _MOST_OPS)
        if way is not None and np.isfinite(factor):
            one = one or editor.add_constant("one", np.ones((), FLOAT))
            editor.put(replace(node, inputs=(_scaled(editor, way, factor), one, *node.inputs[2:])))


def _number(array: Array | None) -> np.float32 | None:
    """Return the one number of a float32 constant, None where it is no such constant, or so small that its inverse overflows."""
    if array is None or array.size != 1 or array.dtype != FLOAT:
        return None
    number = np.float32(array.reshape(()))
    return number if number >= LEAST_SCALE else None


@record
class _Way:
    """How a value is made times a factor: by a constant times the factor, or by a node whose scale or inputs are.

    node: that makes the value; None where it is a constant. inputs: by position, how the node's are made; none of a
    DequantizeLinear, whose scale takes the factor.
    """

    value: str
    node: Node | None
    inputs: Mapping[int, _Way]


def _way(editor: Editor, value: str, reader: Node, depth: int) -> _Way | None:
    """Return how to make a value times a factor, for its only reader; constants and what is dequantised may have several."""
    array, node = editor.constant(value), editor.producer(value)
    if reader.inputs.count(value) > 1:
        return None  # as both operands of one op, it would bring the factor twice
    if array is not None:
        return _Way(value, None, {}) if array.dtype == FLOAT else None
    if node is None or node.epilogue or not depth:
        return None
    if node.op == "DequantizeLinear":
        return None if _number(editor.constant(node.inputs[1])) is None else _Way(value, node, {})
    if node.op not in _PASSED or editor.only_reader(value) is not reader or not editor.single_output(node):
        return None
    operands = node.inputs[:1] if node.op in HOMOGENEOUS else node.inputs
    ways = {at: way for at, each in enumerate(operands) if (way := _way(editor, each, node, depth - 1)) is not None}
    if node.op == "Mul":
        ways = dict([*ways.items()][:1])  # one factor of a product is enough
    elif len(ways) < len(operands):
        return None
    return _Way(value, node, ways) if ways else None


def _scaled(editor: Editor, way: _Way, factor: np.float32) -> str:
    """Make a value times a factor, anew where it may have other readers, and return its name."""
    value, node = way.value, way.node
    if node is None:
        return editor.add_constant(f"{value}/scaled", np.asarray(editor.constants[value] * factor, FLOAT))
    if node.op == "DequantizeLinear":
        scale = editor.add_constant(f"{value}/scale", np.asarray(editor.constants[node.inputs[1]] * factor, FLOAT))
        return editor.put_part(node, node.op, (node.inputs[0], scale, *node.inputs[2:]), node.attrs)
    made = {at: _scaled(editor, each, factor) for at, each in way.inputs.items()}
    editor.put(replace(node, inputs=tuple(made.get(at, each) for at, each in enumerate(node.inputs))))
    return value
