"""Softmax and normalizations along some dimensions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from graph.ir import Node
from graph.native.expressions import BoundExpression, express_epilogue
from graph.native.facts import Facts
from graph.native.lowering import Lowering
from graph.native.place import Viewed
from graph.native.rule import one_algorithm
from graph.native.values import overwritable
from kernels.native.emit.epilogue import Epilogue
from kernels.native.families.normalize import Norm, Rows, emit_rows
from kernels.native.memory.view import View


def _refuses(node: Node, facts: Facts) -> str | None:
    """Return why a softmax or a normalization has no native form, or None."""
    if reason := facts.not_f32(*node.inputs, node.outputs[0]):
        return reason
    if any(node.outputs[1:]):
        return "outputs other than the first are used"
    return facts.refuses_epilogue(node)


def _softmax(b: Lowering, node: Node) -> None:
    """Append a softmax over one dimension, or, as before opset 13, over all dimensions from one on."""
    rank = len(b.spec(node.inputs[0]).shape)
    first = node.attrs["axis"] % rank
    axes = tuple(range(first, rank)) if node.attrs["coerce_2d"] else (first,)
    kind: Norm = "softmax" if node.op == "Softmax" else "log_softmax"
    append_rows(b, node, Rows(kind, _ANY, _ANY, axes))


def _norm(b: Lowering, node: Node) -> None:
    """Append a normalization over the last dimensions, with a scale and bias of their shape."""
    shape = b.spec(node.inputs[0]).shape
    axes = tuple(range(node.attrs["axis"] % len(shape), len(shape)))
    kind: Norm = "layer_norm" if node.op == "LayerNormalization" else "rms_norm"
    given = {name: value for name, value in zip("wb", node.inputs[1:], strict=False) if value}
    places = {name: aligned_view(b.values.dense(value), len(shape)) for name, value in given.items()}
    scale, bias = (places[name].view if name in places else None for name in "wb")
    append_rows(b, node, Rows(kind, _ANY, _ANY, axes, float(node.attrs["epsilon"]), scale, bias), places)


def _group_norm(b: Lowering, node: Node) -> None:
    """Append a normalization over groups of channels, or over single channels, with a scale and bias for each channel."""
    n, channels, *plane = b.spec(node.inputs[0]).shape
    groups = node.attrs["num_groups"] if node.op == "GroupNormalization" else channels
    seen = (n, groups, channels // groups, math.prod(plane))
    each = (1, groups, 1, 1) if node.op == "GroupNormalization" and node.attrs["scale_groups"] else (1, *seen[1:3], 1)
    places = {name: b.values.dense(value).under(View.dense(each)) for name, value in zip("wb", node.inputs[1:], strict=True)}
    epsilon = float(node.attrs["epsilon"])
    append_rows(b, node, Rows("layer_norm", _ANY, _ANY, (2, 3), epsilon, places["w"].view, places["b"].view), places, seen)


def append_rows(
    b: Lowering, node: Node, rows: Rows, places: Mapping[str, Viewed] | None = None, shape: tuple[int, ...] | None = None
) -> None:
    """Append one call of a row kernel.

    rows: its description, whose views of x and y are filled in here. places: of scale and bias. shape: of x as the kernel reads
    it, its own by default.
    """
    value, given = node.outputs[0], b.spec(node.inputs[0]).shape
    shape = shape or given
    out = tuple(1 if rows.reduces and axis in rows.axes else size for axis, size in enumerate(shape))
    x = b.values.strided(node.inputs[0])
    if (x_view := x.view.reshaped(shape)) is None or not _runs(x_view):
        x = b.values.dense(node.inputs[0])
        x_view = View.dense(shape)
    bound = express_epilogue(node, b.sources)
    epilogue, operands = view_epilogue(b, bound, b.spec(value).shape, out)
    y = b.values.new(value, overwritable([x], [*operands.values(), *(places or {}).values()]))
    if (y_view := y.view.reshaped(out)) is None or not _runs(y_view):
        y = b.values.new_dense(value)
        y_view = View.dense(out)
    kernel = replace(rows, x=x_view, y=y_view, epilogue=epilogue)
    where = {"x": x, **(places or {}), **operands, "y": y}
    b.calls.append(emit_rows(kernel, b.isa), {name: place.storage for name, place in where.items()})


def _runs(view: View) -> bool:
    """Whether the last dimension of more than one element is contiguous, so that vectors can be loaded along it."""
    strides = [stride for size, stride in zip(view.shape, view.strides, strict=True) if size > 1]
    return not strides or strides[-1] == 1


def view_epilogue(
    b: Lowering, bound: BoundExpression, own: tuple[int, ...], seen: tuple[int, ...]
) -> tuple[Epilogue[View], dict[str, Viewed]]:
    """Return an epilogue as the kernel sees the result, and where its operands lie; these are written out where they must be.

    own, seen: the shape of the result, and the one under which the kernel writes it.
    """
    places = []
    for value in bound.operands[1:]:
        place = b.values.dense(value)
        if own == seen:
            place = aligned_view(place, len(own))
        elif place.view.shape == own or place.view.size == 1:
            place = place.under(View.dense(seen if place.view.shape == own else (1,) * len(seen)))
        else:
            full = Viewed.new(value, own, place.storage.dtype)
            b.calls.map((full, full.view), [(place, place.view.broadcast(own))])
            place = full.under(View.dense(seen))
        places.append(place)
    epilogue = Epilogue(False, bound.expression, tuple(place.view for place in places))
    return epilogue, dict(zip(epilogue.arguments, places, strict=True))


def aligned_view(place: Viewed, rank: int) -> Viewed:
    """Return a value with `rank` dimensions; the ones it lacks come first and have size 1."""
    extra = rank - len(place.view.shape)
    return place.under(View((1,) * extra + place.view.shape, (0,) * extra + place.view.strides, place.view.offset))


_ANY = View((), ())  # a placeholder, replaced in append_rows
RULES = {
    **dict.fromkeys(("Softmax", "LogSoftmax"), one_algorithm("rows", _refuses, _softmax, wants="rows")),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), one_algorithm("rows", _refuses, _norm, wants="rows")),
    **dict.fromkeys(("GroupNormalization", "InstanceNormalization"), one_algorithm("rows", _refuses, _group_norm, wants="rows")),
}
