"""Elimination of common subexpressions: equal nodes with equal inputs become one."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Set
from dataclasses import replace
from typing import Any

import numpy as np

from graph.ir import CONTROL_FLOW, Graph, Node
from graph.passes.editor import Editor, origins
from kernels.registry import find

SMALL_CONSTANT_BYTES = 4096  # larger constants are compared by name only


def merge_duplicates(editor: Editor) -> None:
    """Keep the first of equal nodes. Random ops and control flow are never merged; graph outputs keep their names."""
    fixed = editor.outputs | editor.captured
    same = _equal_constants(editor.graph)
    seen: dict[Hashable, str] = {}
    for name in [node.name for node in editor.graph.nodes]:
        node = editor.settle(name)
        if node.op in CONTROL_FLOW or not find(node.op).deterministic or node.epilogue:
            continue
        inputs = tuple(same.get(value, value) for value in node.inputs)
        key = (node.op, inputs, _frozen(node.attrs))
        kept = editor.nodes[seen.setdefault(key, name)]
        if kept is not node and _replaceable(editor, kept, node, fixed):
            editor.put(replace(kept, origins=origins(kept, node)))
            editor.replace_outputs(node, kept)


def _replaceable(editor: Editor, kept: Node, node: Node, fixed: Set[str]) -> bool:
    """Whether `kept` writes every output of `node` that is read, and none of these has a name that must stay (`fixed`)."""
    read = [index for index, value in enumerate(node.outputs) if value and editor.is_read(value)]
    return all(index < len(kept.outputs) and kept.outputs[index] and node.outputs[index] not in fixed for index in read)


def _equal_constants(graph: Graph) -> dict[str, str]:
    """Map the name of each constant to that of the first one with equal content."""
    first: dict[Hashable, str] = {}
    return {
        name: first.setdefault(_frozen(array), name)
        for name, array in graph.constants.items()
        if array.nbytes <= SMALL_CONSTANT_BYTES and array.dtype != np.dtype(object)
    }


def _frozen(value: Any) -> Hashable:
    """Return a hashable key of an attribute value; keys are equal where values are."""
    if isinstance(value, np.ndarray):
        return (value.dtype.name, value.shape, value.tobytes() if value.dtype != np.dtype(object) else tuple(value.reshape(-1)))
    if isinstance(value, Mapping):
        return frozenset((name, _frozen(entry)) for name, entry in value.items())
    if isinstance(value, float):
        return ("float", value.hex())  # tells -0.0 from 0.0
    return (type(value).__name__, tuple(map(_frozen, value)) if isinstance(value, (tuple, list)) else value)
