"""A loaded model that answers: one executor for each set of input shapes it meets, a bounded number of them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import onnx

from graph.choice import Choice
from graph.errors import LimitError
from graph.executor import Executor
from graph.feeds import check_feeds
from graph.ir import Graph, Model, Port
from graph.mapped import require_unchanged
from graph.native.engine import find_native
from graph.optimise import optimise
from graph.reader import read
from graph.shapes import bind
from kernels.errors import AttributeValueError, UnsupportedError
from kernels.spec import Array
from profiler.trace import Trace, trace
from scheduler.build import current_build
from scheduler.errors import StalePlanError
from scheduler.strategy import WantedBackend

if TYPE_CHECKING:
    from scheduler.plan import Plan

PRECISIONS = ("fp32", "bf16", "int8", "auto")
BACKENDS: tuple[WantedBackend, ...] = get_args(WantedBackend)

_Shapes = tuple[Any, ...]  # the inputs' shapes in order; whatever a caller passes as one, until it is checked


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """How much a session may hold. executors: sets of input shapes kept ready. arena_bytes: of all of them together."""

    executors: int = 8
    arena_bytes: int = 8 * 2**30


_DEFAULT_LIMITS = SessionLimits()
_SHARED_BYTES = 4096  # smaller constants are not worth comparing


class Session:
    """A model ready to run. Any number of threads may call it.

    Args:    model: a path, the bytes of a file, a ModelProto, or a Model already read. threads: of one run; None = one for each
             physical core this process may use. precision, backend: see PRECISIONS, BACKENDS.
             plan: what to run, for the shapes it was made for; other shapes run each op's default.
    Raises:  what `read` raises; StalePlanError for a plan of another model, device or build; AttributeValueError for a value
             that does not exist, UnsupportedError for one not built yet.
    """

    def __init__(
        self,
        model: str | Path | bytes | onnx.ModelProto | Model,
        threads: int | None = None,
        precision: str = "fp32",
        backend: WantedBackend = "auto",
        plan: Plan | None = None,
        *,
        limits: SessionLimits = _DEFAULT_LIMITS,
    ) -> None:
        _check_choices(precision, backend)
        self.model = model if isinstance(model, Model) else read(model)
        self._plan = None if plan is None else _usable(plan, self.model)
        if threads is not None:
            self.threads = _checked_threads(threads)
        else:
            self.threads = available_cores() if plan is None else plan.threads
        self.limits = limits
        self.backend = backend
        self._native = None if backend == "numpy" else find_native(backend)
        self._lock = threading.Lock()
        self._building = threading.Lock()
        self._executors: OrderedDict[_Shapes, Executor] = OrderedDict()

    @property
    def inputs(self) -> tuple[Port, ...]:
        """What `run` wants."""
        return self.model.graph.inputs

    @property
    def outputs(self) -> tuple[Port, ...]:
        """What `run` returns."""
        return self.model.graph.outputs

    @property
    def plan(self) -> Plan:
        """The plan it runs. One that was not given is made when it is first asked for, and stored, and run from then on.

        It is for the shapes used last, the declared ones before any run. A new machine is measured first, which takes seconds.
        Raises: FeedError while dimensions are open and nothing has run; StoreError.
        """
        with self._building:
            if self._plan is None:
                with self._lock:
                    used = next(reversed(self._executors), None)
                shapes = None if used is None else dict(zip((port.name for port in self.inputs), used, strict=True))
                from scheduler.planner import plan  # noqa: PLC0415  it brings the database, which runs do without

                made = plan(self.model, shapes=shapes, max_threads=self.threads, backend=self.backend)
                with self._lock:
                    self._plan, self.threads = made, made.threads
                    self._executors.clear()
            return self._plan

    @property
    def held_plan(self) -> Plan | None:
        """The plan it runs already; None while every node runs as it does by default."""
        return self._plan

    def plan_in_use(self, shapes: Mapping[str, tuple[int, ...]]) -> Plan | None:
        """The plan that a run of these shapes follows; None where there is none for them. Makes none."""
        plan = self._plan
        if plan is None or {port.name: port.shape for port in plan.inputs} != dict(shapes):
            return None
        return plan

    @property
    def plan_id(self) -> str:
        """The id of the plan it runs; "default" while it has none and every op runs its default."""
        return "default" if self._plan is None else self._plan.id

    @property
    def memory_bytes(self) -> int:
        """Bytes of the model and of the arenas kept for its shapes; packed weights come on top."""
        with self._lock:
            return self.model.nbytes + self._arena_bytes()

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        """Run once. feeds: every input by name. Returns every output by name, the caller's own arrays. Raises FeedError."""
        return self.executor(feeds).run(feeds)

    def trace(self, feeds: Mapping[str, Any], runs: int = 50) -> Trace:
        """Measure where the time of a run goes. Raises FeedError, MeasurementError."""
        return trace(self.executor(feeds), feeds, runs)

    def built(self, feeds: Mapping[str, Any]) -> Executor | None:
        """The executor for the shapes of these feeds, where there is one."""
        return self._find(self._key(feeds))

    def executor(self, feeds: Mapping[str, Any]) -> Executor:
        """The executor for the shapes of these feeds, built when they are new. Raises FeedError, LimitError."""
        key = self._key(feeds)
        if (found := self._find(key)) is not None:
            return found
        arrays = check_feeds(self.inputs, feeds)
        with self._building:  # of several threads that meet new shapes, one builds at a time; known shapes keep running
            if (found := self._find(key)) is None:
                found = self._build({name: array.shape for name, array in arrays.items()})
                self._keep(key, found)
            return found

    def _key(self, feeds: Mapping[str, Any]) -> _Shapes:
        return tuple(getattr(feeds.get(port.name), "shape", None) for port in self.inputs)

    def _find(self, key: _Shapes) -> Executor | None:
        with self._lock:
            if (found := self._executors.get(key)) is not None:
                self._executors.move_to_end(key)
            return found

    def _build(self, shapes: Mapping[str, tuple[int, ...]]) -> Executor:
        require_unchanged(self.model.files)
        graph = self.model.graph
        ready = optimise(graph, bind(graph, shapes))
        return Executor(self._sharing(ready.graph), ready.specs, self._choices(shapes), self.threads, self._native)

    def _sharing(self, graph: Graph) -> Graph:
        """The graph with every constant that the passes made anew replaced by another executor's, where that is the same."""
        with self._lock:
            others = [executor.graph.constants for executor in self._executors.values()]
        constants = dict(graph.constants)
        for name, array in graph.constants.items():
            if array.nbytes >= _SHARED_BYTES and array is not self.model.graph.constants.get(name):
                same = (other[name] for other in others if name in other and _same_bits(other[name], array))
                constants[name] = next(same, array)
        return replace(graph, constants=constants)

    def _choices(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Choice]:
        """What the plan chose, where it was made for these shapes."""
        plan = self.plan_in_use(shapes)
        return {} if plan is None else plan.choices

    def _keep(self, key: _Shapes, made: Executor) -> None:
        """Remember an executor, letting go of those unused the longest. The arena of one in use lives until its run ends."""
        limit = self.limits.arena_bytes
        if made.memory.arena_bytes > limit:
            raise LimitError(
                f"session: shapes {list(key)} need an arena of {made.memory.arena_bytes} bytes, the limit is {limit}"
            )
        with self._lock:
            self._executors[key] = made
            while len(self._executors) > self.limits.executors or self._arena_bytes() > limit:
                self._executors.popitem(last=False)

    def _arena_bytes(self) -> int:
        return sum(executor.memory.arena_bytes for executor in self._executors.values())


def available_cores() -> int:
    """Physical cores this process may use: CPU affinity and the cgroup's quota count, at least one."""
    from profiler.device import usable_cores  # noqa: PLC0415  it brings pydantic, which runs on known threads do without
    from profiler.topology import read_confinement, read_hardware  # noqa: PLC0415

    return usable_cores(read_hardware(), read_confinement())


def _usable(plan: Plan, model: Model) -> Plan:
    """The plan, if it is of this model and true of what runs here."""
    if plan.model_digest != model.digest:
        raise StalePlanError(f"session: plan is of model {plan.model_digest[:12]}, this is {model.digest[:12]}, plan again")
    from scheduler.local import local_fingerprint  # noqa: PLC0415  as above

    if reason := plan.staleness(local_fingerprint(), current_build()):
        raise StalePlanError(f"session: {reason}, plan again")
    return plan


def _same_bits(a: Array, b: Array) -> bool:
    if a is b:
        return True
    if a.shape != b.shape or a.dtype != b.dtype or a.dtype.hasobject or not a.flags.c_contiguous or not b.flags.c_contiguous:
        return False
    return np.array_equal(a.reshape(-1).view(np.uint8), b.reshape(-1).view(np.uint8))


def _checked_threads(threads: int) -> int:
    if threads < 1:
        raise AttributeValueError(f"session: threads is {threads}, need at least 1 or None")
    return threads


def _check_choices(precision: str, backend: str) -> None:
    if precision not in PRECISIONS:
        raise AttributeValueError(f"session: precision is {precision!r}, need one of {', '.join(PRECISIONS)}")
    if backend not in BACKENDS:
        raise AttributeValueError(f"session: backend is {backend!r}, need one of {', '.join(BACKENDS)}")
    if precision not in ("fp32", "auto"):
        raise UnsupportedError(f"session: precision {precision} is not available in this build, it has fp32")
