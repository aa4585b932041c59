"""An index by the fastest run: the best measurement of a signature is the one with the shortest."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index("ix_measurements_best", "measurements")
    columns = ["device_id", "signature_id", "engine_build", "kernel_source", "min_ns"]
    op.create_index("ix_measurements_best", "measurements", columns)
