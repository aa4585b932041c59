"""Resizing of images along rows and columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graph.choice import Choice
from graph.ir import Node
from graph.native.epilogue_operands import image_operand, make_epilogue
from graph.native.expressions import express_epilogue
from graph.native.facts import Facts
from graph.native.lowering import Lowering
from graph.native.place import Storage, image_shape
from graph.native.rule import Rule, parse_tile, streamed
from graph.native.values import overwritable
from kernels.errors import UnsupportedError
from kernels.native.families.resize import (
    MOST_TAPS,
    ResizeTile,
    Resizing,
    Side,
    emit_resize,
    make_resize_tile,
    pack_columns,
    pack_rows,
    resize_tiles,
)
from kernels.native.memory.image import Image
from kernels.native.target.isa import Isa
from kernels.ops.resize import passes, upsample_attributes
from kernels.resampling import Pass
from kernels.spec import Array


def refuses(node: Node, facts: Facts) -> str | None:
    """Return why a resizing has no native form, or None."""
    if reason := facts.not_f32(node.inputs[0], node.outputs[0]) or facts.not_image(node.inputs[0]):
        return reason
    if any(step.axis < 2 for step in _passes(node, facts)):
        return "it resizes the batch or channels, only rows and columns have a native form"
    return facts.refuses_epilogue(node)


def lower(b: Lowering, node: Node) -> None:
    """Append the call of a resizing."""
    y_shape = b.spec(node.outputs[0]).shape
    x = b.values.blocked(node.inputs[0])
    epilogue, operands = make_epilogue(b, express_epilogue(node, b.spec, b.constants), image_operand, y_shape, bias=False)
    y = b.values.new_image(node.outputs[0], overwritable(list(operands.values()), [x]))
    rows, columns = sides(node, b.facts)
    resizing = _resizing(node, rows, columns, x.image, y.image)
    tile = tile_of(resizing, b.choice(node), b.isa)
    tables = {
        "rows": _table(b, pack_rows(resizing, rows.index, rows.weights)),
        "columns": _table(b, pack_columns(resizing, tile, b.isa, columns.index, columns.weights)),
    }
    b.calls.append(emit_resize(resizing, tile, epilogue, b.isa), {"x": x, **tables, "y": y, **operands})


def _table(b: Lowering, packed: Array) -> Storage:
    """Return the storage of a table of indices or weights; equal tables share one."""
    return b.packed.storage(None, ("resize", packed.tobytes()), lambda: packed, packed.dtype)


def candidates(node: Node, facts: Facts) -> Sequence[Choice]:
    """Return the forms and tiles of a resizing, the best by the port model first."""
    x, y = facts.image_in_blocks(node.inputs[0]), facts.image_in_blocks(node.outputs[0])
    tiles = resize_tiles(_resizing(node, *sides(node, facts), x, y), facts.isa)
    return [Choice("native", "separable" if tile.separable else "direct", (("tile", str(tile)),)) for tile in tiles]


def tile_of(resizing: Resizing, choice: Choice, isa: Isa) -> ResizeTile:
    """Return the tile of a choice, or the best of its form. Raises UnsupportedError where the resizing has no such tile."""
    separable = choice.algorithm == "separable"
    if not separable and resizing.rows.taps > MOST_TAPS:
        raise UnsupportedError(f"resize: a row has {resizing.rows.taps} taps, {MOST_TAPS} at most go directly")
    if (text := choice.param("tile")) is not None:
        return make_resize_tile(resizing, isa, *parse_tile(text), separable=separable)
    return next(tile for tile in resize_tiles(resizing, isa) if tile.separable == separable)


def sides(node: Node, facts: Facts) -> tuple[Pass, Pass]:
    """Return the passes over rows and columns; an identity for one that is not resized. A 1-D image has one row."""
    shape = facts.spec(node.inputs[0]).shape
    found = {step.axis: step for step in _passes(node, facts)}
    rows, columns = (
        found.get(axis) or Pass(axis, np.arange(size)[:, None], None, np.zeros(size, bool))
        for axis, size in zip((2, 3) if len(shape) == 4 else (-1, 2), image_shape(shape)[2:], strict=True)
    )
    return rows, columns


def _passes(node: Node, facts: Facts) -> list[Pass]:
    """Return the passes of a node. Its scales or sizes are known, because the shape of its result is."""
    attrs = dict(node.attrs) if node.op == "Resize" else upsample_attributes(**node.attrs)
    return passes(facts.spec(node.inputs[0]), *(facts.spec(name) if name else None for name in node.inputs[1:]), **attrs)


def _resizing(node: Node, rows: Pass, columns: Pass, x: Image, y: Image) -> Resizing:
    return Resizing(x, y, _side(rows), _side(columns), float(node.attrs.get("extrapolation_value", 0.0)))


def _side(step: Pass) -> Side:
    """Return a side of the kernel. Coordinates are monotonic, so positions outside the image are at the ends."""
    inside = np.flatnonzero(~step.outside)
    begin, end = (int(inside[0]), int(inside[-1]) + 1) if inside.size else (0, 0)
    return Side(step.index.shape[1], step.weights is not None, begin, end)


RULES = dict.fromkeys(("Resize", "Upsample"), Rule(refuses, lower, candidates, streamed("resize", wants="blocks")))
