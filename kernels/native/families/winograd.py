"""Winograd convolution, 3×3 with stride 1: the transforms, the choice of unit and tile, their cost and their error.

Source: Lavin and Gray 2015, arXiv:1509.09308. F(m, 3) makes m×m outputs with (m+2)² multiplications a channel instead of 9·m².
A tile is the t×t inputs (t = m + 2) that m×m outputs need. With B, G and A of Toom–Cook's algorithm at t - 1 points and infinity,

    y = Aᵀ [ Σ over channels (G w Gᵀ) ⊙ (Bᵀ x B) ] A

so each of the t² places ("points") of the transformed tile is a matrix product of its own: tiles × channels × outputs. Tiles are
numbered through (image, row, column) and cut into groups. Transformed inputs V and products M lie in memory between the phases,
a group at a time in scratch (fused), or all of them (split): `winograd_kernels` has the phases.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from kernels.native.emit.geometry import Conv
from kernels.native.emit.product import MOST_PIXELS, most_rows
from kernels.native.target.isa import Isa
from kernels.record import record
from kernels.size import hint, hinted, least
from kernels.spec import Array

GROUP, GROUP_STREAMED = (14, 28), 48  # bounds of the most tiles of a fused group, with weights in L2 and with weights from L3
CACHE_BYTES = 768 << 10  # weights, V and M that L2 holds beside rows of the images
GROUPS, LEAST_GROUP = 4, 8  # groups and tiles of a group that are worth to read weights of L3 again and again
WEIGHTS_IN_L2_BYTES, WEIGHTS_NEAR_L2_BYTES, WEIGHTS_IN_L3_BYTES = 768 << 10, 3 << 20, 12 << 20
BLOCK_BYTES = 32 << 10  # of weights in the split form: as much of the next is on its way to L1 meanwhile

# How long it takes, measured on a 2-core Zen 5.
PRODUCT_EFFICIENCY = 0.93  # of the peak
CHUNKS = 32  # of the transforms in the split form
ALIKE = 0.02  # of the cycles of register tiles: the estimate does not tell more
TRANSFORM_CYCLES = 3.3  # for one vector of one point, of V or M
THREAD_BYTES, MEMORY_BYTES = 6, 10  # of weights a cycle: a thread alone, and all of them
WORTH = 0.95  # of the time of direct convolution: else its smaller weights and errors are preferred

# Points beside infinity, in pairs of opposite signs behind the 0, which lets each pair share its even and odd parts. All powers
# that occur are exact in fp32. ±5/8 and ±3/2 err four times less than the customary ±1 and ±2: the best pairs of eighths.
POINTS: Mapping[int, tuple[float, ...]] = {
    2: (0, 1, -1),
    4: (0, 0.625, -0.625, 1.5, -1.5),
    6: (0, 0.5, -0.5, 1, -1, 2, -2),
}
ERRORS: Mapping[int, float] = {2: 1.0e-7, 4: 4.0e-7, 6: 2.8e-6}  # of error_estimate


@record
class Winograd:
    """A convolution to be done by F(unit, 3). Its images must be in blocks of one vector."""

    conv: Conv
    unit: int

    @property
    def size(self) -> int:
        """Rows and columns of a tile."""
        return self.unit + 2

    @property
    def points(self) -> int:
        """Matrix products."""
        return self.size**2

    @property
    def rows(self) -> int:
        """Rows of tiles in an image."""
        return -(-self.conv.y.height // self.unit)

    @property
    def columns(self) -> int:
        """Columns of tiles in an image."""
        return -(-self.conv.y.width // self.unit)

    @property
    def tiles(self) -> int:
        """Tiles of all images."""
        return self.conv.y.batch * self.rows * self.columns


@record
class WinogradTile:
    """The sizes by which a Winograd convolution is cut into groups and register tiles.

    pixels × vectors: accumulators, of so many tiles and vectors of outputs.
    group: tiles transformed together. fused: one kernel with V and M in scratch, else one a phase.
    """

    pixels: int
    vectors: int
    group: int
    fused: bool

    def __str__(self) -> str:
        return f"{self.pixels}x{self.vectors}g{self.group}{'f' if self.fused else 's'}"


@record
class WinogradCost:
    """macs: multiplications of the matrix products, overhanging tiles included. cycles: of one core by the port model, transforms
    included. chunks: pieces that threads share, of the phase that has fewest. weight_bytes: of the transformed weights.
    buffer_bytes: of V and M in the split form, by argument; the fused form has none."""

    macs: int
    cycles: float
    chunks: int
    weight_bytes: int
    buffer_bytes: Mapping[str, int]


@functools.cache
def transforms(unit: int) -> tuple[Array, Array, Array]:
    """Bᵀ (t, t), G (t, 3), Aᵀ (unit, t) in float64, by Lagrange interpolation at POINTS and infinity."""
    points = POINTS[unit]
    size = unit + 2
    b, g, a = np.zeros((size, size)), np.zeros((size, 3)), np.zeros((unit, size))
    for n, point in enumerate(points):
        others = [other for other in points if other != point]
        b[n, : size - 1] = np.poly(others)[::-1]
        g[n] = np.power(point, range(3)) / np.prod([point - other for other in others])
        a[:, n] = np.power(float(point), range(unit))
    b[-1], g[-1, 2], a[-1, -1] = np.poly(points)[::-1], 1, 1
    return b, g, a


def error_estimate(unit: int, channels: int) -> float:
    """Estimate the error relative to the largest output: twice the worst that was measured.

    Measured against float64 on AVX-512 and SSE: 4 to 512 channels, 12² and 24² images, 32 outputs, normal weights with normal and
    rectified inputs and positive weights with positive inputs, three seeds each. It grows with the root of the channels:
    512 of them gave 1.1e-6, 4.3e-6 and 3.0e-5 for units of 2, 4 and 6; 4 of them 2.4e-7, 1.1e-6 and 5.4e-6.
    """
    return ERRORS[unit] * math.sqrt(channels + 16)


def winograd_cost(winograd: Winograd, tile: WinogradTile, isa: Isa) -> WinogradCost:
    """Return the work and the memory of a Winograd convolution with that tile."""
    conv, shape = winograd.conv, Buffers(winograd, tile, isa)
    outputs = shape.blocks * tile.vectors * isa.lanes
    products = winograd.points * conv.x.channels * outputs
    buffers = {} if tile.fused else {"v": 4 * shape.v_all, "m": 4 * shape.m_all}
    multiplied = hint(shape.groups) * winograd.points * conv.x.channels * _estimate(winograd, tile, isa)
    cycles = multiplied + hint(winograd.tiles) * winograd.points * (conv.x.blocks + outputs // isa.lanes) * TRANSFORM_CYCLES
    chunks = shape.groups if tile.fused else least(CHUNKS, winograd.tiles)
    return WinogradCost(winograd.tiles * products, cycles, chunks, 4 * products, buffers)


def choose_winograd(conv: Conv, isa: Isa, threads: int = 1, units: Sequence[int] = (2, 4), at_once: int = 1) -> Winograd | None:
    """Return the unit to use, or None where direct convolution is as fast or the convolution is not 3×3 with stride 1.

    The estimate is the larger of the time of the multiplications and the time to read the weights, on that many threads.
    at_once: products that direct convolution adds up in the time of a multiply–add.
    """
    if fault(conv, isa):
        return None
    direct = max(
        hint(conv.macs) / (2 * isa.lanes * threads * at_once),
        4 / at_once * 9 * conv.x.channels * conv.y.channels / _bytes_a_cycle(threads),
    )
    cycles = {unit: _cycles(Winograd(conv, unit), isa, threads) for unit in units}
    best = min(cycles, key=lambda unit: (cycles[unit], unit))
    return Winograd(conv, best) if cycles[best] < WORTH * direct else None


def _cycles(winograd: Winograd, isa: Isa, threads: int) -> float:
    conv, tiles = winograd.conv, hint(winograd.tiles)
    outputs = conv.output_vectors(isa.lanes)
    products = tiles * winograd.points * conv.x.channels * outputs / 2 / PRODUCT_EFFICIENCY
    transformed = tiles * winograd.points * (conv.x.blocks + outputs) * TRANSFORM_CYCLES
    weight_bytes = 4 * winograd.points * conv.x.channels * conv.y.channels
    return max((products + transformed) / threads, weight_bytes / _bytes_a_cycle(threads))


def _bytes_a_cycle(threads: int) -> float:
    return min(threads * THREAD_BYTES, MEMORY_BYTES)


def winograd_tiles(winograd: Winograd, isa: Isa, threads: int = 1, limit: int = 6) -> tuple[WinogradTile, ...]:
    """Return tiles for that many threads, the fastest by a port model first: the one to use unmeasured, then others to measure.

    The last third have the other form (fused or split).
    """
    return _ranked_tiles(hinted(winograd), isa, threads, limit)


@functools.lru_cache(1024)
def _ranked_tiles(winograd: Winograd, isa: Isa, threads: int, limit: int) -> tuple[WinogradTile, ...]:
    conv, tiles = winograd.conv, winograd.tiles
    weight_bytes = 4 * winograd.points * conv.x.channels * conv.y.channels
    tile_bytes = 4 * winograd.points * (conv.x.channels + 4 * isa.lanes)  # of V, and of M for a block
    most = min(max((CACHE_BYTES - weight_bytes) // tile_bytes, GROUP[0]), GROUP[1])
    if weight_bytes > WEIGHTS_IN_L2_BYTES:
        most = GROUP_STREAMED
    group = -(-tiles // (threads * -(-tiles // (threads * most))))  # as many groups for each thread
    few = weight_bytes > WEIGHTS_NEAR_L2_BYTES and tiles < GROUPS * most
    split = weight_bytes > WEIGHTS_IN_L3_BYTES or few or (weight_bytes > WEIGHTS_IN_L2_BYTES and group < LEAST_GROUP)
    fused_tiles, split_tiles = (_form(winograd, isa, group, fused=True), _form(winograd, isa, tiles, fused=False))
    first, second = (split_tiles, fused_tiles) if split else (fused_tiles, split_tiles)
    return (*first[: limit - limit // 3], *second[: limit // 3])


def _form(winograd: Winograd, isa: Isa, group: int, *, fused: bool) -> list[WinogradTile]:
    """Return tiles of one form (fused or split) that fit the registers, the best first.

    Of those that are alike, rounder heights come first, so that few kernels serve the layers of many models.
    """
    widest = 6 if fused else max(2, BLOCK_BYTES // (4 * isa.lanes * winograd.conv.x.channels))
    tiles = {
        make_winograd_tile(winograd, isa, pixels, vectors, group, fused=fused)
        for vectors in range(1, min(widest, 6) + 1)
        for pixels in range(1, min(most_rows(vectors, isa), MOST_PIXELS) + 1)
    }
    cycles = {tile: _estimate(winograd, tile, isa) for tile in tiles}
    fastest = min(cycles.values())

    def rank(tile: WinogradTile) -> tuple[int, int, float, str]:
        power_of_two = tile.pixels & -tile.pixels  # that divides the height
        return int((cycles[tile] / fastest - 1) / ALIKE), -power_of_two, cycles[tile], str(tile)

    return sorted(tiles, key=rank)


def _estimate(winograd: Winograd, tile: WinogradTile, isa: Isa) -> float:
    """Estimate the cycles of a point of a group per input channel."""
    spans = -(-tile.group // tile.pixels)
    less = min(spans * tile.pixels - tile.group, spans) if tile.pixels > 1 else 0  # register tiles of one tile less
    cycles = (spans - less) * _step_cycles(tile.pixels, tile.vectors) + less * _step_cycles(tile.pixels - 1, tile.vectors)
    return winograd.conv.output_blocks(tile.vectors, isa.lanes) * cycles


def _step_cycles(pixels: int, vectors: int) -> float:
    """Estimate the cycles of a register tile for one channel: two multiply–adds and two loads a cycle, latency 4.

    More are for each turn of the loop, for reading weights, and for many sums, which are all stored at once.
    """
    sums = pixels * vectors
    return max(sums / 2, (pixels + vectors) / 2, 4.1) + 0.15 + 0.1 * vectors + 0.02 * max(sums - 16, 0)


def make_winograd_tile(winograd: Winograd, isa: Isa, pixels: int, vectors: int, group: int, *, fused: bool) -> WinogradTile:
    """Make a tile whose groups are as even as possible, each with no more tiles than asked for."""
    tiles = hint(winograd.tiles)
    even = -(-tiles // -(-tiles // min(group, tiles)))
    vectors = min(vectors, winograd.conv.output_vectors(isa.lanes))
    return WinogradTile(min(pixels, even), vectors, even, fused)


def fault(conv: Conv, isa: Isa) -> str | None:
    """Return why a convolution cannot be computed by this algorithm, or None."""
    if (conv.kernel, conv.strides, conv.dilations, conv.groups) != ((3, 3), (1, 1), (1, 1), 1):
        kind = f"kernel {conv.kernel}, strides {conv.strides}, dilations {conv.dilations}, groups {conv.groups}"
        return f"{kind}, need 3×3 and all else 1"
    for image, what in ((conv.x, "x"), (conv.y, "y")):
        if image.block != isa.lanes:
            return f"{what} has blocks of {image.block} channels, need {isa.lanes}"
    return None


def _odd(count: int) -> int:
    return count // 2 * 2 + 1


class Buffers:
    """Sizes of V and M in elements, and how many blocks of outputs and groups of tiles they are cut by."""

    def __init__(self, winograd: Winograd, tile: WinogradTile, isa: Isa) -> None:
        room = -(-tile.group // tile.pixels) * tile.pixels  # tiles, whole register tiles of them
        self.blocks = winograd.conv.output_blocks(tile.vectors, isa.lanes)
        self.groups = -(-winograd.tiles // tile.group)
        self.v_block = room * isa.lanes
        self.v_point = _odd(winograd.conv.x.blocks * room) * isa.lanes
        self.m_point = _odd(room * tile.vectors) * isa.lanes
        self.v_group = winograd.points * self.v_point
        self.m_block = winograd.points * self.m_point
        self.v_all = self.groups * self.v_group
        self.m_all = self.groups * self.blocks * self.m_block
