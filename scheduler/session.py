"""Sessions: a loaded model that follows plans and keeps an executor for each set of input shapes it meets."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from graph.backend import find_backend
from graph.budget import ProcessMemory, RunBudget, model_share_bytes
from graph.formats.registry import read
from graph.growing import Growing
from graph.ir import Model, Port
from graph.limits import Check, go_on
from graph.mapped import require_unchanged
from graph.native.facts import Kept
from graph.passes.optimise import optimise
from graph.run.bounds import RunBounds
from graph.run.executor import Executor
from graph.run.feeds import check_feeds, fed_shape
from graph.run.lowered import LoweredGraph
from graph.shapes import bind
from graph.symbols import SymbolicInputs, differing
from graph.wide import half_of
from kernels.confinement import usable_cores
from kernels.containers import is_container
from kernels.errors import AttributeValueError, UnsupportedError, memory_errors_of
from kernels.record import record
from kernels.spec import Array
from scheduler.errors import StalePlanError
from scheduler.executor_cache import ExecutorCache, Ready, Shapes
from scheduler.lowering_cache import Found, Lowering, LoweringCache, distance
from scheduler.state import State
from scheduler.strategy import OFFERED, WantedBackend, WantedPrecision, require_offered

if TYPE_CHECKING:
    import onnx

    from kernels.precision import Precision
    from profiler.run.trace import Trace
    from scheduler.plan import Plan

SessionBackend = WantedBackend | Literal["cuda"]  # plans are for the others
BACKENDS = (*get_args(WantedBackend), "cuda")
PRECISIONS: tuple[WantedPrecision, ...] = get_args(WantedPrecision)
MAX_PLANS = 64  # of one session, each for other shapes: the newest ones
DEFAULT = "default"  # the plan id of runs that follow none
NEARBY = "~"  # behind the id of a plan that runs of other shapes follow than it was made for


@record
class SessionLimits:
    """Limits of a session.

    executors: sets of input shapes kept ready. arena_bytes: memory that these take together, and what a run of any of them may
    take: arenas, packed weights, graph outputs and the scratch memory of kernels; None = half of the memory that this process
    may use. process: what all models of a process take together, where several are counted in one sum (docs/memory.md).
    """

    executors: int = 8
    arena_bytes: int | None = None
    process: ProcessMemory | None = None


_DEFAULT_LIMITS = SessionLimits()


@record
class _Followed:
    """A plan with its id, which hashes the whole plan and is too slow to compute for every run."""

    plan_id: str
    plan: Plan


class Session:
    """A model ready to run. Any number of threads may call it.

    Args:    model: the path of an ONNX file, its bytes, an onnx.ModelProto, or a model that is read already.
             threads: threads of one run; None = those of the plan, or one for each physical core this process may use.
             precision: in which products of float32 may be computed: "fp32"; or "bf16", with sums in float32, and values between
             such products stored as bfloat16 (docs/numerics.md). A plan says so for every op by itself, and comes first.
             "auto" is "fp32" without a plan. Files that are quantised, or in half precision, run as docs/numerics.md says.
             On a GPU "tf32" and "fp16" too, and all values between kernels are stored so (docs/cuda.md).
             backend: "auto", "native", "numpy", or "cuda": an NVIDIA GPU, which follows no plans.
             plan: how to run the input shapes it was made for. Shapes near them follow it too: a plan of 64 tokens serves 65.
             Others use every op's default strategy.
             limits: how many input shapes stay ready, and how much memory they and their runs may take.
    Raises:  ModelError for a file that is refused; StalePlanError for a plan of another model, device or build;
             AttributeValueError for an unknown value; UnsupportedError for one that this build does not support.
    """

    def __init__(
        self,
        model: str | Path | bytes | onnx.ModelProto | Model,
        threads: int | None = None,
        precision: WantedPrecision = "fp32",
        backend: SessionBackend = "auto",
        plan: Plan | None = None,
        *,
        limits: SessionLimits = _DEFAULT_LIMITS,
    ) -> None:
        _check_choices(precision, backend, plan)
        with memory_errors_of("model"):
            self.model = model if isinstance(model, Model) else read(model)
        self._input_names = [port.name for port in self.model.graph.inputs]
        self._tensors_alone = not any(is_container(port.dtype) for port in self.model.graph.inputs)
        self._plans: dict[Shapes, _Followed] = {}  # by the shapes they are for, the newest last
        if plan is not None:
            self._plans[self._planned(plan)] = _Followed(plan.id, plan)
        if threads is not None:
            self.threads = _checked_threads(threads)
        else:
            self.threads = usable_cores() if plan is None else plan.threads
        self.limits = limits
        self.backend, self.precision = backend, precision
        self._backend = find_backend(backend, OFFERED.get(precision) or (cast("Precision", precision),))
        self._building = threading.Lock()
        self._limit_bytes = model_share_bytes() if limits.arena_bytes is None else limits.arena_bytes
        self._ready = ExecutorCache(limits.executors, self._limit_bytes)
        self._lowerings = LoweringCache()
        self._description: tuple[object, Plan] | None = None  # the last one made, and of what

    @property
    def inputs(self) -> tuple[Port, ...]:
        """The inputs that `run` needs."""
        return self.model.graph.inputs

    @property
    def outputs(self) -> tuple[Port, ...]:
        """The outputs that `run` returns."""
        return self.model.graph.outputs

    # Plans

    @property
    def planned_backend(self) -> WantedBackend | None:
        """The backend as plans name it; None where the session follows no plans, on a GPU."""
        return None if self.backend == "cuda" else self.backend

    @property
    def plan(self) -> Plan:
        """The plan that runs follow: the newest one given or followed; without one, a plan that describes what they do.

        A description lists the first candidate of every op on `threads` threads, for the input shapes used last or, before any
        run, those that the model declares. Its times are estimates and its `why` says that nothing was chosen. Reading it
        measures nothing, stores nothing and changes no run: `edgewise.plan` chooses a plan, and `follow` runs it.

        Raises: FeedError while dimensions are open and nothing has run.
        """
        if (newest := next(reversed(self._plans.values()), None)) is not None:
            return newest.plan
        if (backend := self.planned_backend) is None:
            raise UnsupportedError(f"session: backend {self.backend} follows no plan, `trace` says what runs")
        from scheduler.local import device_at_hand  # noqa: PLC0415  plans bring the database library, which runs do without
        from scheduler.planning.description import describe  # noqa: PLC0415

        used, device = self._ready.last_used, device_at_hand()
        of = (used, device.fingerprint, device.probed_at)
        if self._description is None or self._description[0] != of:
            shapes = None if used is None else dict(zip((port.name for port in self.inputs), used, strict=True))
            self._description = of, describe(self.model, shapes, self.threads, backend, self.precision, device)
        return self._description[1]

    @property
    def plans(self) -> dict[str, Plan]:
        """The plans that runs follow by their ids, each for its own shapes, the newest last."""
        return {followed.plan_id: followed.plan for followed in self._plans.values()}

    @property
    def plan_id(self) -> str:
        """The id of the newest plan that runs follow; DEFAULT while they follow none."""
        return next(reversed(self.plans), DEFAULT)

    def plan_in_use(self, shapes: Mapping[str, tuple[int, ...]]) -> Plan | None:
        """Return the plan that a run of these input shapes follows; None where there is none for them."""
        found = self._followed(shapes)
        return None if found is None else found.plan

    def precision_in_use(self, shapes: Mapping[str, tuple[int, ...]]) -> str:
        """Return the precision of a run of these input shapes: that of the plan it follows, else the session's."""
        found = self._followed(shapes)
        return found.plan.precision if found is not None else "fp32" if self.precision == "auto" else self.precision

    def follow(self, plan: Plan) -> None:
        """Run this plan from now on for the shapes it was made for; runs of other shapes stay as they are.

        No run waits for it, and runs that have begun end as they began. Where the plan cannot be built, nothing changes.
        Raises: StalePlanError for a plan of another model, device or build; what building it raises.
        """
        _check_choices("auto", self.backend, plan)
        key = self._planned(plan)
        with self._building:
            before, known = self._plans, self._ready.find(key) is not None
            others = [(shapes, kept) for shapes, kept in before.items() if shapes != key]
            self._plans = dict([*others[1 - MAX_PLANS :], (key, _Followed(plan.id, plan))])
            try:
                if known:  # other shapes are built when they are met
                    self._build(key, {item.name: item.shape for item in plan.inputs})
            except BaseException:
                self._plans = before
                raise

    def _followed(self, shapes: Mapping[str, tuple[int, ...]]) -> _Followed | None:
        return self._plans.get(tuple(shapes.get(port.name) for port in self.inputs))

    def _planned(self, plan: Plan) -> Shapes:
        """The shapes that a plan is for, in order. Raises StalePlanError where it is not true of what runs here."""
        shapes = {item.name: item.shape for item in _usable(plan, self.model).inputs}
        return tuple(shapes.get(port.name) for port in self.inputs)

    # Runs

    @property
    def memory_bytes(self) -> int:
        """Bytes of the model, of the arenas kept for its shapes, and of its packed weights."""
        return self.model.nbytes + self._ready.arena_bytes

    def state(self, pairs: Mapping[str, str] | None = None, start: Mapping[str, Array] | None = None) -> State:
        """Return what runs hand on from one to the next: pass it to `run`, which then needs no feeds for it.

        For a decoder: `state = session.state()` once, then `session.run({"input_ids": tokens, …}, state=state)` for each step.

        Args:    pairs: input name -> name of the output that becomes its next value. None = every output that appends to an
                 input, such as the keys and values of a decoder; these grow in place.
                 start: input name -> its first value. None = empty, for values that grow.
        Raises:  FeedError for names that the model does not have, and where it has no output that appends to an input.
        """
        return State(self.model.graph, pairs, start, self._lowered, self._budget)

    def run(self, feeds: Mapping[str, Any], *, timeout_s: float | None = None, state: State | None = None) -> dict[str, Array]:
        """Run once.

        Args:    feeds: every input by name. state: stands for the inputs in it, and takes their next values from the outputs,
                 which are not returned then.
                 timeout_s: seconds from now after which the run is ended; None = it may take any time. It ends between two
                 kernels or two rounds of a loop: a kernel that has begun is not interrupted, and neither is building code
                 for new shapes.
        Returns: every output by name, the caller's own arrays.
        Raises:  FeedError; RunTimeoutError after `timeout_s`; LimitError for loops that do not end, and for shapes that need more
                 memory than the limits allow, before it is allocated; OutOfMemoryError where the process or the system has no
                 more now; errors of the model's operators.
        """
        bounds = None if timeout_s is None else RunBounds(_deadline_ns(timeout_s))
        if state is not None:
            return state.run(feeds, RunBounds() if bounds is None else bounds)
        found = self._ready.find(self._key(feeds)) or self.ready(feeds)
        return found.executor.run(feeds, bounds)

    def trace(self, feeds: Mapping[str, Any], runs: int = 50) -> Trace:
        """Measure where the time of a run goes. Raises FeedError, MeasurementError."""
        from profiler.run.trace import trace  # noqa: PLC0415  it brings the counting of models, which runs do without

        return trace(self.executor(feeds), feeds, runs)

    def executor(self, feeds: Mapping[str, Any]) -> Executor:
        """Return the executor for the shapes of these feeds, built when they are new. Raises FeedError, LimitError."""
        return self.ready(feeds).executor

    def built(self, feeds: Mapping[str, Any]) -> Ready | None:
        """Return the executor for the shapes of these feeds and the plan it follows; None where the model has to be lowered.

        Where a lowering serves them it is bound here, which takes about a millisecond. Raises: FeedError, LimitError.
        """
        if (found := self._ready.find(self._key(feeds))) is not None:
            return found
        shapes = {name: array.shape for name, array in check_feeds(self.inputs, feeds).items()}
        if not self._building.acquire(blocking=False):  # another thread lowers, and that takes longer
            return None
        try:
            inputs, followed, plan_id = self._wanted(shapes)
            lowering = self._lowerings.find(inputs, None if followed is None else followed.plan)
            return None if lowering is None else self._bound(lowering, self._key(feeds), plan_id)
        finally:
            self._building.release()

    def ready(self, feeds: Mapping[str, Any], check: Check | None = None) -> Ready:
        """Return the executor for the shapes of these feeds and the plan it follows, built when the shapes are new.

        check: called between nodes and passes while the graph is rewritten for new shapes; what it raises ends the building.
        Raises: FeedError, LimitError, OutOfMemoryError.
        """
        key = self._key(feeds)
        if (found := self._ready.find(key)) is not None:
            return found
        arrays = check_feeds(self.inputs, feeds)
        with self._building:  # of several threads that meet new shapes, one builds at a time; known shapes keep running
            if (found := self._ready.find(key)) is not None:
                return found
            return self._build(key, {name: array.shape for name, array in arrays.items()}, check or go_on)

    def _key(self, feeds: Mapping[str, Any]) -> Shapes:
        if self._tensors_alone:
            return tuple([getattr(feeds.get(name), "shape", None) for name in self._input_names])
        return tuple([fed_shape(port, feeds) for port in self.inputs])

    def _build(self, key: Shapes, shapes: Mapping[str, tuple[int, ...]], check: Check = go_on) -> Ready:
        """Return the executor for new shapes, which is kept: a lowering that serves them, bound to them, or a new one."""
        require_unchanged(self.model.files)
        inputs, followed, plan_id = self._wanted(shapes)
        plan = None if followed is None else followed.plan
        return self._bound(self._lowerings.find(inputs, plan) or self._lower(inputs, plan, check), key, plan_id)

    def _wanted(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, tuple[int, ...]], _Followed | None, str]:
        """Return all shapes of inputs, the plan that runs of them follow, and its id as runs report it. Raises FeedError."""
        inputs = {name: spec.shape for name, spec in bind(self.model.graph, shapes).items()}
        if (exact := self._followed(shapes)) is not None:
            return inputs, exact, exact.plan_id
        nearby = self._nearby(inputs)
        return inputs, nearby, DEFAULT if nearby is None else nearby.plan_id + NEARBY

    def _bound(self, found: Found, key: Shapes, plan_id: str) -> Ready:
        """Return the executor of a lowering for some values of its sizes, which is kept."""
        made = Ready(Executor.of(found.lowering.graph, found.sizes, self._budget()), plan_id)
        self._ready.keep(key, made)
        return made

    def _nearby(self, shapes: Mapping[str, tuple[int, ...]]) -> _Followed | None:
        """Return the plan of the nearest shapes that have one, of the newest of equals; None where none is near."""
        found: dict[float, _Followed] = {}
        for key, followed in self._plans.items():
            apart = distance([shapes[port.name] for port in self.inputs], key)
            if apart is not None:
                found[apart] = followed
        return found[min(found)] if found else None

    def _lowered(self, shapes: Mapping[str, tuple[int, ...]], growing: Sequence[Growing], room: int) -> Found:
        """Return a lowering in which values grow in place, and its sizes for these shapes (`scheduler.state`).

        room: length that there is memory for of each growing value.
        """
        with self._building:
            found = self._lowerings.find(shapes, None, room)
            return self._lower(shapes, None, go_on, growing, room) if found is None else found

    def _budget(self) -> RunBudget:
        """Return a new budget of memory within this session's limits."""
        return RunBudget(self._limit_bytes, self.limits.process)

    def _lower(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        plan: Plan | None,
        check: Check,
        growing: Sequence[Growing] = (),
        room: int = 0,
    ) -> Found:
        """Lower the model for these shapes. Sizes that have differed between shapes are symbols; a plan is for its own shapes."""
        graph = self.model.graph
        varied, planned = self._lowerings.varied(graph.inputs, shapes), {}
        if self._backend is not None and not self._backend.resizes:
            varied = frozenset()
        if plan is not None:
            planned = {item.name: item.shape for item in plan.inputs}
            varied = frozenset() if planned == shapes else varied | differing(graph.inputs, planned, shapes)
        inputs = SymbolicInputs.of(graph.inputs, shapes, varied, room)
        roomy = {each.output: Kept(each.input, each.axis, inputs.room) for each in growing}
        with memory_errors_of(f"{graph.name}: rewriting it"):
            is_native = self._backend is not None and self._backend.name == "native"
            is_native = is_native and (plan is None or plan.constraints.backend != "numpy")
            rewritten = optimise(graph, inputs.specs, check, native=is_native)
        choices, threads = ({}, self.threads) if plan is None else (plan.choices, min(plan.threads, self.threads))
        if planned != shapes:  # a plan of other shapes: the graph may lack a node of it, as where something was computed before
            choices = {node.name: choices[node.name] for node in rewritten.graph.nodes if node.name in choices}
        shared = self._lowerings.share_constants(rewritten.graph, graph.constants)
        made = rewritten.graph.constants
        new = [each for name, each in shared.constants.items() if each is made[name] and each is not graph.constants.get(name)]
        copies = [each for each in made.values() if half_of(each) is not None]
        budget, passing = self._budget(), self._budget()
        budget.keep(_nbytes(each for each in new if half_of(each) is None), f"{graph.name}: constants that rewriting made")
        passing.keep(_nbytes(copies), f"{graph.name}: float32 copies of constants in half precision")
        try:
            lowered = LoweredGraph(shared, rewritten.specs, choices, threads, self._backend, budget, inputs.scope, roomy)
        finally:
            passing.release()
        stayed = {id(each) for each in lowered.graph.constants.values()}
        stayed_bytes = _nbytes(each for each in new if half_of(each) is not None and id(each) in stayed)
        budget.keep(stayed_bytes, f"{graph.name}: float32 copies of constants that numpy reads")
        return self._lowerings.keep(Lowering(inputs, lowered, plan, budget))


def _nbytes(arrays: Iterable[Array]) -> int:
    return sum(array.nbytes for array in arrays)


def _usable(plan: Plan, model: Model) -> Plan:
    """The plan, if it is of this model and true of what runs here."""
    if plan.model_digest != model.digest:
        raise StalePlanError(f"session: plan is of model {plan.model_digest[:12]}, this is {model.digest[:12]}, plan again")
    from scheduler.build import current_build  # noqa: PLC0415  it reads source, which only plans are checked by
    from scheduler.local import local_fingerprint  # noqa: PLC0415  as above

    if reason := plan.staleness(local_fingerprint(), current_build()):
        raise StalePlanError(f"session: {reason}, plan again")
    return plan


def _deadline_ns(timeout_s: float) -> int:
    if not 0 < timeout_s < math.inf:
        raise AttributeValueError(f"session: timeout_s is {timeout_s}, need a number of seconds above 0, or None for no limit")
    return time.monotonic_ns() + round(timeout_s * 1e9)


def _checked_threads(threads: int) -> int:
    if threads < 1:
        raise AttributeValueError(f"session: threads is {threads}, need at least 1 or None")
    return threads


def _check_choices(precision: str, backend: str, plan: Plan | None) -> None:
    if backend not in BACKENDS:
        raise AttributeValueError(f"session: backend is {backend!r}, need one of {', '.join(BACKENDS)}")
    if backend != "cuda":
        require_offered("session", precision)
        return
    if precision not in PRECISIONS:
        raise AttributeValueError(f"session: precision is {precision!r}, need one of {', '.join(PRECISIONS)}")
    if plan is not None:
        raise UnsupportedError("session: backend cuda follows no plan, leave the plan or the backend out")
