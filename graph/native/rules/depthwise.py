"""Depthwise convolutions: every channel by itself."""

from __future__ import annotations

from collections.abc import Sequence

from graph.choice import Choice
from graph.native.lowering import Lowering
from graph.native.place import Storage
from graph.native.rule import parse_tile
from graph.native.work import Work, packed_bytes
from kernels.native.emit.geometry import Conv
from kernels.native.families.depthwise import (
    DepthwiseTile,
    depthwise_chunks,
    depthwise_cycles,
    depthwise_tiles,
    make_depthwise_tile,
    pack_depthwise_bias,
)
from kernels.native.target.isa import Isa
from kernels.spec import Array


def tile_of(choice: Choice, conv: Conv, isa: Isa) -> DepthwiseTile:
    """Return the tile of a choice, or the best by the port model."""
    text = choice.param("tile")
    return depthwise_tiles(conv, isa)[0] if text is None else make_depthwise_tile(conv, isa, *parse_tile(text))


def bias_argument(b: Lowering, bias: Array, vectors: int) -> dict[str, Storage]:
    """Return the packed bias as an argument. vectors: of a tile."""
    return {"b": b.packed.storage(bias, ("depthwise bias", vectors), lambda: pack_depthwise_bias(b.isa, bias, vectors))}


def candidates(conv: Conv, isa: Isa) -> Sequence[Choice]:
    """Return the tiles of a depthwise convolution, the best by the port model first."""
    return [Choice("native", "depthwise", (("tile", str(tile)),)) for tile in depthwise_tiles(conv, isa)]


def work(conv: Conv, choice: Choice, isa: Isa, read: int, written: int) -> Work:
    """Return the work of a candidate. read, written: bytes of activations."""
    tile = tile_of(choice, conv, isa)
    flops = depthwise_cycles(conv, tile, isa) * isa.flops_per_cycle
    weight_bytes = packed_bytes(conv.y.channels, conv.taps, isa.lanes)
    chunks, sizes = depthwise_chunks(conv, tile, isa), (tile.pixels, tile.vectors)
    return Work("depthwise", flops, None, read, written, weight_bytes, 0, chunks, tile=sizes, wants="blocks")
