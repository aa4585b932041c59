"""Runs a graph for one set of input shapes: everything decided when it is built, so that a run is a loop over calls.

Intermediate values live at fixed places of one arena (`graph.memory`); graph outputs are allocated by every run and become the
caller's. Steps whose shapes only the run decides are inferred, allocated and run one by one on the way.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import threadpoolctl

from graph.errors import FeedError
from graph.feeds import check_feeds
from graph.interpreter import run_node
from graph.ir import Graph, Node, Port, Specs
from graph.memory import ALIGNMENT_BYTES, MemoryPlan, is_static, plan_memory
from kernels.errors import UnsupportedError
from kernels.registry import Kernel, find
from kernels.spec import Array, Spec

VIEW = "view"  # the algorithm of a step that is only another name for memory
DYNAMIC = "dynamic"  # of a step that is inferred and allocated at run time


@dataclass(frozen=True, slots=True)
class Step:
    """One node as it will run. algorithm: its kernel's, or `view`, or `dynamic`."""

    node: Node
    algorithm: str


@dataclass(frozen=True, slots=True)
class TimedRun:
    """What a run gave and how long each step took; wall_ns covers the whole of `run_timed`."""

    outputs: dict[str, Array]
    step_ns: list[int]
    wall_ns: int


class Executor:
    """A graph ready to run.

    Args:    specs: of every value (`propagate`). algorithms: node name -> kernel to use, default = each op's first that applies.
             threads: of BLAS, None = leave as it is.
    Raises:  UnsupportedError when a node has no kernel for its specs, or not the one asked for.
    Runs are one at a time: the arena is one. Executors of several threads may run side by side.
    """

    def __init__(
        self, graph: Graph, specs: Specs, algorithms: Mapping[str, str] | None = None, threads: int | None = None
    ) -> None:
        self.graph = graph
        self.specs = specs
        self.threads = threads
        self._ports = tuple(Port(port.name, port.dtype, _known(port, specs).shape) for port in graph.inputs)
        self._lock = threading.Lock()
        kernels = {node.name: _kernel(node, specs, (algorithms or {}).get(node.name)) for node in graph.nodes}
        scratch = {name: nbytes for name, (_, nbytes) in kernels.items()}
        self.memory: MemoryPlan = plan_memory(graph, specs, scratch)
        self._arena = _aligned_empty(self.memory.arena_bytes)
        self._fixed: dict[str, Array] = dict(graph.constants)
        self._made: list[tuple[str, Spec]] = []
        self._names: list[tuple[str, str, tuple[int, ...]]] = []
        self._place(specs)
        self.steps = tuple(Step(node, self._algorithm(node, kernels[node.name][0])) for node in graph.nodes)
        self._calls = [self._call(step, kernels[step.node.name][0], specs) for step in self.steps]

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        """Run once. feeds: every input by name. Returns every graph output, the caller's own arrays. Raises FeedError."""
        with self._lock, np.errstate(all="ignore"):
            values = self._begin(feeds)
            for call in self._calls:
                call(values)
            return self._end(values)

    def run_timed(self, feeds: Mapping[str, Any]) -> TimedRun:
        """Run once, reading the clock between steps."""
        clock = time.perf_counter_ns
        with self._lock, np.errstate(all="ignore"):
            began = clock()
            values = self._begin(feeds)
            marks = [clock()]
            for call in self._calls:
                call(values)
                marks.append(clock())
            outputs = self._end(values)
            return TimedRun(outputs, [b - a for a, b in itertools.pairwise(marks)], clock() - began)

    def _place(self, specs: Specs) -> None:
        """Give every planned value its array now, or note how a run makes it."""
        outside = {port.name for port in self._ports}
        for value, owner in self.memory.owners.items():
            spec = specs[value]
            if spec is None or value in self._fixed:
                continue
            if owner in self.memory.placements:
                place = self.memory.placements[owner]
                memory = self._arena[place.offset_bytes : place.offset_bytes + spec.nbytes]
                self._fixed[value] = memory.view(spec.dtype).reshape(spec.shape)
            elif owner in self.graph.constants:
                self._fixed[value] = np.ascontiguousarray(self.graph.constants[owner]).reshape(spec.shape)
            elif value != owner:
                self._names.append((value, owner, spec.shape))
            elif value not in outside:
                self._made.append((value, spec))

    def _algorithm(self, node: Node, kernel: Kernel | None) -> str:
        if kernel is None:
            return DYNAMIC
        owners, value = self.memory.owners, node.outputs[0]
        shares = bool(value) and value in owners and owners[value] == owners.get(node.inputs[0] if node.inputs else "")
        return VIEW if find(node.op).view and shares else kernel.algorithm

    def _call(self, step: Step, kernel: Kernel | None, specs: Specs) -> Callable[[dict[str, Array]], None]:
        """The closure that runs one step on the values of a run."""
        node = step.node
        epilogue = self._epilogue(node, specs)
        if kernel is None:
            return lambda values: values.update(
                (name, array) for name, array in zip(node.outputs, run_node(node, values), strict=False) if name
            )
        if step.algorithm == VIEW:
            return epilogue
        run, inputs = kernel.run, node.inputs
        keywords = dict(node.attrs)
        if kernel.workspace_bytes is not None:
            place = self.memory.workspaces.get(node.name)
            keywords["workspace"] = (
                self._arena[place.offset_bytes : place.offset_bytes + place.nbytes] if place else self._arena[:0]
            )
        outputs = tuple(name if name in self.memory.owners else "" for name in node.outputs)
        unread = None
        if not outputs[0]:  # kernels always fill output 0
            spec = find(node.op).infer_specs([specs[name] if name else None for name in inputs], node.attrs)[0]
            unread = np.empty(spec.shape, spec.dtype)

        def call(values: dict[str, Array]) -> None:
            out = tuple(values[name] if name else None for name in outputs)
            if unread is not None:
                out = (unread, *out[1:])
            run(out, *[values[name] if name else None for name in inputs], **keywords)
            epilogue(values)

        return call

    def _epilogue(self, node: Node, specs: Specs) -> Callable[[dict[str, Array]], None]:
        """Run what is fused behind a node in place on its output."""
        runs = []
        for fused in node.epilogue:
            op, names = find(fused.op), tuple(name or node.outputs[0] for name in fused.inputs)
            runs.append((op.choose([specs[name] for name in names], fused.attrs).run, names, dict(fused.attrs)))

        def call(values: dict[str, Array]) -> None:
            for run, names, keywords in runs:
                run((values[node.outputs[0]],), *[values[name] for name in names], **keywords)

        return call

    def _begin(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        arrays = check_feeds(self._ports, feeds)
        if self.threads is not None:
            limit_blas_threads(self.threads)
        values = {**self._fixed, **arrays}
        for name, spec in self._made:
            values[name] = np.empty(spec.shape, spec.dtype)
        for name, owner, shape in self._names:
            values[name] = values[owner].reshape(shape)
        return values

    def _end(self, values: dict[str, Array]) -> dict[str, Array]:
        """The outputs; copied where they are an input or a constant under another name, for those are not the caller's own."""
        borrowed = {port.name for port in self._ports} | set(self.graph.constants)
        owners = self.memory.owners
        return {
            port.name: values[port.name].copy() if owners.get(port.name, port.name) in borrowed else values[port.name]
            for port in self.graph.outputs
        }


def _known(port: Port, specs: Specs) -> Spec:
    spec = specs.get(port.name)
    if spec is None:
        raise FeedError(f"input {port.name!r}: its shape is not bound, an executor serves one set of shapes ({port})")
    return spec


def _kernel(node: Node, specs: Specs, algorithm: str | None) -> tuple[Kernel | None, int]:
    """The kernel and its workspace bytes; None for what is decided at run time."""
    if not is_static(node, specs):
        return None, 0
    inputs = [specs[name] if name else None for name in node.inputs]
    try:
        kernel = find(node.op).choose(inputs, node.attrs, algorithm)
    except UnsupportedError as error:
        raise UnsupportedError(f"{error} (node {node.name!r})") from None
    return kernel, kernel.workspace_bytes(*inputs, **node.attrs) if kernel.workspace_bytes else 0


def _aligned_empty(nbytes: int) -> Array:
    raw = np.empty(nbytes + ALIGNMENT_BYTES, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT_BYTES
    return raw[start : start + nbytes]


_blas_lock = threading.Lock()
_blas: list[Any] = []
_blas_threads = 0


def limit_blas_threads(count: int) -> None:
    """Set how many threads BLAS uses in this process. Results do not depend on it; the last caller wins."""
    global _blas_threads  # noqa: PLW0603  BLAS itself has one count a process
    if count == _blas_threads:
        return
    with _blas_lock:
        if not _blas:
            controller = threadpoolctl.ThreadpoolController()
            _blas.extend(lib for lib in controller.lib_controllers if lib.user_api == "blas")
        for library in _blas:
            library.set_num_threads(count)
        _blas_threads = count
