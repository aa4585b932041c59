"""Expansion of Einsum into transposes, reshapes and matrix products, which the other passes and native kernels know."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from graph.ir import Node
from graph.passes.editor import Editor, origins
from kernels.ops.einsum import Labels, Plan, parse
from kernels.record import record
from kernels.registry import find
from kernels.spec import FLOATS, Array, Spec, size_array


def expand_einsums(editor: Editor) -> None:
    """Expand every Einsum of floats that takes no diagonal and repeats no dimension of size 1."""
    for name in [node.name for node in editor.graph.nodes if node.op == "Einsum"]:
        node = editor.nodes[name]
        known = [spec for value in node.inputs if (spec := editor.spec(value)) is not None]
        if len(known) == len(node.inputs) and not node.epilogue:
            plan = parse(node.attrs["equation"], [spec.shape for spec in known])
            if _is_plain(plan, known):
                _expand(editor, node, plan)


def _is_plain(plan: Plan, specs: Sequence[Spec]) -> bool:
    """Whether every term names each of its dimensions once, and all dimensions of a name have one size, which is not 0."""
    terms = list(zip(plan.inputs, specs, strict=True))
    once = all(len(set(labels)) == len(labels) for labels in plan.inputs)
    same = all(plan.sizes[label] == size != 0 for labels, spec in terms for label, size in zip(labels, spec.shape, strict=True))
    return once and same and all(spec.dtype in FLOATS for spec in specs)


@record
class _Term:
    """A value, and a label for each of its dimensions."""

    value: str
    labels: Labels


def _expand(editor: Editor, node: Node, plan: Plan) -> None:
    """Multiply the inputs one after another, each time summing over what nothing later reads, and order the dimensions."""
    writer = _Writer(editor, node, plan.sizes)
    terms = [_Term(value, labels) for value, labels in zip(node.inputs, plan.inputs, strict=True)]
    total = terms[0]
    for at, term in enumerate(terms[1:], 1):
        later = set(plan.output).union(*plan.inputs[at + 1 :])
        left, right = (writer.summed(each, later | set(other.labels)) for each, other in ((total, term), (term, total)))
        total = writer.product(left, right, later)
    total = writer.summed(total, set(plan.output))
    writer.finish(writer.ordered(total, [(label,) for label in plan.output]))


class _Writer:
    """Adds the nodes that take the place of an Einsum. sizes: of each label."""

    def __init__(self, editor: Editor, node: Node, sizes: Mapping[str, int]) -> None:
        self._editor, self._node, self._sizes = editor, node, sizes
        self._made: list[Node] = []

    def _put(self, op: str, inputs: Iterable[str], attrs: Mapping[str, Any] | None = None) -> str:
        name = self._editor.fresh(f"{self._node.name}/{op}{len(self._made)}")
        self._made.append(Node(name, op, tuple(inputs), (name,), find(op).bind(attrs or {}), origins=origins(self._node)))
        return name

    def _constant(self, hint: str, array: Array) -> str:
        return self._editor.add_constant(f"{self._node.name}/{hint}", array)

    def summed(self, term: _Term, needed: set[str]) -> _Term:
        """Sum over the dimensions that are not needed."""
        gone = [axis for axis, label in enumerate(term.labels) if label not in needed]
        if not gone:
            return term
        axes = self._constant("axes", np.array(gone, np.int64))
        value = self._put("ReduceSum", (term.value, axes), {"keepdims": 0})
        return _Term(value, tuple(label for label in term.labels if label in needed))

    def ordered(self, term: _Term, groups: Sequence[Labels]) -> str:
        """Return a value whose dimensions are groups of those of a term, each group joined to one; an empty one has size 1."""
        value, order = term.value, tuple(label for group in groups for label in group)
        if order != term.labels:
            value = self._put("Transpose", (value,), {"perm": tuple(term.labels.index(label) for label in order)})
        return value if all(len(group) == 1 for group in groups) else self._reshaped(value, groups)

    def _reshaped(self, value: str, groups: Sequence[Labels]) -> str:
        shape = [math.prod(self._sizes[label] for label in group) for group in groups]
        return self._put("Reshape", (value, self._constant("shape", size_array(shape))))

    def product(self, left: _Term, right: _Term, later: set[str]) -> _Term:
        """Multiply two terms, and sum over the dimensions of both that nothing later reads."""
        shared = [label for label in left.labels if label in right.labels]
        batch = [(label,) for label in shared if label in later]
        summed = tuple(label for label in shared if label not in later)
        rows = tuple(label for label in left.labels if label not in right.labels)
        columns = tuple(label for label in right.labels if label not in left.labels)
        factors = (self.ordered(left, [*batch, rows, summed]), self.ordered(right, [*batch, summed, columns]))
        value = self._put("MatMul" if summed else "Mul", factors)
        labels = (*(label for (label,) in batch), *rows, *columns)
        if len(rows) != 1 or len(columns) != 1:
            value = self._reshaped(value, [(label,) for label in labels])
        return _Term(value, labels)

    def finish(self, value: str) -> None:
        """Put the nodes into the graph; the last one writes the Einsum's output."""
        if not self._made or self._made[-1].outputs[0] != value:
            self._put("Identity", (value,))
        self._editor.drop(self._node)
        *nodes, last = self._made
        for each in nodes:
            self._editor.put(each)
        self._editor.put(replace(last, name=self._node.name, outputs=self._node.outputs))
