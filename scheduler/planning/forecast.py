"""Run times of a model at several batch sizes, taken from its plans before anything has run."""

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
    """Return the expected nanoseconds of one run, by batch size.

    Args:   shapes: batch size -> shapes of the inputs. threads: of a run. device: this machine. store: its current plans are
            used; where it has none for a batch size, one is made and not stored.
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
    """Return the newest current plan of that request, or of the same request without a limit of threads."""
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
    """Return the measured time where it is of that many threads, else the predicted one for them, else that of the plan's own."""
    if plan.measured_ns is not None and plan.threads == threads:
        return plan.measured_ns
    return next((option.predicted_ns for option in plan.thread_options if option.threads == threads), plan.predicted_ns)
