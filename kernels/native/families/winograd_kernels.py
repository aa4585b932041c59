"""The kernels of Winograd convolutions (`winograd` says what is computed and how it is cut up). The work has three phases:

    input    x → V[point][block of channels][tile][lanes]             all channels of a tile; zeros where the image ends
    multiply V, U → M[point][tile][vector][lanes]                     P tiles × V vectors of accumulators, over all channels
    output   M → y                                                    a vector of channels of a tile; clipped where the image ends

Lanes of V after the last channel are undefined; `multiply` reads single channels and never those. Fused, a chunk is
a group: it transforms the group, then for each block of V output vectors multiplies all points and writes the outputs, V and M
being scratch that stays in L2, while weights are read once a group. That wants weights near L2's size, or many tiles to a group.
Split, the phases are three kernels with V and M of all groups between them, and a chunk of `multiply` is a few points of one
block: every weight is read once by one thread. That wants few tiles, or V and M are more traffic than the weights were.

What decides the code is the unit, the register tile, how channels lie, and the epilogue; all else is numbers (`winograd_phases`
has the code). Groups have memory for whole register tiles, and the last block of outputs is computed whole.

Distances between points are odd numbers of vectors, or the t² vectors of a tile would meet in few sets of the cache.

Packed weights U: [block of V vectors][point][input channel][V·lanes] where fused, [point][block]… where split: always in the
order in which they are read, so that the next block is prefetched while one is used. The last block is filled up with zeros.
Transformed in float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from kernels.expression import FLOAT
from kernels.native.emit.builder import Function, Value
from kernels.native.emit.epilogue import Epilogue
from kernels.native.emit.kernel import SCRATCH, Bounds, NativeKernel, emitted, kernel_name
from kernels.native.emit.names import name_epilogue, name_layouts
from kernels.native.emit.results import Numbers, Results, result_numbers
from kernels.native.errors import EmitError
from kernels.native.families.winograd import (
    CHUNKS,
    POINTS,
    WEIGHTS_IN_L2_BYTES,
    Buffers,
    Winograd,
    WinogradTile,
    fault,
    transforms,
)
from kernels.native.families.winograd_phases import InputEmitter, OutputEmitter, ProductEmitter, row_elements, walk_tiles
from kernels.native.memory.buffers import aligned
from kernels.native.memory.image import Image
from kernels.native.target.isa import Isa
from kernels.size import hint
from kernels.spec import Array, DType

CHUNK_MACS = 512 << 10  # least of a chunk of products: 4 µs
Body = Callable[[Function, Mapping[str, Value], Numbers, Bounds], None]


def pack_winograd(winograd: Winograd, tile: WinogradTile, isa: Isa, weights: Array) -> Array:
    """Transform weights (outputs, inputs, 3, 3) and pack them in the order in which the kernel reads them; tails are 0."""
    _, g, _ = transforms(winograd.unit)
    both = np.kron(g, g)  # what makes all points of a kernel's nine weights
    points, inputs, size = winograd.points, weights.shape[1], tile.vectors * isa.lanes
    blocks = winograd.conv.output_blocks(tile.vectors, isa.lanes)
    packed = aligned(4 * blocks * points * inputs * size).view(np.float32)
    places = packed.reshape((blocks, points, inputs, size) if tile.fused else (points, blocks, inputs, size))
    made = np.empty((inputs, points, size))
    for number in range(blocks):
        rows, taps = weights[number * size :][:size], np.zeros((inputs * both.shape[1], size))
        taps[:, : len(rows)] = rows.reshape(len(rows), -1).T
        np.matmul(both, taps.reshape(inputs, -1, size), out=made)  # a small product per channel, from cache to cache
        (places[number] if tile.fused else places[:, number])[:] = made.transpose(1, 0, 2)
    return packed


def emit_winograd(winograd: Winograd, tile: WinogradTile, epilogue: Epilogue[Image], isa: Isa) -> tuple[NativeKernel, ...]:
    """Return the kernel, or the three that run one after another. Raises EmitError for other convolutions and layouts.

    Arguments are "x", "w" (pack_winograd's), "b" (pack_bias's), "y", those of the epilogue and "scratch"; in the split form also
    "v" and "m", memory of winograd_cost's sizes that the first and second kernel fill for the next.
    """
    if winograd.unit not in POINTS:
        raise EmitError(f"winograd: unit is {winograd.unit}, need one of {sorted(POINTS)}")
    if reason := fault(winograd.conv, isa):
        raise EmitError(f"winograd: {reason}")
    epilogue.require("winograd", FLOAT)
    kernels = _Kernels(winograd, tile, epilogue, isa)
    return (kernels.fused(),) if tile.fused else (kernels.input(), kernels.multiply(), kernels.output())


class _Kernels:
    """The kernels of a convolution: what decides their code, and the numbers that it reads."""

    def __init__(self, winograd: Winograd, tile: WinogradTile, epilogue: Epilogue[Image], isa: Isa) -> None:
        self.winograd, self.tile, self.epilogue, self.isa, self.lanes = winograd, tile, epilogue, isa, isa.lanes
        self.shape = Buffers(winograd, tile, isa)
        self.pixel, self.dtype = winograd.conv.x.x_stride, winograd.conv.words.x
        self.results = Results.of(winograd.unit, 1, winograd.conv.y, epilogue, isa.lanes)
        self.run = -(-hint(winograd.tiles) // CHUNKS)  # tiles of a chunk of the split form's transforms
        self.square = winograd.points * isa.lanes  # elements

    def fused(self) -> NativeKernel:
        """Return the fused kernel, whose chunk is a group with all its phases."""
        unit, tile, lanes = self.winograd.unit, self.tile, self.lanes
        pixel, dtype, results, shape, square = self.pixel, self.dtype, self.results, self.shape, self.square
        buffer, row = results.buffer_bytes(lanes) // 4, row_elements(unit, pixel, lanes)

        def body(k: Function, given: Mapping[str, Value], n: Numbers, chunks: Bounds) -> None:
            zeros = k.offset(given[SCRATCH], buffer)
            room = k.offset(zeros, row)
            v = k.offset(room, square)
            m = k.offset(v, n["v_group"])
            inputs, products = (
                InputEmitter(k, dtype, unit, pixel, n, zeros, room, far=False),
                ProductEmitter(k, tile.pixels, tile.vectors, n),
            )
            outputs = OutputEmitter(k, unit, results, n, given, room)
            inputs.start()
            with k.loop("chunk", *chunks) as group:
                first = group * n["group"]
                stop = k.least(first + n["group"], n["tiles"])
                with walk_tiles(k, n, first, stop) as at:
                    inputs.tile(at, given["x"], k.offset(v, (at.number - first) * lanes))
                spans = products.cut(stop - first)
                with k.loop("block", 0, n["blocks"]) as block:
                    w = k.offset(given["w"], block * n["w_block"])
                    with k.loop("point", 0, (unit + 2) ** 2) as point:
                        here, to = k.offset(v, point * n["v_point"]), k.offset(m, point * n["m_point"])
                        products.point(spans, here, k.offset(w, point * n["w_point"]), to)
                    with walk_tiles(k, n, first, stop) as at:
                        outputs.tile(at, block, k.offset(m, (at.number - first) * (tile.vectors * lanes)))

        return self._kernel(
            f"f32_winograd{unit}_fused_{tile.pixels}x{tile.vectors * lanes}",
            (unit, tile.pixels, tile.vectors, pixel, results, *self._reads),
            ("x", "w", "b", *self.epilogue.arguments, "y", SCRATCH),
            shape.groups,
            self._of_tiles() | self._of_input() | self._of_products() | self._of_output(),
            body,
            4 * (buffer + row + square + shape.v_group + shape.m_block),
        )

    def input(self) -> NativeKernel:
        """Return the kernel of the input phase, whose chunk is a run of tiles."""
        unit, pixel, dtype, lanes = self.winograd.unit, self.pixel, self.dtype, self.lanes
        row = row_elements(unit, pixel, lanes)

        def body(k: Function, given: Mapping[str, Value], n: Numbers, chunks: Bounds) -> None:
            inputs = InputEmitter(k, dtype, unit, pixel, n, given[SCRATCH], k.offset(given[SCRATCH], row), far=True)
            inputs.start()
            with walk_tiles(k, n, *_run(k, n, chunks)) as tile:
                group, place = tile.number // n["group"], tile.number % n["group"]
                inputs.tile(tile, given["x"], k.offset(given["v"], group * n["v_group"] + place * lanes))

        numbers, scratch_bytes = self._of_tiles() | self._of_input(), 4 * (row + self.square)
        return self._kernel(
            f"f32_winograd{unit}_input",
            (unit, pixel, *self._reads),
            ("x", "v", SCRATCH),
            self._runs,
            numbers,
            body,
            scratch_bytes,
        )

    def multiply(self) -> NativeKernel:
        """Return the kernel of the products, whose chunk is a few points of a block of a group; consecutive chunks share V.

        One kernel serves all units.
        """
        points, shape, tile = self.winograd.points, self.shape, self.tile
        block_macs = tile.group * tile.vectors * self.lanes * self.winograd.conv.x.channels
        point_run = min(points, -(-CHUNK_MACS // block_macs))
        point_runs = -(-points // point_run)

        def body(k: Function, given: Mapping[str, Value], n: Numbers, chunks: Bounds) -> None:
            products = ProductEmitter(k, tile.pixels, tile.vectors, n)
            with k.loop("chunk", *chunks) as chunk:
                block, rest = chunk % n["blocks"], chunk // n["blocks"]
                first, group = rest % n["point_runs"] * n["point_run"], rest // n["point_runs"]
                spans = products.cut(k.least(n["tiles"] - group * n["group"], n["group"]))
                v, w = k.offset(given["v"], group * n["v_group"]), k.offset(given["w"], block * n["w_block"])
                m = k.offset(given["m"], (group * n["blocks"] + block) * n["m_block"])
                with k.loop("point", first, k.least(first + n["point_run"], n["points"])) as point:
                    here, to = k.offset(v, point * n["v_point"]), k.offset(m, point * n["m_point"])
                    products.point(spans, here, k.offset(w, point * n["w_point"]), to)

        numbers = {"points": points, "point_run": point_run, "point_runs": point_runs} | self._of_tiles() | self._of_products()
        stem, code = f"f32_winograd_multiply_{tile.pixels}x{tile.vectors * self.lanes}", (tile.pixels, tile.vectors)
        return self._kernel(stem, code, ("v", "w", "m"), shape.groups * point_runs * shape.blocks, numbers, body)

    def output(self) -> NativeKernel:
        """Return the kernel of the output phase, whose chunk is a run of tiles in all channels."""
        unit, results, lanes = self.winograd.unit, self.results, self.lanes

        def body(k: Function, given: Mapping[str, Value], n: Numbers, chunks: Bounds) -> None:
            outputs = OutputEmitter(k, unit, results, n, given, k.offset(given[SCRATCH], results.buffer_bytes(lanes) // 4))
            with walk_tiles(k, n, *_run(k, n, chunks)) as tile, k.loop("block", 0, n["blocks"]) as block:
                group, place = tile.number // n["group"], tile.number % n["group"]
                at = (group * n["blocks"] + block) * n["m_block"] + place * (n["block_vectors"] * lanes)
                outputs.tile(tile, block, k.offset(given["m"], at))

        names = ("m", "b", *self.epilogue.arguments, "y", SCRATCH)
        numbers, scratch_bytes = self._of_tiles() | self._of_output(), results.buffer_bytes(lanes) + 4 * self.square
        return self._kernel(f"f32_winograd{unit}_output", (unit, results), names, self._runs, numbers, body, scratch_bytes)

    @property
    def _reads(self) -> tuple[DType, ...]:
        """What the type of x adds to what decides the code: nothing where it is float32."""
        return () if self.dtype == FLOAT else (self.dtype,)

    @property
    def _runs(self) -> int:
        return -(-self.winograd.tiles // self.run)

    def _kernel(
        self,
        stem: str,
        code: tuple[object, ...],
        arguments: tuple[str, ...],
        chunks: int,
        numbers: Mapping[str, int],
        body: Body,
        scratch_bytes: int = 0,
    ) -> NativeKernel:
        """The kernel of a phase, or of all of them. code: all that decides its code."""
        words = [name_layouts(self.winograd.conv.x, self.winograd.conv.y)] if "x" in arguments else []
        words += [*name_epilogue(self.epilogue)] if "y" in arguments else []
        name = kernel_name(stem, (stem, *code), self.isa, words)
        return emitted(self.isa, name, arguments, chunks, body, numbers, scratch_bytes=scratch_bytes)

    # Numbers, by name. Elements, where nothing else is said.

    def _of_tiles(self) -> dict[str, int]:
        """tiles, rows, columns: of tiles, of all images and of one. group, run: tiles of a group, and of a chunk of a transform.

        blocks: of outputs. v_group, m_block: from one group of V and block of M to the next.
        """
        winograd, shape = self.winograd, self.shape
        return {
            "tiles": winograd.tiles, "rows": winograd.rows, "columns": winograd.columns, "group": self.tile.group,
            "run": self.run, "blocks": shape.blocks, "v_group": shape.v_group, "m_block": shape.m_block,
            "v_point": shape.v_point, "v_block": shape.v_block, "m_point": shape.m_point,
        }  # fmt: skip

    def _of_input(self) -> dict[str, int]:
        conv = self.winograd.conv
        return {
            "x_image": conv.x.n_stride, "x_block": conv.x.block_stride, "x_row": conv.x.y_stride, "x_blocks": conv.x.blocks,
            "x_height": conv.x.height, "x_width": conv.x.width, "top": conv.top, "left": conv.left,
        }  # fmt: skip

    def _of_products(self) -> dict[str, int]:
        """w_point, w_block: from one point of the weights, and from one block, to the next; others are `ProductEmitter`'s."""
        inputs, outputs = self.winograd.conv.x.channels, self.winograd.conv.y.channels
        block = inputs * self.tile.vectors * self.lanes
        fetched = 4 * self.winograd.points * inputs * outputs > WEIGHTS_IN_L2_BYTES
        ahead = -(-4 * block // -(-self.tile.group // self.tile.pixels)) if fetched else 0
        return {
            "inputs": inputs, "x_blocks": self.winograd.conv.x.blocks, "block_weights": block,
            "w_point": block if self.tile.fused else self.shape.blocks * block,
            "w_block": self.winograd.points * block if self.tile.fused else block,
            "ahead_tile": ahead, "ahead_step": -(-ahead // inputs),
        }  # fmt: skip

    def _of_output(self) -> dict[str, int]:
        y = self.winograd.conv.y
        numbers = {
            "outputs": y.channels, "vectors": self.winograd.conv.output_vectors(self.lanes), "block_vectors": self.tile.vectors,
            "y_height": y.height, "y_width": y.width,
        }  # fmt: skip
        for name, image in (("y", y), *zip(self.epilogue.arguments, self.epilogue.operands, strict=True)):
            numbers |= result_numbers(name, image, 1, self.lanes, 0)
        return numbers


def _run(k: Function, n: Numbers, chunks: Bounds) -> Bounds:
    """Emit the first tile of some chunks of a transform, which are runs of tiles, and one after the last."""
    begin, end = chunks
    return begin * n["run"], k.least(end * n["run"], n["tiles"])
