"""Which nodes of a graph run, and in what order."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace

from graph.errors import CorruptModelError, CyclicGraphError
from graph.ir import Graph, Node

_NAMED_NODES = 8  # of a cycle, in the message


def sort(nodes: Sequence[Node], defined: Iterable[str]) -> tuple[Node, ...]:
    """Topological order: the given one where that is possible, else the closest.

    Args:    defined: every value that exists, written by these nodes or not.
    Raises:  CyclicGraphError naming the nodes on a cycle; CorruptModelError for a value that nobody defines.
    """
    writers = {value: index for index, node in enumerate(nodes) for value in node.writes()}
    reads = [set(node.reads()) for node in nodes]
    defined = set(defined)
    for node, values in zip(nodes, reads, strict=True):
        if missing := sorted(values - defined):
            raise CorruptModelError(f"graph: value {missing[0]!r} is read and written nowhere (node {node.name!r})")
    waits = {index: {writers[value] for value in values if value in writers} for index, values in enumerate(reads)}
    readers: dict[int, list[int]] = {}
    for index, before in waits.items():
        for writer in before:
            readers.setdefault(writer, []).append(index)
    done: list[Node] = []
    ready = [index for index, before in waits.items() if not before]
    heapq.heapify(ready)  # by index: the given order among the nodes that are ready
    while ready:
        index = heapq.heappop(ready)
        done.append(nodes[index])
        del waits[index]
        for reader in readers.get(index, ()):
            waits[reader].discard(index)
            if not waits[reader]:
                heapq.heappush(ready, reader)
    if waits:
        cycle = [nodes[index].name for index in _cycle(waits)]
        more = f" and {len(cycle) - _NAMED_NODES} more" if len(cycle) > _NAMED_NODES else ""
        raise CyclicGraphError(
            f"graph: {len(cycle)} nodes wait for each other, need an order to run in (nodes {cycle[:_NAMED_NODES]}{more})"
        )
    return tuple(done)


def _cycle(waits: Mapping[int, Set[int]]) -> list[int]:
    """One cycle among nodes that all wait for one another: walk back until a node comes round again."""
    path: dict[int, None] = {}
    index = min(waits)
    while index not in path:
        path[index] = None
        index = min(waits[index])
    walked = list(path)
    return sorted(walked[walked.index(index) :])


def without_unread(graph: Graph) -> Graph:
    """The graph without nodes that no output depends on."""
    needed = {port.name for port in graph.outputs}
    kept = []
    for node in reversed(graph.nodes):
        if needed.intersection(node.writes()):
            needed.update(node.reads())
            kept.append(node)
    return graph if len(kept) == len(graph.nodes) else replace(graph, nodes=tuple(reversed(kept)))
