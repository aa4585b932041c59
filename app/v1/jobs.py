"""/v1/jobs: work that is queued for a device, followed and cancelled; and taken, kept and ended by those who do it."""

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

from app.access.auth import Scope, needs
from app.errors import RequestError
from app.jobs.local import end_job
from app.service import Service, Serving
from app.v1.paging import Cursor, Key, Limit, Name, PageOut
from scheduler.jobs import JobOutcome, check_request, to_json
from scheduler.local import local_fingerprint
from scheduler.store import Job, JobState

LOOK_S = 0.25  # between looks at a job that is followed, or for one that is waited for
ALIVE_S = 15.0  # a comment that often, so that nothing between takes a quiet stream for a dead one

router = APIRouter()
Number = Annotated[int, Path(ge=1, lt=1 << 63)]
Lease = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class JobIn(BaseModel):
    """What to do (tune, trace, profile or probe), with which served model, and on which device ("local" or a stored one)."""

    model_config = ConfigDict(extra="forbid")

    kind: Annotated[str, Field(max_length=16)]
    model: Name | None = None
    version: Annotated[str, Field(max_length=20)] | None = None
    device: Annotated[str, Field(pattern=r"^(local|[0-9a-f]{16})$")] = "local"
    request: dict[str, Any] = {}


class JobOut(BaseModel):
    """A job, and how far it is."""

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
    """Who asks for work, for which device, and how long to wait for it."""

    model_config = ConfigDict(extra="forbid")

    device: Fingerprint
    owner: Annotated[str, Field(min_length=1, max_length=200)]
    wait_s: Annotated[float, Field(ge=0, le=60)] = 0.0


class ClaimOut(BaseModel):
    """A job that was taken and its lease; both null where there was none. lease_s: how long silence is suffered."""

    job: JobOut | None
    lease: str | None
    lease_s: float


class BeatIn(BaseModel):
    """The worker lives, and is that far."""

    model_config = ConfigDict(extra="forbid")

    lease: Lease
    progress: dict[str, Any] = {}


class BeatOut(BaseModel):
    """Whether the worker is to stop."""

    cancel: bool


class EndIn(BaseModel):
    """How a job ended, or "queued": it is given back."""

    model_config = ConfigDict(extra="forbid")

    lease: Lease
    state: Literal["done", "failed", "cancelled", "queued"]
    outcome: JobOutcome = JobOutcome()
    error: Annotated[str, Field(max_length=16_384)] = ""


@router.post("")
@needs(Scope.ADMIN)
async def add_job(service: Serving, asked: JobIn) -> JobOut:
    """Queue a job. Its device works on it when it comes to it."""
    kind = service.kinds.get(asked.kind)
    request = check_request(service.kinds, asked.kind, asked.request)
    if kind is not None and kind.of_model != (asked.model is not None):
        raise RequestError(400, f"job: {asked.kind} {'needs a' if kind.of_model else 'is of no'} model")
    found = service.repository.ready(asked.model, asked.version) if asked.model is not None else None

    def work() -> Job:
        device = local_fingerprint()
        if asked.device not in ("local", device):
            device = service.storage.store.devices.get(asked.device).fingerprint
        if found is None:
            return service.storage.store.jobs.add(asked.kind, device, request)
        served, session = found
        service.storage.remember(served.name, session.model)
        return service.storage.store.jobs.add(asked.kind, device, request, session.model.digest)

    job = await service.quick_calls.call(work)
    service.local_jobs.wake()
    return _job(job)


@router.get("")
@needs(Scope.READ)
async def list_jobs(
    service: Serving,
    device: Key | None = None,
    state: JobState | None = None,
    model: Key | None = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> PageOut[JobOut]:
    """Jobs of a device, in a state, or both; or of a model (its digest)."""
    page = await service.quick_calls.call(lambda: service.storage.store.jobs.page(device, state, model, limit, cursor))
    return PageOut(items=[_job(job) for job in page.items], next=page.next)


@router.get("/{number}")
@needs(Scope.READ)
async def get_job(service: Serving, number: Number) -> JobOut:
    """One job."""
    return _job(await _find(service, number))


@router.post("/{number}/cancel")
@needs(Scope.ADMIN)
async def cancel_job(service: Serving, number: Number) -> JobOut:
    """Cancel a job: at once while it waits, soon while it runs. One that has ended stays as it is."""
    return _job(await service.quick_calls.call(lambda: service.storage.store.jobs.cancel(number)))


@router.get("/{number}/events", response_class=StreamingResponse)
@needs(Scope.READ)
async def job_events(
    request: Request, service: Serving, number: Number, last_event_id: Annotated[str, Header(pattern=r"^[0-9]{0,18}$")] = ""
) -> Response:
    """Follow a job as server-sent events: `progress` at every change, `end` as the last. The event's id is the job's revision.

    A client that comes back with Last-Event-ID hears what is new since; 204 where nothing will be any more.
    """
    seen = int(last_event_id or 0)
    job = await _find(service, number)
    if job.ended and job.revision <= seen:
        return Response(status_code=204)
    service.listeners.join()
    return _Events(_follow(request, service, job, seen), service.listeners.leave)


class _Events(StreamingResponse):
    """A stream of events that says when it is over, however it ends."""

    def __init__(self, events: AsyncIterator[bytes], gone: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._gone = gone

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Send until the job has ended or the client has left."""
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
    """Take the job of a device that has waited the longest; where none waits, the answer waits for one that long."""
    lease_s, until = service.settings.job_lease_s, time.monotonic() + asked.wait_s
    await service.quick_calls.call(lambda: service.storage.store.devices.get(asked.device))
    while not await request.is_disconnected():  # a job is not given to who has left
        claim = await service.quick_calls.call(lambda: service.storage.store.jobs.claim(asked.device, asked.owner, lease_s))
        if claim is not None:
            return ClaimOut(job=_job(claim.job), lease=claim.lease, lease_s=lease_s)
        if time.monotonic() >= until or service.health.draining:
            break
        await asyncio.sleep(LOOK_S)
    return ClaimOut(job=None, lease=None, lease_s=lease_s)


@router.post("/{number}/beat")
@needs(Scope.ADMIN)
async def beat_job(service: Serving, number: Number, said: BeatIn) -> BeatOut:
    """Keep a lease, and say how far the job is. 409 when it is somebody else's by now."""
    progress, lease_s = to_json(said.progress).decode(), service.settings.job_lease_s
    return BeatOut(
        cancel=await service.quick_calls.call(lambda: service.storage.store.jobs.beat(number, said.lease, lease_s, progress))
    )


@router.post("/{number}/end")
@needs(Scope.ADMIN)
async def end_of_job(service: Serving, number: Number, said: EndIn) -> JobOut:
    """Leave what a job found and end it. Saying it again changes nothing. 409 when it is somebody else's by now."""

    def work() -> Job:
        end_job(service.storage.store, number, said.lease, said.state, said.outcome, said.error)
        return service.storage.store.jobs.get(number)

    return _job(await service.quick_calls.call(work))


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
