"""The records of the database: plain frozen data, independent of SQL."""

from __future__ import annotations

import re
import time
from typing import Final, Generic, Literal, TypeVar

from kernels.record import record
from profiler.report.document import SCHEMA_VERSION, Report
from scheduler.build import Build
from scheduler.errors import RecordFormatError
from scheduler.plan import Plan
from scheduler.strategy import Strategy

MAX_NAME: Final = 1024  # characters
MAX_DOCUMENT_BYTES: Final = 64 << 20
MAX_PAGE: Final = 200
DEFAULT_PAGE: Final = 50
LAST_ID: Final = (1 << 63) - 1

T = TypeVar("T")


@record
class Page(Generic[T]):
    """One page of a list, the newest first. next: the cursor of the following page, None on the last."""

    items: tuple[T, ...]
    next: str | None


@record
class StoredDevice:
    """A device and its profile as JSON (`DeviceProfile.from_json` reads it)."""

    fingerprint: str
    name: str
    profile: str
    created_us: int
    updated_us: int


@record
class StoredModel:
    """A stored model. summary: JSON."""

    digest: str
    name: str
    nbytes: int
    summary: str
    created_us: int
    updated_us: int


@record
class StoredPlan:
    """A plan with the state that it has on the device and build it was read for. `plan.id` is its key."""

    plan: Plan
    created_us: int


@record
class Measurement:
    """The time of one strategy for one signature on one device, by one engine build and one kernel source.

    samples: number of runs in the statistics. measured_us: when, in microseconds of UTC since 1970. load: the workload that was
    timed (`Workload.to_text`); "" where it is not known.
    """

    device_fingerprint: str
    engine_build: str
    kernel_source: str
    op: str
    signature: str
    signature_key: str
    strategy: Strategy
    executed_macs: int
    other_flops: int
    moved_bytes: int
    samples: int
    min_ns: float
    p50_ns: float
    p90_ns: float
    mean_ns: float
    std_ns: float
    measured_us: int
    load: str = ""


@record
class JudgedMeasurement:
    """A measurement, and whether it holds for the engine that runs here now. reason: why not, "" where it does."""

    measurement: Measurement
    fresh: bool
    reason: str


@record
class Here:
    """The device and engine build that a measurement must match to be fresh."""

    device_fingerprint: str
    build: Build

    def judge(self, measurement: Measurement) -> JudgedMeasurement:
        """Say whether a measurement is fresh here."""
        reason = ""
        if measurement.device_fingerprint != self.device_fingerprint:
            reason = f"measured on device {measurement.device_fingerprint}, this is {self.device_fingerprint}"
        elif measurement.engine_build != self.build.id:
            reason = f"measured with engine build {measurement.engine_build}, this is {self.build.id}"
        elif measurement.kernel_source != self.build.kernel_source(measurement.op):
            reason = f"the source of {measurement.op} changed since"
        return JudgedMeasurement(measurement, not reason, reason)


@record
class ProfileRun:
    """A count ("static") or a measured trace ("trace") of a model, and its totals.

    device (its fingerprint), threads and times are set for traces only: counts hold on every device. Unknown values are None.
    schema_version: of the document. A run stored by an early build has version 1, another form of document, and only the totals
    macs, flops and wall_p50_ns. ops: number of ops. problems: number of ops that ran faster than their roof.
    """

    id: int
    model_digest: str
    model_name: str
    kind: Literal["static", "trace"]
    device: str | None
    device_name: str | None
    threads: int | None
    precision: str
    backend: str
    plan_id: str
    engine_build: str
    schema_version: int
    ops: int
    problems: int
    macs: int
    flops: int
    peak_activation_bytes: int | None
    wall_p50_ns: float | None
    wall_p90_ns: float | None
    wall_min_ns: float | None
    first_ns: float | None
    predicted_ns: float | None
    roof_ns: float | None
    wasted_ns: float | None
    created_us: int


@record
class StoredProfile:
    """A run and its document as JSON."""

    run: ProfileRun
    payload: str

    @property
    def report(self) -> Report:
        """The document. Raises RecordFormatError where an earlier build wrote it."""
        version = self.run.schema_version
        if version != SCHEMA_VERSION:
            raise RecordFormatError(
                f"profile {self.run.id}: its document has schema_version {version}, need {SCHEMA_VERSION}, profile again"
            )
        return Report.from_json(self.payload)


JobState = Literal["queued", "running", "done", "failed", "cancelled"]
ENDED: Final[frozenset[JobState]] = frozenset({"done", "failed", "cancelled"})


@record
class Job:
    """A job: work for one device, and its progress.

    request, progress, result: JSON objects. model_digest: "" where no model is needed. owner: the worker that runs it, or ran it
    last. lease_until_us: when its lease ends unless the worker renews it. revision: counts every change. attempts: how often a
    worker took it.
    """

    id: int
    kind: str
    device_fingerprint: str
    model_digest: str
    request: str
    state: JobState
    revision: int
    progress: str
    owner: str
    lease_until_us: int
    attempts: int
    cancel_asked: bool
    result: str
    error: str
    created_us: int
    started_us: int | None
    finished_us: int | None

    @property
    def ended(self) -> bool:
        """Whether it has ended and will not change any more."""
        return self.state in ENDED


@record
class Claim:
    """A job that a worker took. lease: the secret by which the store knows its worker."""

    job: Job
    lease: str


@record
class StoredKey:
    """An API key without its secret.

    scopes: sorted names. None stands for no own rate, never expires, not revoked, never used.
    """

    prefix: str
    name: str
    secret_sha256: str
    scopes: tuple[str, ...]
    rate_per_s: float | None
    created_us: int
    expires_us: int | None
    revoked_us: int | None
    last_used_us: int | None

    def active(self, moment_us: int) -> bool:
        """Say whether the key is valid at that moment."""
        return self.revoked_us is None and (self.expires_us is None or moment_us < self.expires_us)


@record
class KeyRing:
    """The keys of a database. made: whether one was ever created. usable: those not revoked, expired ones included."""

    made: bool
    usable: tuple[StoredKey, ...]


@record
class AuditEntry:
    """An action of an administrator. actor: a key's prefix and name, "local" or "cli"."""

    at_us: int
    actor: str
    action: str
    target: str
    request_id: str = ""


def now_us() -> int:
    """Return the current time in microseconds of UTC since 1970."""
    return time.time_ns() // 1000


def page_limit(limit: int | None) -> int:
    """Return a page size, DEFAULT_PAGE for None. Raises RecordFormatError outside of 1..MAX_PAGE."""
    if limit is None:
        return DEFAULT_PAGE
    if not 1 <= limit <= MAX_PAGE:
        raise RecordFormatError(f"page: limit is {limit}, need 1..{MAX_PAGE}")
    return limit


def cursor_ids(cursor: str | None, parts: int = 1) -> tuple[int, ...]:
    """Return the ids in a cursor, one for each column of the page order. Raises RecordFormatError for any other text."""
    if cursor is None:
        return (LAST_ID,) * parts
    numbers = cursor.split(".") if re.fullmatch(r"[0-9]{1,19}(\.[0-9]{1,19})?", cursor) else []
    ids = tuple(map(int, numbers))
    if len(ids) != parts or any(number > LAST_ID for number in ids):
        raise RecordFormatError(f"page: cursor is {cursor[:40]!r}, need the `next` of an earlier page")
    return ids


def short(name: str) -> str:
    """Return a name as the database stores it: cut to the column's width, and without NUL, which PostgreSQL refuses."""
    name = name.replace("\0", "\ufffd")
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"


def document(subject: str, text: str) -> str:
    """Return a document unchanged. Raises RecordFormatError where it is larger than MAX_DOCUMENT_BYTES."""
    nbytes = len(text.encode())
    if nbytes > MAX_DOCUMENT_BYTES:
        raise RecordFormatError(f"{subject}: {nbytes} bytes, need at most {MAX_DOCUMENT_BYTES}")
    return text
