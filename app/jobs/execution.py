"""Running jobs one after another, each under its lease: shared by the service's own worker and the measuring agent.

A `Desk` supplies models and takes beats and results: the database itself, or a service over HTTP.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import orjson
import structlog

from app.errors import told
from graph.ir import Model
from kernels.errors import EdgewiseError
from kernels.record import record
from scheduler.errors import LeaseLostError, StoreError
from scheduler.jobs import JobOutcome, Kind, execute
from scheduler.local import local_device
from scheduler.store import Claim, Job, Store

log = structlog.get_logger("edgewise.jobs")

PROGRESS_S = 1.0  # after which progress is told at the latest
BEATS = 3  # renewals per lease time: two may fail before the lease is lost
Ended = Literal["done", "failed", "cancelled", "queued"]  # queued: put back


class DeskError(EdgewiseError):
    """The desk cannot be reached now; the call has to be repeated."""


class Desk(Protocol):
    """Where a worker gets models and leaves results. Every method may raise DeskError: try again."""

    def model(self, digest: str) -> Model:
        """Return a job's model by its digest. Raises EdgewiseError if it is not available."""

    def beat(self, claim: Claim, progress: str) -> bool:
        """Renew the lease; return whether the job is to be cancelled. progress: JSON. Raises LeaseLostError."""

    def end(self, claim: Claim, state: Ended, outcome: JobOutcome, error: str) -> None:
        """End the job with its result. Raises LeaseLostError."""


@record
class JobContext:
    """What jobs run with: the kinds that can be run, and the database for measurements, with its URL.

    probe_s: how long this machine is measured if the database has no profile of it. threads: that a job may use which names
    none; None = all cores.
    """

    kinds: Mapping[str, Kind]
    store: Store
    db: str | None
    probe_s: float
    threads: int | None = None


class JobWorker:
    """Runs one job at a time. `close` from another thread makes it put the running job back."""

    def __init__(self, context: JobContext, desk: Desk, lease_s: float) -> None:
        self._context, self._desk, self._beat_s = context, desk, lease_s / BEATS
        self.closing = threading.Event()

    def close(self) -> None:
        """Stop the running job as soon as possible; it goes back to the queue."""
        self.closing.set()

    def run(self, claim: Claim) -> None:
        """Run a job to its end and hand in its result. Raises DeskError if the desk could not be reached for that."""
        job = claim.job
        holding = _Holding(self._desk, claim, self._beat_s, self.closing)
        log.info("job taken", job=job.id, kind=job.kind, attempt=job.attempts)
        with holding:
            state, outcome, error = self._outcome(job, holding)
        if holding.lost:
            log.warning("job lost: its lease has expired", job=job.id)
            return
        try:
            try:
                self._desk.end(claim, state, outcome, error)
            except (LeaseLostError, DeskError, StoreError):
                raise
            except EdgewiseError as refused:  # the result may not be stored
                state, error = "failed", str(refused)
                self._desk.end(claim, state, JobOutcome(), error)
        except LeaseLostError as lost:
            log.warning("job lost: its lease has expired", job=job.id, reason=str(lost))
        else:
            log.info("job ended", job=job.id, state=state, error=error)

    def _outcome(self, job: Job, holding: _Holding) -> tuple[Ended, JobOutcome, str]:
        context = self._context
        try:
            local_device(context.store, context.probe_s)  # measurements refer to a stored device
            model = self._desk.model(job.model_digest) if job.model_digest else None
            if holding.stop():
                outcome = JobOutcome()
            else:
                outcome = execute(
                    context.kinds, job, model, context.store, context.db, context.threads, holding.report, holding.stop
                )
        except DeskError as error:
            return "queued", JobOutcome(), str(error)
        except EdgewiseError as error:
            log.warning("job failed", job=job.id, reason=str(error))
            return "failed", JobOutcome(), told(error)
        except Exception as error:
            log.error("job failed unexpectedly", job=job.id, exc_info=error)
            return "failed", JobOutcome(), f"internal error, {type(error).__name__}: the worker's log has the details"
        if holding.cancelled:
            return "cancelled", outcome, ""
        return ("queued", JobOutcome(), "") if holding.stopped else ("done", outcome, "")


class _Holding:
    """Holds a job's lease while it runs: a thread renews it every `beat_s`, and where there is progress, within PROGRESS_S."""

    def __init__(self, desk: Desk, claim: Claim, beat_s: float, closing: threading.Event) -> None:
        self._desk, self._claim, self._beat_s, self._closing = desk, claim, beat_s, closing
        self._progress: Mapping[str, Any] = {}
        self._told: Mapping[str, Any] = self._progress  # by the last beat
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="edgewise-lease", daemon=True)
        self.cancelled = self.lost = self.stopped = False

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def report(self, progress: Mapping[str, Any]) -> None:
        """Note the job's progress, for the next beat."""
        self._progress = progress

    def _await_news(self) -> bool:
        """Wait until the next beat is due, or there is progress to tell; False once the job is over."""
        due_s = time.monotonic() + self._beat_s
        while not self._over.wait(min(PROGRESS_S, self._beat_s)):
            if self._progress is not self._told or time.monotonic() >= due_s:
                return True
        return False

    def stop(self) -> bool:
        """Whether the job has to stop: cancelled, its lease lost, or the worker closing."""
        self.stopped = self.cancelled or self.lost or self._closing.is_set()
        return self.stopped

    def _keep(self) -> None:
        while self._await_news() and not self.lost:
            self._told = self._progress
            try:
                self.cancelled = self._desk.beat(self._claim, orjson.dumps(self._told).decode()) or self.cancelled
            except LeaseLostError:
                self.lost = True
            except EdgewiseError as error:  # the next beat may succeed
                log.warning("beat failed", job=self._claim.job.id, reason=str(error))
