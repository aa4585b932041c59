"""The intermediate representation of models: nodes that read and write values, which are named by strings. It is immutable.

A `Graph` is in topological order, and every value has one producer (SSA). A rewrite pass returns a new graph. Shapes are not
part of a graph: `graph.shapes.propagate` computes a `Spec` for every value once the dynamic dimensions are bound, so that one
graph serves every batch size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field
from types import MappingProxyType
from typing import Any

from graph.digest import Digest
from graph.mapped import MappedFile
from kernels.record import record
from kernels.spec import Array, DType, Spec, dtype_name

INTEGER_PRODUCTS = frozenset({"ConvInteger", "MatMulInteger"})  # their sums of int32 are converted by what is fused behind them
CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})  # run by the executor, since their bodies are graphs

BATCHED = "batched"  # attribute of a Scan: as before opset 9, its input 0 holds lengths, and axis 0 of the others is a batch

SEGMENT = "edgewise.Segment"  # the op of a node that stands for a native segment, which the executor runs

Dim = int | str | None  # a size, a named dynamic dimension, or an anonymous dynamic one
Specs = Mapping[str, Spec | None]  # None: the shape depends on values that only a run knows

_EMPTY: Mapping[str, Any] = MappingProxyType({})


@record
class Port:
    """A graph input or output as the model declares it. dims: None where even the rank is unknown."""

    name: str
    dtype: DType
    dims: tuple[Dim, ...] | None

    def __str__(self) -> str:
        dims = "?" if self.dims is None else ",".join("?" if d is None else str(d) for d in self.dims)
        return f"{self.name}: {self.type_name}[{dims}]"

    @property
    def type_name(self) -> str:
        """The element type as numpy names it, float32; of a sequence or an optional what it holds, seq(f32)."""
        return dtype_name(self.dtype) if self.dtype.names else self.dtype.name


@record
class Fused:
    """An elementwise op that is fused to a node: computed in place on the node's output 0 before any other node reads it.

    inputs: of the op, in order; the empty string stands for the node's own output. origin: name of the ONNX node.
    """

    op: str
    inputs: tuple[str, ...]
    attrs: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)
    origin: str = ""


@record
class Node:
    """One operator application.

    name: unique in its graph. op: registry name. inputs/outputs: value names, "" = absent.
    attrs: bound attributes (defaults filled in); subgraphs of If/Loop/Scan are `Graph` values among them.
    epilogue: elementwise ops fused to it, in order. origins: names of the ONNX nodes it stands for, its own first.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)
    epilogue: tuple[Fused, ...] = ()
    origins: tuple[str, ...] = ()

    @property
    def converts(self) -> bool:
        """Whether its epilogue may make its result another type: only these two do, other ops are fused where they keep it."""
        return bool(self.epilogue) and (self.op in INTEGER_PRODUCTS or any(f.op == "QuantizeLinear" for f in self.epilogue))

    def reads(self) -> Iterator[str]:
        """Yield every value it reads: its inputs, those of its epilogue, and values that its subgraphs capture from outside."""
        yield from filter(None, self.inputs)
        for fused in self.epilogue:
            yield from filter(None, fused.inputs)
        if self.op in CONTROL_FLOW:
            for graph in self.subgraphs():
                yield from graph.captures()

    def writes(self) -> Iterator[str]:
        """Yield every value it writes."""
        yield from filter(None, self.outputs)

    def subgraphs(self) -> Iterator[Graph]:
        """Yield the graphs among its attributes."""
        if self.op in CONTROL_FLOW:
            yield from (value for value in self.attrs.values() if isinstance(value, Graph))


@record
class Graph:
    """A whole model, or the body of an If, Loop or Scan.

    constants: value name -> array, both initializers and folded constants. outputs: with the dtypes and dims that the model
    declares; `propagate` computes the real ones.
    """

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    nodes: tuple[Node, ...]
    constants: Mapping[str, Array]
    _captures: list[frozenset[str]] = field(default_factory=list, init=False, repr=False, compare=False)  # once computed

    def captures(self) -> frozenset[str]:
        """Return the values that a subgraph reads from the graphs around it."""
        if not self._captures:
            own = {port.name for port in self.inputs} | set(self.constants)
            own.update(value for node in self.nodes for value in node.writes())
            read = {value for node in self.nodes for value in node.reads()} | {port.name for port in self.outputs}
            self._captures.append(frozenset(read - own))
        return self._captures[0]


@record
class Model:
    """A graph and where it came from.

    contents: the digest of the model's bytes, external data included. source: file name, or "<bytes>" and the like. nbytes: size
    with external data. initializers: names of the constants that the file stores as initializers, including those of subgraphs
    but not the outputs of Constant nodes. files: the files that large constants are mapped from.
    """

    graph: Graph
    contents: Digest
    opset: int
    producer: str
    source: str
    nbytes: int
    initializers: frozenset[str] = frozenset()
    files: tuple[MappedFile, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 of the model's bytes, external data included. Raises CorruptModelError where its file was written to."""
        return self.contents.text()
