"""A subject: a model made ready to be planned or measured, with the cost of each node and every way to run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, replace

from graph.ir import Graph, Model, Node, Specs
from graph.memory import is_static
from graph.native.engine import Native, find_native
from graph.native.work import Work
from graph.passes.optimise import optimise
from graph.run.executor import DYNAMIC, VIEW
from graph.run.feeds import random_feeds
from graph.shapes import bind
from kernels.record import record
from kernels.registry import find
from kernels.spec import Array
from profiler.counting.counts import OpProfile, count_nodes
from scheduler.build import Build, current_build
from scheduler.cost.bounds import numpy_work
from scheduler.plan import InputShape
from scheduler.signature import Signature, signature
from scheduler.strategy import OFFERED, Strategy, WantedBackend, WantedPrecision, require_offered
from scheduler.workload import Workload

MODEL_ERROR = 1e-3  # that algorithms may add to a model's output, relative to its largest, where no limit is asked for


@record
class Option:
    """One way to run a node. load: its workload; None where the way is refused, and `refused` says why."""

    strategy: Strategy
    load: Workload | None
    refused: str = ""


@record
class Subject:
    """A model bound to input shapes and optimised, to be planned or measured.

    costs, signatures: of every node of the graph, in order. error_budget: the error that the algorithm of one convolution or
    matrix product may add, relative to its largest output. precision: that was asked for.
    """

    model: Model
    inputs: tuple[InputShape, ...]
    graph: Graph
    specs: Specs
    costs: Sequence[OpProfile]
    signatures: Sequence[Signature]
    build: Build
    native: Native | None
    backend: WantedBackend
    error_budget: float
    precision: WantedPrecision = "fp32"
    _options: dict[int, list[tuple[Option, ...]]] = field(default_factory=dict)

    @staticmethod
    def of(
        model: Model,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        dims: Mapping[str, int] | None = None,
        *,
        backend: WantedBackend = "auto",
        precision: WantedPrecision = "fp32",
        max_error: float | None = None,
    ) -> Subject:
        """Bind the inputs of a model and optimise its graph.

        precision: of products of float32. max_error: of the output. Raises FeedError for open dimensions, UnsupportedError for
        a precision that this build has no kernels for.
        """
        require_offered("plan", precision)
        inputs = bind(model.graph, shapes, dims)
        native = None if backend == "numpy" else find_native(backend, OFFERED[precision])
        ready = optimise(model.graph, inputs, native=native is not None)
        graph, specs = ready.graph, ready.specs
        costs = count_nodes(graph, specs)
        return Subject(
            model=model,
            inputs=tuple(InputShape(name=name, dtype=spec.dtype.name, shape=spec.shape) for name, spec in inputs.items()),
            graph=graph,
            specs=specs,
            costs=costs,
            signatures=[signature(node, specs, graph.constants) for node in graph.nodes],
            build=current_build(),
            native=native,
            backend=backend,
            precision=precision,
            error_budget=(MODEL_ERROR if max_error is None else max_error) / max(1, sum(cost.macs > 0 for cost in costs)),
        )

    @property
    def ops(self) -> dict[str, str]:
        """Signature key -> op, the form in which the store looks measurements up."""
        return {text.key: text.op for text in self.signatures}

    def feeds(self) -> dict[str, Array]:
        """Return seeded random inputs of the bound shapes."""
        return self.samples(1)[0]

    def samples(self, count: int) -> list[dict[str, Array]]:
        """Return so many seeded random inputs of the bound shapes."""
        specs = {port.name: spec for port in self.graph.inputs if (spec := self.specs[port.name]) is not None}
        return [random_feeds(specs, seed) for seed in range(count)]

    def reordered(self, names: Sequence[str]) -> Subject:
        """Return the subject with these nodes alone, in this order, which has to be one that they can run in."""
        places = {node.name: at for at, node in enumerate(self.graph.nodes)}
        order = [places[name] for name in names]
        return replace(
            self,
            graph=replace(self.graph, nodes=tuple(self.graph.nodes[at] for at in order)),
            costs=[self.costs[at] for at in order],
            signatures=[self.signatures[at] for at in order],
            _options={},
        )

    def fixed(self, node: Node) -> tuple[str, str] | None:
        """Return how the executor runs a node that needs no kernel (VIEW or DYNAMIC), and why; None for other nodes."""
        if not is_static(node, self.specs):
            return DYNAMIC, "its shapes are only known at run time"
        if find(node.op).view and not node.epilogue:
            return VIEW, "another name for memory"
        return None

    def options(self, threads: int) -> list[tuple[Option, ...]]:
        """Return every way to run each node on that many threads, refused ones included; the first native one is the default.

        The layout of a value depends on the op that makes it and hardly on its algorithm, so the bytes to convert for an option
        are taken from the layouts of the default choices.
        """
        if threads not in self._options:
            blocked: frozenset[str] = frozenset()
            if self.native is not None:
                blocked = self.native.blocked(self.graph, self.specs, threads, {})
            self._options[threads] = [
                () if self.fixed(node) else self._of_node(node, cost, threads, blocked)
                for node, cost in zip(self.graph.nodes, self.costs, strict=True)
            ]
        return self._options[threads]

    def copies(self, index: int, threads: int) -> tuple[Option, ...]:
        """Return every way to run a view that has to copy, because its output must not share memory with its input."""
        return self._of_node(self.graph.nodes[index], self.costs[index], threads, frozenset())

    def _of_node(self, node: Node, cost: OpProfile, threads: int, blocked: frozenset[str]) -> tuple[Option, ...]:
        found = [] if self.native is None else self._natively(self.native, node, threads, blocked)
        inputs = [self.specs[name] if name else None for name in node.inputs]
        for kernel in find(node.op).kernels:
            strategy = Strategy("numpy", kernel.algorithm, "fp32", threads)
            refusal = kernel.refuses(*inputs, **node.attrs) if kernel.refuses else None
            load = None if refusal is not None else Workload(numpy_work(node, cost, kernel, self.specs), threads)
            found.append(Option(strategy, load, refusal or ""))
        if cost.macs:
            for other in ("bf16", "int8"):
                strategy = Strategy("numpy", find(node.op).kernels[0].algorithm, other, threads)
                found.append(Option(strategy, None, f"numpy has no {other} kernels"))
        return tuple(found)

    def _natively(self, native: Native, node: Node, threads: int, blocked: frozenset[str]) -> list[Option]:
        reason = native.refusal(node, self.graph, self.specs)
        if reason is not None:
            return [Option(Strategy("native", "any", "fp32", threads), None, reason)]
        found = []
        for choice in native.candidates(node, self.graph, self.specs, threads):
            work = native.work(node, self.graph, self.specs, choice)
            strategy = Strategy.of(choice, threads)
            if work.error > self.error_budget:
                why = f"its error estimate is {work.error:.1e}, each layer with MACs may add {self.error_budget:.1e}"
                found.append(Option(strategy, None, why))
            else:
                found.append(Option(strategy, Workload(work, threads, self._converted_bytes(node, work, blocked))))
        return found

    def _converted_bytes(self, node: Node, work: Work, blocked: frozenset[str]) -> int:
        """Return the bytes read and written to bring the node's first input into the layout that a candidate wants."""
        value = node.inputs[0] if node.inputs else ""
        spec = self.specs.get(value)
        if spec is None or value in self.graph.constants or work.wants == "any":
            return 0
        return 0 if (value in blocked) == (work.wants == "blocks") else 2 * spec.nbytes
