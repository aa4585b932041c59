"""Reorder the channels of images in blocks, or pick them from several images: concatenation, slice and shuffle in one.

    for each run of blocks of y that are made alike:    for each chunk = (block, image, piece of its pixels):    for each pixel:
        load the blocks of x that lanes come from, shuffle them into one vector, store

The lanes that are taken decide the code, so a vector costs a load and a shuffle for each block that it takes them from; where
these blocks lie, how many are made alike, and how many pixels there are, are numbers. Two blocks are made alike where the same
lanes are taken from blocks that lie further on, all by one distance: a shuffle has a few runs.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from kernels.expression import FLOAT
from kernels.native.emit.builder import Function, Operand, Value
from kernels.native.emit.geometry import even_rows
from kernels.native.emit.kernel import Bounds, NativeKernel, emitted, kernel_name
from kernels.native.emit.names import name_layouts
from kernels.native.emit.types import Type
from kernels.native.errors import EmitError
from kernels.native.families.elementwise import bits_type
from kernels.native.memory.image import Image
from kernels.native.target.isa import Isa
from kernels.record import record
from kernels.size import hint
from kernels.spec import DType

MAX_RUNS = 64  # of blocks alike: each has code of its own
MAX_PERIOD = 16  # blocks from one to the next that is alike
CHUNK_VECTORS = 2048  # that a chunk writes: some microseconds
_Lane = tuple[int, int]  # an image's number, a channel of it


@record
class _Source:
    """A block that a vector takes lanes from: an image's number, the block, and of each lane its place there, or -1."""

    image: int
    block: int
    taken: tuple[int, ...]


@record
class _Run:
    """Blocks of y, `step` apart, made alike: of the next each source is `moves` blocks further."""

    first: int
    step: int
    count: int
    sources: tuple[_Source, ...]
    moves: tuple[int, ...]


@record
class Channels:
    """Channel k of y is channel order[k][1] of image order[k][0]; all images have blocks of one width and y's pixels."""

    xs: tuple[Image, ...]
    y: Image
    order: tuple[_Lane, ...]
    dtype: DType = FLOAT


@record
class _Code:
    """All that decides the code.

    width: lanes of a block. side_by_side: whether the pixels of all images are. runs: for each, the image and the lanes that each
    of its sources gives.
    """

    kind: Type
    width: int
    side_by_side: bool
    runs: tuple[tuple[tuple[int, tuple[int, ...]], ...], ...]


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
    sources = tuple(tuple((source.image, source.taken) for source in run.sources) for run in runs)
    side_by_side = all(image.flat().x_stride == y.block for image in (y, *what.xs))
    code = _Code(bits_type(what.dtype), y.block, side_by_side, sources)
    pixels = y.height * y.width
    piece = even_rows(hint(pixels), CHUNK_VECTORS)
    per_block = y.batch * -(-pixels // piece)

    def body(k: Function, pointers: Mapping[str, Value], sizes: Mapping[str, Value], chunks: Bounds) -> None:
        _ChannelsEmitter(k, code, sizes, pointers).emit(*chunks)

    return emitted(
        isa,
        kernel_name(f"b{what.dtype.itemsize}_channels", code, isa, (name_layouts(what.xs[0], y), f"{len(what.xs)}to1")),
        (*(f"x{n}" for n in range(len(what.xs))), "y"),
        y.blocks * per_block,
        body,
        {"pixels": pixels, "piece": piece, "pieces": -(-pixels // piece), "block_chunks": per_block, **_numbers(what, runs)},
    )


def _numbers(what: Channels, runs: Sequence[_Run]) -> dict[str, int]:
    """Return the numbers that the code reads, by name, but for those of chunks. Strides count elements.

    x0_image, x0_pixel: between neighbours of each kind. first0, last0: blocks that are made before run 0, and with it. y0_block,
    y0_turn: where its first block of y lies, and how far apart its blocks are; x0_1_block, x0_1_turn: those of its source 1.
    """
    numbers: dict[str, int] = {}
    for name, image in (*((f"x{n}", x) for n, x in enumerate(what.xs)), ("y", what.y)):
        flat = image.flat()
        numbers |= {f"{name}_image": flat.n_stride, f"{name}_pixel": flat.x_stride}
    done = 0
    for n, run in enumerate(runs):
        numbers |= {f"first{n}": done, f"last{n}": done + run.count}
        numbers |= {f"y{n}_block": run.first * what.y.block_stride, f"y{n}_turn": run.step * what.y.block_stride}
        for m, (source, moves) in enumerate(zip(run.sources, run.moves, strict=True)):
            stride = what.xs[source.image].block_stride
            numbers |= {f"x{n}_{m}_block": source.block * stride, f"x{n}_{m}_turn": moves * stride}
        done += run.count
    return numbers


def is_regular(order: Sequence[_Lane], width: int) -> bool:
    """Return whether enough blocks of that width are made alike that the kernel stays small."""
    return len(_runs(order, width)) <= MAX_RUNS


class _ChannelsEmitter:
    """Emits the code; the methods are the loops of the module docstring, from the outside in."""

    def __init__(self, k: Function, code: _Code, n: Mapping[str, Value], pointers: Mapping[str, Value]) -> None:
        self.k, self.code, self.n, self.pointers = k, code, n, pointers

    def emit(self, begin: Value, end: Value) -> None:
        """Emit a loop over the chunks of each run."""
        k, n = self.k, self.n
        for run in range(len(self.code.runs)):
            first, last = n[f"first{run}"] * n["block_chunks"], n[f"last{run}"] * n["block_chunks"]
            with k.loop("block", k.most(begin, first), k.least(end, last)) as chunk:
                at = chunk - first
                turn, left = at // n["block_chunks"], at % n["block_chunks"]
                image, start = left // n["pieces"], left % n["pieces"] * n["piece"]
                self._pixels(run, turn, image, (start, k.least(start + n["piece"], n["pixels"])))

    def _pixels(self, run: int, turn: Value, image: Value, bounds: Bounds) -> None:
        """Emit one block of some pixels."""
        k, width, sources = self.k, self.code.width, self.code.runs[run]
        kind = self.code.kind.by(width)
        x = [self._block(f"x{source}", f"x{run}_{m}", turn, image) for m, (source, _) in enumerate(sources)]
        y = self._block("y", f"y{run}", turn, image)
        with k.loop("pixel", *bounds) as pixel:
            made = k.poison(kind)
            for address, (source, taken) in zip(x, sources, strict=True):
                loaded = k.load(kind, address, pixel * self._step(f"x{source}"))
                made = k.shuffle(made, loaded, [lane if at < 0 else width + at for lane, at in enumerate(taken)])
            k.store(made, y, pixel * self._step("y"))

    def _step(self, name: str) -> Operand:
        """Return the elements from a pixel of an argument's image to the next."""
        return self.code.width if self.code.side_by_side else self.n[f"{name}_pixel"]

    def _block(self, name: str, numbers: str, turn: Value, image: Value) -> Value:
        """Return the address of a block of an argument's image at a turn of a run."""
        n = self.n
        at = image * n[f"{name}_image"] + n[f"{numbers}_block"] + turn * n[f"{numbers}_turn"]
        return self.k.offset(self.pointers[name], at, self.code.kind)


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
