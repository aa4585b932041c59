"""Products with constant weights of 4 bits (com.microsoft.MatMulNBits), which stay as they are in the file."""

from __future__ import annotations

import numpy as np

from graph.ir import Node
from graph.native.epilogue_operands import make_epilogue, row_operand
from graph.native.expressions import express_epilogue
from graph.native.facts import F32, Facts, optional_input
from graph.native.lowering import Lowering
from graph.native.place import Viewed
from graph.native.rule import one_algorithm
from graph.native.rules.direct import rows_image
from kernels.errors import UnsupportedError
from kernels.native.families.normalize import Rows, emit_rows
from kernels.native.families.weight_blocks import (
    BlockedProduct,
    emit_blocked_product,
    pack_block_scales,
    pack_weight_blocks,
    tile_of,
)
from kernels.native.memory.view import View
from kernels.ops.weight_blocks import is_in_words, zero_points_of
from kernels.spec import Array


def refuses(node: Node, facts: Facts) -> str | None:
    """Return why a MatMulNBits has no native form, or None."""
    bias = optional_input(node, 5)
    if reason := facts.not_f32(node.inputs[0], node.inputs[2], node.outputs[0], bias):
        return reason
    if facts.computed(node.inputs[1:5]):
        return "its weights, scales or zero points are not constants"
    if not is_in_words(node.attrs, ordered=bool(optional_input(node, 4))):
        return "its weights have not 4 bits, or its blocks are no whole ones in their order"
    if not facts.spec(node.inputs[0]).elements:
        return "its first factor is empty"
    return facts.refuses_epilogue(node)


def lower(b: Lowering, node: Node) -> None:
    """Append the sums of the blocks of the first factor, and the product."""
    value, (depth, columns, block) = node.outputs[0], (node.attrs[name] for name in ("K", "N", "block_size"))
    shape, blocks = b.spec(value).shape, depth // block
    rows = b.spec(value).elements // columns
    bound = express_epilogue(node, b.sources, optional_input(node, 5))
    epilogue, operands = make_epilogue(b, bound, row_operand, shape, bias=False)
    x = b.values.matrix(node.inputs[0], depth)
    step = x.view.strides[0]
    sums = Viewed.new(f"{node.inputs[0]}/blocks", (rows, blocks, 1), F32)
    seen = View((rows, blocks, block), (step, block, 1), x.view.offset)
    b.calls.append(emit_rows(Rows("sum", seen, sums.view, (2,)), b.isa), {"x": x.storage, "y": sums.storage})
    y = b.values.new_dense(value)
    product = BlockedProduct(rows_image(rows, depth, step), rows_image(rows, columns, columns), block, epilogue)
    tile = tile_of(rows, b.isa)
    weights, scales, points = (b.constants.get(optional_input(node, at)) for at in (1, 2, 3))
    if weights is None or scales is None:
        raise UnsupportedError(f"{node.op}: its weights are not constants (node {node.name!r})")

    def pack_weights() -> Array:
        return pack_weight_blocks(weights.reshape(columns, blocks, -1), tile, b.isa)

    def pack_scales() -> Array:
        zeros = None if points is None else zero_points_of(points, columns, blocks, 4)
        return pack_block_scales(scales.reshape(columns, blocks), zeros, tile, b.isa)

    key = ("weight blocks", tile[1])
    w = b.packed.storage(weights, key, pack_weights, np.dtype(np.uint32))
    s = b.packed.storage(scales, (*key, None if points is None else points.tobytes()), pack_scales)
    places = {"x": x, "w": w, "s": s, "sums": sums, **operands, "y": y}
    b.calls.append(emit_blocked_product(product, tile, b.isa), places)


RULES = {"com.microsoft.MatMulNBits": one_algorithm("blocks", refuses, lower, kind="weight_blocks", wants="rows")}
