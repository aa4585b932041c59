"""Direct convolution kernels with constant weights, as convolutions, transposed ones and matrix products use them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from graph.choice import Choice
from graph.ir import Node
from graph.mapped import release
from graph.native.epilogue_operands import channels_last_operand, image_operand, make_epilogue
from graph.native.expressions import BoundExpression, express_epilogue
from graph.native.facts import Facts, optional_input
from graph.native.lowering import Lowering
from graph.native.place import Imaged, Place, Storage, image_shape
from graph.native.rule import parse_tile
from graph.native.values import overwritable
from graph.native.work import Layout, Work, moved_bytes, packed_bytes
from kernels.expression import FLOAT, Apply
from kernels.native.emit.epilogue import Epilogue
from kernels.native.emit.geometry import Conv, Depth
from kernels.native.emit.words import BF16_WORDS, F32_WORDS, WORD_BYTES, Words, half_words, words_of
from kernels.native.families.conv import ConvTile, conv_chunks, conv_cycles, conv_tiles, make_tile, pack_bias, pack_weights
from kernels.native.families.elementwise import conversion
from kernels.native.memory.image import Image
from kernels.native.memory.view import View
from kernels.native.target.isa import Isa
from kernels.precision import Precision
from kernels.record import record
from kernels.size import is_symbolic
from kernels.spec import Array
from kernels.windows import Window


@record
class Weighted:
    """The constant operands of a convolution, and its epilogue.

    source: the constant that the weights are made of. weights: (outputs, inputs of a group, rows of all planes, columns). bias:
    of each output, added first. bound: the expression computed of each result before it is stored.
    """

    source: Array
    weights: Array
    bias: Array
    bound: BoundExpression


@record
class Placed:
    """Where a convolution reads and writes. operands: of the epilogue, by the kernel's names for them."""

    x: Place
    y: Imaged
    epilogue: Epilogue[Image]
    operands: Mapping[str, Place]


def depth_of(slide: Window) -> Depth | None:
    """Return the third dimension of a window; None of fewer, and where it leaves rows as they are."""
    if len(slide.kernel) < 3:
        return None
    moves = [sizes[:2] for sizes in (slide.kernel, slide.strides)] + [slide.begin[:2], slide.end[:2]]
    if moves == [(1, 1), (1, 1), (0, 0), (0, 0)]:
        return None
    return Depth(slide.size[0], slide.out[0], slide.kernel[0], slide.strides[0], slide.dilations[0], slide.begin[0])


def refuses_operands(node: Node, facts: Facts) -> str | None:
    """Return why native kernels cannot read the inputs of a Conv or ConvTranspose, or None."""
    if reason := facts.not_f32(*node.inputs, node.outputs[0]) or facts.not_image(node.inputs[0]):
        return reason
    return "its weights are not constants" if facts.computed(node.inputs[1:]) else None


def weighted_of(b: Lowering, node: Node, as_convolution: Callable[[Array], Array] = lambda weights: weights) -> Weighted:
    """Return the weights, bias and epilogue of a Conv or ConvTranspose. as_convolution: converts its weights to those
    of a convolution."""
    source = b.constants[node.inputs[1]]
    weights = as_convolution(source.reshape(*source.shape[:2], -1, source.shape[-1]))
    bias, shape = b.constants.get(optional_input(node, 2)), b.spec(node.outputs[0]).shape
    bound = express_epilogue(node, b.late_sources)
    bound, bias = fold_bias(bound, bias, b.constants, weights.shape[0], shape)
    return Weighted(source, weights, bias, bound)


def fold_bias(
    bound: BoundExpression,
    bias: Array | None,
    constants: Mapping[str, Array],
    channels: int,
    shape: Sequence[int],
    axis: int = 1,
) -> tuple[BoundExpression, Array]:
    """Take a constant that is added to every channel first for the bias, if there is none.

    Returns the expression without that addition, and the bias; without either it is 0, so that kernels need no form without one.

    bound: the expression of each result. shape, axis: of the output, and which of its dimensions the channels are.
    """
    addend = bound.addend
    if bias is not None:
        return bound, bias
    if addend is None or addend not in constants:
        return bound, zero_bias(channels)
    array = constants[addend]
    given = (1,) * (len(shape) - array.ndim) + array.shape
    if array.size != channels or given[axis] != channels:
        return bound, zero_bias(channels)
    return bound.without_addend(), np.ascontiguousarray(array.reshape(-1))


@record
class Grouped:
    """The channels of a convolution. inputs, outputs: of each group."""

    groups: int
    inputs: int
    outputs: int

    @staticmethod
    def of(node: Node, weights: Sequence[int]) -> Grouped:
        """Return those of a node. weights: the shape of its weights: outputs, inputs of a group, …"""
        return Grouped(node.attrs["group"], weights[1], weights[0] // node.attrs["group"])

    def shares_vectors(self, lanes: int) -> bool:
        """Whether several groups lie in a vector (`Conv.joined`)."""
        return self.groups > 1 and 1 < self.inputs == self.outputs < lanes and lanes % self.inputs == 0

    def lies_in_blocks(self, lanes: int) -> bool:
        """Whether images of a direct convolution lie in blocks: of one group, of whole groups, or groups of whole blocks."""
        whole = self.inputs % lanes == 0 and self.outputs % lanes == 0
        return self.groups == 1 or whole or self.shares_vectors(lanes)


def place_by_groups(b: Lowering, node: Node, grouped: Grouped, bound: BoundExpression, words: Words = F32_WORDS) -> Placed:
    """Place a direct convolution: in blocks, or with channels last where groups begin inside blocks and do not fill them."""
    value, in_blocks = node.outputs[0], grouped.lies_in_blocks(b.isa.lanes)
    x = _place_x(b, node.inputs[0], grouped, words)
    if in_blocks:
        return place_in_blocks(b, node, x, bound)
    shape = b.spec(value).shape
    epilogue, operands = make_epilogue(b, bound, channels_last_operand, shape, bias=True)
    return Placed(x, b.values.new_as(value, Image.nhwc(*image_shape(shape))), epilogue, operands)


def _place_x(b: Lowering, value: str, grouped: Grouped, words: Words) -> Place:
    """Return what a direct convolution reads.

    Float32 may lie in any layout, unless groups share vectors. Words of several channels have to lie in blocks of a vector, or
    of a word where there are few channels, or with channels last.
    """
    in_blocks, lanes = grouped.lies_in_blocks(b.isa.lanes), b.isa.lanes
    if words == F32_WORDS:
        if grouped.shares_vectors(lanes):
            return b.values.blocked(value)
        return b.values.image(value) if in_blocks else b.values.strided_image(value)
    shape = image_shape(b.spec(value).shape)
    if not in_blocks:
        return b.values.laid(value, Image.nhwc(*shape), words.x)
    image, channels = b.facts.image_in_blocks(value), shape[1]
    if channels <= WORD_BYTES < lanes:
        image = Image.blocked(*shape, words.depth)
    partly = not words.are_bytes and channels % words.depth > 0  # what is behind the last channel is multiplied by 0: no NaN
    return b.values.laid(value, image, words.x, fill=partly)


def place_in_blocks(b: Lowering, node: Node, x: Place, bound: BoundExpression) -> Placed:
    """Place a convolution whose result is in blocks of channels."""
    value, shape = node.outputs[0], b.spec(node.outputs[0]).shape
    epilogue, operands = make_epilogue(b, bound, image_operand, shape, bias=True)
    return Placed(x, b.values.new_image(value, overwritable(list(operands.values()), [x])), epilogue, operands)


@functools.lru_cache(1024)
def zero_bias(channels: int) -> Array:
    """Return a bias of 0 for each channel, the same array for equally many: it is packed once."""
    return np.zeros(channels, np.float32)


def bias_argument(b: Lowering, conv: Conv, bias: Array, vectors: int = 1) -> dict[str, Storage]:
    """Return the packed bias as an argument. vectors: of a tile."""
    return {"b": b.packed.storage(bias, ("bias", conv.groups, vectors), lambda: pack_bias(conv, b.isa, bias, vectors))}


def rows_image(rows: int, columns: int, step: int) -> Image:
    """Return a matrix as an image: rows are pixels, columns are channels. step: elements from row to row."""
    return Image(1, columns, 1, rows, columns, 0, 0, rows * step, step)


def in_rows(node: Node, facts: Facts) -> Conv:
    """Return a product over rows that begin where words do, the layout that candidates are ranked for."""
    inner, columns = facts.spec(node.inputs[0]).shape[-1], facts.spec(node.outputs[0]).shape[-1]
    rows, step = facts.spec(node.outputs[0]).elements // columns, -(-inner // WORD_BYTES) * WORD_BYTES
    return Conv(rows_image(rows, inner, step), rows_image(rows, columns, columns))


def rows_in_words(b: Lowering, value: str, rows: int, inner: int, words: Words) -> tuple[Place, int]:
    """Return a value as rows of words, and the elements from one to the next; copied where words do not begin where rows do.

    inner: elements of a row. Those behind the last one of a copy are 0.
    """
    x, depth = b.values.matrix(value, inner), words.depth
    step = x.view.strides[0]
    begin = depth == 1 or (not is_symbolic(step) and step % depth == 0 and (words.are_bytes or inner % depth == 0))
    if begin and x.storage.dtype == words.x:
        return x, step
    padded = -(-inner // depth) * depth
    made = Imaged.new(value, Image.nhwc(1, inner, 1, rows, padded), words.x)
    b.calls.map((made, View((rows, inner), (padded, 1))), [(x, x.view)], conversion(x.storage.dtype, words.x))
    if padded > inner and not words.are_bytes:
        zero = (Apply("constant", (), (0.0,), FLOAT), *conversion(FLOAT, words.x))
        b.calls.map((made, View((rows, padded - inner), (padded, 1), inner)), [], zero)
    return made, padded


def tile_of(choice: Choice, conv: Conv, isa: Isa) -> ConvTile:
    """Return the tile of a choice, or the best by the port model."""
    if (text := choice.param("tile")) is None:
        return conv_tiles(conv, isa)[0]
    return make_tile(conv, isa, *parse_tile(text))


def tiles_of(algorithm: str, conv: Conv, node: Node, facts: Facts, precision: Precision) -> list[Choice]:
    """Return the tiles of a direct convolution or a product of a precision, the best by the port model first.

    conv: with channels counted in elements.
    """
    tiles = conv_tiles(conv.counted(words_in(precision, node, facts)), facts.isa)
    return [Choice("native", algorithm, (("tile", str(tile)),), precision) for tile in tiles]


def precisions_of(node: Node, facts: Facts) -> list[Precision]:
    """Return the precisions of products of float32 with constant weights, the one to use unmeasured first.

    Those of bfloat16 have words of two channels, which begin where groups do, unless each channel is a group.
    """
    outputs, inputs = facts.spec(node.inputs[1]).shape[:2]
    groups = node.attrs["group"] if node.op == "Conv" else 1
    whole = groups == 1 or (groups, 1) == (outputs, inputs) or inputs % BF16_WORDS.depth == 0
    return [each for each in facts.precisions if each == "fp32" or (each == "bf16" and whole)] or ["fp32"]


def words_in(precision: Precision, node: Node, facts: Facts) -> Words:
    """Return the words of a product of that precision."""
    return Words(facts.spec(node.inputs[0]).dtype) if precision == "int8" else words_of(precision)


def pack_as_words(conv: Conv, tile: ConvTile, isa: Isa, weights: Array) -> Array:
    """Pack float32 weights as words of a convolution; memory of mapped ones is released again."""
    if conv.words == F32_WORDS:
        return pack_weights(conv, tile, isa, weights, release)
    words = half_words(weights)
    release(weights)
    return pack_weights(conv, tile, isa, words)


def work_in_words(kind: str, conv: Conv, node: Node, facts: Facts, choice: Choice) -> Work:
    """Return the work of a direct convolution or a product with packed weights. conv: with channels counted in elements."""
    conv = conv.counted(words_in(choice.precision, node, facts))
    return direct_work(kind, conv, tile_of(choice, conv, facts.isa), facts.isa, *moved_bytes(node, facts))


def direct_work(kind: str, conv: Conv, tile: ConvTile, isa: Isa, read: int, written: int) -> Work:
    """Return the work of a direct convolution or a product with packed weights. read, written: bytes of activations."""
    taps = conv.taps * conv.group_inputs
    weight_bytes = packed_bytes(conv.group_outputs, taps, isa.lanes, conv.groups)
    flops = conv_cycles(conv, tile, isa) * isa.flops_per_cycle
    chunks = conv_chunks(conv, tile, isa)
    wants: Layout = "rows" if kind == "product" else "any"
    return Work(kind, flops, None, read, written, weight_bytes, 0, chunks, tile=(tile.pixels, tile.vectors), wants=wants)
