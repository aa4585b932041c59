"""Rearrangements that take several maps, or views that are not obvious: conversions between layouts of images, and padding.

The maps of one rearrangement write different elements and read nothing that another writes: they may run in any order, with no
barrier between them.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

from kernels.expression import FLOAT, INT32, Apply, Draft, Term
from kernels.native.emit.words import WORD_BYTES
from kernels.native.errors import EmitError
from kernels.native.families.elementwise import Map, Strided, conversion
from kernels.native.memory.image import Image
from kernels.native.memory.view import View
from kernels.record import record
from kernels.spec import DType

# Images


def channel_view(image: Image, first: int, blocks: int, block: int) -> View:
    """`blocks` times `block` channels from `first` on, (batch, blocks, block, height, width).

    Raises EmitError where strides cannot express it: the channels must be whole blocks, or lie within one.
    """
    stride, inner = block * image.block_stride, image.block_stride
    if image.block > 1:
        stride, inner = block // image.block * image.block_stride, 1
        inside = first % image.block + blocks * block <= image.block
        if inside:
            stride = block
        elif first % image.block or block != image.block:
            raise EmitError(f"image: {blocks}×{block} channels from {first} do not fit blocks of {image.block}")
    shape = (image.batch, blocks, block, image.height, image.width)
    return View(shape, (image.n_stride, stride, inner, image.y_stride, image.x_stride), image.offset(first))


def convert_image(
    x: Image, y: Image, dtype: DType = FLOAT, x_dtype: DType | None = None, *, fill: bool = False
) -> tuple[Map, ...]:
    """Return the maps that convert an image to another layout: one of whole blocks, one of the channels left over.

    dtype, x_dtype: of the elements of y, and of x where these are others. fill: lanes after the last channel become 0, which are
    not written otherwise.

    Raises EmitError where sizes differ, or both are blocked by different widths.
    """
    sizes = [(image.batch, image.channels, image.height, image.width) for image in (x, y)]
    if sizes[0] != sizes[1]:
        raise EmitError(f"image: x has (n, c, h, w) {sizes[0]} and y {sizes[1]}, need the same")
    widths = {image.block for image in (x, y) if 1 < image.block < image.channels}
    block = min(widths, default=x.channels)
    pieces = [(0, x.channels // block, block), (x.channels // block * block, 1, x.channels % block)]
    given = x_dtype or dtype
    if x.block == 1 < y.block <= WORD_BYTES == y.block * dtype.itemsize:
        return tuple(_words_map(x, y, first, given, dtype) for first in range(0, x.channels, y.block))
    steps = conversion(given, dtype)
    maps = [
        Map(Strided(channel_view(y, *piece), dtype), (Strided(channel_view(x, *piece), given),), steps)
        for piece in pieces
        if piece[2]
    ]
    if fill and (rest := y.stored_channels - y.channels):
        whole = replace(y, channels=y.stored_channels)
        zero = (Apply("constant", (), (0.0,), FLOAT), *conversion(FLOAT, dtype))
        maps.append(Map(Strided(channel_view(whole, y.channels, 1, rest), dtype), (), zero))
    return tuple(maps)


def _words_map(x: Image, y: Image, first: int, given: DType, dtype: DType) -> Map:
    """Return the map that makes a plane of words of neighbouring channels that lie apart. Channels that x has not are 0."""
    draft, made = Draft(), list[Term]()
    channels = range(first, min(first + y.block, x.channels))
    for at, channel in enumerate(channels):
        element = draft.operand(str(channel), given)
        for step in conversion(given, dtype):
            element = draft(step.op, element, dtype=step.dtype)
        bits = draft("cast", draft("bits", element), dtype=INT32)
        made.append(draft("shl", bits, draft.constant(8 * dtype.itemsize * at, INT32)) if at else bits)
    _, expression = draft.finish(functools.reduce(functools.partial(draft, "or"), made))
    shape = (x.batch, x.height, x.width)
    planes = [View(shape, (x.n_stride, x.y_stride, x.x_stride), x.offset(channel)) for channel in channels]
    words = y.words(y.block)
    target = View(shape, (words.n_stride, words.y_stride, words.x_stride), words.offset(first // y.block))
    return Map(Strided(target, INT32), tuple(Strided(plane, given) for plane in planes), expression.steps)


# Padding

PadMode = Literal["constant", "edge", "reflect", "wrap"]


@record
class _Part:
    """A piece of one axis of the result: where it begins and how long it is, and which elements of x it shows."""

    start: int
    count: int
    source: int
    step: int  # 0: one element for all


def pad_tensor(
    x: View, y: View, before: Sequence[int], mode: PadMode = "constant", value: float = 0.0, dtype: DType = FLOAT
) -> tuple[Map, ...]:
    """ONNX's Pad. before: elements of each axis in front of x's first, negative where y begins inside x; y's shape says the rest.

    Raises EmitError where a mode other than constant has negative padding, or more padding than x has elements for.
    """
    axes = [list(_parts(size, y.shape[axis], before[axis], mode)) for axis, size in enumerate(x.shape)]
    maps = []
    for parts in itertools.product(*axes) if mode != "constant" else _slabs(axes):
        source, target = x, y
        for axis, part in enumerate(parts):
            source = source.sliced(axis, part.source, part.count, part.step)
            target = target.sliced(axis, part.start, part.count)
        outside = mode == "constant" and any(part.step == 0 for part in parts)
        fill = Map(Strided(target, dtype), (), (Apply("constant", (), (value,), dtype),))
        maps.append(fill if outside else Map(Strided(target, dtype), (Strided(source, dtype),)))
    return tuple(maps)


def _parts(size: int, whole: int, before: int, mode: PadMode) -> Iterator[_Part]:
    """Return the pieces before x, of x and after x, in order, without empty ones."""
    low, high = max(before, 0), min(before + size, whole)
    front, back = min(low, whole), whole - max(high, low)
    if mode != "constant" and (before < 0 or before + size > whole):
        raise EmitError(f"pad: an axis of {size} begins at {before} of {whole}, {mode} does not cut")
    if mode in {"constant", "edge"}:
        if mode == "edge" and not size:
            raise EmitError("pad: an axis has no element, its edge cannot be repeated")
        first, last = 0, max(size - 1, 0)
        parts = (_Part(0, front, first, 0), _Part(low, high - low, low - before, 1), _Part(max(high, low), back, last, 0))
    else:
        most = size - 1 if mode == "reflect" else size
        if max(front, back) > most:
            raise EmitError(f"pad: {max(front, back)} elements are wanted of a {mode} that has {most} (axis of {size})")
        step = -1 if mode == "reflect" else 1
        behind = size - 2 if mode == "reflect" else 0
        parts = (
            _Part(0, front, before if mode == "reflect" else size - before, step),
            _Part(low, high - low, low - before, 1),
            _Part(high, back, behind, step),
        )
    yield from (part for part in parts if part.count > 0)


def _slabs(axes: Sequence[Sequence[_Part]]) -> Iterator[tuple[_Part, ...]]:
    """x itself, and of each axis what is before and behind it, across all of the later axes: few large pieces."""
    for axis, parts in enumerate(axes):
        inner = [next((part for part in other if part.step), None) for other in axes[:axis]]
        if None in inner:
            return
        wide = [_Part(0, sum(part.count for part in other), 0, 0) for other in axes[axis + 1 :]]
        for part in parts:
            if part.step == 0:
                yield (*(p for p in inner if p), part, *wide)
    centre = [next((part for part in parts if part.step), None) for parts in axes]
    if None not in centre:
        yield tuple(part for part in centre if part)
