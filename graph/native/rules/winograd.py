"""Winograd's minimal filtering for 3x3 convolutions with stride 1 (Lavin and Gray, arXiv 1509.09308)."""

from __future__ import annotations

import re

from graph.choice import Choice
from graph.ir import Node
from graph.native.facts import F32
from graph.native.lowering import Lowering
from graph.native.place import Place, Storage
from graph.native.rule import MAX_TILE
from graph.native.rules.direct import Placed, Weighted, bias_argument
from graph.native.work import Work
from kernels.errors import UnsupportedError
from kernels.native.emit.geometry import Conv
from kernels.native.families.winograd import (
    Winograd,
    WinogradTile,
    choose_winograd,
    error_estimate,
    make_winograd_tile,
    winograd_cost,
    winograd_tiles,
)
from kernels.native.families.winograd_kernels import emit_winograd, pack_winograd
from kernels.native.target.isa import Isa

MAX_GROUP = 1 << 20
UNITS = (2, 4, 6)  # outputs of a tile along each side
MIN_CHANNELS = 8  # of the input
_TILE = re.compile(r"(\d{1,2})x(\d{1,2})g(\d{1,7})([fs])")


def takes(conv: Conv) -> bool:
    """Whether a convolution has the form that Winograd's algorithm computes, and channels that are worth transforming."""
    plain = (conv.strides, conv.dilations, conv.groups, conv.within) == ((1, 1), (1, 1), 1, 0)
    return plain and conv.kernel == (3, 3) and max(conv.top, conv.left) <= 2 and conv.x.channels >= MIN_CHANNELS


def lower(b: Lowering, node: Node, conv: Conv, placed: Placed, weighted: Weighted) -> None:
    """Append the calls of a convolution: one, or one for each phase with buffers between them."""
    winograd, tile = form_of(conv, b.choice(node), b.isa)
    key = ("winograd", winograd.unit, tile.vectors, tile.fused)
    packed = b.packed.storage(weighted.source, key, lambda: pack_winograd(winograd, tile, b.isa, weighted.weights))
    bias = bias_argument(b, winograd.conv, weighted.bias)
    places: dict[str, Place | Storage] = {"x": placed.x, "w": packed, "y": placed.y, **bias, **placed.operands}
    for name, nbytes in winograd_cost(winograd, tile, b.isa).buffer_bytes.items():
        places[name] = Storage(f"{node.outputs[0]}/{name}", nbytes // F32.itemsize, F32)
    for kernel in emit_winograd(winograd, tile, placed.epilogue, b.isa):
        written = next(name for name in ("y", "m", "v") if name in kernel.arguments)
        b.calls.append(kernel, {name: places[name] for name in kernel.arguments if name in places}, [written])


def form_of(conv: Conv, choice: Choice, isa: Isa) -> tuple[Winograd, WinogradTile]:
    """Return the unit and tile of a choice. Raises UnsupportedError where the kernels have no such unit or tile."""
    units = {str(unit): unit for unit in UNITS}
    unit = units.get(choice.param("unit") or str(UNITS[1]))
    if unit is None:
        raise UnsupportedError(f"winograd: unit is {choice.param('unit')!r}, need one of {', '.join(units)}")
    found = _TILE.fullmatch(choice.param("tile") or "")
    sizes = [int(size) for size in found.groups()[:3]] if found else []
    if not found or not min(sizes) >= 1 or max(sizes[:2]) > MAX_TILE or sizes[2] > MAX_GROUP:
        raise UnsupportedError(f"winograd: tile is {choice.param('tile')!r:.60}, need one like 6x4g28f")
    winograd = Winograd(conv, unit)
    return winograd, make_winograd_tile(winograd, isa, *sizes, fused=found[4] == "f")


def candidates(conv: Conv, isa: Isa, threads: int, at_once: int = 1) -> tuple[list[Choice], list[Choice]]:
    """Return the choice to use unmeasured, if there is one, and all the others.

    at_once: products that direct convolution adds up in the time of a multiply–add.
    """
    by_unit = {unit: _best_tiles(conv, unit, isa, threads) for unit in UNITS}
    best = choose_winograd(conv, isa, threads, at_once=at_once)
    first = by_unit[best.unit][:1] if best else []
    return first, [choice for found in by_unit.values() for choice in found if choice not in first]


def _best_tiles(conv: Conv, unit: int, isa: Isa, threads: int) -> list[Choice]:
    """Return the best tile of both forms of a unit, fused and split, the form to use unmeasured first."""
    tiles = winograd_tiles(Winograd(conv, unit), isa, threads)
    best = {tile.fused: tile for tile in reversed(tiles)}
    ranked = sorted(best.values(), key=tiles.index)
    return [Choice("native", "winograd", (("tile", str(tile)), ("unit", str(unit)))) for tile in ranked]


def work(conv: Conv, choice: Choice, isa: Isa, read: int, written: int) -> Work:
    """Return the work of a candidate. read, written: bytes of activations."""
    winograd, tile = form_of(conv, choice, isa)
    cost = winograd_cost(winograd, tile, isa)
    return Work(
        kind="winograd",
        flops=cost.cycles * isa.flops_per_cycle,
        macs=cost.macs,
        read_bytes=read,
        write_bytes=written,
        weight_bytes=cost.weight_bytes,
        buffer_bytes=sum(cost.buffer_bytes.values()),
        chunks=cost.chunks,
        calls=1 if tile.fused else 3,
        tile=(tile.pixels, tile.vectors, tile.group, winograd.unit),
        wants="blocks",
        error=error_estimate(winograd.unit, conv.x.channels),
    )
