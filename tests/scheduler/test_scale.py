"""With a million measurements, the databases still plan lookups through indexes.

Filling takes minutes on a busy machine, so the tests run only if EDGEWISE_SCALE is set. `python -m bench.lookups` judges times.
"""

from __future__ import annotations

import os
import random
import sys
from typing import Any

import pytest
import sqlalchemy as sa

from bench.lookups import ROWS, fill, lookups, time_lookups
from scheduler.store import Store
from tests.scheduler.samples import HERE

pytestmark = [
    pytest.mark.scale,
    pytest.mark.skipif("EDGEWISE_SCALE" not in os.environ, reason="filling takes a while; set EDGEWISE_SCALE to run it"),
]


def test_lookups_in_a_million_measurements(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Store(url) as store:
        keys = fill(store, HERE)
        engine = store._database._engine
        with engine.connect() as connection:
            assert connection.execute(sa.text("SELECT count(*) FROM measurements")).scalar() == ROWS
        for name, lookup in lookups(store, HERE, keys).items():
            for line, statement in plans(engine, lambda lookup=lookup: lookup(random.Random(1))):
                assert not reads_a_table(line), (name, line, statement)
        taken = time_lookups(store, HERE, keys, rounds=100)
    with capsys.disabled():
        for name, (median, worst) in taken.items():
            sys.stdout.write(f"\n{name:40} median {median:7.3f} ms   p99 {worst:7.3f} ms")


def plans(engine: sa.Engine, lookup) -> list[tuple[str, str]]:
    asked: list[tuple[str, Any]] = []

    def note(connection, cursor, statement, parameters, context, executemany):
        if statement.lstrip().upper().startswith("SELECT"):
            asked.append((statement, parameters))

    sa.event.listen(engine, "before_cursor_execute", note)
    lookup()
    sa.event.remove(engine, "before_cursor_execute", note)
    assert asked
    explain = "EXPLAIN QUERY PLAN" if engine.dialect.name == "sqlite" else "EXPLAIN"
    with engine.connect() as connection:
        return [
            (row[-1], statement)
            for statement, parameters in asked
            for row in connection.exec_driver_sql(f"{explain} {statement}", parameters)
        ]


def reads_a_table(line: str) -> bool:
    """Return whether a step of a query plan scans all measurements or signatures. Small tables may be scanned."""
    large = any(name in line for name in ("measurements", "signatures"))
    return large and (line.startswith("SCAN") or "Seq Scan on measurements" in line or "Seq Scan on signatures" in line)
