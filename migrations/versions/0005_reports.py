"""Columns of runs and plans to look up and compare by, beside their documents."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

BATCH = 20  # plans are documents

_RUN_FLOATS = ("wall_p90_ns", "wall_min_ns", "first_ns", "predicted_ns", "roof_ns", "wasted_ns", "growth_percent")
_NODE_FLOATS = ("predicted_ns", "roof_ns", "roof_percent", "wasted_ns", "share_percent")


def upgrade() -> None:
    for name in ("series", "precision", "backend", "plan_id"):
        op.add_column("profile_runs", sa.Column(name, sa.String(200), nullable=False, server_default=""))
    for name, default in (("schema_version", "1"), ("ops", "0"), ("problems", "0")):
        op.add_column("profile_runs", sa.Column(name, sa.BigInteger(), nullable=False, server_default=default))
    for name in ("threads", "peak_activation_bytes", "previous_id"):
        op.add_column("profile_runs", sa.Column(name, sa.BigInteger(), nullable=True))
    for name in _RUN_FLOATS:
        op.add_column("profile_runs", sa.Column(name, sa.Double(), nullable=True))
    op.add_column("profile_runs", sa.Column("growth", sa.Text(), nullable=False, server_default="[]"))
    op.create_index("ix_profile_runs_series", "profile_runs", ["series", "id"])
    op.create_index("ix_profile_runs_kind", "profile_runs", ["kind", "id"])
    op.create_index("ix_profile_runs_model_kind", "profile_runs", ["model_id", "kind", "id"])
    op.create_index("ix_profile_runs_growth", "profile_runs", ["growth_percent", "id"])
    op.create_index("ix_profile_runs_model_growth", "profile_runs", ["model_id", "growth_percent", "id"])

    for name in ("backend", "bound"):
        op.add_column("profile_nodes", sa.Column(name, sa.String(16), nullable=False, server_default=""))
    op.add_column("profile_nodes", sa.Column("strategy", sa.String(512), nullable=False, server_default=""))
    op.add_column("profile_nodes", sa.Column("executed_macs", sa.BigInteger(), nullable=True))
    for name in _NODE_FLOATS:
        op.add_column("profile_nodes", sa.Column(name, sa.Double(), nullable=True))
    op.execute("UPDATE profile_runs SET ops = (SELECT count(*) FROM profile_nodes n WHERE n.run_id = profile_runs.id)")

    for name in ("predicted_ns", "error_estimate"):
        op.add_column("plans", sa.Column(name, sa.Double(), nullable=False, server_default="0"))
    for name in ("memory_bytes", "threads"):
        op.add_column("plans", sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("plans", sa.Column("objective", sa.String(16), nullable=False, server_default=""))
    op.add_column("plans", sa.Column("precision", sa.String(16), nullable=False, server_default=""))
    op.add_column("plans", sa.Column("engine_build", sa.String(200), nullable=False, server_default=""))
    op.add_column("plans", sa.Column("kernels", sa.Text(), nullable=False, server_default="{}"))
    _fill_plans()


def _fill_plans() -> None:
    """Fill the new columns of stored plans from their documents."""
    connection, last = op.get_bind(), 0
    query = sa.text("SELECT id, payload FROM plans WHERE id > :last ORDER BY id LIMIT :batch")
    names = ("predicted_ns", "error_estimate", "memory_bytes", "threads", "objective", "precision", "engine_build")
    plans = sa.table("plans", *(sa.column(name) for name in ("id", *names, "kernels")))
    while rows := connection.execute(query, {"last": last, "batch": BATCH}).all():
        for number, payload in rows:
            plan = json.loads(payload)
            kernels = json.dumps({step["op"]: step["kernel_source"] for step in plan["steps"]})
            values = {name: plan[name] for name in names}
            connection.execute(plans.update().where(plans.c.id == number).values(**values, kernels=kernels))
            last = number
