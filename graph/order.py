"""The order in which nodes of a graph run, and which of them need to run at all."""

from __future__ import annotations

import heapq
from collections.abc import Container, Mapping, Sequence, Set
from dataclasses import replace

from graph.errors import CorruptModelError, CyclicGraphError
from graph.ir import Graph, Node

_NAMED_NODES = 8  # of a cycle, in the message


def sort(nodes: Sequence[Node], defined: Container[str]) -> tuple[Node, ...]:
    """Sort nodes topologically, keeping the given order where possible.

    Args:    defined: every value that exists, whether or not one of these nodes writes it.
    Raises:  CyclicGraphError naming the nodes on a cycle; CorruptModelError for a value that is read and not defined.
    """
    writers = {value: index for index, node in enumerate(nodes) for value in node.writes()}
    reads = [set(node.reads()) for node in nodes]
    for node, values in zip(nodes, reads, strict=True):
        if missing := sorted(value for value in values if value not in defined):
            raise CorruptModelError(f"graph: value {missing[0]!r} is read, but not written by any node (node {node.name!r})")
    if _is_sorted(reads, writers):
        return tuple(nodes)
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


def _is_sorted(reads: Sequence[Set[str]], writers: Mapping[str, int]) -> bool:
    """Whether no node reads what itself or a later one writes."""
    return all(writers.get(value, -1) < index for index, values in enumerate(reads) for value in values)


def _cycle(waits: Mapping[int, Set[int]]) -> list[int]:
    """Find one cycle among nodes that all wait for one another, by walking back until a node occurs twice."""
    path: dict[int, None] = {}
    index = min(waits)
    while index not in path:
        path[index] = None
        index = min(waits[index])
    walked = list(path)
    return sorted(walked[walked.index(index) :])


def without_unread(graph: Graph) -> Graph:
    """Return the graph without the nodes that no output depends on."""
    needed = {port.name for port in graph.outputs}
    kept = []
    for node in reversed(graph.nodes):
        if needed.intersection(node.writes()):
            needed.update(node.reads())
            kept.append(node)
    return graph if len(kept) == len(graph.nodes) else replace(graph, nodes=tuple(reversed(kept)))
