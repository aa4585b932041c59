"""Replacement of activations that exporters write as several nodes by one op: Gelu, Swish, HardSwish, Mish."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from graph.ir import Node
from graph.passes.editor import Editor, is_close, origins, scalar
from kernels.record import record
from kernels.registry import find
from kernels.spec import FLOATS


@record
class _Found:
    """A match: the last node computes `op(source)`. inner: the other nodes, which nothing else reads."""

    op: str
    source: str
    attrs: Mapping[str, Any]
    inner: tuple[Node, ...]


def find_activations(editor: Editor) -> None:
    """Replace the last multiplication of each pattern whose other nodes are read by the pattern alone."""
    for name in [node.name for node in editor.graph.nodes if node.op == "Mul"]:
        node = editor.nodes[name]
        spec = editor.specs.get(node.outputs[0])
        if spec is None or spec.dtype not in FLOATS or node.epilogue or len(node.inputs) != 2:
            continue
        found = next((found for pattern in _PATTERNS if (found := pattern(editor, node)) is not None), None)
        if found is None or editor.spec(found.source) != spec:
            continue
        made = Node(node.name, found.op, (found.source,), node.outputs, find(found.op).bind(found.attrs), origins=origins(node))
        editor.merge(made, *found.inner)


def _gelu(editor: Editor, node: Node) -> _Found | None:
    """Match the product of x, 0.5 and 1 + erf(x / √2), in any order."""
    for first, second in ((0, 1), (1, 0)):
        inner = editor.sole_writer(node.inputs[first], node)
        if inner is None:
            continue
        other = node.inputs[second]
        if inner.op == "Mul" and is_close(_number(editor, other), 0.5):  # (x · (1 + erf)) · 0.5
            for one, two in ((0, 1), (1, 0)):
                found = _erf_term(editor, inner.inputs[one], inner, inner.inputs[two])
                if found is not None:
                    return _Found("Gelu", inner.inputs[two], {}, (inner, *found))
        if inner.op == "Mul":  # x · ((1 + erf) · 0.5)
            for one, two in ((0, 1), (1, 0)):
                found = _erf_term(editor, inner.inputs[one], inner, other)
                if found is not None and is_close(_number(editor, inner.inputs[two]), 0.5):
                    return _Found("Gelu", other, {}, (inner, *found))
        half = editor.sole_writer(other, node)
        if half is not None and half.op == "Mul":  # (x · 0.5) · (1 + erf)
            for one, two in ((0, 1), (1, 0)):
                found = _erf_term(editor, node.inputs[first], node, half.inputs[one])
                if found is not None and is_close(_number(editor, half.inputs[two]), 0.5):
                    return _Found("Gelu", half.inputs[one], {}, (half, *found))
    return None


def _erf_term(editor: Editor, value: str, reader: Node, x: str) -> tuple[Node, ...] | None:
    """Return the nodes of 1 + erf(x / √2) where `value` is that and `reader` alone reads it."""
    add = editor.sole_writer(value, reader)
    if add is None or add.op != "Add":
        return None
    for one, two in ((0, 1), (1, 0)):
        erf = editor.sole_writer(add.inputs[one], add)
        if erf is None or erf.op != "Erf" or not is_close(_number(editor, add.inputs[two]), 1):
            continue
        scaled = editor.sole_writer(erf.inputs[0], erf)
        if scaled is not None and _scaled_by(editor, scaled, x, 1 / math.sqrt(2)):
            return (add, erf, scaled)
    return None


def _scaled_by(editor: Editor, node: Node, x: str, factor: float) -> bool:
    """Whether a node computes x · factor, as a product or a quotient."""
    if node.op == "Div":
        return node.inputs[0] == x and is_close(_number(editor, node.inputs[1]), 1 / factor)
    pairs = (node.inputs, node.inputs[::-1])
    return node.op == "Mul" and any(a == x and is_close(_number(editor, b), factor) for a, b in pairs)


def _swish(editor: Editor, node: Node) -> _Found | None:
    """Match x · sigmoid(x), or x · sigmoid(alpha · x)."""
    for x, gate in (node.inputs, node.inputs[::-1]):
        sigmoid = editor.sole_writer(gate, node)
        if sigmoid is None or sigmoid.op != "Sigmoid":
            continue
        if sigmoid.inputs[0] == x:
            return _Found("Swish", x, {"alpha": 1.0}, (sigmoid,))
        scaled = editor.sole_writer(sigmoid.inputs[0], sigmoid)
        if scaled is None or scaled.op != "Mul":
            continue
        for one, two in (scaled.inputs, scaled.inputs[::-1]):
            alpha = _number(editor, two)
            if one == x and alpha is not None:
                return _Found("Swish", x, {"alpha": alpha}, (sigmoid, scaled))
    return None


def _hard_swish(editor: Editor, node: Node) -> _Found | None:
    """Match x · hardsigmoid(x) with slope 1/6 and offset 1/2."""
    for x, gate in (node.inputs, node.inputs[::-1]):
        hard = editor.sole_writer(gate, node)
        if hard is None or hard.op != "HardSigmoid" or hard.inputs[0] != x:
            continue
        if is_close(hard.attrs["alpha"], 1 / 6) and is_close(hard.attrs["beta"], 0.5):
            return _Found("HardSwish", x, {}, (hard,))
    return None


def _mish(editor: Editor, node: Node) -> _Found | None:
    """Match x · tanh(softplus(x))."""
    for x, gate in (node.inputs, node.inputs[::-1]):
        tanh = editor.sole_writer(gate, node)
        if tanh is None or tanh.op != "Tanh":
            continue
        softplus = editor.sole_writer(tanh.inputs[0], tanh)
        if softplus is not None and softplus.op == "Softplus" and softplus.inputs[0] == x:
            return _Found("Mish", x, {}, (tanh, softplus))
    return None


def _number(editor: Editor, value: str) -> float | None:
    return scalar(editor.constant(value))


_PATTERNS: tuple[Callable[[Editor, Node], _Found | None], ...] = (_gelu, _swish, _hard_swish, _mish)
