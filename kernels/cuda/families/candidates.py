"""The ways in which a GPU can compute a product or a convolution, for a contest of measured times to choose from."""

from __future__ import annotations

from collections.abc import Iterator

from kernels.cuda.driver import Attribute, Device
from kernels.cuda.emit.epilogue import UNCHANGED
from kernels.cuda.families.problem import Cut, Problem
from kernels.cuda.families.product import GROUP_UNITS, Form, Precision, Tile
from kernels.expression import Expression

# On an H200 the best of these is within 1 % of the best of some 30 tiles, as a mean over shapes of resnet50, vit_b_16 and
# bert-base at batch 1 and 32, for every precision; the order is by how much each adds (2026-11-30).
GROUP_TILES = (
    Tile(64, 64, 4, 1, 4),
    Tile(128, 128, 8, 1, 3),
    Tile(64, 32, 4, 1, 8),
    Tile(64, 128, 4, 1, 3),
    Tile(128, 64, 8, 1, 4),
    Tile(128, 192, 8, 1, 4),
)
TENSOR_TILES = (
    Tile(64, 64, 2, 2, 4),
    Tile(256, 128, 4, 2, 3),
    Tile(32, 64, 2, 2, 6),
    Tile(128, 64, 2, 2, 4),
    Tile(128, 128, 2, 2, 3),
)
FMA_TILES = (
    Tile(64, 64, 2, 2, 4),
    Tile(128, 128, 4, 2, 3),
    Tile(64, 64, 4, 2, 4),
    Tile(64, 32, 2, 1, 4),
    Tile(32, 32, 2, 1, 6),
)
SLICES = (1, 2, 3, 4, 6, 8, 12, 16)


def candidates(
    precision: Precision, problem: Problem, device: Device, *, bias: bool = False, expression: Expression = UNCHANGED
) -> Iterator[Cut]:
    """Yield every tile that the GPU has room for; where its tiles leave processors idle, also with the depth cut into slices."""
    processors, room = device.attribute(Attribute.PROCESSORS), device.attribute(Attribute.SHARED_BYTES_PER_BLOCK)
    windows, copy_bytes, whole = problem.window is not None, problem.copy_bytes(precision), problem.whole(precision)
    tiles = [(tile, False) for tile in (FMA_TILES if precision == "fp32" else TENSOR_TILES)]
    if precision in GROUP_UNITS and device.capability == (9, 0):
        tiles += [(tile, True) for tile in GROUP_TILES]
    for tile, groups in tiles:
        if tile.shared_bytes > room:
            continue
        form = Form(precision, tile, windows, copy_bytes, whole, bias, expression, groups, problem.batch is not None)
        chunks, seen = Cut.into(form, problem).chunks, set[int]()
        for slices in SLICES:
            if slices > 1 and (chunks >= processors or chunks * slices > 2 * processors):
                break
            cut = Cut.into(form, problem, slices)
            if cut.slices not in seen:
                seen.add(cut.slices)
                yield cut
