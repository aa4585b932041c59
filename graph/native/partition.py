"""The partition of a graph into native segments and other nodes, with as few segments as the order of nodes allows."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from graph.choice import Backend, Choice
from graph.ir import SEGMENT, Graph, Node
from kernels.errors import UnsupportedError
from kernels.record import record


@record
class Part:
    """The nodes of one segment.

    nodes: in order. inputs: values that it reads from outside, without constants. outputs: values that are read outside of it.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def gathered(
    graph: Graph, backend: Backend, refused: Mapping[str, str], choices: Mapping[str, Choice], renames: Callable[[Node], bool]
) -> tuple[Graph, dict[str, Part]]:
    """Return the graph with the nodes of a backend gathered into a node for each segment, and the segments by these nodes' names.

    Args:   refused: why nodes cannot run there, by their names. choices: by node name; one without runs there where it can.
            renames: whether a node moves nothing, so that it alone is no segment.
    Raises: UnsupportedError where the backend is chosen for a node that cannot run there.
    """
    for name, choice in choices.items():
        if choice.backend == backend and name in refused:
            raise UnsupportedError(f"node {name!r}: {choice} was chosen, but {refused[name]}")
    elsewhere = {name for name, choice in choices.items() if choice.backend != backend} | set(refused)
    able = {node.name for node in graph.nodes if node.name not in elsewhere}
    renaming = {node.name for node in graph.nodes if node.name in able and renames(node)}
    return partition(graph, without_lone_views(graph.nodes, able, renaming))


def partition(graph: Graph, native: Collection[str]) -> tuple[Graph, dict[str, Part]]:
    """Return the graph with its native nodes gathered into a node for each segment, and the segments by these nodes' names.

    native: names of the nodes that are to run natively. Turns alternate: all native nodes whose inputs are ready are taken, then
    all others whose inputs are ready; this gives few segments.
    """
    runs = _runs(graph, native)
    outputs = {port.name for port in graph.outputs}
    readers: dict[str, set[int]] = {}
    for at, (_, nodes) in enumerate(runs):
        for node in nodes:
            for name in node.reads():
                readers.setdefault(name, set()).add(at)
    made: list[Node] = []
    parts: dict[str, Part] = {}
    for at, (is_native, nodes) in enumerate(runs):
        if not is_native:
            made += nodes
            continue
        written = [name for node in nodes for name in node.writes()]
        inside = {*written, *graph.constants}
        read = dict.fromkeys(name for node in nodes for name in node.reads() if name not in inside)
        wanted = tuple(name for name in written if name in outputs or readers.get(name, set()) - {at})
        name = f"segment {len(parts)}"
        parts[name] = Part(tuple(nodes), tuple(read), wanted)
        made.append(Node(name, SEGMENT, tuple(read), wanted))
    return replace(graph, nodes=tuple(made)), parts


def _runs(graph: Graph, native: Collection[str]) -> list[tuple[bool, list[Node]]]:
    """Return the nodes in an order that they can run in, as alternating runs of native and other ones."""
    writers = {name: at for at, node in enumerate(graph.nodes) for name in node.writes()}
    awaited = [{writers[name] for name in node.reads() if name in writers} for node in graph.nodes]
    waits = [len(before) for before in awaited]
    readers: list[list[int]] = [[] for _ in graph.nodes]
    for at, before in enumerate(awaited):
        for writer in before:
            readers[writer].append(at)
    ready: dict[bool, list[int]] = {True: [], False: []}  # heaps: in the order of the graph among the nodes that are ready
    for at, node in enumerate(graph.nodes):
        if not waits[at]:
            heapq.heappush(ready[node.name in native], at)
    runs: list[tuple[bool, list[Node]]] = []
    is_native = False
    while ready[True] or ready[False]:
        taken: list[Node] = []
        while ready[is_native]:
            at = heapq.heappop(ready[is_native])
            taken.append(graph.nodes[at])
            for reader in readers[at]:
                waits[reader] -= 1
                if not waits[reader]:
                    heapq.heappush(ready[graph.nodes[reader].name in native], reader)
        if taken:
            runs.append((is_native, taken))
        is_native = not is_native
    return runs


def without_lone_views(nodes: Sequence[Node], native: set[str], views: Collection[str]) -> set[str]:
    """Return the native nodes without connected groups that consist of views alone: no native kernel would read these."""
    producer = {name: node for node in nodes for name in node.writes()}
    readers: dict[str, list[Node]] = {}
    for node in nodes:
        for name in node.reads():
            readers.setdefault(name, []).append(node)
    return native - _only_views(nodes, native, views, producer, readers)


def _only_views(
    nodes: Sequence[Node], kept: set[str], views: Collection[str], producer: dict[str, Node], readers: dict[str, list[Node]]
) -> set[str]:
    """Return the nodes of connected native groups that consist of views alone."""
    seen: set[str] = set()
    found: set[str] = set()
    by_name = {node.name: node for node in nodes}
    for start in nodes:
        if start.name not in kept or start.name in seen:
            continue
        group, edge = {start.name}, [start]
        while edge:
            node = edge.pop()
            near = [producer[name] for name in node.reads() if name in producer]
            near += [other for name in node.writes() for other in readers.get(name, [])]
            for other in near:
                if other.name in kept and other.name not in group:
                    group.add(other.name)
                    edge.append(by_name[other.name])
        seen |= group
        if all(name in views for name in group):
            found |= group
    return found
