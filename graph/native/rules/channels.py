"""Slices, concatenations and shuffles of channels of images that lie in blocks, without leaving the blocks."""

from __future__ import annotations

from collections.abc import Sequence

from graph.ir import Node
from graph.native.lowering import Lowering
from graph.native.place import Imaged
from kernels.native.families.channels import Channels, emit_channels, is_regular


def in_blocks(b: Lowering, value: str) -> Imaged | None:
    """Return where a value lies if it is in blocks of channels that no strides describe, or None."""
    place = b.values.place(value)
    if not isinstance(place, Imaged) or place.strided is not None:
        return None
    return place if place.image.block == b.isa.lanes and place.image.rows_join() else None


Order = Sequence[tuple[int, int]]  # for each channel, the number of its source image and its channel there


def fits(b: Lowering, order: Order) -> bool:
    """Whether one kernel call can put channels into that order."""
    return is_regular(order, b.isa.lanes)


def pick_channels(b: Lowering, value: str, places: Sequence[Imaged], order: Order) -> Imaged:
    """Append a call that makes a value of channels of images in blocks, and return where it lies."""
    y = b.values.new_image(value)
    what = Channels(tuple(place.image for place in places), y.image, tuple(order), y.storage.dtype)
    b.calls.append(emit_channels(what, b.isa), {**{f"x{n}": place for n, place in enumerate(places)}, "y": y})
    return y


def take_channels(b: Lowering, value: str, place: Imaged, taken: range) -> None:
    """Let a value be some channels of an image: a view of them if they are whole blocks in order, a copy otherwise."""
    if taken.step == 1 and taken.start % place.image.block == 0:
        b.values.define(value, place.part(taken.start, len(taken)))
    else:
        pick_channels(b, value, [place], [(0, channel) for channel in taken])


def lower_shuffle(b: Lowering, node: Node) -> bool:
    """Lower a Reshape, Transpose and Reshape that shuffle the channels of an image in blocks to one copy; whether they do.

    A shuffle reshapes (n, c, …) to (n, groups, c / groups, …), swaps dimensions 1 and 2, and reshapes to (n, c, …) again.
    """
    place, shape = in_blocks(b, node.inputs[0]), b.spec(node.inputs[0]).shape
    turn = b.dataflow.only_reader(node.outputs[0])
    end = b.dataflow.only_reader(turn.outputs[0]) if turn is not None and turn.op == "Transpose" and not turn.epilogue else None
    if place is None or turn is None or end is None or end.op != "Reshape" or b.spec(end.outputs[0]).shape != shape:
        return False
    apart = b.spec(node.outputs[0]).shape
    order = (0, 2, 1, *range(3, len(apart)))
    swaps = len(apart) > 3 and tuple(turn.attrs["perm"]) == order and apart[0] == shape[0] and apart[1] * apart[2] == shape[1]
    if not swaps:
        return False
    picked = [(0, group * apart[2] + n) for n in range(apart[2]) for group in range(apart[1])]
    if not fits(b, picked):
        return False
    pick_channels(b, end.outputs[0], [place], picked)
    b.done |= {turn.name, end.name}
    return True
