"""The job queue: a job waits for its device, is taken by a worker under a lease, and ends once.

A worker that takes a job gets a lease, a secret that it must renew by `beat`. Updates of a job count only with its current lease.
When a lease runs out the job returns to the queue, and after MAX_ATTEMPTS it fails. So two workers may run the same job at a
time, but only one of them can end it, and no job is lost with its worker.

All times come from the clock of the machine that runs this code: several services on one database need clocks that agree within a
fraction of a lease. A clock that is set forward ends leases early; their workers keep their jobs at the next beat, unless others
took them. After one is set back, leases end later than any could: they count as run out, so that the job of a worker that died
waits MAX_LEASE_S at most, whatever the clock does.
"""

from __future__ import annotations

import secrets
from dataclasses import fields
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, exists, func, or_, select, text, update
from sqlalchemy.orm import Session

from scheduler.errors import CallerQueueFullError, LeaseLostError, NotFoundError, QueueFullError, RecordFormatError
from scheduler.store.database import Database
from scheduler.store.lookups import newest_first
from scheduler.store.records import ENDED, Claim, Job, JobState, Page, cursor_ids, now_us, page_limit, short
from scheduler.store.schema import JobRow

MAX_ATTEMPTS: Final = 3
MAX_JOBS: Final = 10_000  # that wait or run
_ADD_LOCK: Final = 0x6A6F6273  # "jobs": key of the PostgreSQL advisory lock that one adding transaction holds
MAX_LEASE_S: Final = 600.0
MAX_TEXT_BYTES: Final = 1 << 20  # request, progress, result, error
_COLUMNS: Final = tuple(item.name for item in fields(Job))


class Jobs:
    """The queue of jobs, by number."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self, kind: str, device: str, request: str = "{}", model: str = "", *, caller: str = "", caller_jobs: int = MAX_JOBS
    ) -> Job:
        """Queue a job.

        Args:   caller: who asks for it. caller_jobs: how many jobs of this caller may wait or run, this one among them.
        Raises: RecordFormatError for a request that is too long; QueueFullError when MAX_JOBS wait or run already, and
                CallerQueueFullError when `caller_jobs` of this caller do.
        """
        _bounded("request", request)

        def work(session: Session) -> Job:
            if (
                not self._database.is_sqlite
            ):  # whose writers come one after another: what is counted holds until this one is added
                session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADD_LOCK})
            if (waiting := _unended(session, caller_jobs, JobRow.caller == caller)) >= caller_jobs:
                raise CallerQueueFullError(f"jobs: {waiting} of this caller are queued or running, the limit is {caller_jobs}")
            if (waiting := _unended(session, MAX_JOBS)) >= MAX_JOBS:
                raise QueueFullError(f"jobs: {waiting} are queued or running, the limit is {MAX_JOBS}")
            row = JobRow(
                kind=kind,
                device_fingerprint=device,
                model_digest=model,
                request=request,
                state="queued",
                revision=1,
                progress="{}",
                owner="",
                lease="",
                lease_until_us=0,
                attempts=0,
                cancel_asked=False,
                result="{}",
                error="",
                created_us=now_us(),
                caller=caller,
            )
            session.add(row)
            session.flush()
            return _job(row)

        return self._database.write(work)

    def get(self, number: int) -> Job:
        """Return a job. Raises NotFoundError."""
        return self._database.read(lambda session: _job(_row(session, number)))

    def page(
        self,
        device: str | None = None,
        state: JobState | None = None,
        model: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Page[Job]:
        """Return the jobs of a device, in a state, or both; or those of a model. Raises RecordFormatError."""
        (before,), bound = cursor_ids(cursor), page_limit(limit)
        if model is not None and (device is not None or state is not None):
            raise RecordFormatError("jobs: a model and a device or state are given, need one or the other")
        query = select(JobRow)
        for column, value in ((JobRow.device_fingerprint, device), (JobRow.state, state), (JobRow.model_digest, model)):
            query = query if value is None else query.where(column == value)
        return self._database.read(lambda session: newest_first(session, query, JobRow.id, bound, before, _job))

    def claim(self, device: str, owner: str, lease_s: float) -> Claim | None:
        """Take the job of a device that has waited longest. Returns None where none waits.

        lease_s: at most MAX_LEASE_S. Raises RecordFormatError for a longer lease.
        """
        lease_us = _lease_us(lease_s)
        if not self._database.read(lambda session: _claimable(session, device)):
            return None
        lease = secrets.token_hex(16)

        def work(session: Session) -> Claim | None:
            _sweep(session)
            oldest = (
                select(JobRow.id)
                .where(JobRow.device_fingerprint == device, JobRow.state == "queued")
                .order_by(JobRow.id)
                .limit(1)
                .with_for_update(skip_locked=True)  # PostgreSQL: two workers at once take two jobs; SQLite has one writer
            )
            moment = now_us()
            taken = update(JobRow).where(JobRow.id == oldest.scalar_subquery(), JobRow.state == "queued")
            row = session.scalar(
                taken.values(
                    state="running",
                    owner=short(owner)[:200],
                    lease=lease,
                    lease_until_us=moment + lease_us,
                    attempts=JobRow.attempts + 1,
                    revision=JobRow.revision + 1,
                    progress="{}",
                    started_us=func.coalesce(JobRow.started_us, moment),
                ).returning(JobRow)
            )
            return None if row is None else Claim(_job(row), lease)

        return self._database.write(work)

    def beat(self, number: int, lease: str, lease_s: float, progress: str = "") -> bool:
        """Renew a worker's lease and store its progress. Returns whether it should stop, because the job is being cancelled.

        A worker whose lease ran out keeps the job where no other worker has taken it.

        Raises: LeaseLostError, NotFoundError, RecordFormatError.
        """
        _bounded("progress", progress)
        lease_us = _lease_us(lease_s)

        def work(session: Session) -> bool:
            changed = {"progress": progress} if progress else {}
            values: dict[str, Any] = {**changed, "state": "running", "lease_until_us": now_us() + lease_us}
            return _change(session, number, lease, values).cancel_asked

        return self._database.write(work)

    def finish(
        self, number: int, lease: str, state: Literal["done", "failed", "cancelled"], result: str = "{}", error: str = ""
    ) -> Job:
        """End a job. Ending it again in the same way changes nothing. Raises LeaseLostError, NotFoundError."""
        _bounded("result", result)
        values = {"state": state, "result": result, "error": error[:16_384].replace("\0", "\ufffd"), "finished_us": now_us()}

        def work(session: Session) -> Job:
            if _said(held := _row(session, number), lease, state):
                return _job(held)
            return _job(_change(session, number, lease, values))

        return self._database.write(work)

    def held(self, number: int, lease: str, state: JobState) -> Job | None:
        """Return the job that this lease holds; None where the lease has already ended it in that state and is asking again.

        Raises: LeaseLostError, NotFoundError.
        """

        def work(session: Session) -> Job | None:
            row = _row(session, number)
            if _said(row, lease, state):
                return None
            if not lease or row.lease != lease or row.state in ENDED:
                raise _lost(row)
            return _job(row)

        return self._database.read(work)

    def release(self, number: int, lease: str) -> None:
        """Return a job to the queue; the attempt does not count. Raises LeaseLostError, NotFoundError."""
        values: dict[str, Any] = {"state": "queued", "lease": "", "owner": "", "attempts": JobRow.attempts - 1}
        self._database.write(lambda session: _change(session, number, lease, values))

    def cancel(self, number: int) -> Job:
        """Cancel a job: at once while it waits, at its worker's next beat while it runs. Raises NotFoundError."""

        def work(session: Session) -> Job:
            asked = update(JobRow).where(JobRow.id == number)
            at_once = {"state": "cancelled", "finished_us": now_us(), "lease": ""}
            session.execute(asked.where(JobRow.state == "queued").values(**at_once, revision=JobRow.revision + 1))
            waiting = (JobRow.state == "running", JobRow.cancel_asked.is_(False))
            session.execute(asked.where(*waiting).values(cancel_asked=True, revision=JobRow.revision + 1))
            return _job(_row(session, number))

        return self._database.write(work)

    def sweep(self) -> None:
        """Return jobs whose lease ran out to the queue, or end them after MAX_ATTEMPTS."""
        if self._database.read(lambda session: session.scalar(select(_expired(now_us())))):
            self._database.write(_sweep)


def _unended(session: Session, most: int, *which: ColumnElement[bool]) -> int:
    """Count jobs that wait or run, as far as `most`."""
    found = select(JobRow.id).where(*which, JobRow.state.in_(("queued", "running"))).limit(most)
    return session.scalar(select(func.count()).select_from(found.subquery())) or 0


def _run_out(moment: int) -> Any:
    return or_(JobRow.lease_until_us < moment, JobRow.lease_until_us > moment + _lease_us(MAX_LEASE_S))


def _expired(moment: int) -> Any:
    return exists().where(JobRow.state == "running", _run_out(moment))


def _claimable(session: Session, device: str) -> bool:
    """Say whether there may be a job to take: a read, so that waiting for work takes no write lock."""
    waiting = exists().where(JobRow.device_fingerprint == device, JobRow.state == "queued")
    return bool(session.scalar(select(or_(waiting, _expired(now_us())))))


def _sweep(session: Session) -> None:
    moment = now_us()
    lost = update(JobRow).where(JobRow.state == "running", _run_out(moment))
    ended: dict[str, Any] = {"finished_us": moment, "revision": JobRow.revision + 1}
    session.execute(lost.where(JobRow.cancel_asked.is_(True)).values(state="cancelled", **ended))
    reason = f"its worker was lost in each of {MAX_ATTEMPTS} attempts"
    session.execute(lost.where(JobRow.attempts >= MAX_ATTEMPTS).values(state="failed", error=reason, **ended))
    session.execute(lost.values(state="queued", revision=JobRow.revision + 1))


def _change(session: Session, number: int, lease: str, values: dict[str, Any]) -> JobRow:
    """Change a job that this lease still holds. Raises LeaseLostError, NotFoundError."""
    held = (JobRow.id == number, JobRow.lease == lease, JobRow.state.in_(("running", "queued")))
    changed = update(JobRow).where(*held).values(**values, revision=JobRow.revision + 1).returning(JobRow)
    row: JobRow | None = session.scalar(changed) if lease else None
    if row is None:
        raise _lost(_row(session, number))
    return row


def _lost(row: JobRow) -> LeaseLostError:
    return LeaseLostError(f"job {row.id}: is {row.state} and not under this lease (taken {row.attempts} times)")


def _said(row: JobRow, lease: str, state: JobState) -> bool:
    return bool(lease) and row.lease == lease and row.state == state


def _row(session: Session, number: int) -> JobRow:
    row = session.get(JobRow, number, populate_existing=True)
    if row is None:
        raise NotFoundError(f"job {number}: not stored")
    return row


def _job(row: JobRow) -> Job:
    return Job(**{name: getattr(row, name) for name in _COLUMNS})


def _lease_us(lease_s: float) -> int:
    if not 0 <= lease_s <= MAX_LEASE_S:
        raise RecordFormatError(f"job: lease is {lease_s:g} s, need 0..{MAX_LEASE_S:g}")
    return round(lease_s * 1e6)


def _bounded(what: str, text: str) -> None:
    nbytes = len(text.encode())
    if nbytes > MAX_TEXT_BYTES:
        raise RecordFormatError(f"job: {what} is {nbytes} bytes, need at most {MAX_TEXT_BYTES}")
