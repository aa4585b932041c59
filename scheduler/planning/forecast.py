"""What a model takes at several batch sizes, by its plans: known before anything has run."""

from __future__ import annotations

from collections.abc import Mapping

from graph.ir import Model
from graph.shapes import bind
from profiler.device.profile import DeviceProfile
from scheduler.build import current_build
from scheduler.errors import NotFoundError
from scheduler.plan import Constraints, InputShape, Plan, request_key
from scheduler.planning.planner import make_plan
from scheduler.store import Here, Store
from scheduler.strategy import WantedBackend

Shapes = Mapping[str, tuple[int, ...]]


def forecast(
    model: Model,
    shapes: Mapping[int, Shapes],
    threads: int,
    device: DeviceProfile,
    store: Store,
    backend: WantedBackend = "auto",
) -> dict[int, float]:
    """Nanoseconds of a run on that many threads, by rows.

    Args:   shapes: of the inputs, by rows. device: this machine, whose stored plans count where they are true; what has none is
            planned, and not stored.
    Raises: what `make_plan` raises, StoreError.
    """
    found = {}
    for rows, inputs in shapes.items():
        constraints = Constraints(max_threads=threads, backend=backend)
        plan = _stored(model, inputs, constraints, device, store)
        if plan is None:
            plan = make_plan(model, device, shapes=inputs, max_threads=threads, backend=backend, store=store)
        found[rows] = _time_ns(plan, threads)
    return found


def _stored(model: Model, shapes: Shapes, constraints: Constraints, device: DeviceProfile, store: Store) -> Plan | None:
    """The newest plan of that request, or of the same without a limit of threads."""
    specs = bind(model.graph, shapes)
    inputs = tuple(InputShape(name=name, dtype=spec.dtype.name, shape=spec.shape) for name, spec in specs.items())
    here = Here(device.fingerprint, current_build())
    for asked in (constraints, constraints.model_copy(update={"max_threads": None})):
        try:
            plan = store.plans.latest(model.digest, request_key("latency", asked, inputs), here).plan
        except NotFoundError:
            continue
        if plan.state.status == "current":
            return plan
    return None


def _time_ns(plan: Plan, threads: int) -> float:
    """As measured where it was on that many threads, else as predicted for them, or for what the plan chose."""
    if plan.measured_ns is not None and plan.threads == threads:
        return plan.measured_ns
    return next((option.predicted_ns for option in plan.thread_options if option.threads == threads), plan.predicted_ns)
