"""The node of a segment that produces a value, the nodes that read it, and the last of them."""

from __future__ import annotations

from collections.abc import Sequence

from graph.ir import Node


class Dataflow:
    """The producers and readers of a segment's values.

    Args:    nodes: of the segment, in order. results: values that are read outside of it.
    """

    def __init__(self, nodes: Sequence[Node], results: Sequence[str]) -> None:
        self.results = frozenset(results)
        self._producers = {name: node for node in nodes for name in node.writes()}
        self._readers: dict[str, list[Node]] = {}
        for node in nodes:
            for name in set(node.reads()):
                self._readers.setdefault(name, []).append(node)
        self._last_read = {name: at for at, node in enumerate(nodes) for name in node.reads()}
        self._last_read.update(dict.fromkeys(results, len(nodes)))

    def producer(self, value: str) -> Node | None:
        """Return the node that produces a value, or None for an input of the segment and a constant."""
        return self._producers.get(value)

    def only_reader(self, value: str) -> Node | None:
        """Return the node that alone reads a value, or None where several do or the value leaves the segment."""
        readers = self._readers.get(value, [])
        return readers[0] if len(readers) == 1 and value not in self.results else None

    def last_read(self, value: str) -> int:
        """Return the position of the last node that reads a value: -1 without any, the number of nodes for a result."""
        return self._last_read.get(value, -1)
