"""The memory that a segment works in: where each of its own values lies, and what is held while which node runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from graph.memory import Held
from graph.native.calls import Call
from graph.native.place import Storage
from graph.placement import Block, held_by_step, place_blocks


@dataclass(frozen=True, slots=True)
class Arena:
    """offsets: in bytes, of every storage that is the segment's own. nbytes: that it needs. held: by which nodes, by position."""

    offsets: Mapping[Storage, int]
    nbytes: int
    held: tuple[Held, ...]


def lay_out(calls: Iterable[Call], nodes: int) -> Arena:
    """Place what the calls of so many nodes work in. A storage is held from the first call that it is given to until the last."""
    first: dict[Storage, int] = {}
    last: dict[Storage, int] = {}
    for at, call in enumerate(calls):
        for storage, _ in call.arguments.values():
            first.setdefault(storage, at)
            last[storage] = at
    own = [storage for storage in first if storage.constant is None and not storage.port]
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
    """Of every moment its node, and of every call its moment: each call is one, and so is a node that nothing is called for."""
    node_of: list[int] = []
    moment_of: list[int] = []
    behind = 0  # the first node without a moment
    for call in calls:
        node_of.extend(range(behind, call.node))
        moment_of.append(len(node_of))
        node_of.append(call.node)
        behind = call.node + 1
    return [*node_of, *range(behind, nodes)], moment_of
