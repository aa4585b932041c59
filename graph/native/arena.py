"""The memory that a segment works in: the offset of each of its own storages, and which ones are held while each node runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from graph.memory import Held
from graph.native.calls import Call
from graph.native.place import Storage
from graph.placement import Block, held_by_step, place_blocks
from kernels.record import record


@record
class Arena:
    """The layout of a segment's memory.

    offsets: in bytes, for every storage that is the segment's own. nbytes: size of the whole. held: for each of these storages,
    the positions of the first and last node that need it.
    """

    offsets: Mapping[Storage, int]
    nbytes: int
    held: tuple[Held, ...]


def lay_out(calls: Iterable[Call], nodes: int) -> Arena:
    """Place the storages of a segment so that no two that are held at the same time overlap.

    A storage is held from the first call that it is an argument of until the last. nodes: how many nodes the calls belong to.
    """
    first: dict[Storage, int] = {}
    last: dict[Storage, int] = {}
    for at, call in enumerate(calls):
        for storage, _ in call.arguments.values():
            first.setdefault(storage, at)
            last[storage] = at
    own = [storage for storage in first if storage.is_own]
    offsets, nbytes = place_blocks([Block(storage.nbytes, first[storage], last[storage]) for storage in own])

    node_of, moment_of = _moments(calls, nodes)
    blocks = [Block(storage.nbytes, moment_of[first[storage]], moment_of[last[storage]]) for storage in own]
    held = tuple(
        Held(storage.name, storage.nbytes, *steps, offset)
        for storage, offset, steps in zip(own, offsets, held_by_step(blocks, node_of), strict=True)
        if steps is not None
    )
    return Arena(dict(zip(own, offsets, strict=True)), nbytes, held)


def _moments(calls: Iterable[Call], nodes: int) -> tuple[list[int], list[int]]:
    """Return the node of every moment, and the moment of every call. Each call is a moment, and so is a node without a call."""
    node_of: list[int] = []
    moment_of: list[int] = []
    first_without = 0  # the first node without a moment
    for call in calls:
        node_of.extend(range(first_without, call.node))
        moment_of.append(len(node_of))
        node_of.append(call.node)
        first_without = call.node + 1
    return [*node_of, *range(first_without, nodes)], moment_of
