"""Zero points that only a run knows are taken out of products of integers, as dynamic quantisation makes them."""

from __future__ import annotations

import numpy as np

from graph.ir import Node
from graph.native.facts import optional_input
from graph.passes.editor import Editor
from kernels.expression import INT32
from kernels.spec import ELEMENT_CODES, Array


def take_out_zero_points(editor: Editor) -> None:
    """Turn MatMulInteger(a, w, zero of a) into MatMulInteger(a, w) - zero · (sums of w's columns), where w is a constant matrix.

    The bits are the same: (a - zero)·w = a·w - zero·(sums of w), and sums of int32 wrap.
    """
    for name in [node.name for node in editor.graph.nodes if node.op == "MatMulInteger" and not node.epilogue]:
        node = editor.nodes[name]
        zero = optional_input(node, 2)
        spec, weights = editor.spec(zero) if zero else None, editor.constant(node.inputs[1])
        if spec is not None and spec.elements == 1 and zero not in editor.constants and weights is not None and weights.ndim == 2:
            w_zero = optional_input(node, 3)
            if not w_zero or w_zero in editor.constants:
                _take_out(editor, node, zero, _column_sums(weights, editor.constant(w_zero)))


def _column_sums(weights: Array, zero: Array | None) -> Array:
    """Return the sums of the columns of weights less their zero point, as int32."""
    sums = weights.sum(0, np.int64) - (0 if zero is None else len(weights) * zero.astype(np.int64))
    return np.asarray(sums).astype(np.int32)


def _take_out(editor: Editor, node: Node, zero: str, sums: Array) -> None:
    factors = (*node.inputs[:2], "", *node.inputs[3:]) if len(node.inputs) > 3 else node.inputs[:2]
    editor.drop(node)
    cast = editor.put_part(node, "Cast", (zero,), {"to": ELEMENT_CODES[INT32]})
    less = editor.put_part(node, "Mul", (cast, editor.add_constant(f"{node.name}/sums", sums)))
    product = editor.put_part(node, node.op, factors)  # behind what is subtracted, so that the subtraction can be fused to it
    editor.put_last(node, "Sub", (product, less))
