"""The tables. Every change here needs a migration in `migrations/versions`; a test compares the two on both databases.

Times are integers, microseconds of UTC since 1970 (`_us`), which compare alike on every database. Documents (device profile,
plan, trace) are text, validated by their own module when they are read; values to look up by are columns beside them. Every
lookup of a request has an index that ends in the column by which its pages are ordered.
"""

from __future__ import annotations

from typing import ClassVar, Final

from sqlalchemy import BigInteger, Boolean, Double, ForeignKey, Index, Integer, MetaData, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

_NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
_Id = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up only in a column of type INTEGER
HEAD: Final = "0007"  # the newest migration, so that opening an up-to-date database does not load Alembic
_KEY = 64  # a SHA-256 in hex


class Base(DeclarativeBase):
    """Declarative base: `Base.metadata` is the whole schema."""

    metadata: ClassVar[MetaData] = MetaData(naming_convention=_NAMING)
    type_annotation_map: ClassVar = {int: BigInteger, float: Double}


class DeviceRow(Base):
    """A device profile, the newest one of its fingerprint."""

    __tablename__ = "devices"
    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(_KEY), unique=True)
    name: Mapped[str] = mapped_column(String(1024))
    profile: Mapped[str] = mapped_column(Text)
    created_us: Mapped[int]
    updated_us: Mapped[int]


class ModelRow(Base):
    """A model that was profiled or planned. summary: JSON, "{}" where there is none."""

    __tablename__ = "models"
    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    digest: Mapped[str] = mapped_column(String(_KEY), unique=True)
    name: Mapped[str] = mapped_column(String(1024))
    nbytes: Mapped[int]
    summary: Mapped[str] = mapped_column(Text)
    created_us: Mapped[int]
    updated_us: Mapped[int]
    __table_args__ = (Index("ix_models_name", "name", "id"),)


class SignatureRow(Base):
    """The work of one node. `key` is the SHA-256 of `text`."""

    __tablename__ = "signatures"
    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    key: Mapped[str] = mapped_column(String(_KEY), unique=True)
    op: Mapped[str] = mapped_column(String(1024))
    text: Mapped[str] = mapped_column(Text)


class ModelSignatureRow(Base):
    """The signatures that a model consists of, and how many of its nodes have each; taken from its plans."""

    __tablename__ = "model_signatures"
    model_id: Mapped[int] = mapped_column(_Id, ForeignKey("models.id", ondelete="CASCADE"), primary_key=True)
    signature_id: Mapped[int] = mapped_column(_Id, ForeignKey("signatures.id", ondelete="CASCADE"), primary_key=True)
    nodes: Mapped[int]


class MeasurementRow(Base):
    """The time of one strategy for one signature on one device, by one engine build and one kernel source.

    executed_macs, other_flops, moved_bytes: the work that was timed. load: the same work as a cost model sees it
    (`Workload.to_text`), so that one can be fitted without the model; "" where it is not known.
    """

    __tablename__ = "measurements"
    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    device_id: Mapped[int] = mapped_column(_Id, ForeignKey("devices.id", ondelete="CASCADE"))
    signature_id: Mapped[int] = mapped_column(_Id, ForeignKey("signatures.id", ondelete="CASCADE"))
    engine_build: Mapped[str] = mapped_column(String(200))
    kernel_source: Mapped[str] = mapped_column(String(_KEY))
    strategy: Mapped[str] = mapped_column(String(512))
    op: Mapped[str] = mapped_column(String(1024))
    executed_macs: Mapped[int]
    other_flops: Mapped[int]
    moved_bytes: Mapped[int]
    samples: Mapped[int]
    min_ns: Mapped[float]
    p50_ns: Mapped[float]
    p90_ns: Mapped[float]
    mean_ns: Mapped[float]
    std_ns: Mapped[float]
    measured_us: Mapped[int]
    load: Mapped[str] = mapped_column(Text, server_default="")
    __table_args__ = (
        UniqueConstraint(
            "device_id", "signature_id", "engine_build", "kernel_source", "strategy", name="uq_measurements_evidence"
        ),
        Index("ix_measurements_device_signature", "device_id", "signature_id", "id"),
        Index("ix_measurements_signature", "signature_id", "id"),
        Index("ix_measurements_device", "device_id", "id"),
        Index("ix_measurements_best", "device_id", "signature_id", "engine_build", "kernel_source", "min_ns"),
        Index("ix_measurements_fit", "device_id", "engine_build", "id"),
    )


class PlanRow(Base):
    """A plan as it was made. request: hash of the request that it answers; the newest plan of a request is in use.

    drift: how its latency while serving differs from the stated one, NULL while it does not. predicted_ns … kernels: copied from
    the document, to compare plans without reading them. kernels: op -> hash of its source, as JSON.
    """

    __tablename__ = "plans"
    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    digest: Mapped[str] = mapped_column(String(_KEY), unique=True)
    request: Mapped[str] = mapped_column(String(_KEY))
    model_id: Mapped[int] = mapped_column(_Id, ForeignKey("models.id", ondelete="CASCADE"))
    device_id: Mapped[int] = mapped_column(_Id, ForeignKey("devices.id", ondelete="CASCADE"))
    measured_ns: Mapped[float | None]
    drift: Mapped[str | None] = mapped_column(Text)
    predicted_ns: Mapped[float] = mapped_column(server_default="0")
    error_estimate: Mapped[float] = mapped_column(server_default="0")
    memory_bytes: Mapped[int] = mapped_column(server_default="0")
    threads: Mapped[int] = mapped_column(server_default="0")
    objective: Mapped[str] = mapped_column(String(16), server_default="")
    precision: Mapped[str] = mapped_column(String(16), server_default="")
    engine_build: Mapped[str] = mapped_column(String(200), server_default="")
    kernels: Mapped[str] = mapped_column(Text, server_default="{}")
    payload: Mapped[str] = mapped_column(Text)
    created_us: Mapped[int]
    __table_args__ = (
        Index("ix_plans_request", "model_id", "device_id", "request", "id"),
        Index("ix_plans_model_device", "model_id", "device_id", "id"),
        Index("ix_plans_model", "model_id", "id"),
        Index("ix_plans_device", "device_id", "id"),
    )


class ProfileRunRow(Base):
    """A count or a measured trace of a model: its document, and its totals as columns.

    schema_version: of the document; the columns after it are empty for documents of version 1. series: names the runs of one
    model, device, thread count, precision and shapes; "" for counts. ops: its number of rows in `profile_nodes`. problems: ops
    that ran faster than their roof. previous_id: the run before it in its series. growth_percent: how much longer its median is
    than that run's, where the difference exceeds the noise of both; growth: the ops that grew most, as JSON.
    """

    __tablename__ = "profile_runs"
    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    model_id: Mapped[int] = mapped_column(_Id, ForeignKey("models.id", ondelete="CASCADE"))
    device_id: Mapped[int | None] = mapped_column(_Id, ForeignKey("devices.id", ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(String(16))
    engine_build: Mapped[str] = mapped_column(String(200))
    macs: Mapped[int]
    flops: Mapped[int]
    wall_p50_ns: Mapped[float | None]
    schema_version: Mapped[int] = mapped_column(server_default="1")
    series: Mapped[str] = mapped_column(String(200), server_default="")
    threads: Mapped[int | None]
    precision: Mapped[str] = mapped_column(String(200), server_default="")
    backend: Mapped[str] = mapped_column(String(200), server_default="")
    plan_id: Mapped[str] = mapped_column(String(200), server_default="")
    ops: Mapped[int] = mapped_column(server_default="0")
    problems: Mapped[int] = mapped_column(server_default="0")
    peak_activation_bytes: Mapped[int | None]
    wall_p90_ns: Mapped[float | None]
    wall_min_ns: Mapped[float | None]
    first_ns: Mapped[float | None]
    predicted_ns: Mapped[float | None]
    roof_ns: Mapped[float | None]
    wasted_ns: Mapped[float | None]
    previous_id: Mapped[int | None]
    growth_percent: Mapped[float | None]
    growth: Mapped[str] = mapped_column(Text, server_default="[]")
    payload: Mapped[str] = mapped_column(Text)
    created_us: Mapped[int]
    model: Mapped[ModelRow] = relationship(lazy="joined", innerjoin=True)
    device: Mapped[DeviceRow | None] = relationship(lazy="joined")
    __table_args__ = (
        Index("ix_profile_runs_series", "series", "id"),
        Index("ix_profile_runs_kind", "kind", "id"),
        Index("ix_profile_runs_model_kind", "model_id", "kind", "id"),
        Index("ix_profile_runs_growth", "growth_percent", "id"),
        Index("ix_profile_runs_model_growth", "model_id", "growth_percent", "id"),
        Index("ix_profile_runs_model_device", "model_id", "device_id", "id"),
        Index("ix_profile_runs_model", "model_id", "id"),
        Index("ix_profile_runs_device", "device_id", "id"),
    )


class ProfileNodeRow(Base):
    """One node of a profile run, by its place in execution order."""

    __tablename__ = "profile_nodes"
    run_id: Mapped[int] = mapped_column(_Id, ForeignKey("profile_runs.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    node: Mapped[str] = mapped_column(String(1024))
    op: Mapped[str] = mapped_column(String(1024))
    macs: Mapped[int]
    flops: Mapped[int]
    moved_bytes: Mapped[int]
    p50_ns: Mapped[float | None]
    backend: Mapped[str] = mapped_column(String(16), server_default="")
    bound: Mapped[str] = mapped_column(String(16), server_default="")
    strategy: Mapped[str] = mapped_column(String(512), server_default="")
    executed_macs: Mapped[int | None]
    predicted_ns: Mapped[float | None]
    roof_ns: Mapped[float | None]
    roof_percent: Mapped[float | None]
    wasted_ns: Mapped[float | None]
    share_percent: Mapped[float | None]


class JobRow(Base):
    """A job: work for one device. lease: the secret of the worker that runs it; kept until another worker takes the job.

    revision: counts every change, so that a listener knows which it has seen. Devices and models are stored by name and not by
    row, because a job may outlive both. caller: who queued it, "" where the service itself did.
    """

    __tablename__ = "jobs"
    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    device_fingerprint: Mapped[str] = mapped_column(String(_KEY))
    model_digest: Mapped[str] = mapped_column(String(_KEY))
    request: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(16))
    revision: Mapped[int]
    progress: Mapped[str] = mapped_column(Text)
    owner: Mapped[str] = mapped_column(String(200))
    lease: Mapped[str] = mapped_column(String(_KEY))
    lease_until_us: Mapped[int]
    attempts: Mapped[int]
    cancel_asked: Mapped[bool] = mapped_column(Boolean)
    result: Mapped[str] = mapped_column(Text)
    error: Mapped[str] = mapped_column(Text)
    created_us: Mapped[int]
    started_us: Mapped[int | None]
    finished_us: Mapped[int | None]
    caller: Mapped[str] = mapped_column(String(_KEY), server_default="")
    __table_args__ = (
        Index("ix_jobs_caller", "caller", "state"),
        Index("ix_jobs_device_state", "device_fingerprint", "state", "id"),
        Index("ix_jobs_device", "device_fingerprint", "id"),
        Index("ix_jobs_state", "state", "id"),
        Index("ix_jobs_model", "model_digest", "id"),
        Index("ix_jobs_lease", "state", "lease_until_us"),
    )


class ApiKeyRow(Base):
    """An API key of the service: its public `prefix` and the SHA-256 of its secret, never the secret."""

    __tablename__ = "api_keys"
    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    prefix: Mapped[str] = mapped_column(String(16), unique=True)
    name: Mapped[str] = mapped_column(String(1024))
    secret_sha256: Mapped[str] = mapped_column(String(_KEY))
    scopes: Mapped[str] = mapped_column(String(64))
    rate_per_s: Mapped[float | None]
    created_us: Mapped[int]
    expires_us: Mapped[int | None]
    revoked_us: Mapped[int | None]
    last_used_us: Mapped[int | None]


class AuditRow(Base):
    """An action of an administrator."""

    __tablename__ = "audit_log"
    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    at_us: Mapped[int]
    actor: Mapped[str] = mapped_column(String(1024))
    action: Mapped[str] = mapped_column(String(64))
    target: Mapped[str] = mapped_column(String(1024))
    request_id: Mapped[str] = mapped_column(String(128))
