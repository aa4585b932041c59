"""/v1/jobs: clients queue, follow and cancel jobs for a device; workers claim jobs, renew their leases and end them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Header, Path, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from app.access.auth import Principal, Scope, needs
from app.errors import RequestError, status_of
from app.jobs.local import end_job
from app.service import QuickCallsPart, Service, Serving, SettingsPart, StoragePart
from app.v1.paging import Cursor, Key, Limit, Name, PageOut
from scheduler.errors import QueueFullError
from scheduler.jobs import JobOutcome, check_request, to_json
from scheduler.local import local_fingerprint
from scheduler.store import Job, JobState

LOOK_S = 0.25  # between looks at a followed job, or at the queue for a waiting worker
ROOM_S = 10  # after which a caller with too many jobs may try again
ALIVE_S = 15.0  # between comments in a quiet stream, so that no proxy takes it for dead

router = APIRouter()
Number = Annotated[int, Path(ge=1, lt=1 << 63)]
Lease = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class JobIn(BaseModel):
    """A job to queue.

    kind: tune, trace, profile or probe. model, version: a served model, except for probe. device: "local", or the fingerprint of
    a stored device. request: options of the kind.
    """

    model_config = ConfigDict(extra="forbid")

    kind: Annotated[str, Field(max_length=16)]
    model: Name | None = None
    version: Annotated[str, Field(max_length=20)] | None = None
    device: Annotated[str, Field(pattern=r"^(local|[0-9a-f]{16})$")] = "local"
    request: dict[str, Any] = {}


class JobOut(BaseModel):
    """A job and its progress. revision: grows with every change. owner: the worker with the lease. attempts: times claimed."""

    id: int
    kind: str
    device: str
    model_digest: str
    request: dict[str, Any]
    state: JobState
    cancel_asked: bool
    revision: int
    progress: dict[str, Any]
    owner: str
    lease_until_us: int
    attempts: int
    result: dict[str, Any]
    error: str
    created_us: int
    started_us: int | None
    finished_us: int | None


class ClaimIn(BaseModel):
    """A worker's request for a job. device: whose jobs it takes. owner: the worker's name. wait_s: how long to wait for a job."""

    model_config = ConfigDict(extra="forbid")

    device: Fingerprint
    owner: Annotated[str, Field(min_length=1, max_length=200)]
    wait_s: Annotated[float, Field(ge=0, le=60)] = 0.0


class ClaimOut(BaseModel):
    """A claimed job and its lease; both null if no job was waiting. lease_s: time within which the lease must be renewed."""

    job: JobOut | None
    lease: str | None
    lease_s: float


class BeatIn(BaseModel):
    """A worker's renewal of its lease, with the job's progress."""

    model_config = ConfigDict(extra="forbid")

    lease: Lease
    progress: dict[str, Any] = {}


class BeatOut(BaseModel):
    """The reply to a renewal. cancel: the worker should stop the job."""

    cancel: bool


class EndIn(BaseModel):
    """The end of a job. state: how it ended; "queued" puts it back in the queue. outcome: its result. error: why it failed."""

    model_config = ConfigDict(extra="forbid")

    lease: Lease
    state: Literal["done", "failed", "cancelled", "queued"]
    outcome: JobOutcome = JobOutcome()
    error: Annotated[str, Field(max_length=16_384)] = ""


@router.post("")
@needs(Scope.ADMIN)
async def add_job(request: Request, service: Serving, asked: JobIn) -> JobOut:
    """Queue a job for a device. A worker on that device runs it when earlier jobs are done.

    429 with Retry-After where as many jobs of the caller are queued or running as EDGEWISE_MAX_JOBS_PER_CALLER says, 503 where
    10,000 jobs are.
    """
    kind = service.kinds.get(asked.kind)
    options = check_request(service.kinds, asked.kind, asked.request)
    principal: Principal = request.state.principal
    if kind is not None and kind.of_model != (asked.model is not None):
        raise RequestError(400, f"job: {asked.kind} {'needs a' if kind.of_model else 'takes no'} model")
    found = service.repository.ready(asked.model, asked.version) if asked.model is not None else None

    def work() -> Job:
        device, digest, most = local_fingerprint(), "", service.settings.max_jobs_per_caller
        if asked.device not in ("local", device):
            device = service.storage.store.devices.get(asked.device).fingerprint
        if found is not None:
            served, session = found
            service.storage.remember(served.name, session.model)
            digest = session.model.digest
        return service.storage.store.jobs.add(asked.kind, device, options, digest, caller=principal.account, caller_jobs=most)

    try:
        job = await service.quick_calls.call(work)
    except QueueFullError as error:
        raise RequestError(status_of(error), str(error), {"Retry-After": str(ROOM_S)}) from None
    service.local_jobs.wake()
    return _job(job)


@router.get("")
@needs(Scope.READ)
async def list_jobs(
    storage: StoragePart,
    quick_calls: QuickCallsPart,
    device: Key | None = None,
    state: JobState | None = None,
    model: Key | None = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> PageOut[JobOut]:
    """List jobs, the newest first; optionally of one device, in one state, or of one model (its digest)."""
    page = await quick_calls.call(lambda: storage.store.jobs.page(device, state, model, limit, cursor))
    return PageOut(items=[_job(job) for job in page.items], next=page.next)


@router.get("/{number}")
@needs(Scope.READ)
async def get_job(storage: StoragePart, quick_calls: QuickCallsPart, number: Number) -> JobOut:
    """Return one job."""
    return _job(await quick_calls.call(lambda: storage.store.jobs.get(number)))


@router.post("/{number}/cancel")
@needs(Scope.ADMIN)
async def cancel_job(storage: StoragePart, quick_calls: QuickCallsPart, number: Number) -> JobOut:
    """Cancel a job: at once if it waits, soon if it runs. A job that has ended stays unchanged."""
    return _job(await quick_calls.call(lambda: storage.store.jobs.cancel(number)))


@router.get("/{number}/events", response_class=StreamingResponse)
@needs(Scope.READ)
async def job_events(
    request: Request, service: Serving, number: Number, last_event_id: Annotated[str, Header(pattern=r"^[0-9]{0,18}$")] = ""
) -> Response:
    """Follow a job as server-sent events: `progress` at every change, and `end` as the last. An event's id is the job's revision.

    A client that reconnects with Last-Event-ID gets the changes since; the reply is 204 if the job has ended and there are none.
    """
    seen = int(last_event_id or 0)
    job = await _find(service, number)
    if job.ended and job.revision <= seen:
        return Response(status_code=204)
    service.listeners.join()
    return _Events(_follow(request, service, job, seen), service.listeners.leave)


class _Events(StreamingResponse):
    """A stream of events that calls `gone` when it ends, for whichever reason."""

    def __init__(self, events: AsyncIterator[bytes], gone: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._gone = gone

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Send events until the job has ended or the client has left."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._gone()


async def _follow(request: Request, service: Service, job: Job, seen: int) -> AsyncIterator[bytes]:
    spoken = time.monotonic()
    while not await request.is_disconnected():
        if job.revision > seen:
            seen, spoken = job.revision, time.monotonic()
            yield _event("end" if job.ended else "progress", job)
        elif time.monotonic() - spoken > ALIVE_S:
            spoken = time.monotonic()
            yield b": alive\n\n"
        if job.ended or service.health.draining:
            return
        await asyncio.sleep(LOOK_S)
        job = await _find(service, job.id)


def _event(name: str, job: Job) -> bytes:
    return f"event: {name}\nid: {job.revision}\ndata: {_job(job).model_dump_json()}\n\n".encode()


@router.post("/claim")
@needs(Scope.ADMIN)
async def claim_job(request: Request, service: Serving, asked: ClaimIn) -> ClaimOut:
    """Claim the job of a device that has waited longest. If there is none, the reply waits for one for up to `wait_s`."""
    lease_s, until = service.settings.job_lease_s, time.monotonic() + asked.wait_s
    await service.quick_calls.call(lambda: service.storage.store.devices.get(asked.device))
    while not await request.is_disconnected():  # a job is not given to a worker that has left
        claim = await service.quick_calls.call(lambda: service.storage.store.jobs.claim(asked.device, asked.owner, lease_s))
        if claim is not None:
            return ClaimOut(job=_job(claim.job), lease=claim.lease, lease_s=lease_s)
        if time.monotonic() >= until or service.health.draining:
            break
        await asyncio.sleep(LOOK_S)
    return ClaimOut(job=None, lease=None, lease_s=lease_s)


@router.post("/{number}/beat")
@needs(Scope.ADMIN)
async def beat_job(
    storage: StoragePart, quick_calls: QuickCallsPart, settings: SettingsPart, number: Number, said: BeatIn
) -> BeatOut:
    """Renew a lease, and report the job's progress. 409 if the lease has expired and another worker has the job."""
    progress, lease_s = to_json(said.progress).decode(), settings.job_lease_s
    return BeatOut(cancel=await quick_calls.call(lambda: storage.store.jobs.beat(number, said.lease, lease_s, progress)))


@router.post("/{number}/end")
@needs(Scope.ADMIN)
async def end_of_job(storage: StoragePart, quick_calls: QuickCallsPart, number: Number, said: EndIn) -> JobOut:
    """Store a job's result and end the job. Repeating it changes nothing. 409 if the lease is no longer the worker's."""

    def work() -> Job:
        end_job(storage.store, number, said.lease, said.state, said.outcome, said.error)
        return storage.store.jobs.get(number)

    return _job(await quick_calls.call(work))


async def _find(service: Service, number: Number) -> Job:
    return await service.quick_calls.call(lambda: service.storage.store.jobs.get(number))


def _job(job: Job) -> JobOut:
    return JobOut(
        id=job.id,
        kind=job.kind,
        device=job.device_fingerprint,
        model_digest=job.model_digest,
        request=orjson.loads(job.request),
        state=job.state,
        cancel_asked=job.cancel_asked,
        revision=job.revision,
        progress=orjson.loads(job.progress),
        owner=job.owner,
        lease_until_us=job.lease_until_us,
        attempts=job.attempts,
        result=orjson.loads(job.result),
        error=job.error,
        created_us=job.created_us,
        started_us=job.started_us,
        finished_us=job.finished_us,
    )
