"""Jobs, the drift of plans, and an index for the fastest strategy."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "jobs",
        sa.Column("id", number, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("device_fingerprint", sa.String(64), nullable=False),
        sa.Column("model_digest", sa.String(64), nullable=False),
        sa.Column("request", sa.Text(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("progress", sa.Text(), nullable=False),
        sa.Column("owner", sa.String(200), nullable=False),
        sa.Column("lease", sa.String(64), nullable=False),
        sa.Column("lease_until_us", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("cancel_asked", sa.Boolean(), nullable=False),
        sa.Column("result", sa.Text(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("started_us", sa.BigInteger(), nullable=True),
        sa.Column("finished_us", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
    )
    op.create_index("ix_jobs_device_state", "jobs", ["device_fingerprint", "state", "id"])
    op.create_index("ix_jobs_device", "jobs", ["device_fingerprint", "id"])
    op.create_index("ix_jobs_state", "jobs", ["state", "id"])
    op.create_index("ix_jobs_model", "jobs", ["model_digest", "id"])
    op.create_index("ix_jobs_lease", "jobs", ["state", "lease_until_us"])
    op.add_column("plans", sa.Column("drift", sa.Text(), nullable=True))
    best = ["device_id", "signature_id", "engine_build", "kernel_source", "p50_ns"]
    op.create_index("ix_measurements_best", "measurements", best)
