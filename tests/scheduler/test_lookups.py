"""Every query of a lookup that a request makes goes through an index, on both databases."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from scheduler.build import Build
from scheduler.store import Here
from scheduler.store.queries import Which
from tests.scheduler.samples import DEVICE, HERE, MODEL, key, measurement, plan, report, run_op, step

CURSOR = str(2**40)
NEWER = Here(DEVICE.fingerprint, Build("new", {}))
WORK = step().signature_key
LOOKUPS = {
    "device": lambda s: s.devices.get(DEVICE.fingerprint),
    "devices": lambda s: s.devices.page(cursor=CURSOR),
    "model": lambda s: s.models.get(MODEL),
    "models": lambda s: s.models.page(),
    "models_by_name": lambda s: s.models.page(name="tiny.onnx"),
    "plan": lambda s: s.plans.get(plan().id, HERE),
    "plan_latest": lambda s: s.plans.latest(MODEL, plan().request, HERE),
    "plans": lambda s: s.plans.page(HERE),
    "plans_by_model": lambda s: s.plans.page(HERE, model=MODEL),
    "plans_by_device": lambda s: s.plans.page(HERE, device=DEVICE.fingerprint),
    "plans_by_model_and_device": lambda s: s.plans.page(HERE, model=MODEL, device=DEVICE.fingerprint, cursor=CURSOR),
    "strategies": lambda s: s.measurements.page(HERE),
    "strategies_by_device": lambda s: s.measurements.page(HERE, device=DEVICE.fingerprint),
    "strategies_by_signature": lambda s: s.measurements.page(HERE, signature=WORK),
    "strategies_by_device_and_signature": lambda s: s.measurements.page(HERE, device=DEVICE.fingerprint, signature=WORK),
    "strategies_by_model": lambda s: s.measurements.page(HERE, model=MODEL),
    "strategies_by_device_and_model": lambda s: s.measurements.page(
        HERE, device=DEVICE.fingerprint, model=MODEL, cursor=f"{CURSOR}.{CURSOR}"
    ),
    "best_by_signature": lambda s: s.measurements.best(HERE, signature=WORK),
    "best_by_model": lambda s: s.measurements.best(HERE, model=MODEL),
    "best_of_an_older_build": lambda s: s.measurements.best(
        Here(DEVICE.fingerprint, Build("new", {})), model=MODEL, cursor=CURSOR
    ),
    "fresh": lambda s: s.measurements.fresh(HERE, {WORK: "Conv", key("x"): "Gemm"}),
    "evidence": lambda s: s.measurements.evidence(HERE),
    "newest": lambda s: s.measurements.newest(HERE),
    "profile": lambda s: s.profiles.get(1),
    "profiles": lambda s: s.profiles.page(),
    "profiles_by_model": lambda s: s.profiles.page(model=MODEL),
    "profiles_by_device": lambda s: s.profiles.page(device=DEVICE.fingerprint),
    "job": lambda s: s.jobs.get(1),
    "jobs": lambda s: s.jobs.page(),
    "jobs_by_device": lambda s: s.jobs.page(device=DEVICE.fingerprint),
    "jobs_by_state": lambda s: s.jobs.page(state="queued"),
    "jobs_by_device_and_state": lambda s: s.jobs.page(device=DEVICE.fingerprint, state="queued", cursor=CURSOR),
    "jobs_by_model": lambda s: s.jobs.page(model=MODEL),
    "job_to_take": lambda s: s.jobs.claim("feed", "w", 30),
    "jobs_of_the_lost": lambda s: s.jobs.sweep(),
    "profiles_by_kind": lambda s: s.profiles.page(kind="trace", cursor=CURSOR),
    "profiles_by_model_and_kind": lambda s: s.profiles.page(model=MODEL, kind="static"),
    "profile_that_is_compared": lambda s: s.profiles.save(report(wall_p50_ns=3.0), "b"),
    "profiles_by_model_and_device": lambda s: s.profiles.page(model=MODEL, device=DEVICE.fingerprint),
    "regressions": lambda s: s.queries.regressions(),
    "regressions_by_model": lambda s: s.queries.regressions(MODEL, 5.0),
    "plan_cards": lambda s: s.queries.plans(HERE.build, MODEL),
    "plan_cards_by_device": lambda s: s.queries.plans(HERE.build, MODEL, DEVICE.fingerprint),
}
# Of a bounded number of runs; what these find is sorted.
OF_RUNS = {
    "ops_of_a_run": lambda s: s.queries.ops(Which(runs=(1,))),
    "ops_of_a_model": lambda s: s.queries.ops(Which(model=MODEL, kind="trace"), "flops"),
    "ops_of_a_device": lambda s: s.queries.ops(Which(device=DEVICE.fingerprint, op="Conv")),
    "groups_of_runs": lambda s: s.queries.groups(Which(runs=(1, 2)), "op"),
    "groups_of_a_model": lambda s: s.queries.groups(Which(model=MODEL, device=DEVICE.fingerprint), "run"),
}


@pytest.mark.parametrize("lookup", LOOKUPS.values(), ids=LOOKUPS.keys())
def test_lookup_goes_through_an_index(store, lookup):
    found = plans_of(store, lookup)
    assert found
    for line, statement in found:
        assert "TEMP B-TREE" not in line, (line, statement)
        assert "Sort" not in line, (line, statement)


def test_a_page_of_a_device_begins_at_its_cursor(store):
    """For two columns compared as a pair SQLite uses the first alone, and reads all newer rows."""
    lines = [line for line, _ in plans_of(store, lambda s: s.measurements.page(HERE, device=DEVICE.fingerprint, cursor="5"))]
    bound = "(device_id=? AND id<?)" if store.label.startswith("sqlite") else "ROW(device_id, id) < ROW"
    assert any(bound in line for line in lines), lines


@pytest.mark.parametrize("lookup", OF_RUNS.values(), ids=OF_RUNS.keys())
def test_ops_of_runs_are_found_through_an_index(store, lookup):
    assert plans_of(store, lookup)


def plans_of(store, lookup):
    """Return the query plans of a lookup's queries, as lines, and assert that none reads a whole table."""
    store.plans.save(plan())
    store.measurements.save([measurement(step().signature)])
    for wall_p50_ns in (1.0, 2.0):
        store.profiles.save(report([run_op(p50_ns=wall_p50_ns)], wall_p50_ns=wall_p50_ns), "b")
    store.jobs.add("trace", DEVICE.fingerprint, model=MODEL)
    engine = store._database._engine
    asked: list[tuple[str, object]] = []

    def note(connection, cursor, statement, parameters, context, executemany):
        if statement.lstrip().upper().startswith("SELECT"):
            asked.append((statement, parameters))

    sa.event.listen(engine, "before_cursor_execute", note)
    lookup(store)
    sa.event.remove(engine, "before_cursor_execute", note)
    found = []
    with engine.connect() as connection:
        for statement, parameters in asked:
            for line in explained(connection, statement, parameters):
                if line == "SCAN CONSTANT ROW":  # a SELECT without a table
                    continue
                assert "SCAN" not in line.upper().replace("INDEX SCAN", "").replace("INDEX ONLY SCAN", ""), (line, statement)
                found.append((line, statement))
    assert found
    return found


def explained(connection: sa.Connection, statement: str, parameters: Any) -> list[str]:
    if connection.dialect.name == "sqlite":
        return [row[-1] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]
    # On a handful of rows PostgreSQL reads the table and not the index; this asks whether it could use the index.
    for setting in (
        "enable_seqscan",
        "enable_sort",
        "enable_incremental_sort",
        "enable_bitmapscan",
        "enable_hashjoin",
        "enable_mergejoin",
        "enable_material",
    ):
        connection.exec_driver_sql(f"SET LOCAL {setting} = off")
    return [row[0] for row in connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)]
