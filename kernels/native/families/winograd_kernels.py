"""The kernels of Winograd convolutions (`winograd` says what is computed and how it is cut up). The work has three phases:

    input    x → V[point][block of channels][tile][lanes]             all channels of a tile; zeros where the image ends
    multiply V, U → M[point][tile][vector][lanes]                     P tiles × V vectors of accumulators, over all channels
    output   M → y                                                    a vector of channels of a tile; clipped where the image ends

Lanes of V after the last channel are undefined; `multiply` reads single channels and never those. Fused, a chunk is
a group: it transforms the group, then for each block of V output vectors multiplies all points and writes the outputs, V and M
being scratch that stays in L2, while weights are read once a group. That wants weights near L2's size, or many tiles to a group.
Split, the phases are three kernels with V and M of all groups between them, and a chunk of `multiply` is a few points of one
block: every weight is read once by one thread. That wants few tiles, or V and M are more traffic than the weights were.

Distances between points are odd numbers of vectors, or the t² vectors of a tile would meet in few sets of the cache.

Packed weights U: [block of V vectors][point][input channel][V·lanes] where fused, [point][block]… where split: always in the
order in which they are read, so that the next block is prefetched while one is used. Transformed in float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from kernels.native.emit.builder import Function, Value
from kernels.native.emit.epilogue import Epilogue, Places, Result, check_images
from kernels.native.emit.geometry import Block, channel_blocks, maybe
from kernels.native.emit.kernel import SCRATCH, NativeKernel, emitted, kernel_name
from kernels.native.emit.names import name_epilogue, name_layouts
from kernels.native.emit.product import LINE_ELEMENTS
from kernels.native.emit.types import I64
from kernels.native.errors import EmitError
from kernels.native.families.winograd import (
    CHUNKS,
    POINTS,
    WEIGHTS_IN_L2_BYTES,
    Buffers,
    Winograd,
    WinogradTile,
    even_spans,
    fault,
    transforms,
)
from kernels.native.memory.buffers import aligned
from kernels.native.memory.image import Image
from kernels.native.target.isa import Isa
from kernels.spec import Array

CHUNK_MACS = 512 << 10  # least of a chunk of products: 4 µs
TURN_CHANNELS = 16  # unrolled at least in the innermost loop


def pack_winograd(winograd: Winograd, tile: WinogradTile, isa: Isa, weights: Array) -> Array:
    """Transform weights (outputs, inputs, 3, 3) and pack them in the order in which the kernel reads them; tails are 0."""
    _, g, _ = transforms(winograd.unit)
    both = np.kron(g, g)  # what makes all points of a kernel's nine weights
    points, inputs, lanes = winograd.points, weights.shape[1], isa.lanes
    memory, at = aligned(4 * points * inputs * lanes * winograd.conv.output_vectors(lanes)).view(np.float32), 0
    for block in channel_blocks(winograd.conv.y.channels, tile.vectors, lanes):
        size = block.vectors * lanes
        taps, made = np.zeros((inputs * both.shape[1], size)), np.empty((inputs, points, size))
        for number in range(block.count):
            rows = weights[block.first * tile.vectors * lanes + number * size :][:size]
            taps[:, : len(rows)] = rows.reshape(len(rows), -1).T
            np.matmul(both, taps.reshape(inputs, -1, size), out=made)  # a small product per channel, from cache to cache
            whole, end = memory.reshape(points, -1), at + inputs * size
            place = memory[points * at : points * end] if tile.fused else whole[:, at:end]
            place.reshape(points, inputs, size)[:] = made.transpose(1, 0, 2)
            at = end
    return memory


def emit_winograd(winograd: Winograd, tile: WinogradTile, epilogue: Epilogue[Image], isa: Isa) -> tuple[NativeKernel, ...]:
    """Emit the kernel, or the three that run one after another. Raises EmitError for other convolutions and layouts.

    Arguments are "x", "w" (pack_winograd's), "b" (pack_bias's), "y", those of the epilogue and "scratch"; in the split form also
    "v" and "m", memory of winograd_cost's sizes that the first and second kernel fill for the next.
    """
    _check(winograd, epilogue, isa)
    emitter = _Emitter(winograd, tile, epilogue, isa)
    return (emitter.fused(),) if tile.fused else (emitter.input(), emitter.multiply(), emitter.output())


def _check(winograd: Winograd, epilogue: Epilogue[Image], isa: Isa) -> None:
    if winograd.unit not in POINTS:
        raise EmitError(f"winograd: unit is {winograd.unit}, need one of {sorted(POINTS)}")
    if reason := fault(winograd.conv, isa):
        raise EmitError(f"winograd: {reason}")
    check_images(epilogue, isa.lanes)
    for n, image in enumerate(epilogue.operands):
        if image.block > isa.lanes and not image.contiguous_channels:
            raise EmitError(f"winograd: operand {n} has blocks of {image.block} channels, need {isa.lanes}, all or one for all")


class _Emitter:
    """Emits the phases, and the kernels made of them."""

    def __init__(self, winograd: Winograd, tile: WinogradTile, epilogue: Epilogue[Image], isa: Isa) -> None:
        self.winograd, self.tile, self.epilogue, self.isa = winograd, tile, epilogue, isa
        self.conv, self.lanes, self.shape = winograd.conv, isa.lanes, Buffers(winograd, tile, isa)
        self.b, _, self.a = transforms(winograd.unit)
        self.run = -(-winograd.tiles // CHUNKS)  # tiles of a chunk of the split form's transforms
        block_macs = tile.group * tile.vectors * isa.lanes * self.conv.x.channels
        weight_bytes = 4 * winograd.points * self.conv.x.channels * self.conv.y.channels
        self.spans = -(-tile.group // tile.pixels)
        self.step = max(1, TURN_CHANNELS // isa.lanes)  # blocks of channels in a turn of the innermost loop
        # cache lines that each turn asks for of the weights behind those of its point
        self.ahead = -(-self.step * isa.lanes * tile.vectors // self.spans) if weight_bytes > WEIGHTS_IN_L2_BYTES else 0
        self.point_run = min(winograd.points, -(-CHUNK_MACS // block_macs))
        self.point_runs = -(-winograd.points // self.point_run)

    def fused(self) -> NativeKernel:
        """Return the fused kernel, whose chunk is a group with all its phases."""
        shape = self.shape

        def body(k: Function, given: Mapping[str, Value], begin: Value, end: Value) -> None:
            m = k.offset(given[SCRATCH], shape.v_group)
            zeros = k.offset(m, shape.m_block)
            k.store(k.zero(k.f32), zeros)
            with k.loop("chunk", begin, end) as group:
                v, first = given[SCRATCH], group * self.tile.group
                stop = self._end(k, first, self.tile.group)
                with k.loop("tile", first, stop) as number:
                    self._input(k, number, given["x"], k.offset(v, (number - first) * self.lanes), zeros)
                for block in shape.blocks:
                    with k.loop("block", block.first, block.first + block.count) as n:
                        with k.loop("point", 0, self.winograd.points) as point:
                            self._multiply(k, block, n, point, v, given["w"], m)
                        with k.loop("tile", first, stop) as number:
                            at = k.offset(m, (number - first) * (block.vectors * self.lanes))
                            self._output(k, block, n, number, at, given["b"], self._places(given))

        return self._kernel(
            "fused",
            (self.epilogue,),
            ("x", "w", "b", *self.epilogue.arguments, "y", SCRATCH),
            shape.groups,
            4 * (shape.v_group + shape.m_block + self.lanes),
            body=body,
        )

    def input(self) -> NativeKernel:
        """Return the kernel of the input phase, whose chunk is a run of tiles."""

        def body(k: Function, given: Mapping[str, Value], begin: Value, end: Value) -> None:
            k.store(k.zero(k.f32), given[SCRATCH])
            with k.loop("chunk", begin, end) as chunk:
                first = chunk * self.run
                with k.loop("tile", first, self._end(k, first, self.run)) as number:
                    group, place = number // self.tile.group, number % self.tile.group
                    at = k.offset(given["v"], group * self.shape.v_group + place * self.lanes)
                    self._input(k, number, given["x"], at, given[SCRATCH])

        return self._kernel("input", (), ("x", "v", SCRATCH), -(-self.winograd.tiles // self.run), 4 * self.lanes, body=body)

    def multiply(self) -> NativeKernel:
        """Return the kernel of the products, whose chunk is a few points of a block of a group; consecutive chunks share V."""
        shape, points = self.shape, self.winograd.points

        def body(k: Function, given: Mapping[str, Value], begin: Value, end: Value) -> None:
            with k.loop("chunk", begin, end) as chunk:
                n, rest = chunk % shape.block_count, chunk // shape.block_count
                first, group = rest % self.point_runs * self.point_run, rest // self.point_runs
                stop = first + self.point_run
                if points % self.point_run:
                    stop = k.select(stop < points, stop, k.const(I64, points))
                v = k.offset(given["v"], group * shape.v_group)
                m = k.offset(given["m"], (group * shape.block_count + n) * shape.m_block)
                for block in shape.blocks:
                    with maybe(k, block.chosen_by(n, shape.blocks)), k.loop("point", first, stop) as point:
                        self._multiply(k, block, n, point, v, given["w"], m)

        return self._kernel("multiply", (), ("v", "w", "m"), shape.groups * self.point_runs * shape.block_count, body=body)

    def output(self) -> NativeKernel:
        """Return the kernel of the output phase, whose chunk is a run of tiles in all channels."""
        shape = self.shape

        def body(k: Function, given: Mapping[str, Value], begin: Value, end: Value) -> None:
            with k.loop("chunk", begin, end) as chunk:
                first = chunk * self.run
                with k.loop("tile", first, self._end(k, first, self.run)) as number:
                    group, place = number // self.tile.group, number % self.tile.group
                    for block in shape.blocks:
                        with k.loop("block", block.first, block.first + block.count) as n:
                            at = (group * shape.block_count + n) * shape.m_block + place * (block.vectors * self.lanes)
                            self._output(k, block, n, number, k.offset(given["m"], at), given["b"], self._places(given))

        return self._kernel(
            "output", (self.epilogue,), ("m", "b", *self.epilogue.arguments, "y"), -(-self.winograd.tiles // self.run), body=body
        )

    def _kernel(
        self,
        phase: str,
        key: tuple[Epilogue[Image], ...],
        names: tuple[str, ...],
        chunks: int,
        scratch_bytes: int = 0,
        *,
        body: Callable[[Function, Mapping[str, Value], Value, Value], None],
    ) -> NativeKernel:
        """The kernel of a phase, or of all of them. body: takes the builder, the pointers by name, and the chunks of a call."""
        stem = f"f32_winograd{self.winograd.unit}_{phase}_{self.tile.pixels}x{self.tile.vectors * self.lanes}"

        def filled(k: Function, values: list[Value]) -> None:
            *pointers, begin, end = values
            body(k, dict(zip(names, pointers, strict=True)), begin, end)

        words = [name_layouts(self.conv.x, self.conv.y), *(word for epilogue in key for word in name_epilogue(epilogue))]
        name = kernel_name(stem, (self.winograd, self.tile, key), self.isa, words)
        return emitted(self.isa, name, names, chunks, filled, scratch_bytes)

    def _places(self, given: Mapping[str, Value]) -> Places:
        return Places.of(self.conv.y, self.epilogue, given["y"], [given[name] for name in self.epilogue.arguments])

    def _end(self, k: Function, first: Value, count: int) -> Value:
        """Emit the end of a run of `count` tiles from `first`; the last run may be shorter."""
        stop, tiles = first + count, self.winograd.tiles
        return k.select(stop < tiles, stop, k.const(I64, tiles)) if tiles % count else stop

    def _split(self, number: Value) -> tuple[Value, Value, Value]:
        """Image, row and column of a tile."""
        rows, columns = self.winograd.rows, self.winograd.columns
        return number // (rows * columns), number // columns % rows, number % columns

    def _input(self, k: Function, number: Value, x: Value, v: Value, zeros: Value) -> None:
        """Transform all channels of a tile. v: where its first vector goes. zeros: a vector of them."""
        conv, unit, size = self.conv, self.winograd.unit, self.winograd.size
        n, row, column = self._split(number)
        top, left = row * unit - conv.top, column * unit - conv.left
        at = k.offset(x, n * conv.x.n_stride + top * conv.x.y_stride + left * conv.x.x_stride)
        lines = [(top + i >= 0) & (top + i < conv.x.height) for i in range(size)]
        columns = [(left + i >= 0) & (left + i < conv.x.width) for i in range(size)]
        inside = lines[0] & lines[-1] & columns[0] & columns[-1]
        with k.when(inside, "inside"), k.loop("channels", 0, conv.x.blocks) as block:
            here = k.offset(at, block * conv.x.block_stride)
            self._transform_input(k, k.offset(v, block * (self.tile.group * self.lanes)), lambda i, j: self._pixel(k, here, i, j))
        with k.when(inside ^ 1, "border"), k.loop("channels", 0, conv.x.blocks) as block:
            there = k.offset(at, block * conv.x.block_stride)
            self._transform_input(
                k,
                k.offset(v, block * (self.tile.group * self.lanes)),
                lambda i, j: k.select(lines[i] & columns[j], self._pixel(k, there, i, j), zeros),
            )

    def _pixel(self, k: Function, at: Value, row: int, column: int) -> Value:
        return k.offset(at, row * self.conv.x.y_stride + column * self.conv.x.x_stride)

    def _transform_input(self, k: Function, v: Value, pixel: Callable[[int, int], Value]) -> None:
        """Bᵀ x B of one vector of channels; pixel: address of one of the tile."""
        size = self.winograd.size
        columns = [linear(k, self.b, [k.load(k.f32, pixel(i, j)) for i in range(size)]) for j in range(size)]
        for i in range(size):
            for j, value in enumerate(linear(k, self.b, [column[i] for column in columns])):
                k.store(value, v, (i * size + j) * self.shape.v_point)

    def _multiply(self, k: Function, block: Block, n: Value, point: Value, v: Value, w: Value, m: Value) -> None:
        """One point of a group: V · U of one block of outputs. v, m: of the group and of the block in it."""
        inputs, wide, lanes = self.conv.x.channels, block.vectors * self.lanes, self.lanes
        v, m = k.offset(v, point * self.shape.v_point), k.offset(m, point * self.shape.m_point)
        if self.tile.fused:
            before = n * (self.winograd.points * inputs * self.tile.vectors * lanes) + point * (inputs * wide)
        else:
            before = point * (inputs * self.shape.outputs) + n * (inputs * self.tile.vectors * lanes)
        w, number = k.offset(w, before), 0
        for first, pieces, pixels in even_spans(self.tile.group, self.tile.pixels):
            with k.loop("span", 0, pieces) as piece:
                tile = piece * pixels + first
                share = self.ahead * LINE_ELEMENTS * (inputs // (self.step * lanes))
                ahead = k.offset(w, (piece + number) * share + inputs * wide)
                values = self._products(k, block.vectors, pixels, k.offset(v, tile * lanes), w, ahead)
                to = k.offset(m, tile * wide)
                for at, value in enumerate(values):
                    k.store(value, to, at * lanes)
            number += pieces

    def _products(self, k: Function, vectors: int, pixels: int, v: Value, w: Value, ahead: Value) -> list[Value]:
        """A register tile over all channels, some blocks of them unrolled. ahead: weights to ask for."""
        lanes, per_block = self.lanes, self.tile.group * self.lanes
        channels = self.step * lanes
        turns, rest = divmod(self.conv.x.channels, channels)
        values, wide = [k.zero(k.f32)] * (pixels * vectors), vectors * lanes
        if turns:
            with k.fold("c", 0, turns, 1, values) as fold:
                at, weights = k.offset(v, fold.index * (self.step * per_block)), k.offset(w, fold.index * (channels * wide))
                coming = k.offset(ahead, fold.index * (self.ahead * LINE_ELEMENTS))
                fold.values = self._unrolled(k, vectors, pixels, channels, at, weights, fold.values, coming)
            values = fold.values
        if rest:
            at, weights = k.offset(v, turns * self.step * per_block), k.offset(w, turns * channels * wide)
            values = self._unrolled(k, vectors, pixels, rest, at, weights, values, None)
        return values

    def _unrolled(
        self, k: Function, vectors: int, pixels: int, channels: int, v: Value, w: Value, values: list[Value], ahead: Value | None
    ) -> list[Value]:
        """The multiply–adds themselves."""
        values, lanes = list(values), self.lanes
        for c in range(channels):
            if ahead is not None:
                for line in range(self.ahead * c // channels, self.ahead * (c + 1) // channels):
                    k.prefetch(ahead, line * LINE_ELEMENTS)
            weights = [k.load(k.f32, w, (c * vectors + n) * lanes) for n in range(vectors)]
            for p in range(pixels):
                scalar = k.broadcast(k.f32, v, (c // lanes * self.tile.group + p) * lanes + c % lanes)
                for n in range(vectors):
                    values[p * vectors + n] = k.fma(scalar, weights[n], values[p * vectors + n])
        return values

    def _output(self, k: Function, block: Block, n: Value, number: Value, m: Value, b: Value, to: Places) -> None:
        """Write a tile in one block of channels. m: its first vector of point 0."""
        unit, per_block = self.winograd.unit, self.tile.vectors
        image, row, column = self._split(number)
        to = to.move(k, lambda y: image * y.n_stride + row * (unit * y.y_stride) + column * (unit * y.x_stride))
        b = k.offset(b, n * (per_block * self.lanes))
        whole = block.vectors - (block.tail < self.lanes)
        if whole:
            with k.loop("vector", 0, whole) as vector:
                self._vector(k, n * per_block + vector, vector, self.lanes, row, column, m, b, to)
        if block.tail < self.lanes:
            last = k.const(I64, whole)
            self._vector(k, n * per_block + whole, last, block.tail, row, column, m, b, to)

    def _vector(
        self, k: Function, block: Value, vector: Value, lanes: int, row: Value, column: Value, m: Value, b: Value, to: Places
    ) -> None:
        """Aᵀ M A of one vector of channels, finished and written. lanes: those the epilogue's operands have."""
        conv, unit, size = self.conv, self.winograd.unit, self.winograd.size
        m, to = k.offset(m, vector * self.lanes), to.move(k, lambda image: block * _block_stride(image, self.lanes))
        bias = k.load(k.f32, b, vector * self.lanes) if self.epilogue.bias else None
        at = [[k.load(k.f32, m, (i * size + j) * self.shape.m_point) for i in range(size)] for j in range(size)]
        columns = [linear(k, self.a, column) for column in at]
        lines, last_row = conv.y.height % unit or unit, row < self.winograd.rows - 1
        for i in range(unit):
            values = linear(k, self.a, [column[i] for column in columns])
            if bias is not None:
                values = [value + bias for value in values]
            with maybe(k, None if i < lines else last_row):
                self._line(k, i, values, column, lanes, to)

    def _line(self, k: Function, i: int, values: Sequence[Value], column: Value, lanes: int, to: Places) -> None:
        """Store a row of a tile: all of it, or in the last column of tiles what of it lies inside the image."""
        unit, last = self.winograd.unit, self.winograd.columns - 1
        inside = self.conv.y.width % unit or unit
        results = [Result(value, _pixel_at(i, j), lanes, self.lanes) for j, value in enumerate(values)]
        to.store(k, self.epilogue, results[:inside])
        if inside < unit and last:
            with k.when(column < last):
                to.store(k, self.epilogue, results[inside:])


def _pixel_at(row: int, column: int) -> Callable[[Image], int]:
    return lambda image: row * image.y_stride + column * image.x_stride


def _block_stride(image: Image, lanes: int) -> int:
    """Elements from one vector of channels to the next."""
    if image.block == 1 and image.block_stride == 0:
        return 0
    return lanes if image.contiguous_channels and image.block > lanes else image.block_stride


def linear(k: Function, matrix: Array, values: Sequence[Value]) -> list[Value]:
    """matrix · values, with few instructions: rows, or columns, that differ in signs alone share what they have in common."""
    rows, columns = matrix.shape
    out: dict[int, Value] = {}
    for n in range(rows - 1):
        even, odd = (matrix[n] + matrix[n + 1]) / 2, (matrix[n] - matrix[n + 1]) / 2
        if n in out or not even.any() or not odd.any() or (even * odd).any():
            continue
        scale = float(odd[np.flatnonzero(odd)[-1]])
        left, right = combine(k, even, values), combine(k, odd / scale, values)
        out[n], out[n + 1] = combine(k, (1, scale), (left, right)), combine(k, (1, -scale), (left, right))
    if out:
        return [out[n] if n in out else combine(k, matrix[n], values) for n in range(rows)]
    terms, weights = list(values), matrix.copy()
    for n in range(columns - 1):
        a, b = matrix[:, n], matrix[:, n + 1]
        if (np.abs(a) == np.abs(b)).all() and (a == b).any() and (a != b).any():
            terms[n], terms[n + 1] = values[n] + values[n + 1], values[n] - values[n + 1]
            weights[:, n], weights[:, n + 1] = (a + b) / 2, (a - b) / 2
    return [combine(k, row, terms) for row in weights]


def combine(k: Function, weights: Sequence[float] | Array, values: Sequence[Value]) -> Value:
    """Emit the weighted sum of values, those of weight 1 first."""
    terms = [(float(weight), value) for weight, value in zip(weights, values, strict=True) if weight]
    (weight, value), *rest = sorted(terms, key=lambda term: term[0] != 1)
    total = value if weight == 1 else value * weight
    for weight, value in rest:
        total = total + value if weight == 1 else total - value if weight == -1 else k.fma(value, weight, total)
    return total
