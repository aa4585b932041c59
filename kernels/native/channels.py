"""Channels of images in blocks put into another order, or picked from several images: concatenation, slice and shuffle at once.

    for each block of y:    for each chunk = (image, piece of its pixels):    for each pixel:
        load the blocks of x that lanes come from, shuffle them into one vector, store

All is known when the code is emitted, so a vector costs a load and a shuffle for each block that it takes lanes from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kernels.native.builder import Function, Value
from kernels.native.errors import EmitError
from kernels.native.expression import FLOAT
from kernels.native.isa import Isa
from kernels.native.kernel import NativeKernel, emitted, kernel_name
from kernels.native.layout import Image
from kernels.native.maps import bits_type
from kernels.native.types import I64
from kernels.spec import DType

MAX_BLOCKS = 256  # of y: each has code of its own
CHUNK_VECTORS = 2048  # that a chunk writes: some microseconds
_Lane = tuple[int, int]  # an image's number, a channel of it


@dataclass(frozen=True, slots=True)
class Channels:
    """Channel k of y is channel order[k][1] of image order[k][0]; all images have blocks of one width and y's pixels."""

    xs: tuple[Image, ...]
    y: Image
    order: tuple[_Lane, ...]
    dtype: DType = FLOAT


def emit_channels(what: Channels, isa: Isa) -> NativeKernel:
    """Emit the kernel, with the arguments "x0", "x1"… and "y". Lanes behind y's last channel hold anything afterwards.

    Raises EmitError for images that do not fit, channels that there are not, and a y of more than MAX_BLOCKS blocks.
    """
    y = what.y
    for n, x in enumerate(what.xs):
        if (x.batch, x.height, x.width, x.block) != (y.batch, y.height, y.width, y.block):
            raise EmitError(f"channels: x{n} is {x} and y {y}, need the same pixels and blocks")
    missing = [lane for lane in what.order if not (0 <= lane[0] < len(what.xs) and 0 <= lane[1] < what.xs[lane[0]].channels)]
    if missing or len(what.order) != y.channels:
        raise EmitError(
            f"channels: y has {y.channels}, {len(what.order)} are named, and there are no (image, channel) {missing[:3]}"
        )
    if y.blocks > MAX_BLOCKS or not all(image.rows_join() for image in (y, *what.xs)):
        raise EmitError(f"channels: y has {y.blocks} blocks, need at most {MAX_BLOCKS}, and rows that join in all images")
    pixels = y.height * y.width
    piece = min(pixels, CHUNK_VECTORS)
    pieces = -(-pixels // piece)
    per_block = y.batch * pieces
    names = (*(f"x{n}" for n in range(len(what.xs))), "y")

    def body(k: Function, values: list[Value]) -> None:
        *xs, target, begin, end = values
        for block in range(y.blocks):
            first = k.const(I64, block * per_block)
            start = k.select(begin > first, begin, first)
            last = k.const(I64, (block + 1) * per_block)
            with k.loop(f"block{block}", start, k.select(end < last, end, last)) as chunk:
                at = chunk - first
                image, begins = at // pieces, at % pieces * piece
                stops = begins + piece
                if pixels % piece:
                    stops = k.select(stops < pixels, stops, k.const(I64, pixels))
                with k.loop("pixel", begins, stops) as pixel:
                    _vector(k, what, block, (xs, target), image, pixel)

    return emitted(isa, kernel_name(f"b{what.dtype.itemsize}_channels", what, isa), names, y.blocks * per_block, body)


def _vector(
    k: Function, what: Channels, block: int, addresses: tuple[Sequence[Value], Value], image: Value, pixel: Value
) -> None:
    """One block of one pixel."""
    y, kind = what.y, bits_type(what.dtype).by(what.y.block)
    lanes = what.order[block * y.block : (block + 1) * y.block]
    made: Value | None = None
    for number, source, taken in _sources(lanes, y.block):
        x = what.xs[number]
        loaded = k.load(kind, addresses[0][number], image * x.n_stride + pixel * x.x_stride + source * x.block_stride)
        if made is None:
            made = k.shuffle(loaded, None, taken)
        else:
            kept = [lane if at < 0 else y.block + at for lane, at in enumerate(taken)]
            made = k.shuffle(made, loaded, kept)
    if made is not None:
        k.store(made, addresses[1], image * y.n_stride + pixel * y.x_stride + block * y.block_stride)


def _sources(lanes: Sequence[_Lane], width: int) -> Iterator[tuple[int, int, list[int]]]:
    """Every (image, block) that lanes come from, and of each lane its place in that block, or -1."""
    for number, block in dict.fromkeys((number, channel // width) for number, channel in lanes):
        taken = [-1] * width
        for at, (other, channel) in enumerate(lanes):
            if (other, channel // width) == (number, block):
                taken[at] = channel % width
        yield number, block, taken
