"""The service's own job worker: runs jobs for this device, one at a time, on a thread beside the event loop.

The queue is in the database, so a restart loses nothing: an interrupted job is taken again when its lease expires, or at once if
the service had time to put it back.
"""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Callable, Mapping

import orjson
import structlog

from app.jobs.execution import Ended, JobContext, JobWorker
from graph.ir import Model
from kernels.errors import EdgewiseError
from scheduler.jobs import JobOutcome, Kind, deliver
from scheduler.local import local_fingerprint
from scheduler.store import Claim, Store

log = structlog.get_logger("edgewise.jobs")

IDLE_S = 1.0  # between looks at the queue; a job posted to this service is taken at once
RETRY_S = 5.0  # after an error of the database
OWNER = f"service {platform.node()}:{os.getpid()}"


class StoreDesk:
    """The desk of the service's own worker: results go straight to the database, models come from the repository."""

    def __init__(self, store: Store, find_model: Callable[[str], Model], lease_s: float) -> None:
        self._store, self._find_model, self._lease_s = store, find_model, lease_s

    def model(self, digest: str) -> Model:
        """Return a served model by its digest. Raises NotFoundError."""
        return self._find_model(digest)

    def beat(self, claim: Claim, progress: str) -> bool:
        """Renew the lease and store the progress; return whether the job is cancelled. Raises LeaseLostError, StoreError."""
        return self._store.jobs.beat(claim.job.id, claim.lease, self._lease_s, progress)

    def end(self, claim: Claim, state: Ended, outcome: JobOutcome, error: str) -> None:
        """Store the result and end the job, or put it back. Raises LeaseLostError, StoreError."""
        end_job(self._store, claim.job.id, claim.lease, state, outcome, error)


def end_job(store: Store, number: int, lease: str, state: Ended, outcome: JobOutcome, error: str) -> None:
    """Store a job's result and end the job, both or neither, or put it back in the queue. Repeating a call stores nothing twice.

    Raises: LeaseLostError; NotFoundError; StoreError; what `deliver` raises for an outcome that does not fit the job.
    """
    if state == "queued":
        store.jobs.release(number, lease)
        return

    def work() -> None:
        job = store.jobs.held(number, lease, state)
        if job is not None:
            result = deliver(store, job, outcome)
            store.jobs.finish(number, lease, state, orjson.dumps(result).decode(), error)

    store.together(work)


class LocalJobs:
    """A thread that runs the jobs of this device until it is closed.

    Args: open_store: opens the database, db: its URL. kinds: of the jobs it can run. find_model: a model by digest.
          lease_s: how long a job is kept without renewal. probe_s: how long a new device is measured.
          threads: that a job may use which names none; None = all cores.
    """

    def __init__(
        self,
        open_store: Callable[[], Store],
        db: str | None,
        kinds: Mapping[str, Kind],
        find_model: Callable[[str], Model],
        *,
        lease_s: float,
        probe_s: float,
        threads: int | None,
    ) -> None:
        self._open_store, self._db, self._kinds, self._find_model = open_store, db, kinds, find_model
        self._lease_s, self._probe_s, self._threads = lease_s, probe_s, threads
        self._thread = threading.Thread(target=self._run, name="edgewise-jobs", daemon=True)
        self._wake, self._closing = threading.Event(), threading.Event()
        self._worker: JobWorker | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Look at the queue now, since a job was posted."""
        self._wake.set()

    def stop(self) -> None:
        """Take no more jobs, and put the running one back as soon as it can stop. Does not wait."""
        self._closing.set()
        self._wake.set()
        if (worker := self._worker) is not None:
            worker.close()

    def close(self, timeout_s: float) -> None:
        """Stop and wait for the thread, at most that long. A job that cannot stop in time loses its lease."""
        self.stop()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._take_all()
                pause_s = IDLE_S
            except EdgewiseError as error:  # the database may answer again
                log.error("jobs interrupted, trying again", reason=str(error))
                pause_s = RETRY_S
            except Exception as error:  # one job must not end the work on others
                log.error("jobs interrupted, trying again", exc_info=error)
                pause_s = RETRY_S
            self._wake.wait(pause_s)
            self._wake.clear()

    def _take_all(self) -> None:
        store = self._open_store()
        device = local_fingerprint()
        context = JobContext(self._kinds, store, self._db, self._probe_s, self._threads)
        worker = self._worker = JobWorker(context, StoreDesk(store, self._find_model, self._lease_s), self._lease_s)
        while not self._closing.is_set() and (claim := store.jobs.claim(device, OWNER, self._lease_s)) is not None:
            worker.run(claim)
