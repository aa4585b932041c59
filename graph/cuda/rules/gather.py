"""Gathers along an axis: a constant scalar index gives a view, other indices are read at run time."""

from __future__ import annotations

from math import prod

import numpy as np

from graph.cuda.facts import F32, Facts
from graph.cuda.finishing import behind, finish, finishing
from graph.cuda.layouts import storage_of
from graph.cuda.lowering import Lowering, Option
from graph.cuda.rule import Rule
from graph.cuda.rules.conv import finishing_names
from graph.cuda.rules.view import define_view
from graph.ir import Node
from graph.native.place import Viewed
from kernels.cuda.families.gather import Gather
from kernels.native.memory.view import View
from kernels.spec import Array

_INDICES = {np.dtype(np.int32): 32, np.dtype(np.int64): 64}


def refuses(node: Node, facts: Facts) -> str | None:
    """Return why a Gather cannot run on a GPU, or None."""
    x = facts.spec(node.inputs[0])
    if _is_view(node, facts):
        return facts.refuses_epilogue(node)
    if x.dtype != F32:
        return f"x is {x}, need fp32"
    if not x.elements:
        return f"x is {x}, it is empty"
    return facts.refuses_epilogue(node)


def _is_view(node: Node, facts: Facts) -> bool:
    """Whether its indices are constants that are evenly apart: then they are a slice."""
    return node.inputs[1] in facts.constants and _slice(facts.constants[node.inputs[1]]) is not None


def _slice(indices: Array) -> tuple[int, int] | None:
    """Return the first index and the step of indices that go up evenly; None of others."""
    flat = indices.reshape(-1)
    if flat.size == 1:
        return int(flat[0]), 1
    steps = np.unique(np.diff(flat)) if flat.size else np.zeros(0)
    if steps.size != 1 or steps[0] < 1 or flat[0] < 0:
        return None
    return int(flat[0]), int(steps[0])


def lower(b: Lowering, node: Node) -> None:
    """Define a view, or append a gather that reports indices out of range."""
    shape = b.spec(node.inputs[0]).shape
    axis = node.attrs["axis"] % len(shape)
    if _is_view(node, b.facts):
        indices = b.constants[node.inputs[1]]
        first, step = _slice(indices) or (0, 1)
        place = b.place(node.inputs[0])
        view = place.view.sliced(axis, first % shape[axis], indices.size, step)
        apart = tuple(stride * view.strides[axis] for stride in View.dense(indices.shape).strides)
        strides = (*view.strides[:axis], *apart, *view.strides[axis + 1 :])
        define_view(b, node, place.under(View(b.spec(node.outputs[0]).shape, strides, view.offset)))
        return
    outer, n = prod(shape[:axis]), prod(shape[axis + 1 :])
    x, indices_place = b.dense(node.inputs[0]), b.dense(node.inputs[1])
    y = Viewed.new(node.outputs[0], b.spec(node.outputs[0]).shape, b.dtype)
    b.define(node.outputs[0], y)
    by_rows = axis == len(shape) - 2
    done = finishing(b, node, "rows", takes_bias=False) if by_rows else behind(b, node)
    gather = Gather(shape[axis], b.spec(node.inputs[1]).elements, n, outer, others=done.strides)
    names = {"x": b.address(x), "y": b.address(y), "index": b.address(indices_place)}
    names |= {"watch": b.address(b.watch(node.inputs[1], shape[axis])), **finishing_names(b, done)}
    bits = _INDICES[b.spec(node.inputs[1]).dtype]
    kind = storage_of(b.dtype)
    b.launch("gather", Option(gather.launch(kind, kind, index_bits=bits, expression=done.expression, **names)))
    finish(b, node, y, done)


RULES = {"Gather": Rule(refuses, lower)}
