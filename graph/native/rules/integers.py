"""Convolutions and products of bytes with constant weights: sums in int32, and what is fused behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from graph.choice import Choice
from graph.ir import Node
from graph.native.epilogue_operands import channels_last_operand, image_operand, make_epilogue, row_operand
from graph.native.expressions import express_epilogue, refuses_behind
from graph.native.facts import Facts, optional_input
from graph.native.lowering import Lowering
from graph.native.place import Imaged, Place, Storage, image_shape
from graph.native.rule import Rule
from graph.native.rules import depthwise
from graph.native.rules.conv import is_depthwise
from graph.native.rules.direct import direct_work, rows_image, tile_of, zero_bias
from graph.native.work import Work, moved_bytes
from kernels.errors import UnsupportedError
from kernels.expression import INT32
from kernels.native.emit.epilogue import Epilogue
from kernels.native.emit.geometry import Conv
from kernels.native.emit.kernel import NativeKernel
from kernels.native.emit.words import INT8, WORD_BYTES, Words, byte_words
from kernels.native.families.conv import conv_tiles, emit_conv, pack_weights, pack_zeros
from kernels.native.families.depthwise import emit_depthwise, pack_depthwise
from kernels.native.memory.image import Image
from kernels.native.memory.view import View
from kernels.ops.conv import geometry as window
from kernels.record import record
from kernels.size import is_symbolic
from kernels.spec import Array, DType

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


def _refuses(node: Node, facts: Facts) -> str | None:
    if facts.computed(node.inputs[1:]):
        return "its weights or zero points are not constants"
    if (name := optional_input(node, 2)) and facts.constants[name].size != 1:
        return "its rows have zero points of their own"
    if not all(facts.spec(name).elements for name in node.inputs[:2]):
        return "one of its factors is empty"
    if _weights(node, facts.constants) is None:
        return "its weights less their zero point do not fit into int8"
    return refuses_behind(node, facts.spec, facts.constants)


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


def _conv(node: Node, facts: Facts, x: Image, y: Image, zero: int) -> Conv:
    """Return the convolution between two images, of which x counts in elements."""
    slide = window(facts.spec(node.inputs[0]), facts.spec(node.inputs[1]), **node.attrs)
    words = Words(facts.spec(node.inputs[0]).dtype)
    counted = x if is_depthwise(node, facts) else x.words(words.depth)
    conv = Conv(counted, y, *slide.plane, node.attrs["group"], words=words, zero=zero)
    return conv if is_depthwise(node, facts) else conv.joined(facts.isa.lanes)


def lower_conv(b: Lowering, node: Node) -> None:
    """Append the calls of a ConvInteger: in blocks, or with channels last where groups begin inside of blocks."""
    given, value = _bytes(b, node), node.outputs[0]
    shape, bound = b.spec(value).shape, express_epilogue(node, b.spec, b.constants, deferred=b.values.deferred)
    by_channel, in_blocks = is_depthwise(node, b.facts), _in_blocks(node, b.facts)
    x = _image(b, node, in_blocks=in_blocks)
    epilogue, operands = make_epilogue(b, bound, image_operand if in_blocks else channels_last_operand, shape, bias=True)
    y = b.values.new_image(value) if in_blocks else b.values.new_as(value, Image.nhwc(*image_shape(shape)))
    conv = _conv(node, b.facts, x.image, y.image, given.zero)
    if by_channel:
        kernel, packed = _depthwise(b, node, conv, given, epilogue)
    else:
        kernel, packed = _direct(b, node, conv, given, epilogue)
    b.calls.append(kernel, {"x": x, "y": y, **packed, **operands})


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


def _in_blocks(node: Node, facts: Facts) -> bool:
    """Whether a convolution's images lie in blocks: it has one group, groups of whole blocks, or blocks of whole groups."""
    outputs, inputs = facts.spec(node.inputs[1]).shape[:2]
    groups, lanes = node.attrs["group"], facts.isa.lanes
    if groups == 1 or is_depthwise(node, facts) or (inputs == outputs // groups < lanes and lanes % inputs == 0):
        return True
    return bool(inputs % lanes == 0 and outputs // groups % lanes == 0)


def _image(b: Lowering, node: Node, *, in_blocks: bool) -> Imaged:
    """Return what a convolution reads: in blocks of a vector of channels, or of one word where it has few, or channels last."""
    value = node.inputs[0]
    shape = image_shape(b.spec(value).shape)
    if not in_blocks:
        return _laid(b, value, Image.nhwc(*shape))
    if shape[1] <= WORD_BYTES < b.isa.lanes and not is_depthwise(node, b.facts):
        return _laid(b, value, Image.blocked(*shape, WORD_BYTES))
    return b.values.blocked(value)


def _laid(b: Lowering, value: str, image: Image) -> Imaged:
    """Return an image laid out like that; copied where it is not."""
    for place in b.values.places(value):
        if isinstance(place, Imaged) and place.image == image:
            return place
    made = Imaged.new(value, image, b.spec(value).dtype)
    b.values.convert(b.values.image(value), made)
    return made


def conv_candidates(node: Node, facts: Facts) -> Sequence[Choice]:
    """Return the tiles of a convolution, the best by the port model first."""
    conv = _as_ranked(node, facts)
    if is_depthwise(node, facts):
        return [replace(choice, precision="int8") for choice in depthwise.candidates(conv, facts.isa)]
    return [Choice("native", "direct", (("tile", str(tile)),), "int8") for tile in conv_tiles(conv, facts.isa)]


def conv_work(node: Node, facts: Facts, choice: Choice) -> Work:
    """Return the work of a candidate, by the port model that chose its tile."""
    conv, (read, written) = _as_ranked(node, facts), moved_bytes(node, facts)
    if is_depthwise(node, facts):
        return depthwise.work(conv, choice, facts.isa, read, written)
    return direct_work("direct", conv, tile_of(choice, conv, facts.isa), facts.isa, read, written)


def _as_ranked(node: Node, facts: Facts) -> Conv:
    """Return the convolution of a node in the layout that candidates are ranked for."""
    names = (node.inputs[0], node.outputs[0])
    if _in_blocks(node, facts):
        x, y = (facts.image_in_blocks(name) for name in names)
    else:
        x, y = (Image.nhwc(*image_shape(facts.spec(name).shape)) for name in names)
    return _conv(node, facts, x, y, _zero(node, facts.constants))


# Products


def lower_product(b: Lowering, node: Node) -> None:
    """Append a MatMulInteger as a convolution with a 1×1 kernel: rows are pixels, columns are channels."""
    given, value = _bytes(b, node), node.outputs[0]
    shape, (inner, columns) = b.spec(value).shape, given.source.shape
    rows = b.spec(value).elements // columns
    bound = express_epilogue(node, b.spec, b.constants, deferred=b.values.deferred)
    epilogue, operands = make_epilogue(b, bound, row_operand, shape, bias=True)
    x, step = _rows(b, node.inputs[0], rows, inner)
    y = b.values.new_dense(value)
    conv = _product(rows_image(rows, inner, step), rows_image(rows, columns, columns), x.storage.dtype, given.zero)
    kernel, packed = _direct(b, node, conv, given, epilogue)
    b.calls.append(kernel, {"x": x, "y": y, **packed, **operands})


def _product(x: Image, y: Image, dtype: DType, zero: int) -> Conv:
    words = Words(dtype)
    return Conv(x.words(words.depth), y, words=words, zero=zero)


def _rows(b: Lowering, value: str, rows: int, inner: int) -> tuple[Place, int]:
    """Return a value as rows that begin where words do, and the bytes from one to the next; copied where they do not."""
    x = b.values.matrix(value, inner)
    step = x.view.strides[0]
    if not is_symbolic(step) and step % WORD_BYTES == 0:
        return x, step
    padded = -(-inner // WORD_BYTES) * WORD_BYTES
    made = Imaged.new(value, Image.nhwc(1, inner, 1, rows, padded), x.storage.dtype)
    b.calls.map((made, View((rows, inner), (padded, 1))), [(x, x.view)])
    return made, padded


def product_candidates(node: Node, facts: Facts) -> Sequence[Choice]:
    """Return the tiles of a product, the best by the port model first."""
    return [Choice("native", "product", (("tile", str(tile)),), "int8") for tile in conv_tiles(_in_rows(node, facts), facts.isa)]


def product_work(node: Node, facts: Facts, choice: Choice) -> Work:
    """Return the work of a candidate, by the port model that chose its tile."""
    conv, (read, written) = _in_rows(node, facts), moved_bytes(node, facts)
    return direct_work("product", conv, tile_of(choice, conv, facts.isa), facts.isa, read, written)


def _in_rows(node: Node, facts: Facts) -> Conv:
    """Return a product over rows that begin where words do, the layout that candidates are ranked for."""
    spec, columns = facts.spec(node.inputs[0]), facts.spec(node.outputs[0]).shape[-1]
    rows, inner = facts.spec(node.outputs[0]).elements // columns, spec.shape[-1]
    step = -(-inner // WORD_BYTES) * WORD_BYTES
    return _product(rows_image(rows, inner, step), rows_image(rows, columns, columns), spec.dtype, _zero(node, facts.constants))


RULES = {
    "ConvInteger": Rule(refuses_conv, lower_conv, conv_candidates, conv_work),
    "MatMulInteger": Rule(refuses_product, lower_product, product_candidates, product_work),
}
