"""Watches the latencies of plans in service, and acts when a plan's latency drifts from the expected one."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from app.engine.requests import Outcome
from kernels.errors import EdgewiseError
from scheduler.drift import Drift, ServedPlan
from scheduler.jobs import TuneRequest
from scheduler.plan import Plan
from scheduler.session import Session
from scheduler.store import Store

log = structlog.get_logger("edgewise.drift")


class DriftWatch:
    """Watches every inference that follows a plan. Args: retune: queue a tune job for each plan that drifts."""

    def __init__(self, open_store: Callable[[], Store], *, retune: bool) -> None:
        self._open_store, self._retune = open_store, retune
        self._drift = Drift(self._drifted)
        self.drifts = 0  # number of plans that have drifted since the start

    def served(self) -> tuple[ServedPlan, ...]:
        """Return the latencies of every plan in service."""
        return self._drift.served()

    def ran(self, session: Session, outcome: Outcome) -> None:
        """Count an inference if it followed a plan, and shared neither its run nor the cores."""
        plan = session.plans.get(outcome.plan_id) if outcome.alone else None
        if plan is not None:
            self._drift.observe(plan, outcome.compute_ns)

    def _drifted(self, plan: Plan, found: ServedPlan) -> None:
        """Log the drift at once, and store it on a thread: the inference must not wait for the database."""
        log.warning("plan drifted", plan=found.plan_id, model=found.model_name, ratio=found.ratio, reason=found.reason)
        self.drifts += 1
        threading.Thread(target=self._write_down, args=(plan, found), name="edgewise-drift", daemon=True).start()

    def _write_down(self, plan: Plan, found: ServedPlan) -> None:
        try:
            store = self._open_store()
            store.plans.drifted(found.plan_id, found.reason)
            if self._retune:
                shapes = {port.name: port.shape for port in plan.inputs}
                limits = plan.constraints
                asked = TuneRequest(shapes=shapes, max_error=limits.max_error, backend=limits.backend, threads=limits.max_threads)
                job = store.jobs.add("tune", plan.device_fingerprint, asked.model_dump_json(), plan.model_digest)
                log.info("tune job queued for a drifted plan", plan=found.plan_id, job=job.id)
        except EdgewiseError as error:
            log.error("drift could not be stored", plan=found.plan_id, reason=str(error))
