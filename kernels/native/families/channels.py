"""Reorder the channels of images in blocks, or pick them from several images: concatenation, slice and shuffle in one.

    for each run of blocks of y that are made alike:    for each chunk = (block, image, piece of its pixels):    for each pixel:
        load the blocks of x that lanes come from, shuffle them into one vector, store

All indices are known when the code is emitted, so a vector costs a load and a shuffle for each block that it takes lanes from.
Two blocks are made alike where the same lanes are taken from blocks that lie further on, all by one distance: a shuffle has a few
runs.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace

from kernels.expression import FLOAT
from kernels.native.emit.builder import Function, Value
from kernels.native.emit.kernel import NativeKernel, emitted, kernel_name
from kernels.native.emit.names import name_layouts
from kernels.native.emit.types import I64
from kernels.native.errors import EmitError
from kernels.native.families.elementwise import bits_type
from kernels.native.memory.image import Image
from kernels.native.target.isa import Isa
from kernels.spec import DType

MAX_RUNS = 64  # of blocks alike: each has code of its own
MAX_PERIOD = 16  # blocks from one to the next that is alike
CHUNK_VECTORS = 2048  # that a chunk writes: some microseconds
_Lane = tuple[int, int]  # an image's number, a channel of it


@dataclass(frozen=True, slots=True)
class _Source:
    """A block that a vector takes lanes from: an image's number, the block, and of each lane its place there, or -1."""

    image: int
    block: int
    taken: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Run:
    """Blocks of y, `step` apart, made alike: of the next each source is `moves` blocks further."""

    first: int
    step: int
    count: int
    sources: tuple[_Source, ...]
    moves: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Channels:
    """Channel k of y is channel order[k][1] of image order[k][0]; all images have blocks of one width and y's pixels."""

    xs: tuple[Image, ...]
    y: Image
    order: tuple[_Lane, ...]
    dtype: DType = FLOAT


def emit_channels(what: Channels, isa: Isa) -> NativeKernel:
    """Emit the kernel, with the arguments "x0", "x1"… and "y". Lanes after y's last channel are undefined afterwards.

    Raises EmitError for images that do not fit, channels that do not exist, and an order that is not regular (`is_regular`).
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
    runs = _runs(what.order, y.block)
    if len(runs) > MAX_RUNS or not all(image.rows_join() for image in (y, *what.xs)):
        raise EmitError(f"channels: {len(runs)} runs of blocks, need at most {MAX_RUNS}, and rows that join in all images")
    flat = replace(what, xs=tuple(x.flat() for x in what.xs), y=y.flat())
    pixels = y.height * y.width
    piece = min(pixels, CHUNK_VECTORS)
    pieces = -(-pixels // piece)
    per_block = y.batch * pieces

    def body(k: Function, values: list[Value]) -> None:
        *xs, target, begin, end = values
        done = 0
        for run in runs:
            first, last = k.const(I64, done * per_block), k.const(I64, (done + run.count) * per_block)
            start, stop = k.select(begin > first, begin, first), k.select(end < last, end, last)
            with k.loop(f"blocks{run.first}", start, stop) as chunk:
                at = chunk - first
                turn, image = at // per_block, at % per_block // pieces
                begins = at % pieces * piece
                ends = begins + piece
                if pixels % piece:
                    ends = k.select(ends < pixels, ends, k.const(I64, pixels))
                addresses = _addresses(k, flat, run, (*xs, target), image, turn)
                with k.loop("pixel", begins, ends) as pixel:
                    _vector(k, flat, run, addresses, pixel)
            done += run.count

    names = (*(f"x{n}" for n in range(len(what.xs))), "y")
    name = kernel_name(f"b{what.dtype.itemsize}_channels", what, isa, (name_layouts(what.xs[0], y), f"{len(what.xs)}to1"))
    return emitted(isa, name, names, y.blocks * per_block, body)


def is_regular(order: Sequence[_Lane], width: int) -> bool:
    """Return whether enough blocks of that width are made alike that the kernel stays small."""
    return len(_runs(order, width)) <= MAX_RUNS


def _addresses(k: Function, what: Channels, run: _Run, pointers: Sequence[Value], image: Value, turn: Value) -> list[Value]:
    """Return the addresses of the run's sources and of y's block at a turn of the run."""
    kind, found = bits_type(what.dtype), []
    for source, moves in zip(run.sources, run.moves, strict=True):
        x = what.xs[source.image]
        block = turn * (moves * x.block_stride) + source.block * x.block_stride
        found.append(k.offset(pointers[source.image], image * x.n_stride + block, kind))
    block = turn * (run.step * what.y.block_stride) + run.first * what.y.block_stride
    return [*found, k.offset(pointers[-1], image * what.y.n_stride + block, kind)]


def _vector(k: Function, what: Channels, run: _Run, addresses: Sequence[Value], pixel: Value) -> None:
    """One block of one pixel."""
    width = what.y.block
    kind = bits_type(what.dtype).by(width)
    made: Value | None = None
    for source, address in zip(run.sources, addresses, strict=False):
        loaded = k.load(kind, address, pixel * what.xs[source.image].x_stride)
        if made is None:
            made = k.shuffle(loaded, None, source.taken)
        else:
            made = k.shuffle(made, loaded, [lane if at < 0 else width + at for lane, at in enumerate(source.taken)])
    if made is not None:
        k.store(made, addresses[-1], pixel * what.y.x_stride)


def _runs(order: Sequence[_Lane], width: int) -> list[_Run]:
    """All blocks of y in runs, each as long as can be."""
    blocks = [_sources(order[at : at + width], width) for at in range(0, len(order), width)]
    left = dict.fromkeys(range(len(blocks)))
    runs = []
    while left:
        first = next(iter(left))
        run = max((_run(blocks, left, first, step) for step in range(1, MAX_PERIOD + 1)), key=lambda run: run.count)
        runs.append(run)
        for n in range(run.count):
            del left[first + n * run.step]
    return runs


def _run(blocks: Sequence[tuple[_Source, ...]], left: Container[int], first: int, step: int) -> _Run:
    """The blocks from the first on, that many apart, that are made alike."""
    sources, count = blocks[first], 1
    moves = _moves(sources, blocks[first + step]) if first + step in left else None
    while moves is not None and first + count * step in left:
        if _moves(blocks[first + (count - 1) * step], blocks[first + count * step]) != moves:
            break
        count += 1
    return _Run(first, step, count, sources, moves or (0,) * len(sources))


def _moves(one: Sequence[_Source], other: Sequence[_Source]) -> tuple[int, ...] | None:
    """Return by how many blocks each source of another block is further on; None where that block is made differently."""
    if [(source.image, source.taken) for source in one] != [(source.image, source.taken) for source in other]:
        return None
    return tuple(b.block - a.block for a, b in zip(one, other, strict=True))


def _sources(lanes: Sequence[_Lane], width: int) -> tuple[_Source, ...]:
    """Every block that lanes come from."""
    found = []
    for number, block in dict.fromkeys((number, channel // width) for number, channel in lanes):
        places = [channel % width if (other, channel // width) == (number, block) else -1 for other, channel in lanes]
        found.append(_Source(number, block, (*places, *[-1] * (width - len(lanes)))))
    return tuple(found)
