"""Who queued a job, so that the jobs of each caller can be counted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("caller", sa.String(64), nullable=False, server_default=""))
    op.create_index("ix_jobs_caller", "jobs", ["caller", "state"])
