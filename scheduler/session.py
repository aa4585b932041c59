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

from graph.errors import LimitError
from graph.formats.onnx.reader import read
from graph.ir import Graph, Model, Port
from graph.mapped import require_unchanged
from graph.native.engine import find_native
from graph.passes.optimise import optimise
from graph.run.executor import Executor
from graph.run.feeds import check_feeds
from graph.shapes import bind
from kernels.errors import AttributeValueError, UnsupportedError
from kernels.spec import Array
from profiler.run.trace import Trace, trace
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
MAX_PLANS = 64  # of one session, each for other shapes: the newest ones
DEFAULT = "default"  # the plan id of runs that follow none


@dataclass(frozen=True, slots=True)
class Ready:
    """What runs one set of input shapes. plan_id: of the plan it follows, DEFAULT where every op runs its default."""

    executor: Executor
    plan_id: str


@dataclass(frozen=True, slots=True)
class _Followed:
    """A plan with its id, which is a hash of all of it and not to be made for every run."""

    plan_id: str
    plan: Plan


class Session:
    """A model ready to run. Any number of threads may call it.

    Args:    model: a path, the bytes of a file, a ModelProto, or a Model already read. threads: of one run; None = one for each
             physical core this process may use. precision, backend: see PRECISIONS, BACKENDS.
             plan: what to run, for the shapes it was made for; other shapes run each op's default, until `follow` says otherwise.
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
        self._plans: dict[_Shapes, _Followed] = {}  # by the shapes they are for, the newest last
        if plan is not None:
            self._plans[self._planned(plan)] = _Followed(plan.id, plan)
        if threads is not None:
            self.threads = _checked_threads(threads)
        else:
            self.threads = available_cores() if plan is None else plan.threads
        self.limits = limits
        self.backend = backend
        self._native = None if backend == "numpy" else find_native(backend)
        self._lock = threading.Lock()
        self._building = threading.Lock()
        self._ready: OrderedDict[_Shapes, Ready] = OrderedDict()

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
            if not self._plans:
                with self._lock:
                    used = next(reversed(self._ready), None)
                shapes = None if used is None else dict(zip((port.name for port in self.inputs), used, strict=True))
                from scheduler.planning.planner import plan  # noqa: PLC0415  it brings the database, which runs do without

                made = plan(self.model, shapes=shapes, max_threads=self.threads, backend=self.backend)
                with self._lock:
                    self._plans, self.threads = {self._planned(made): _Followed(made.id, made)}, made.threads
                    self._ready.clear()
            return next(reversed(self._plans.values())).plan

    @property
    def plans(self) -> dict[str, Plan]:
        """The plans that runs follow by their ids, each for its own shapes, the newest last."""
        return {followed.plan_id: followed.plan for followed in self._plans.values()}

    def follow(self, plan: Plan) -> None:
        """Run this plan from now on, for the shapes it was made for; what other shapes run stays. No run waits for that.

        Runs that have begun end as they began. Where it cannot be built, what ran before runs on.
        Raises: StalePlanError for a plan of another model, device or build; what building it raises.
        """
        key = self._planned(plan)
        with self._building:
            before, known = self._plans, self._find(key) is not None
            others = [(shapes, kept) for shapes, kept in before.items() if shapes != key]
            self._plans = dict([*others[1 - MAX_PLANS :], (key, _Followed(plan.id, plan))])
            try:
                if known:  # other shapes are built when they are met
                    self._keep(key, self._build({item.name: item.shape for item in plan.inputs}))
            except BaseException:
                self._plans = before
                raise

    def plan_in_use(self, shapes: Mapping[str, tuple[int, ...]]) -> Plan | None:
        """The plan that a run of these shapes follows; None where there is none for them. Makes none."""
        found = self._followed(shapes)
        return None if found is None else found.plan

    def _followed(self, shapes: Mapping[str, tuple[int, ...]]) -> _Followed | None:
        return self._plans.get(tuple(shapes.get(port.name) for port in self.inputs))

    @property
    def plan_id(self) -> str:
        """The id of the newest plan it runs; DEFAULT while it has none and every op runs its default."""
        return next(reversed(self.plans), DEFAULT)

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

    def built(self, feeds: Mapping[str, Any]) -> Ready | None:
        """What runs the shapes of these feeds, where there is something."""
        return self._find(self._key(feeds))

    def executor(self, feeds: Mapping[str, Any]) -> Executor:
        """The executor for the shapes of these feeds, built when they are new. Raises FeedError, LimitError."""
        return self.ready(feeds).executor

    def ready(self, feeds: Mapping[str, Any]) -> Ready:
        """The same, with the plan that it follows."""
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

    def _find(self, key: _Shapes) -> Ready | None:
        with self._lock:
            if (found := self._ready.get(key)) is not None:
                self._ready.move_to_end(key)
            return found

    def _planned(self, plan: Plan) -> _Shapes:
        """The shapes that a plan is for, in order. Raises StalePlanError where it is not true of what runs here."""
        shapes = {item.name: item.shape for item in _usable(plan, self.model).inputs}
        return tuple(shapes.get(port.name) for port in self.inputs)

    def _build(self, shapes: Mapping[str, tuple[int, ...]]) -> Ready:
        require_unchanged(self.model.files)
        graph = self.model.graph
        ready = optimise(graph, bind(graph, shapes))
        found = self._followed(shapes)
        choices, threads = ({}, self.threads) if found is None else (found.plan.choices, min(found.plan.threads, self.threads))
        executor = Executor(self._sharing(ready.graph), ready.specs, choices, threads, self._native)
        return Ready(executor, DEFAULT if found is None else found.plan_id)

    def _sharing(self, graph: Graph) -> Graph:
        """The graph with every constant that the passes made anew replaced by another executor's, where that is the same."""
        with self._lock:
            others = [ready.executor.graph.constants for ready in self._ready.values()]
        constants = dict(graph.constants)
        for name, array in graph.constants.items():
            if array.nbytes >= _SHARED_BYTES and array is not self.model.graph.constants.get(name):
                same = (other[name] for other in others if name in other and _same_bits(other[name], array))
                constants[name] = next(same, array)
        return replace(graph, constants=constants)

    def _keep(self, key: _Shapes, made: Ready) -> None:
        """Remember an executor, letting go of those unused the longest. The arena of one in use lives until its run ends."""
        limit, arena_bytes = self.limits.arena_bytes, made.executor.memory.arena_bytes
        if arena_bytes > limit:
            raise LimitError(f"session: shapes {list(key)} need an arena of {arena_bytes} bytes, the limit is {limit}")
        with self._lock:
            self._ready[key] = made
            while len(self._ready) > self.limits.executors or self._arena_bytes() > limit:
                self._ready.popitem(last=False)

    def _arena_bytes(self) -> int:
        return sum(ready.executor.memory.arena_bytes for ready in self._ready.values())


def available_cores() -> int:
    """Physical cores this process may use: CPU affinity and the cgroup's quota count, at least one."""
    from profiler.device.profile import usable_cores  # noqa: PLC0415  it brings pydantic, which runs on known threads do without
    from profiler.device.topology import read_confinement, read_hardware  # noqa: PLC0415

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
