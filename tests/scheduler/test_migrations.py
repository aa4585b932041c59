"""Databases of earlier builds, with rows in them, hold what queries look for today once they are upgraded."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from alembic import command
from sqlalchemy.orm import Session

from profiler.report.document import SCHEMA_VERSION
from scheduler.build import Build
from scheduler.errors import RecordFormatError
from scheduler.plan import Plan
from scheduler.store import Store, database
from scheduler.store.database import Database
from scheduler.store.queries import Which
from tests.scheduler.samples import BUILD, DEVICE, MODEL, plan

PLANS = 45  # more than the migration reads at a time, and no multiple of it


def made_by(url: str, revision: str, rows: dict[str, list[dict[str, object]]]) -> None:
    """Create a database as a build of that revision left it. rows: by table, in an order that foreign keys allow."""
    opened = Database(url)

    def work(session: Session) -> None:
        config = database._alembic()
        config.attributes["connection"] = session.connection()
        command.upgrade(config, revision)
        for table, values in rows.items():
            session.execute(sa.table(table, *map(sa.column, values[0])).insert(), values)

    opened.write(work)
    opened.close()


def plan_number(number: int) -> Plan:
    """Return a plan that differs from its neighbours in every column that is taken from the document."""
    return plan(
        threads=1 + number % 2, predicted_ns=200.0 + number, memory_bytes=3000 + number, error_estimate=1e-6 * (1 + number)
    )


@pytest.fixture
def early(url: str) -> str:
    """Create a database of revision 0004 with a device, a model, runs and plans. Return its URL."""
    model = {"digest": MODEL, "name": "tiny.onnx", "nbytes": 9, "summary": "{}", "created_us": 1, "updated_us": 1}
    run = {"model_id": 1, "engine_build": BUILD.id, "payload": "{}", "created_us": 5}
    node = {"run_id": 2, "flops": 20, "moved_bytes": 30}
    made_by(
        url,
        "0004",
        {
            "devices": [
                {"id": 1, "fingerprint": DEVICE.fingerprint, "name": DEVICE.name, "profile": DEVICE.to_json(),
                 "created_us": 1, "updated_us": 1}
            ],
            "models": [{**model, "id": 1}],
            "profile_runs": [
                {**run, "id": 1, "device_id": None, "kind": "static", "macs": 10, "flops": 20, "wall_p50_ns": None},
                {**run, "id": 2, "device_id": 1, "kind": "trace", "macs": 10, "flops": 20, "wall_p50_ns": 900.0},
            ],
            "profile_nodes": [
                {**node, "position": 0, "node": "conv", "op": "Conv", "macs": 10, "p50_ns": 700.0},
                {**node, "position": 1, "node": "relu", "op": "Relu", "macs": 0, "p50_ns": None},
            ],
            "plans": [
                {"digest": made.id, "request": made.request, "model_id": 1, "device_id": 1, "measured_ns": None,
                 "payload": made.to_json(), "created_us": 1 + number}
                for number, made in enumerate(map(plan_number, range(PLANS)))
            ],
        },
    )  # fmt: skip
    return url


def test_plans_get_their_columns_from_their_documents(early: str) -> None:
    with Store(early) as store:
        cards = {card.plan_id: card for card in store.queries.plans(BUILD, MODEL)}
    assert len(cards) == PLANS
    for made in map(plan_number, range(PLANS)):
        card = cards[made.id]
        same = ("objective", "precision", "threads", "error_estimate", "memory_bytes")
        assert [getattr(card, name) for name in same] == [getattr(made, name) for name in same]
        assert (card.latency_ns, card.measured, card.stale) == (made.predicted_ns, False, "")


def test_kernels_of_plans_say_when_they_are_stale(early: str) -> None:
    changed = Build(BUILD.id, {**BUILD.kernels, "Relu": "5eed0000"})
    with Store(early) as store:
        assert {card.stale for card in store.queries.plans(changed, MODEL)} == {"the source of Relu changed since"}


def test_runs_count_their_ops_and_say_that_their_documents_are_old(early: str) -> None:
    with Store(early) as store:
        counted, traced = store.profiles.get(1), store.profiles.get(2)
        found = store.queries.ops(Which(runs=(2,))).items
    assert (counted.run.ops, traced.run.ops, traced.run.wall_p50_ns) == (0, 2, 900.0)
    assert (traced.run.threads, traced.run.wasted_ns, traced.run.problems) == (None, None, 0)
    with pytest.raises(RecordFormatError, match=f"schema_version 1, need {SCHEMA_VERSION}, profile again"):
        _ = traced.report
    assert [(op.name, op.p50_ns, op.strategy, op.wasted_ns) for op in found] == [
        ("conv", 700.0, "", None),
        ("relu", None, "", None),
    ]
