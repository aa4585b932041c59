"""Values as operands of fused epilogues, each laid out as the loops of a kernel over its output read it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from graph.native.expressions import BoundExpression
from graph.native.lowering import Lowering
from graph.native.place import Imaged, Place, Viewed, image_shape, rows_of
from kernels.native.emit.epilogue import Epilogue
from kernels.native.memory.image import Image
from kernels.native.memory.view import View

OperandOf = Callable[[Lowering, str, Sequence[int]], tuple[Place, Image]]


def make_epilogue(
    b: Lowering, bound: BoundExpression, operand_of: OperandOf, shape: Sequence[int], *, bias: bool
) -> tuple[Epilogue[Image], dict[str, Place]]:
    """Return the epilogue of a kernel, and where its operands lie.

    bound: what it computes, operand 0 being the result. operand_of: one of the functions below, as the kernel walks over its
    output. shape: of the output. bias: whether the kernel adds one first.
    """
    pairs = [operand_of(b, value, shape) for value in bound.operands[1:]]
    epilogue = Epilogue(bias, bound.expression, tuple(image for _, image in pairs))
    return epilogue, dict(zip(epilogue.arguments, (place for place, _ in pairs), strict=True))


def image_operand(b: Lowering, value: str, shape: Sequence[int]) -> tuple[Place, Image]:
    """Return a value as an operand of an epilogue whose output is an image of that shape in blocks, broadcast to it.

    The channels, and the plane of rows and columns, have the output's size or size 1. A value that repeats along rows or columns
    alone is copied to its full plane first.
    """
    given = b.spec(value).shape
    own, wanted = image_shape((1,) * (len(shape) - len(given)) + given), image_shape(shape)
    place: Place
    if own[2:] not in ((1, 1), wanted[2:]) or (len(given) < len(shape) and own[1] > 1 and value not in b.constants):
        place = _spread(b, value, shape)
    elif own[1] == 1:
        place = b.values.dense(value).under(View.dense(own))
    elif len(given) == len(shape):
        place = b.values.blocked(value)
    else:
        place = b.values.blocked_constant(value, own)
    image = place.image if isinstance(place, Imaged) else Image.nchw(*image_shape(place.view.shape))
    block_stride = image.block_stride if own[1] > 1 else 0
    sizes = (image.batch, image.height, image.width)
    strides = (image.n_stride, image.y_stride, image.x_stride)
    n, y, x = (0 if size == 1 else stride for size, stride in zip(sizes, strides, strict=True))
    return place, Image(*wanted, image.block, n, block_stride, y, x)


def _spread(b: Lowering, value: str, shape: Sequence[int]) -> Place:
    """Copy a value to its full plane or volume, in blocks where it has channels."""
    given = b.spec(value).shape
    own = (1,) * (len(shape) - len(given)) + given
    full = (*own[:2], *shape[2:])
    source = b.values.dense(value)
    seen = source.under(View.dense(own).broadcast(full))
    if own[1] == 1 or rows_of(seen.view) is None:
        made = Viewed.new(value, full, source.storage.dtype)
        b.calls.map((made, made.view), [(seen, seen.view)])
        seen = made
    if own[1] == 1:
        return seen.under(View.dense(image_shape(full)))
    blocks = Imaged.new(value, Image.blocked(*image_shape(full), b.isa.lanes), source.storage.dtype)
    b.values.convert(seen, blocks)
    return blocks


def channels_last_operand(b: Lowering, value: str, shape: Sequence[int]) -> tuple[Place, Image]:
    """Return a value as an operand of an epilogue whose output is an image of that shape with channels last.

    A value that has more than channels is copied to the output's layout first.
    """
    given, wanted = b.spec(value).shape, image_shape(shape)
    own = (1,) * (len(shape) - len(given)) + given
    if math.prod(own) == own[1]:
        return b.values.dense(value), Image(*wanted, own[1], 0, 0, 0, 0)
    image, source = Image.nhwc(*wanted), b.values.strided(value)
    made = Imaged.new(value, image, source.storage.dtype)
    steps = (shape[-2] * image.y_stride, image.y_stride, image.x_stride)[-len(shape[2:]) :]
    b.calls.map((made, View(tuple(shape), (image.n_stride, 1, *steps))), [(source, source.view.broadcast(shape))])
    return made, image


def row_operand(b: Lowering, value: str, shape: Sequence[int]) -> tuple[Place, Image]:
    """Return a value as an operand of an epilogue whose output is the rows of a tensor of that shape.

    A value that is neither of that shape, nor one element, one row or one column is copied to that shape first.
    """
    given = b.spec(value).shape
    rows, columns = math.prod(shape[:-1]), shape[-1]
    whole = (1,) * (len(shape) - len(given)) + given
    if math.prod(given) == 1:
        return b.values.dense(value), Image(1, columns, 1, rows, 1, 0, 0, 0, 0)
    if math.prod(given) == whole[-1]:
        return b.values.dense(value), Image(1, columns, 1, rows, columns, 0, 0, 0, 0)
    if whole == (*shape[:-1], 1):
        return b.values.dense(value), Image(1, columns, 1, rows, 1, 0, 0, rows, 1)
    if whole == tuple(shape):
        place = b.values.matrix(value, columns)
    else:
        source = b.values.strided(value)
        made = Viewed.new(value, shape, source.storage.dtype)
        b.calls.map((made, made.view), [(source, source.view.broadcast(shape))])
        place = made.under(View.dense((rows, columns)))
    step = place.view.strides[0]
    return place, Image(1, columns, 1, rows, columns, 0, 0, rows * step, step)
