"""The intermediate representation: a model is values named by strings and nodes between them, all of it immutable.

A `Graph` is in topological order, every value has one producer (SSA), and a rewrite pass returns a new one. Shapes are no
part of it: `graph.shapes.propagate` computes a `Spec` for every value once the dynamic dimensions are bound, so one graph
serves every batch size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from graph.mapped import MappedFile
from kernels.spec import Array, DType, Spec

CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})  # run by the executor itself: their bodies are graphs, which ops know nothing of

SEGMENT = "edgewise.Segment"  # the op of a node that stands for a native segment: the executor runs it, ops know nothing of it

Dim = int | str | None  # a size, a named dynamic dimension, or an anonymous dynamic one
Specs = Mapping[str, Spec | None]  # None: a shape that only run-time values decide

_EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Port:
    """A graph input or output as the model declares it. `dims` is None where even the rank is open."""

    name: str
    dtype: DType
    dims: tuple[Dim, ...] | None

    def __str__(self) -> str:
        dims = "?" if self.dims is None else ",".join("?" if d is None else str(d) for d in self.dims)
        return f"{self.name}: {self.dtype.name}[{dims}]"


@dataclass(frozen=True, slots=True)
class Fused:
    """An elementwise op computed in place on a node's output 0, before anybody reads it.

    `inputs` are the op's inputs in order; the empty string marks the place of the node's own output.
    """

    op: str
    inputs: tuple[str, ...]
    attrs: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Node:
    """One operator application.

    name: unique in its graph. op: registry name. inputs/outputs: value names, "" = absent.
    attrs: bound attributes (defaults filled in); subgraphs of If/Loop/Scan are `Graph` values among them.
    epilogue: what is fused behind it. origins: names of the ONNX nodes it stands for, itself first.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)
    epilogue: tuple[Fused, ...] = ()
    origins: tuple[str, ...] = ()

    def reads(self) -> Iterator[str]:
        """Every value it reads: its inputs, its epilogue's, and what its subgraphs capture from outside."""
        yield from (name for name in self.inputs if name)
        for fused in self.epilogue:
            yield from (name for name in fused.inputs if name)
        for graph in self.subgraphs():
            yield from graph.captures()

    def writes(self) -> Iterator[str]:
        """Every value it produces."""
        yield from (name for name in self.outputs if name)

    def subgraphs(self) -> Iterator[Graph]:
        """The graphs among its attributes."""
        yield from (value for value in self.attrs.values() if isinstance(value, Graph))


@dataclass(frozen=True, slots=True)
class Graph:
    """A whole model, or the body of an If, Loop or Scan.

    constants: value name -> array; initializers and folded constants alike. outputs are Ports: their dtype and dims are what
    the model declares, `propagate` says what they are.
    """

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    nodes: tuple[Node, ...]
    constants: Mapping[str, Array]

    def captures(self) -> set[str]:
        """Values a subgraph reads from the graphs around it."""
        own = {port.name for port in self.inputs} | set(self.constants)
        own.update(value for node in self.nodes for value in node.writes())
        read = {value for node in self.nodes for value in node.reads()} | {port.name for port in self.outputs}
        return read - own


@dataclass(frozen=True, slots=True)
class Model:
    """A graph and where it came from. `digest` is the SHA-256 of the model's bytes, external data included.

    initializers: names of the constants that the file stores as initializers, subgraphs' included; the outputs of its
    Constant nodes are constants too, but not among them. files: that large constants are mapped from.
    """

    graph: Graph
    digest: str
    opset: int
    producer: str
    source: str
    nbytes: int
    initializers: frozenset[str] = frozenset()
    files: tuple[MappedFile, ...] = ()
