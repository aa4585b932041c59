"""The end of a register tile of images: the epilogue is applied to its vectors of channels, and they are stored.

What decides the code is a `Results`: the tile, how the channels of the output and of the operands lie, and the epilogue. Where
they lie comes as numbers (`result_numbers`), so a kernel serves images of any size. The last tile of a row may have fewer pixels
and the last block fewer channels than a tile: those that there are go through memory, in a loop with masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

from kernels.expression import Expression
from kernels.native.emit.builder import Function, Operand, Value
from kernels.native.emit.epilogue import Epilogue
from kernels.native.emit.expression import evaluate, from_memory, is_long, memory_type, to_memory, value_types
from kernels.native.emit.types import I64
from kernels.native.errors import EmitError
from kernels.native.memory.image import Image
from kernels.record import record
from kernels.size import is_symbolic
from kernels.spec import DType

Numbers = Mapping[str, Value]


SIDE_BY_SIDE = 4  # vectors that a long epilogue is computed of at a time
MOST_STEP = 2  # columns from pixel to pixel that code knows where channels lie apart; patches of all sizes share code


@record
class Channels:
    """How a kernel reaches the channels and pixels of an image.

    kind: "blocks" of one vector of channels; "rows": all channels of a pixel side by side; "planes": each channel apart from the
    others; "one": one element serves all channels. pixel: elements from one of a tile's pixels to the next; None where the kernel
    reads that when it runs.
    """

    kind: Literal["blocks", "rows", "planes", "one"]
    pixel: int | None

    @staticmethod
    def of(image: Image, lanes: int, step: int = 1, groups: int = 1) -> Channels:
        """Return how an image's channels lie. step: columns from one pixel of a tile to the next.

        A group of channels may begin inside of a vector where all channels lie side by side. Pixels of blocks have a distance
        that the code knows; one that depends on symbols is read when it runs, as that of rows.
        """
        if image.block == lanes and not (image.contiguous_channels and (groups > 1 or is_symbolic(image.x_stride))):
            return Channels("blocks", image.x_stride * step)
        if image.contiguous_channels:
            return Channels("rows", None)
        if image.one_for_all_channels:
            return Channels("one", None)
        if image.block == 1:
            return Channels("planes", step if image.x_stride == 1 and step <= MOST_STEP else None)
        raise EmitError(f"image: blocks of {image.block} channels, need {lanes}, all of them, or one")

    def __str__(self) -> str:
        return self.kind if self.pixel is None else f"{self.kind}{self.pixel}"


@record
class Results:
    """What decides the code that finishes a tile. pixels × vectors: of the tile. y, operands: how their channels lie."""

    pixels: int
    vectors: int
    y: Channels
    operands: tuple[Channels, ...]
    bias: bool
    expression: Expression

    @staticmethod
    def of(pixels: int, vectors: int, y: Image, epilogue: Epilogue[Image], lanes: int, groups: int = 1) -> Results:
        """Return the code for an output and an epilogue that lie so. Raises EmitError for layouts that cannot be written."""
        into = Channels.of(y, lanes, groups=groups)
        if into.kind not in {"blocks", "rows"}:
            raise EmitError(f"results: y has blocks of {y.block} channels, a tile writes vectors of {lanes}")
        operands = tuple(Channels.of(image, lanes, groups=groups) for image in epilogue.operands)
        if any(each.kind == "planes" for each in operands):
            raise EmitError("epilogue: an operand has its channels apart, need vectors of them or one for all")
        return Results(pixels, vectors, into, operands, epilogue.bias, epilogue.expression)

    @property
    def names(self) -> tuple[str, ...]:
        """The arguments that are written and read: the output, then the operands."""
        return ("y", *(f"r{at}" for at in range(len(self.operands))))

    def buffer_bytes(self, lanes: int) -> int:
        """Return the bytes of scratch memory that a tile which is not whole goes through."""
        return 4 * self.pixels * self.vectors * lanes


def result_numbers(name: str, image: Image, vectors: int, lanes: int, group: int) -> dict[str, int]:
    """Return the numbers that say where an output or operand lies, by name: elements between neighbours of each kind.

    vectors: of a tile's block of channels. group: channels of a group; 0 where there is one group.
    """
    vector = 0 if image.one_for_all_channels else lanes if image.block > lanes else image.block_stride
    return {
        f"{name}_image": image.n_stride, f"{name}_group": image.offset(group) if group else 0,
        f"{name}_block": vectors * vector, f"{name}_vector": vector, f"{name}_row": image.y_stride,
        f"{name}_pixel": image.x_stride,
    }  # fmt: skip


@record
class Spot:
    """Where the output or an operand is written or read: an address, and how far vectors and pixels lie apart there."""

    channels: Channels
    dtype: DType
    address: Value
    vector: Operand
    pixel: Operand

    def move(self, k: Function, elements: Operand) -> Spot:
        """Return the place so many elements further."""
        return replace(self, address=k.offset(self.address, elements, memory_type(self.dtype)))

    def at(self, k: Function, pixel: Operand, vector: Operand) -> Value:
        """Return the address of a vector of a pixel."""
        along = k.coerce(pixel, I64) * self.pixel + k.coerce(vector, I64) * self.vector
        return k.offset(self.address, along, memory_type(self.dtype))

    def load(self, k: Function, pixel: Operand, vector: Operand, lanes: Value | None) -> Value:
        """Read a vector; lanes: how many of it there are, None for all."""
        kind, at = memory_type(self.dtype).by(k.isa.lanes), self.at(k, pixel, vector)
        if self.channels.kind == "one":
            return from_memory(k, k.broadcast(kind, at), self.dtype)
        return from_memory(k, k.load(kind, at) if lanes is None else k.load_first(kind, at, lanes), self.dtype)


Spots = Sequence[Spot]


class ResultsEmitter:
    """Emits the end of tiles. buffer: scratch memory for one tile (`Results.buffer_bytes`)."""

    def __init__(self, k: Function, code: Results, n: Numbers, buffer: Value) -> None:
        self.k, self.code, self.n, self.buffer, self.lanes = k, code, n, buffer, k.isa.lanes
        types = value_types(code.expression)
        self.sums, self.made = memory_type(types[0]).by(k.isa.lanes), types[-1]

    def start(self, pointers: Mapping[str, Value], image: Value, group: Value | None, block: Value) -> Spots:
        """Return where a block of channels of an image is written, and its operands are read."""
        n, dtypes = self.n, (self.made, *self.code.expression.operands[1:])
        spots = []
        for name, channels, dtype in zip(self.code.names, (self.code.y, *self.code.operands), dtypes, strict=True):
            vector = self.k.const(I64, self.lanes) if channels.kind == "rows" else n[f"{name}_vector"]
            pixel = n[f"{name}_pixel"] if channels.pixel is None else self.k.const(I64, channels.pixel)
            at = image * n[f"{name}_image"] + block * n[f"{name}_block"]
            at = at if group is None else at + group * n[f"{name}_group"]
            spots.append(Spot(channels, dtype, pointers[name], vector, pixel).move(self.k, at))
        return spots

    def row(self, to: Spots, row: Value) -> Spots:
        """Return the places of a row."""
        return [spot.move(self.k, row * self.n[f"{name}_row"]) for name, spot in zip(self.code.names, to, strict=True)]

    def column(self, to: Spots, column: Value) -> Spots:
        """Return the places of a pixel of a row."""
        return [spot.move(self.k, column * spot.pixel) for spot in to]

    def finish(self, values: Sequence[Value], to: Spots, pixels: Value, left: Value, first: Value | None = None) -> None:
        """Emit the epilogue and the stores of a tile.

        pixels: how many of it there are. left: channels from its first one on. first: pixels before that one are stored already,
        and are not stored again where an operand, which the output may overwrite, has been read for them.

        A whole tile is finished in registers, unless the epilogue is long. Others go through memory, vector by vector.
        """
        k, code = self.k, self.code
        most = k.const(I64, code.pixels)
        in_rows = any(spot.channels.kind == "rows" for spot in to)  # others have memory for all lanes of a block
        some_lanes = left if in_rows else (left + (self.lanes - 1)) // self.lanes * self.lanes
        whole = k.compare("ge", some_lanes, code.vectors * self.lanes)
        begin = first if first is not None and code.operands else k.const(I64, 0)
        if not is_long(code.expression):
            whole = whole & k.compare("eq", pixels - begin, most)
        with k.either(whole, "whole") as otherwise:
            if is_long(code.expression):
                self.finish_part(values, to, (begin, pixels), None)
            else:
                self.finish_whole(values, to)
            otherwise()
            self.finish_part(values, to, (begin, pixels), left)

    def finish_whole(self, values: Sequence[Value], to: Spots) -> None:
        """Emit the end of a tile that is whole."""
        if is_long(self.code.expression):
            self.finish_part(values, to, (self.k.const(I64, 0), self.k.const(I64, self.code.pixels)), None)
            return
        for at, value in enumerate(values):
            self.store(value, to, *divmod(at, self.code.vectors))

    def finish_part(self, values: Sequence[Value], to: Spots, pixels: tuple[Value, Value], left: Value | None) -> None:
        """Emit a loop that finishes the vectors of some pixels. left: channels from the first one on, None for whole vectors."""
        k, code = self.k, self.code
        for number, value in enumerate(values):
            k.store(value, self.buffer, number * self.lanes)
        if left is None:
            self._finish_whole_pixels(to, *pixels)
            return
        with k.loop("part.pixel", *pixels) as p:
            mine = k.offset(self.buffer, p * (code.vectors * self.lanes))
            with k.loop("part.vector", 0, self._vectors(left)) as vector:
                start = vector * self.lanes
                self.store(k.load(self.sums, mine, start), to, p, vector, k.least(left - start, k.const(I64, self.lanes)))

    def _finish_whole_pixels(self, to: Spots, first: Value, last: Value) -> None:
        """Emit loops that finish all vectors of some pixels, several side by side: one alone would wait for its own results."""
        k, vectors = self.k, self.code.vectors
        for count in dict.fromkeys((-(-SIDE_BY_SIDE // vectors), 1)):
            stop = first + (last - first) // count * count
            if stop.known is not None and stop.known == first.known:
                continue
            with k.loop("part.pixels", first, stop, count) as p:
                mine = k.offset(self.buffer, p * (vectors * self.lanes))
                for at in range(count * vectors):
                    self.store(k.load(self.sums, mine, at * self.lanes), to, p + at // vectors, at % vectors)
            first = stop

    def _vectors(self, left: Value) -> Value:
        return self.k.least((left + (self.lanes - 1)) // self.lanes, self.k.const(I64, self.code.vectors))

    def store(self, value: Value, to: Spots, pixel: Operand, vector: Operand, lanes: Value | None = None) -> None:
        """Apply the epilogue to one vector and store it. lanes: how many of it there are; None for all."""
        k, (y, *operands) = self.k, to
        loads = [partial(spot.load, k, pixel, vector, lanes) for spot in operands]
        result = to_memory(k, evaluate(k, self.code.expression, [lambda: value, *loads], self.lanes), self.made)
        if lanes is None or y.channels.kind == "blocks":  # a block has memory for all of its lanes
            k.store(result, y.at(k, pixel, vector))
        else:
            k.store_first(result, y.at(k, pixel, vector), lanes)
