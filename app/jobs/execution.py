"""One job after another under its lease: what the service's own runner and a measuring agent have in common.

Where jobs come from and where results go is a `Desk`: the database itself, or a service over HTTP.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import orjson
import structlog

from graph.ir import Model
from kernels.errors import EdgewiseError
from scheduler.errors import LeaseLostError, StoreError
from scheduler.jobs import JobOutcome, Kind, execute
from scheduler.local import local_device
from scheduler.store import Claim, Job, Store

log = structlog.get_logger("edgewise.jobs")

BEATS = 3  # in the time of a lease: two may fail before it is lost
Ended = Literal["done", "failed", "cancelled", "queued"]  # queued: given back


class DeskError(EdgewiseError):
    """The desk cannot be reached now; what was said is to be said again."""


class Desk(Protocol):
    """Where jobs are taken and results are left. Any of it may raise DeskError: try again."""

    def model(self, digest: str) -> Model:
        """The model of a job. Raises EdgewiseError where it is not to be had."""

    def beat(self, claim: Claim, progress: str) -> bool:
        """Say that the worker lives; whether it is to stop. Raises LeaseLostError."""

    def end(self, claim: Claim, state: Ended, outcome: JobOutcome, error: str) -> None:
        """Leave the result. Raises LeaseLostError."""


@dataclass(frozen=True, slots=True)
class JobContext:
    """What a worker works with: the kinds it can do, and the database that measurements go to, with its URL.

    probe_s: how long this machine is measured when the database does not have it yet.
    """

    kinds: Mapping[str, Kind]
    store: Store
    db: str | None
    probe_s: float


class JobWorker:
    """Runs one job at a time. `close` from another thread makes it give back the one it has."""

    def __init__(self, context: JobContext, desk: Desk, lease_s: float) -> None:
        self._context, self._desk, self._beat_s = context, desk, lease_s / BEATS
        self.closing = threading.Event()

    def close(self) -> None:
        """Stop as soon as the job that runs can; it goes back to the queue."""
        self.closing.set()

    def run(self, claim: Claim) -> None:
        """Run a job to its end and leave the result. Raises DeskError when it could not be left."""
        job = claim.job
        holding = _Holding(self._desk, claim, self._beat_s, self.closing)
        log.info("job taken", job=job.id, kind=job.kind, attempt=job.attempts)
        with holding:
            state, outcome, error = self._outcome(job, holding)
        if holding.lost:
            log.warning("job lost to another", job=job.id)
            return
        try:
            try:
                self._desk.end(claim, state, outcome, error)
            except (LeaseLostError, DeskError, StoreError):
                raise
            except EdgewiseError as refused:  # what was found is not what may be stored
                state, error = "failed", str(refused)
                self._desk.end(claim, state, JobOutcome(), error)
        except LeaseLostError as lost:
            log.warning("job lost to another", job=job.id, reason=str(lost))
        else:
            log.info("job ended", job=job.id, state=state, error=error)

    def _outcome(self, job: Job, holding: _Holding) -> tuple[Ended, JobOutcome, str]:
        context = self._context
        try:
            local_device(context.store, context.probe_s)  # what is measured is of a device that is stored
            model = self._desk.model(job.model_digest) if job.model_digest else None
            if holding.stop():
                outcome = JobOutcome()
            else:
                outcome = execute(context.kinds, job, model, context.store, context.db, holding.report, holding.stop)
        except DeskError as error:
            return "queued", JobOutcome(), str(error)
        except EdgewiseError as error:
            return "failed", JobOutcome(), str(error)
        except Exception as error:
            log.error("job failed unexpectedly", job=job.id, exc_info=error)
            return "failed", JobOutcome(), f"internal error, {type(error).__name__}: the worker's log has the details"
        if holding.cancelled:
            return "cancelled", outcome, ""
        return ("queued", JobOutcome(), "") if holding.stopped else ("done", outcome, "")


class _Holding:
    """Keeps a lease while a job runs: a thread says every so often that the worker lives, and how far it is."""

    def __init__(self, desk: Desk, claim: Claim, beat_s: float, closing: threading.Event) -> None:
        self._desk, self._claim, self._beat_s, self._closing = desk, claim, beat_s, closing
        self._progress: Mapping[str, Any] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="edgewise-lease", daemon=True)
        self.cancelled = self.lost = self.stopped = False

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def report(self, progress: Mapping[str, Any]) -> None:
        """Remember how far the job is, for the next beat."""
        self._progress = progress

    def stop(self) -> bool:
        """Whether the job is to end now."""
        self.stopped = self.cancelled or self.lost or self._closing.is_set()
        return self.stopped

    def _keep(self) -> None:
        while not self._over.wait(self._beat_s) and not self.lost:
            try:
                self.cancelled = self._desk.beat(self._claim, orjson.dumps(self._progress).decode()) or self.cancelled
            except LeaseLostError:
                self.lost = True
            except EdgewiseError as error:  # the next beat may get through
                log.warning("beat failed", job=self._claim.job.id, reason=str(error))
