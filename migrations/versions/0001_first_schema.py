"""Devices, models, signatures, measurements, plans and profile runs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # what an identity is on each database

    def reference(table: str) -> sa.ForeignKey:
        return sa.ForeignKey(f"{table}.id", ondelete="CASCADE")

    op.create_table(
        "devices",
        sa.Column("id", number, nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("name", sa.String(1024), nullable=False),
        sa.Column("profile", sa.Text(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("updated_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_devices"),
        sa.UniqueConstraint("fingerprint", name="uq_devices_fingerprint"),
    )
    op.create_table(
        "models",
        sa.Column("id", number, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("name", sa.String(1024), nullable=False),
        sa.Column("nbytes", sa.BigInteger(), nullable=False),
        sa.Column("summary", sa.Text(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("updated_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_models"),
        sa.UniqueConstraint("digest", name="uq_models_digest"),
    )
    op.create_index("ix_models_name", "models", ["name", "id"])
    op.create_table(
        "signatures",
        sa.Column("id", number, nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("op", sa.String(1024), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_signatures"),
        sa.UniqueConstraint("key", name="uq_signatures_key"),
    )
    op.create_table(
        "model_signatures",
        sa.Column("model_id", number, reference("models"), nullable=False),
        sa.Column("signature_id", number, reference("signatures"), nullable=False),
        sa.Column("nodes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("model_id", "signature_id", name="pk_model_signatures"),
    )
    op.create_table(
        "measurements",
        sa.Column("id", number, nullable=False),
        sa.Column("device_id", number, reference("devices"), nullable=False),
        sa.Column("signature_id", number, reference("signatures"), nullable=False),
        sa.Column("engine_build", sa.String(200), nullable=False),
        sa.Column("kernel_source", sa.String(64), nullable=False),
        sa.Column("strategy", sa.String(512), nullable=False),
        sa.Column("op", sa.String(1024), nullable=False),
        sa.Column("executed_macs", sa.BigInteger(), nullable=False),
        sa.Column("other_flops", sa.BigInteger(), nullable=False),
        sa.Column("moved_bytes", sa.BigInteger(), nullable=False),
        sa.Column("samples", sa.BigInteger(), nullable=False),
        sa.Column("min_ns", sa.Double(), nullable=False),
        sa.Column("p50_ns", sa.Double(), nullable=False),
        sa.Column("p90_ns", sa.Double(), nullable=False),
        sa.Column("mean_ns", sa.Double(), nullable=False),
        sa.Column("std_ns", sa.Double(), nullable=False),
        sa.Column("measured_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_measurements"),
        sa.UniqueConstraint(
            "device_id", "signature_id", "engine_build", "kernel_source", "strategy", name="uq_measurements_evidence"
        ),
    )
    op.create_index("ix_measurements_device_signature", "measurements", ["device_id", "signature_id", "id"])
    op.create_index("ix_measurements_signature", "measurements", ["signature_id", "id"])
    op.create_index("ix_measurements_device", "measurements", ["device_id", "id"])
    op.create_index("ix_measurements_fit", "measurements", ["device_id", "op", "engine_build", "kernel_source", "id"])
    op.create_table(
        "plans",
        sa.Column("id", number, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("request", sa.String(64), nullable=False),
        sa.Column("model_id", number, reference("models"), nullable=False),
        sa.Column("device_id", number, reference("devices"), nullable=False),
        sa.Column("measured_ns", sa.Double(), nullable=True),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_plans"),
        sa.UniqueConstraint("digest", name="uq_plans_digest"),
    )
    op.create_index("ix_plans_request", "plans", ["model_id", "device_id", "request", "id"])
    op.create_index("ix_plans_model_device", "plans", ["model_id", "device_id", "id"])
    op.create_index("ix_plans_model", "plans", ["model_id", "id"])
    op.create_index("ix_plans_device", "plans", ["device_id", "id"])
    op.create_table(
        "profile_runs",
        sa.Column("id", number, nullable=False),
        sa.Column("model_id", number, reference("models"), nullable=False),
        sa.Column("device_id", number, reference("devices"), nullable=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("engine_build", sa.String(200), nullable=False),
        sa.Column("macs", sa.BigInteger(), nullable=False),
        sa.Column("flops", sa.BigInteger(), nullable=False),
        sa.Column("wall_p50_ns", sa.Double(), nullable=True),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_profile_runs"),
    )
    op.create_index("ix_profile_runs_model_device", "profile_runs", ["model_id", "device_id", "id"])
    op.create_index("ix_profile_runs_model", "profile_runs", ["model_id", "id"])
    op.create_index("ix_profile_runs_device", "profile_runs", ["device_id", "id"])
    op.create_table(
        "profile_nodes",
        sa.Column("run_id", number, reference("profile_runs"), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("node", sa.String(1024), nullable=False),
        sa.Column("op", sa.String(1024), nullable=False),
        sa.Column("macs", sa.BigInteger(), nullable=False),
        sa.Column("flops", sa.BigInteger(), nullable=False),
        sa.Column("moved_bytes", sa.BigInteger(), nullable=False),
        sa.Column("p50_ns", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("run_id", "position", name="pk_profile_nodes"),
    )
