"""The editor that rewrite passes use: a graph that is changed node by node, then frozen again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from graph.ir import Graph, Node, Specs
from graph.order import sort
from kernels.errors import DataDependentError
from kernels.registry import find
from kernels.spec import Array, Spec

MAX_ORIGINS = 256  # a chain of many thousand nodes that merge one by one would otherwise take memory squared


class Editor:
    """A graph under change. Names of graph inputs and outputs stay; `finish` freezes it, in order, without unread constants.

    nodes: by name, in order. constants: by value name. captured: values that subgraphs read, which must keep their names.
    """

    def __init__(self, graph: Graph, specs: Specs) -> None:
        self.graph = graph
        self.specs = specs
        self.nodes: dict[str, Node] = {}
        self.constants: dict[str, Array] = dict(graph.constants)
        self.outputs = {port.name for port in graph.outputs}
        self.captured = {value for node in graph.nodes for body in node.subgraphs() for value in body.captures()}
        self.changed = False
        self._inputs = {port.name for port in graph.inputs}
        self._aliases: dict[str, str] = {}
        self._early: dict[str, None] = {}  # names of nodes that `finish` puts first, the newest at the end
        self._numbers: Counter[str] = Counter()  # the last that `fresh` has given to names of a hint
        self._producers: dict[str, str] = {}
        self._readers: dict[str, dict[str, None]] = {}  # names of nodes
        for node in graph.nodes:
            self._add(node)

    def spec(self, value: str) -> Spec | None:
        """The spec of a value; None where it is unknown, and for values that this pass has added."""
        if value in self.constants:
            return Spec.of(self.constants[value])
        return self.specs.get(value)

    def known(self, value: str) -> Spec:
        """The spec of a value. Raises DataDependentError where it is unknown; a pass looks before at what its nodes read."""
        spec = self.spec(value)
        if spec is None:
            raise DataDependentError(f"value {value!r}: its shape is only known at run time")
        return spec

    def constant(self, value: str) -> Array | None:
        """The array behind a value, where it is a constant."""
        return self.constants.get(value)

    def producer(self, value: str) -> Node | None:
        """The node that writes a value; None for inputs, constants and the empty name."""
        name = self._producers.get(value)
        return None if name is None else self.nodes[name]

    def readers(self, value: str) -> list[Node]:
        """The nodes that read a value."""
        return [self.nodes[name] for name in self._readers.get(value, ())]

    def is_read(self, value: str) -> bool:
        """Whether a node or the caller wants a value."""
        return value in self.outputs or bool(self._readers.get(value))

    def only_reader(self, value: str) -> Node | None:
        """The one node that reads a value; None where it has other readers, is a graph output or is captured by a subgraph."""
        readers = self._readers.get(value, {})
        if len(readers) != 1 or value in self.outputs or value in self.captured:
            return None
        return self.nodes[next(iter(readers))]

    def sole_writer(self, value: str, reader: Node) -> Node | None:
        """The node that writes a value which `reader` alone reads. None if it has an epilogue, or another output that is read."""
        node = self.producer(value)
        if node is None or node.epilogue or self.only_reader(value) is not reader or not self.single_output(node):
            return None
        return node

    def single_output(self, node: Node) -> bool:
        """Whether output 0 is the only one that is read."""
        return not any(self.is_read(value) for value in node.outputs[1:] if value)

    def put(self, node: Node) -> None:
        """Add a node, or replace the one of its name."""
        if node.name in self.nodes:
            self._forget(self.nodes[node.name])
        self._add(node)
        self.changed = True

    def put_part(
        self, whole: Node, op: str, inputs: Sequence[str], attrs: Mapping[str, Any] | None = None, output: str = ""
    ) -> str:
        """Add a node that computes a part of what another one stands for, and return the name of its result.

        attrs: those that differ from the op's defaults. output: the name of the result; a fresh one by default.
        """
        name = self.fresh(f"{whole.name}/{op}")
        made = output or name
        self.put(Node(name, op, tuple(inputs), (made,), find(op).bind(attrs or {}), origins=origins(whole)))
        return made

    def put_last(self, whole: Node, op: str, inputs: Sequence[str], attrs: Mapping[str, Any] | None = None) -> None:
        """Put a node of another op in the place of one, whose name and first output it takes."""
        self.put(Node(whole.name, op, tuple(inputs), whole.outputs[:1], find(op).bind(attrs or {}), origins=origins(whole)))

    def put_early(self, node: Node) -> None:
        """Add a node that runs as soon as its inputs are computed, before other nodes that could run."""
        self.put(node)
        self._early[node.name] = None

    def drop(self, node: Node) -> None:
        """Remove a node, whose readers must have been given another value before."""
        self._forget(node)
        del self.nodes[node.name]
        self.changed = True

    def fresh(self, hint: str) -> str:
        """Return a name that no value and no node has: the hint, or that with a number."""
        name = hint
        taken = (self.constants, self._producers, self._inputs, self.captured, self.nodes)
        while any(name in names for names in taken):
            self._numbers[hint] += 1
            name = f"{hint}#{self._numbers[hint]}"
        return name

    def add_constant(self, hint: str, array: Array) -> str:
        """Add a constant under a fresh name."""
        name = self.fresh(hint)
        self.constants[name] = array
        return name

    def make_constant(self, value: str, array: Array) -> None:
        """Turn a value into a constant. Its producer must be removed next."""
        self.constants[value] = array
        self.changed = True

    def bypass(self, node: Node, source: str) -> bool:
        """Remove a settled node whose output 0 equals the value `source`. False where names that must stay prevent it."""
        value = node.outputs[0]
        if value in self.captured:
            return False
        if value in self.outputs:
            return self._hand_over(node, source)
        self.drop(node)
        self._aliases[value] = source
        return True

    def settle(self, name: str) -> Node:
        """Return the node of that name, with the current names of its inputs.

        Renames are applied when a reader is looked at, so that a node with thousands of renamed inputs is rewritten once.
        """
        node = self.nodes[name]
        names = {value: self._resolve(value) for value in node.reads() if value in self._aliases}
        if names:
            node = replace(
                node,
                inputs=tuple(names.get(value, value) for value in node.inputs),
                epilogue=tuple(
                    replace(fused, inputs=tuple(names.get(value, value) for value in fused.inputs)) for fused in node.epilogue
                ),
            )
            self.put(node)
        return node

    def replace_outputs(self, node: Node, other: Node) -> None:
        """Remove a node, letting the readers of each of its outputs read the same output of another node."""
        self.drop(node)
        for old, new in zip(node.outputs, other.outputs, strict=False):
            if old and new:
                self._aliases[old] = new

    def merge(self, kept: Node, *absorbed: Node) -> Node:
        """Drop nodes and give their origins to `kept`, which is put in place."""
        for node in absorbed:
            self.drop(node)
        kept = replace(kept, origins=origins(kept, *absorbed))
        self.put(kept)
        return kept

    def finish(self) -> Graph:
        """The new graph; the old one where nothing changed."""
        if not self.changed:
            return self.graph
        if self._aliases:
            for name in list(self.nodes):
                self.settle(name)
        read = {value for node in self.nodes.values() for value in node.reads()} | self.outputs
        constants = {name: array for name, array in self.constants.items() if name in read}
        early = [self.nodes[name] for name in reversed(self._early) if name in self.nodes]
        nodes = (*early, *(node for name, node in self.nodes.items() if name not in self._early))
        defined = self._inputs | set(constants) | set(self._producers)
        return replace(self.graph, nodes=sort(nodes, defined), constants=constants)

    def _hand_over(self, node: Node, source: str) -> bool:
        """Let the producer of `source` write the node's output, which is a graph output, under its name."""
        value = node.outputs[0]
        writer = self.producer(source)
        if writer is None or source in self.outputs or source in self.captured:
            return False
        self.drop(node)
        self.put(replace(writer, outputs=tuple(value if name == source else name for name in writer.outputs)))
        self._aliases[source] = value
        return True

    def _resolve(self, value: str) -> str:
        while value in self._aliases:
            value = self._aliases[value]
        return value

    def _add(self, node: Node) -> None:
        self.nodes[node.name] = node
        for value in node.writes():
            self._producers[value] = node.name
        for value in node.reads():
            self._readers.setdefault(value, {})[node.name] = None

    def _forget(self, node: Node) -> None:
        for value in node.writes():
            if self._producers.get(value) == node.name:
                del self._producers[value]
        for value in set(node.reads()):
            del self._readers[value][node.name]


Pass = Callable[[Editor], None]  # a rewrite; it leaves the editor unchanged where it finds nothing


def origins(*nodes: Node) -> tuple[str, ...]:
    """Return the ONNX nodes that several nodes stand for, each once, and at most the first MAX_ORIGINS."""
    return tuple(dict.fromkeys(name for node in nodes for name in (node.origins or (node.name,))))[:MAX_ORIGINS]


def scalar(array: Array | None) -> float | None:
    """Return the number in an array of one element; None for any other array."""
    if array is None or array.size != 1 or array.dtype.kind not in "fiuV":
        return None
    return float(array.reshape(-1)[0])


def is_close(value: float | None, wanted: float) -> bool:
    """Whether a number equals `wanted` within the rounding of single precision."""
    return value is not None and abs(value - wanted) <= 1e-6 * abs(wanted)


def sizes(mapping: Mapping[str, Array]) -> int:
    """Return the bytes of all arrays together."""
    return sum(array.nbytes for array in mapping.values())
