"""Direct convolution kernels with constant weights, as convolutions, transposed ones and matrix products use them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from graph.choice import Choice
from graph.ir import Node
from graph.native.epilogue_operands import channels_last_operand, image_operand, make_epilogue
from graph.native.expressions import BoundExpression, express_epilogue
from graph.native.facts import Facts, optional_input
from graph.native.lowering import Lowering
from graph.native.place import Imaged, Place, Storage, image_shape
from graph.native.rule import parse_tile
from graph.native.values import overwritable
from graph.native.work import Layout, Work, packed_bytes
from kernels.native.emit.epilogue import Epilogue
from kernels.native.emit.geometry import Conv, Depth
from kernels.native.families.conv import ConvTile, conv_chunks, conv_cycles, conv_tiles, make_tile, pack_bias
from kernels.native.memory.image import Image
from kernels.native.target.isa import Isa
from kernels.record import record
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
    bound = express_epilogue(node, b.spec, b.constants, deferred=b.values.deferred)
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


def place_by_groups(b: Lowering, node: Node, weighted: Weighted) -> Placed:
    """Place a direct convolution: in blocks, or with channels last where groups begin inside blocks and do not fill them."""
    groups, (outputs, inputs, *_), lanes = node.attrs["group"], weighted.weights.shape, b.isa.lanes
    if 1 < inputs == outputs // groups < lanes and lanes % inputs == 0 and groups > 1:  # `Conv.joined`
        return place_in_blocks(b, node, b.values.blocked(node.inputs[0]), weighted)
    if groups == 1 or (inputs % lanes == 0 and outputs // groups % lanes == 0):
        return place_in_blocks(b, node, b.values.image(node.inputs[0]), weighted)
    x = b.values.strided_image(node.inputs[0])
    value, shape = node.outputs[0], b.spec(node.outputs[0]).shape
    epilogue, operands = make_epilogue(b, weighted.bound, channels_last_operand, shape, bias=True)
    return Placed(x, b.values.new_as(value, Image.nhwc(*image_shape(shape))), epilogue, operands)


def place_in_blocks(b: Lowering, node: Node, x: Place, weighted: Weighted) -> Placed:
    """Place a convolution whose result is in blocks of channels."""
    value, shape = node.outputs[0], b.spec(node.outputs[0]).shape
    epilogue, operands = make_epilogue(b, weighted.bound, image_operand, shape, bias=True)
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


def tile_of(choice: Choice, conv: Conv, isa: Isa) -> ConvTile:
    """Return the tile of a choice, or the best by the port model."""
    if (text := choice.param("tile")) is None:
        return conv_tiles(conv, isa)[0]
    return make_tile(conv, isa, *parse_tile(text))


def direct_work(kind: str, conv: Conv, tile: ConvTile, isa: Isa, read: int, written: int) -> Work:
    """Return the work of a direct convolution or a product with packed weights. read, written: bytes of activations."""
    taps = conv.taps * conv.group_inputs
    weight_bytes = packed_bytes(conv.group_outputs, taps, isa.lanes, conv.groups)
    flops = conv_cycles(conv, tile, isa) * isa.flops_per_cycle
    chunks = conv_chunks(conv, tile, isa)
    wants: Layout = "rows" if kind == "product" else "any"
    return Work(kind, flops, None, read, written, weight_bytes, 0, chunks, tile=(tile.pixels, tile.vectors), wants=wants)
