"""The workload of every measurement, and an index for reading a device's newest ones."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("measurements", sa.Column("load", sa.Text(), nullable=False, server_default=""))
    op.drop_index("ix_measurements_fit", "measurements")
    op.create_index("ix_measurements_fit", "measurements", ["device_id", "engine_build", "id"])
