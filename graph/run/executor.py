"""The executor of a graph for one set of input shapes. Threads may share it; it runs once at a time."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any

import numpy as np

from graph.backend import Backend
from graph.budget import RunBudget
from graph.choice import Choice
from graph.errors import FeedError
from graph.ir import Graph, Port, Specs
from graph.memory import Held, MemoryPlan
from graph.run.alarm import shared_alarm
from graph.run.blas import BlasThreads
from graph.run.bounds import RunBounds
from graph.run.feeds import check_feeds
from graph.run.lowered import BoundSpecs, LoweredGraph
from graph.run.prepared import DYNAMIC, VIEW, PreparedStep
from graph.run.single import SingleSegment
from graph.timing import RunClock
from kernels.containers import as_lists
from kernels.record import record
from kernels.size import PLAIN, Sizes
from kernels.spec import Array, Spec

WAIT_S = 0.05  # between looks at the bounds of a run that waits for another one to end

__all__ = ["DYNAMIC", "VIEW", "Executor", "PreparedStep", "TimedRun"]


@record
class TimedRun:
    """Outputs and clock readings of one run. wall_ns: from before the feeds are checked to the end."""

    outputs: dict[str, Array]
    wall_ns: int
    clock: RunClock

    @property
    def step_ns(self) -> list[int]:
        """Nanoseconds of every step, computed from the clock readings when it is asked for."""
        return self.clock.step_ns()


class Executor:
    """A graph that is ready to run.

    Intermediate values have fixed places in one arena (`memory`). Every run allocates the graph outputs, which become the
    caller's. Several executors may run at the same time, on different threads.

    Args:    specs: of every value (`propagate`). choices: node name -> how to compute it; by default by the backend where it can,
             else with the op's first numpy kernel that applies. threads: of BLAS and of native code; None leaves BLAS as it is
             set and takes one per core for native code. On another number native code gives the same bits, and BLAS results
             that may differ by rounding. backend: native or another one, None for numpy alone. budget: of the memory that this
             executor and a run of it take; by default half of what this process may use, for this executor alone.
    Raises:  FeedError when an input's shape is not bound; UnsupportedError when a node has no kernel for its specs, or not the
             chosen one; LimitError, naming a node, before memory beyond the budget is allocated; OutOfMemoryError where the
             process or the system has no more.
    """

    def __init__(
        self,
        graph: Graph,
        specs: Specs,
        choices: Mapping[str, Choice] | None = None,
        threads: int | None = None,
        backend: Backend | None = None,
        budget: RunBudget | None = None,
    ) -> None:
        budget = RunBudget() if budget is None else budget
        for port in graph.inputs:
            _known(port, specs)
        self._init(LoweredGraph(graph, specs, choices or {}, threads, backend, budget), PLAIN, budget)

    @classmethod
    def of(cls, lowered: LoweredGraph, sizes: Sizes, budget: RunBudget) -> Executor:
        """Return the executor of a lowered graph for some values of its sizes (`LoweredGraph.sizes`)."""
        made = cls.__new__(cls)
        made._init(lowered, sizes, budget)
        return made

    def _init(self, lowered: LoweredGraph, sizes: Sizes, budget: RunBudget) -> None:
        self.graph, self.threads = lowered.graph, lowered.threads
        self.specs: Specs = lowered.specs if sizes.are_plain else BoundSpecs(lowered.specs, sizes)
        self._lowered = lowered
        self._ports = self._ports_at(sizes)
        self._budget = budget
        weakref.finalize(self, budget.release).atexit = False
        self._program, self.packed = lowered.prepare(sizes, budget)
        self._names = tuple(port.name for port in self.graph.outputs if port.name not in lowered.kept)
        self._blas = BlasThreads(self.threads if self._program.uses_numpy else None)
        self._lock = threading.Lock()
        self._single = self._alone()

    def _alone(self) -> SingleSegment | None:
        """Return the segment that is all of the graph, where nothing but a run itself needs to be counted."""
        return None if self._budget.is_shared or self._lowered.kept else self._program.single(self._ports)

    def _ports_at(self, sizes: Sizes) -> tuple[Port, ...]:
        specs = self._lowered.specs
        return tuple(Port(port.name, port.dtype, sizes.all(_known(port, specs).shape)) for port in self.graph.inputs)

    @property
    def steps(self) -> tuple[PreparedStep, ...]:
        """The steps in the order in which they run. Nodes that no output depends on are left out."""
        return self._program.steps

    @property
    def memory(self) -> MemoryPlan:
        """The memory plan."""
        return self._program.memory

    @property
    def held(self) -> tuple[Held, ...]:
        """The activation memory that values take, and during which of `steps`."""
        return self._program.held

    @property
    def needed_bytes(self) -> int:
        """Bytes that it keeps, packed weights included, and that a run of it allocates, as far as they are known before."""
        return self._budget.kept_bytes + self._program.footprint.run_bytes

    @property
    def free_bytes(self) -> int:
        """Bytes that values and workspaces whose size only a run knows may take in one run, beside all that is planned."""
        return self._budget.free_bytes - self._program.footprint.run_bytes

    def _running(self) -> AbstractContextManager[None]:
        """Return the context in which what a run allocates is counted."""
        return self._budget.running(self._program.footprint.run_bytes, self._program.footprint.largest)

    def resize(self, sizes: Sizes) -> bool:
        """Serve other sizes of the same lowered graph from now on. False where a new executor is needed; drop this one then."""
        with self._lock:
            self.specs = BoundSpecs(self._lowered.specs, sizes)
            self._ports = self._ports_at(sizes)
            resized = self._program.resize(self.specs, sizes)
            self._single = self._alone() if resized else None
            return resized

    def run(
        self, feeds: Mapping[str, Any], bounds: RunBounds | None = None, kept: Mapping[str, Array] = MappingProxyType({})
    ) -> dict[str, Array]:
        """Run once.

        Args:    feeds: every input by name. bounds: of this run; None = no deadline, and the default number of loop rounds.
                 kept: in place of feeds, the memory of inputs that grow in place (`LoweredGraph.kept`); nobody else uses it.
        Returns: every graph output by name, in new memory, but for those that grow in place. Sequences are lists of arrays, and
                 an optional is None where it holds nothing.
        Raises:  FeedError; RunStoppedError where the bounds end the run, LimitError where it needs more than they allow.
        """
        if bounds is None and self._single is not None and self._lock.acquire(False):
            try:
                if (done := self._single.run(feeds)) is not None:
                    return done
            finally:
                self._lock.release()
        fed = [port for port in self._ports if port.name not in kept] if kept else self._ports
        arrays, bounds = check_feeds(fed, feeds), bounds or RunBounds()
        bounds.allow(max(0, self._budget.free_bytes))
        bounds.check()
        while not self._lock.acquire(timeout=WAIT_S):
            bounds.check()
        try:
            with shared_alarm().set_for(bounds), self._running(), self._blas, np.errstate(all="ignore"):
                given = [kept[p.name] if p.name in kept else arrays[p.name] for p in self._ports] if kept else arrays.values()
                outputs = self._program.run(tuple(given), bounds)
        finally:
            self._lock.release()
        return dict(zip(self._names, map(as_lists, outputs), strict=True))

    def run_timed(self, feeds: Mapping[str, Any]) -> TimedRun:
        """Run once, reading the clock between steps."""
        with self._lock:
            began_ns = time.perf_counter_ns()
            arrays = check_feeds(self._ports, feeds)
            with self._running(), self._blas, np.errstate(all="ignore"):
                outputs, marks_ns, segments = self._program.run_timed(tuple(arrays.values()))
            named = dict(zip(self._names, map(as_lists, outputs), strict=True))
            wall_ns = time.perf_counter_ns() - began_ns
            clock = RunClock(began_ns, marks_ns, segments)
            return TimedRun(named, wall_ns, clock)


def _known(port: Port, specs: Specs) -> Spec:
    spec = specs.get(port.name)
    if spec is None:
        raise FeedError(f"input {port.name!r}: its shape is not bound, an executor serves one set of shapes ({port})")
    return spec
