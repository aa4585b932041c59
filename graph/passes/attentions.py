"""Replacement of softmax(Q·Kᵀ·scale + mask)·V over (batch, heads, length, size), written as several nodes, by Attention."""

from __future__ import annotations

import math
from dataclasses import replace

from graph.ir import Node
from graph.passes.editor import Editor, origins, scalar
from kernels.record import record
from kernels.registry import find
from kernels.spec import FLOATS


@record
class _Scores:
    """A match of the scores: q · k_transposed · scale + mask. mask: "" without one. nodes: those that nothing else reads."""

    q: str
    k_transposed: str
    mask: str
    scale: float
    nodes: tuple[Node, ...]


def find_attentions(editor: Editor) -> None:
    """Replace the product of a softmax over the last axis with V.

    A query whose mask is -infinity for every key then yields 0, as Attention defines it, where the separate nodes yield 0 / 0.
    """
    for name in [node.name for node in editor.graph.nodes if node.op == "MatMul"]:
        node = editor.nodes.get(name)
        if node is None or node.epilogue:
            continue
        softmax = editor.sole_writer(node.inputs[0], node)
        found = None if softmax is None else _scores(editor, softmax)
        if softmax is not None and found is not None and _fits(editor, found, node):
            _replace(editor, found, softmax, node)
    for name in [node.name for node in editor.graph.nodes if node.op == "Attention"]:
        _share_heads(editor, editor.nodes[name])


def _share_heads(editor: Editor, node: Node) -> None:
    """Let an Attention read the heads of K and V that are repeated for groups of heads of Q, without the repetition."""
    q, k, v, *others = node.inputs
    sources = [source for source in (_unrepeated(editor, name) for name in (k, v)) if source is not None]
    if len(sources) == 2:
        editor.put(replace(node, inputs=(q, *sources, *others)))


def _unrepeated(editor: Editor, value: str) -> str | None:
    """Return the value (batch, heads, length, size) of which another repeats each head; None where it does not do that."""
    reshape = editor.producer(value)
    expand = None if reshape is None or reshape.op != "Reshape" or reshape.epilogue else editor.producer(reshape.inputs[0])
    apart = None if expand is None or expand.op != "Expand" or expand.epilogue else editor.producer(expand.inputs[0])
    if expand is None or apart is None or apart.op not in ("Unsqueeze", "Reshape") or apart.epilogue:
        return None
    source = apart.inputs[0]
    specs = [editor.spec(name) for name in (source, apart.outputs[0], expand.outputs[0], value)]
    if any(spec is None for spec in specs):
        return None
    kept, single, repeated, joined = (spec.shape for spec in specs if spec is not None)
    if len(kept) != 4 or len(single) != 5 or len(repeated) != 5 or len(joined) != 4:
        return None
    batch, heads, length, size = kept
    count = repeated[2]
    fits = single == (batch, heads, 1, length, size) and repeated == (batch, heads, count, length, size)
    return source if fits and joined == (batch, heads * count, length, size) else None


def _scores(editor: Editor, softmax: Node) -> _Scores | None:
    """Match the input of the softmax: a product, optionally scaled, then optionally masked."""
    spec = editor.spec(softmax.inputs[0]) if softmax.op == "Softmax" else None
    if spec is None or spec.rank != 4 or spec.dtype not in FLOATS or softmax.attrs["axis"] not in (-1, 3):
        return None
    if softmax.attrs.get("coerce_2d"):
        return None
    mask, scale, nodes, reader = "", 1.0, [], softmax
    node = editor.sole_writer(softmax.inputs[0], softmax)
    if node is not None and node.op == "Add":
        sides = [editor.sole_writer(name, node) for name in node.inputs]
        inner = next((side for side in sides if side is not None and side.op in ("MatMul", "Mul", "Div")), None)
        if inner is None:
            return None
        mask = node.inputs[1] if inner.outputs[0] == node.inputs[0] else node.inputs[0]
        nodes.append(node)
        reader, node = node, inner
    if node is not None and node.op in ("Mul", "Div"):
        factor, product = _factor(editor, node)
        if factor is None:
            return None
        scale *= factor
        nodes.append(node)
        reader, node = node, editor.sole_writer(product, node)
    if node is None or node.op != "MatMul" or node.epilogue or editor.only_reader(node.outputs[0]) is not reader:
        return None
    values = []
    for name in node.inputs:
        factor, value, scaled = _unscaled(editor, name, node)
        scale *= factor
        values.append(value)
        nodes += scaled
    return _Scores(values[0], values[1], mask, scale, (*nodes, node)) if scale > 0 else None


def _factor(editor: Editor, node: Node) -> tuple[float | None, str]:
    """Return the constant factor of a product or quotient, and the value it is applied to."""
    for position in (1, 0) if node.op == "Mul" else (1,):
        number = scalar(editor.constant(node.inputs[position]))
        if number is not None and number != 0:
            return number if node.op == "Mul" else 1 / number, node.inputs[1 - position]
    return None, ""


def _unscaled(editor: Editor, value: str, reader: Node) -> tuple[float, str, list[Node]]:
    """Separate a constant from a factor of the product: the constant, the value without it, and the node that is removed."""
    node = editor.sole_writer(value, reader)
    if node is None or node.op != "Mul" or editor.spec(value) is None:
        return 1.0, value, []
    factor, inner = _factor(editor, node)
    if factor is None or editor.spec(inner) != editor.spec(value):
        return 1.0, value, []
    return factor, inner, [node]


def _fits(editor: Editor, found: _Scores, product: Node) -> bool:
    """Whether the shapes are those of Attention: equal batch, heads of Q a multiple of those of K and V."""
    q, k, v = (editor.spec(name) for name in (found.q, found.k_transposed, product.inputs[1]))
    if q is None or k is None or v is None or not q.rank == k.rank == v.rank == 4 or not q.dtype == k.dtype == v.dtype:
        return False
    same = q.shape[:2] == k.shape[:2] == v.shape[:2] and q.shape[3] == k.shape[2] and k.shape[3] == v.shape[2]
    if not found.mask:
        return same
    mask = editor.spec(found.mask)
    full = (*q.shape[:3], k.shape[3])
    if mask is None or mask.dtype != q.dtype or not 1 <= mask.rank <= 4 or mask.shape[-1] != full[-1]:
        return False
    return same and all(size in (1, whole) for size, whole in zip(mask.shape[::-1], full[::-1], strict=False))


def _replace(editor: Editor, found: _Scores, softmax: Node, product: Node) -> None:
    k = editor.fresh(f"{product.name}/k")
    attrs = find("Transpose").bind({"perm": (0, 1, 3, 2)})
    editor.put(Node(k, "Transpose", (found.k_transposed,), (k,), attrs, origins=origins(product)))
    inputs = (found.q, k, product.inputs[1], *([found.mask] if found.mask else []))
    bound = find("Attention").bind({"scale": found.scale if not math.isclose(found.scale, 1) else 1.0})
    made = Node(product.name, "Attention", inputs, product.outputs, bound, origins=origins(product))
    editor.merge(made, softmax, *found.nodes)
