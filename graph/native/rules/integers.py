"""Convolutions and products of bytes with constant weights: sums in int32, and what is fused behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from graph.choice import Choice
from graph.ir import Node
from graph.native.epilogue_operands import make_epilogue, row_operand
from graph.native.expressions import express_epilogue, refuses_behind
from graph.native.facts import Facts, optional_input
from graph.native.lowering import Lowering
from graph.native.place import Storage, as_image, image_shape
from graph.native.rule import Rule
from graph.native.rules import depthwise
from graph.native.rules.conv import geometry, is_depthwise
from graph.native.rules.direct import (
    Grouped,
    in_rows,
    place_by_groups,
    place_in_blocks,
    rows_image,
    rows_in_words,
    tile_of,
    tiles_of,
    words_in,
    work_in_words,
    zero_bias,
)
from graph.native.work import Work, moved_bytes
from kernels.errors import UnsupportedError
from kernels.expression import INT32
from kernels.native.emit.epilogue import Epilogue
from kernels.native.emit.geometry import Conv
from kernels.native.emit.kernel import NativeKernel
from kernels.native.emit.words import INT8, WORD_BYTES, byte_words
from kernels.native.families.conv import emit_conv, pack_weights, pack_zeros
from kernels.native.families.depthwise import emit_depthwise, pack_depthwise
from kernels.native.memory.image import Image
from kernels.record import record
from kernels.spec import Array

Constants = Mapping[str, Storage]


@record
class _Bytes:
    """The constant operands. weights: int8, less their zero point. key: what they are made of beside `source`. zero: of x."""

    source: Array
    weights: Array
    key: tuple[int, ...]
    zero: int


def _weights(node: Node, constants: Mapping[str, Array]) -> Array | None:
    """Return the weights less their zero point as int8, outputs first; None where they do not fit."""
    source, name = constants[node.inputs[1]], optional_input(node, 3)
    product = node.op == "MatMulInteger"
    zero: Array = constants[name].reshape(-1) if name else np.zeros(1, source.dtype)
    if source.dtype == INT8 and not zero.any():
        weights = source
    elif source.dtype != INT8 and (zero == 128).all():
        weights = (source ^ 128).view(INT8)
    else:
        along = zero if product else zero.reshape(-1, *[1] * (source.ndim - 1))
        wide = source.astype(np.int16) - along
        if wide.min(initial=0) < -128 or wide.max(initial=0) > 127:
            return None
        weights = wide.astype(INT8)
    return weights.T[:, :, None, None] if product else weights.reshape(*weights.shape[:2], -1, weights.shape[-1])


def _bytes(b: Lowering, node: Node) -> _Bytes:
    weights, source, point = _weights(node, b.constants), b.constants[node.inputs[1]], optional_input(node, 3)
    if weights is None:
        raise UnsupportedError(f"{node.op}: its weights less their zero point do not fit into int8 (node {node.name!r})")
    key = tuple(b.constants[point].reshape(-1).tolist()) if point else ()
    return _Bytes(source, weights, key, _zero(node, b.constants))


def _zero(node: Node, constants: Mapping[str, Array]) -> int:
    name = optional_input(node, 2)
    return int(constants[name].reshape(-1)[0]) if name else 0


def _grouped(node: Node, facts: Facts) -> Grouped:
    return Grouped.of(node, facts.spec(node.inputs[1]).shape)


def _refuses(node: Node, facts: Facts) -> str | None:
    if facts.computed(node.inputs[1:]):
        return "its weights or zero points are not constants"
    if (name := optional_input(node, 2)) and facts.constants[name].size != 1:
        return "its rows have zero points of their own"
    if not all(facts.spec(name).elements for name in node.inputs[:2]):
        return "one of its factors is empty"
    if _weights(node, facts.constants) is None:
        return "its weights less their zero point do not fit into int8"
    return refuses_behind(node, facts.sources)


def refuses_conv(node: Node, facts: Facts) -> str | None:
    """Return why a ConvInteger has no native form, or None."""
    if reason := facts.not_image(node.inputs[0], (3, 4)):
        return reason
    inputs = facts.spec(node.inputs[1]).shape[1]
    if node.attrs["group"] > 1 and inputs % WORD_BYTES and not is_depthwise(node, facts):
        return f"its groups have {inputs} channels, need 1 or a multiple of {WORD_BYTES}"
    return _refuses(node, facts)


def refuses_product(node: Node, facts: Facts) -> str | None:
    """Return why a MatMulInteger has no native form, or None."""
    a, w = (facts.spec(name) for name in node.inputs[:2])
    if a.rank < 2 or w.rank != 2:
        return f"its factors are {a} and {w}, need a tensor of rows and a matrix"
    return _refuses(node, facts)


# Convolutions


def lower_conv(b: Lowering, node: Node) -> None:
    """Append the calls of a ConvInteger: in blocks, or with channels last where groups begin inside of blocks."""
    given, bound, words = _bytes(b, node), express_epilogue(node, b.late_sources), words_in("int8", node, b.facts)
    if is_depthwise(node, b.facts):
        placed = place_in_blocks(b, node, x := b.values.blocked(node.inputs[0]), bound)
        conv = replace(geometry(node, b.facts, x.image, placed.y.image), words=words, zero=given.zero)
        kernel, packed = _depthwise(b, node, conv, given, placed.epilogue)
    else:
        placed = place_by_groups(b, node, _grouped(node, b.facts), bound, words)
        conv = geometry(node, b.facts, as_image(placed.x), placed.y.image).counted(words, given.zero)
        kernel, packed = _direct(b, node, conv, given, placed.epilogue)
    b.calls.append(kernel, {"x": placed.x, "y": placed.y, **packed, **placed.operands})


def _direct(b: Lowering, node: Node, conv: Conv, given: _Bytes, epilogue: Epilogue[Image]) -> tuple[NativeKernel, Constants]:
    tile, weights = tile_of(b.choice(node), conv, b.isa), given.weights
    key = (conv.groups, tile.vectors, given.key)
    w = b.packed.storage(given.source, ("bytes", *key), lambda: pack_weights(conv, tile, b.isa, byte_words(weights)))
    start = (*key, conv.words, conv.zero, conv.is_product)  # all that `pack_zeros` asks of the convolution
    zeros = b.packed.storage(given.source, ("zeros", *start), lambda: pack_zeros(conv, b.isa, weights, tile.vectors), INT32)
    return emit_conv(conv, tile, epilogue, b.isa), {"w": w, "b": zeros}


def _depthwise(b: Lowering, node: Node, conv: Conv, given: _Bytes, epilogue: Epilogue[Image]) -> tuple[NativeKernel, Constants]:
    tile, weights = depthwise.tile_of(b.choice(node), conv, b.isa), given.weights.astype(np.float32)
    key = ("depthwise bytes", tile.vectors, given.key)
    w = b.packed.storage(given.source, key, lambda: pack_depthwise(conv, tile, b.isa, weights))
    zeros = depthwise.bias_argument(b, zero_bias(conv.y.channels), tile.vectors)
    return emit_depthwise(conv, tile, epilogue, b.isa), {"w": w, **zeros}


def conv_candidates(node: Node, facts: Facts) -> Sequence[Choice]:
    """Return the tiles of a convolution, the best by the port model first."""
    conv = _as_ranked(node, facts)
    if is_depthwise(node, facts):
        return [replace(choice, precision="int8") for choice in depthwise.candidates(conv, facts.isa)]
    return tiles_of("direct", conv, node, facts, "int8")


def conv_work(node: Node, facts: Facts, choice: Choice) -> Work:
    """Return the work of a candidate, by the port model that chose its tile."""
    conv = _as_ranked(node, facts)
    if is_depthwise(node, facts):
        return depthwise.work(conv, choice, facts.isa, *moved_bytes(node, facts))
    return work_in_words("direct", conv, node, facts, choice)


def _as_ranked(node: Node, facts: Facts) -> Conv:
    """Return the convolution of a node in the layout that candidates are ranked for, of which x counts in elements."""
    names = (node.inputs[0], node.outputs[0])
    if is_depthwise(node, facts) or _grouped(node, facts).lies_in_blocks(facts.isa.lanes):
        x, y = (facts.image_in_blocks(name) for name in names)
    else:
        x, y = (Image.nhwc(*image_shape(facts.spec(name).shape)) for name in names)
    return geometry(node, facts, x, y)


# Products


def lower_product(b: Lowering, node: Node) -> None:
    """Append a MatMulInteger as a convolution with a 1×1 kernel: rows are pixels, columns are channels."""
    given, value = _bytes(b, node), node.outputs[0]
    shape, (inner, columns) = b.spec(value).shape, given.source.shape
    rows = b.spec(value).elements // columns
    bound = express_epilogue(node, b.late_sources)
    epilogue, operands = make_epilogue(b, bound, row_operand, shape, bias=True)
    words = words_in("int8", node, b.facts)
    x, step = rows_in_words(b, node.inputs[0], rows, inner, words)
    y = b.values.new_dense(value)
    conv = Conv(rows_image(rows, inner, step), rows_image(rows, columns, columns)).counted(words, given.zero)
    kernel, packed = _direct(b, node, conv, given, epilogue)
    b.calls.append(kernel, {"x": x, "y": y, **packed, **operands})


def product_candidates(node: Node, facts: Facts) -> Sequence[Choice]:
    """Return the tiles of a product, the best by the port model first."""
    return tiles_of("product", in_rows(node, facts), node, facts, "int8")


def product_work(node: Node, facts: Facts, choice: Choice) -> Work:
    """Return the work of a candidate, by the port model that chose its tile."""
    return work_in_words("product", in_rows(node, facts), node, facts, choice)


RULES = {
    "ConvInteger": Rule(refuses_conv, lower_conv, conv_candidates, conv_work),
    "MatMulInteger": Rule(refuses_product, lower_product, product_candidates, product_work),
}
