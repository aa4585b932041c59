"""Reductions over some dimensions, and global pools. Whole planes of an image in blocks are pooled without a conversion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from graph.ir import Node
from graph.native.facts import F32, Facts, optional_input
from graph.native.lowering import Lowering
from graph.native.place import Imaged, Storage, Viewed, image_shape, is_image
from graph.native.rule import all_values, one_algorithm
from graph.native.rules.normalize import append_rows
from graph.native.rules.pool import append_pool
from kernels.native.emit.epilogue import PLAIN
from kernels.native.emit.geometry import Conv
from kernels.native.families.normalize import Reduce, Rows
from kernels.native.families.pool import Pooling, emit_pooling
from kernels.native.memory.image import Image
from kernels.native.memory.view import View
from kernels.spec import Array, Spec

_REDUCTIONS: Mapping[str, Reduce] = {
    "ReduceSum": "sum", "ReduceMean": "mean", "ReduceMax": "max", "ReduceMin": "min", "ReduceProd": "prod", "ReduceL1": "l1",
    "ReduceL2": "l2", "ReduceSumSquare": "sum_square", "ReduceLogSum": "log_sum", "ReduceLogSumExp": "log_sum_exp",
    "GlobalAveragePool": "mean", "GlobalMaxPool": "max",
}  # fmt: skip
_POOLS: Mapping[Reduce, Literal["average", "max"]] = {"mean": "average", "max": "max"}


def refuses(node: Node, facts: Facts) -> str | None:
    """Return why a reduction has no native form, or None."""
    x = facts.spec(node.inputs[0])
    if reason := facts.not_f32(node.inputs[0], node.outputs[0]):
        return reason
    if facts.computed(node.inputs[1:]):
        return "its axes are not constants"
    if not _reduced(node, x, facts.constants):
        return "it reduces nothing"
    return facts.refuses_epilogue(node)


def lower(b: Lowering, node: Node) -> None:
    """Append a pool where whole planes of an image are reduced, else a call of a row kernel."""
    kind, x = _REDUCTIONS[node.op], b.spec(node.inputs[0])
    axes = _reduced(node, x, b.constants)
    if kind in _POOLS and is_image(x.shape) and axes == tuple(range(2, x.rank)) and _pools(b, node):
        _pooled(b, node, kind)
    else:
        append_rows(b, node, Rows(kind, View((), ()), View((), ()), axes))


def _pools(b: Lowering, node: Node) -> bool:
    """Whether to use a pool: for global pools, and for images in blocks if dimensions are kept or there is no epilogue."""
    place = b.values.place(node.inputs[0])
    in_blocks = isinstance(place, Imaged) and place.image.block == b.isa.lanes
    return "keepdims" not in node.attrs or (in_blocks and (node.attrs["keepdims"] == 1 or not node.epilogue))


def _pooled(b: Lowering, node: Node, kind: Reduce) -> None:
    """Append a pool whose one window is the whole plane."""

    def whole(x: Image, y: Image) -> Pooling:
        return Pooling(Conv(x, y, (x.height, x.width), groups=x.channels), _POOLS[kind])

    if node.attrs.get("keepdims", 1):
        append_pool(b, node, whole)
        return
    value, (n, channels, *_) = node.outputs[0], image_shape(b.spec(node.inputs[0]).shape)
    x, y = b.values.blocked(node.inputs[0]), Image.blocked(n, channels, 1, 1, b.isa.lanes)
    made = Viewed(Storage(value, y.elements, F32), View((n, channels), (y.n_stride, 1)))
    b.calls.append(emit_pooling(whole(x.image, y), PLAIN, b.isa), {"x": x, "y": made})
    b.values.define(value, made)


def _reduced(node: Node, x: Spec, constants: Mapping[str, Array]) -> tuple[int, ...]:
    """Return the dimensions that a reduction goes over."""
    if node.op.startswith("Global"):
        return tuple(range(2, x.rank))
    axes = optional_input(node, 1)
    named = constants[axes].reshape(-1).tolist() if axes else []
    if not named:
        return () if node.attrs["noop_with_empty_axes"] else tuple(range(x.rank))
    return tuple(sorted({int(axis) % x.rank for axis in named}))


_ROWS = one_algorithm("rows", refuses, lower)
_PLANES = one_algorithm("windows", refuses, lower, kind="rows", holds=all_values)
RULES = {op: _PLANES if op.startswith("Global") else _ROWS for op in _REDUCTIONS}
