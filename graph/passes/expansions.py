"""Expansion of com.microsoft's fused ops into ONNX's own, which other passes and native kernels know."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from graph.ir import CONTROL_FLOW, Node
from graph.passes.editor import Editor, origins
from kernels.errors import DataDependentError
from kernels.expression import FLOAT
from kernels.half import is_half
from kernels.ops.fused_matmul import axes_order
from kernels.record import record
from kernels.registry import find
from kernels.spec import DType

_RMS = "com.microsoft.SkipSimplifiedLayerNormalization"
Expansions = Mapping[str, Callable[[Editor, Node], None]]  # by op; a node that its expansion cannot replace stays
CHAINED = ""  # as an input: the result of the step before


@record
class Step:
    """One node of an expansion. inputs: value names; `CHAINED` stands for the result of the step before."""

    op: str
    inputs: tuple[str, ...]
    attrs: Mapping[str, Any]

    def behind(self, before: str) -> tuple[str, ...]:
        """Return the inputs of the node. before: the result of the step before."""
        return tuple(before if value == CHAINED else value for value in self.inputs)


def expand_fused(editor: Editor) -> None:
    """Replace each FusedConv by Conv, Add and an activation, each FusedMatMul by Transpose, MatMul and Mul, and each
    SkipLayerNormalization, with a mean or without, by Add and a normalization; then every op that is written as others."""
    expand(editor, _EXPANSIONS)
    ops = {node.op for node in editor.nodes.values() if node.op not in CONTROL_FLOW}
    expand(editor, {op: _put_parts for op in ops if find(op).parts is not None})


def expand(editor: Editor, expansions: Expansions) -> None:
    """Let the expansion of its op replace each node, where the specs of all that it reads are known."""
    for name in [node.name for node in editor.graph.nodes if node.op in expansions and not node.epilogue]:
        node = editor.nodes[name]
        if all(editor.spec(value) is not None for value in node.reads()):
            expansions[node.op](editor, node)


def put_steps(editor: Editor, node: Node, steps: Sequence[Step]) -> None:
    """Put nodes that follow one another in the place of one; the last one writes its output."""
    *parts, last = steps
    before = ""
    editor.drop(node)
    for step in parts:
        before = editor.put_part(node, step.op, step.behind(before), step.attrs)
    editor.put_last(node, last.op, last.behind(before), last.attrs)


def _put_parts(editor: Editor, node: Node) -> None:
    """Put the parts of a node in its place (`kernels.composite`).

    It stays where they depend on values that only a run knows, and in half precision, which each part would round.
    """
    write, specs = find(node.op).parts, [editor.spec(value) if value else None for value in node.inputs]
    if write is None or any(spec is not None and is_half(spec.dtype) for spec in specs):
        return
    try:
        parts, results = write(specs, node.attrs)
    except DataDependentError:
        return
    editor.drop(node)
    names = {f"input{i}": value for i, value in enumerate(node.inputs)} | {"": ""}
    names |= {value.name: output for value, output in zip(results, node.outputs, strict=False) if output}
    names |= {name: editor.add_constant(f"{node.name}/{name}", array) for name, array in parts.constants.items()}
    for part in parts.parts:
        for value in part.outputs:
            names.setdefault(value, editor.fresh(f"{node.name}/{value}"))
        is_last = bool(node.outputs[0]) and node.outputs[0] in (names[value] for value in part.outputs)
        name = node.name if is_last else editor.fresh(f"{node.name}/{part.op}")
        inputs, outputs = (tuple(names[value] for value in values) for values in (part.inputs, part.outputs))
        editor.put(Node(name, part.op, inputs, outputs, part.attrs, origins=origins(node)))


def _matmul(editor: Editor, node: Node) -> None:
    """Turn the factors as MatMul reads them, multiply, and scale where alpha is not 1."""
    attrs = node.attrs
    factors = [
        _turned(editor, node, value, batch, last)
        for value, batch, last in zip(
            node.inputs, (attrs["transBatchA"], attrs["transBatchB"]), (attrs["transA"], attrs["transB"]), strict=True
        )
    ]
    steps = [Step("MatMul", tuple(factors), {})]
    if attrs["alpha"] != 1:
        steps.append(Step("Mul", (CHAINED, _number(editor, node, "alpha", attrs["alpha"])), {}))
    put_steps(editor, node, steps)


def _turned(editor: Editor, node: Node, value: str, batch: int, last: int) -> str:
    """Return a factor in MatMul's order of axes, transposed by a node of its own where it is in another one."""
    spec = editor.spec(value)
    order = [] if spec is None else axes_order(spec.rank, batch, last)
    if order == sorted(order):
        return value
    return editor.put_part(node, "Transpose", (value,), {"perm": tuple(order)})


def _conv(editor: Editor, node: Node) -> None:
    """Convolve, add where there is a fourth input, and apply the activation."""
    own = {name: value for name, value in node.attrs.items() if name not in ("activation", "activation_params")}
    bias, added = (*node.inputs[2:], "", "")[:2]
    steps = [Step("Conv", (*node.inputs[:2], bias) if bias else node.inputs[:2], own)]
    if added:
        steps.append(Step("Add", (CHAINED, added), {}))
    activation, numbers = node.attrs["activation"], node.attrs["activation_params"] or ()
    if activation == "Clip":
        bounds = [_number(editor, node, f"bound{n}", value) for n, value in enumerate(numbers)]
        steps.append(Step("Clip", (CHAINED, *bounds), {}))
    elif activation:
        steps.append(Step(activation, (CHAINED,), dict(zip(("alpha", "beta"), numbers, strict=False))))
    put_steps(editor, node, steps)


def _skip_norm(editor: Editor, node: Node) -> None:
    """Add the first two inputs and a bias, and normalise the sum, which may be an output of its own.

    A node stays where its mean or deviation is read, or where it adds half precisions in single.
    """
    y, mean, deviation, total = (*node.outputs, "", "", "")[:4]
    spec = editor.spec(node.inputs[0])
    if not y or any(editor.is_read(value) for value in (mean, deviation) if value) or spec is None or spec.dtype != FLOAT:
        return
    x, skip, scale, *rest = (*node.inputs, "", "")[:5]
    beta, bias = ("", rest[0]) if node.op == _RMS else (rest[0], rest[1])
    editor.drop(node)
    terms = (editor.put_part(node, "Add", (x, skip)), bias) if bias else (x, skip)
    total = editor.put_part(node, "Add", terms, output=total)
    op, inputs = ("RMSNormalization", (total, scale)) if node.op == _RMS else ("LayerNormalization", (total, scale, beta))
    editor.put_last(node, op, tuple(filter(None, inputs)), {"axis": -1, "epsilon": node.attrs["epsilon"]})


def _number(editor: Editor, node: Node, hint: str, value: float) -> str:
    """Add a number of the type of the node's first input as a constant."""
    spec = editor.spec(node.inputs[0])
    dtype: DType | None = None if spec is None else spec.dtype
    return editor.add_constant(f"{node.name}/{hint}", np.asarray(value, dtype))


_EXPANSIONS: Expansions = {
    "com.microsoft.FusedConv": _conv,
    "com.microsoft.FusedMatMul": _matmul,
    "com.microsoft.SkipLayerNormalization": _skip_norm,
    _RMS: _skip_norm,
}
