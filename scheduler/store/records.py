"""What goes into the database and what comes out of it: plain frozen data, with nothing of SQL about it."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Final, Generic, Literal, TypeVar

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


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A bounded part of a list, the newest first. `next` is the cursor of the part that follows, None at the end."""

    items: tuple[T, ...]
    next: str | None


@dataclass(frozen=True, slots=True)
class StoredDevice:
    """A device and its profile as JSON (`DeviceProfile.from_json` reads it)."""

    fingerprint: str
    name: str
    profile: str
    created_us: int
    updated_us: int


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model that is known. summary: JSON."""

    digest: str
    name: str
    nbytes: int
    summary: str
    created_us: int
    updated_us: int


@dataclass(frozen=True, slots=True)
class StoredPlan:
    """A plan, its state judged for the device and build it was read for. `plan.id` is its key."""

    plan: Plan
    created_us: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """How long one strategy took for one signature on one device, by one engine build and one kernel source.

    samples: how many runs the statistics are of. measured_us: when, microseconds of UTC since 1970. load: what was timed, as a
    cost model sees it (`scheduler.workload`); "" where that is not known.
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


@dataclass(frozen=True, slots=True)
class Found:
    """A measurement, and whether it is true of what runs here now. `reason` says why not."""

    measurement: Measurement
    fresh: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Here:
    """What a measurement must match to be fresh: this device, running this build."""

    device_fingerprint: str
    build: Build

    def judge(self, measurement: Measurement) -> Found:
        """Label a measurement."""
        reason = ""
        if measurement.device_fingerprint != self.device_fingerprint:
            reason = f"measured on device {measurement.device_fingerprint}, this is {self.device_fingerprint}"
        elif measurement.engine_build != self.build.id:
            reason = f"measured with engine build {measurement.engine_build}, this is {self.build.id}"
        elif measurement.kernel_source != self.build.kernel_source(measurement.op):
            reason = f"the source of {measurement.op} changed since"
        return Found(measurement, not reason, reason)


@dataclass(frozen=True, slots=True)
class ProfileRun:
    """A count ("static") or a measured trace ("trace") of a model, and its totals.

    device (its fingerprint), threads and times are of traces: counts hold on every device. What is not known is None.
    schema_version: of the document. A run stored by an early build has version 1, a document of its own, and no more totals than
    macs, flops and wall_p50_ns. ops: how many it has. problems: ops above their roof.
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


@dataclass(frozen=True, slots=True)
class StoredProfile:
    """A run and its document as JSON."""

    run: ProfileRun
    payload: str

    @property
    def report(self) -> Report:
        """The document. Raises RecordFormatError where it is of an earlier build."""
        version = self.run.schema_version
        if version != SCHEMA_VERSION:
            raise RecordFormatError(
                f"profile {self.run.id}: its document has schema_version {version}, need {SCHEMA_VERSION}, profile again"
            )
        return Report.from_json(self.payload)


JobState = Literal["queued", "running", "done", "failed", "cancelled"]
ENDED: Final[frozenset[JobState]] = frozenset({"done", "failed", "cancelled"})


@dataclass(frozen=True, slots=True)
class Job:
    """Work for one device, and how far it is.

    request, progress, result: JSON objects. model_digest is "" where no model is needed. owner: who runs it, or ran it last;
    lease_until_us: until when it is theirs unless they say that they live. revision: counts every change. attempts: how often
    it was taken.
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
        """Whether it will not change any more."""
        return self.state in ENDED


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that was taken. lease: proves to the store that a word about the job comes from who has it."""

    job: Job
    lease: str


@dataclass(frozen=True, slots=True)
class StoredKey:
    """An API key without its secret. scopes: sorted names. None: no own rate, never expires, not revoked, never used."""

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
        """Whether it opens anything then."""
        return self.revoked_us is None and (self.expires_us is None or moment_us < self.expires_us)


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The keys of a database. made: whether there ever was one. usable: those not revoked; expired ones too."""

    made: bool
    usable: tuple[StoredKey, ...]


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Something that an administrator did. actor: a key's prefix and name, "local" or "cli"."""

    at_us: int
    actor: str
    action: str
    target: str
    request_id: str = ""


def now_us() -> int:
    """Microseconds of UTC since 1970."""
    return time.time_ns() // 1000


def page_limit(limit: int | None) -> int:
    """A page size within bounds. Raises RecordFormatError."""
    if limit is None:
        return DEFAULT_PAGE
    if not 1 <= limit <= MAX_PAGE:
        raise RecordFormatError(f"page: limit is {limit}, need 1..{MAX_PAGE}")
    return limit


def cursor_ids(cursor: str | None, parts: int = 1) -> tuple[int, ...]:
    """The ids in a cursor, one for each column that is paged by. Raises RecordFormatError when it is none of ours."""
    if cursor is None:
        return (LAST_ID,) * parts
    numbers = cursor.split(".") if re.fullmatch(r"[0-9]{1,19}(\.[0-9]{1,19})?", cursor) else []
    ids = tuple(map(int, numbers))
    if len(ids) != parts or any(number > LAST_ID for number in ids):
        raise RecordFormatError(f"page: cursor is {cursor[:40]!r}, need one that an earlier page gave as next")
    return ids


def short(name: str) -> str:
    """A name as the database keeps it: cut to its column, and without NUL, which PostgreSQL refuses."""
    name = name.replace("\0", "\ufffd")
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"


def document(subject: str, text: str) -> str:
    """A document within its limit. Raises RecordFormatError."""
    nbytes = len(text.encode())
    if nbytes > MAX_DOCUMENT_BYTES:
        raise RecordFormatError(f"{subject}: {nbytes} bytes, need at most {MAX_DOCUMENT_BYTES}")
    return text
