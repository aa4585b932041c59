"""Questions about many runs, on both databases, and the way they are answered by."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from scheduler.errors import NotFoundError, RecordFormatError
from scheduler.store import queries
from scheduler.store.queries import OpFilter
from tests.scheduler.samples import BUILD, DEVICE, HERE, MODEL, plan, report, run_op
from tests.scheduler.test_lookups import explained


def steps(*times_ns: float, **changes):
    return [run_op(n, p50_ns=ns, share_percent=10.0 * n, wasted_ns=ns / 2, **changes) for n, ns in enumerate(times_ns)]


def save(store, wall_p50_ns: float, *times_ns: float, **setup) -> int:
    return store.profiles.save(report(steps(*times_ns), wall_p50_ns=wall_p50_ns, **setup), BUILD.id)


def test_ops_are_sorted_and_paged_without_gaps(store):
    number = save(store, 100.0, 5.0, 30.0, 10.0)
    found, cursor = [], None
    while True:
        page, window = store.queries.ops(OpFilter(runs=(number,)), limit=2, cursor=cursor)
        found += [row.p50_ns for row in page.items]
        if (cursor := page.next) is None:
            break
        save(store, 100.0, 99.0)  # runs that come meanwhile do not move the pages
    assert found == [30.0, 10.0, 5.0]
    assert window.runs == (number,)


def test_pages_of_the_newest_runs_stay_at_those_of_the_first_page(store):
    save(store, 100.0, 5.0, 30.0)
    first, _ = store.queries.ops(OpFilter(model=MODEL), limit=1)
    save(store, 100.0, 99.0)
    second, _ = store.queries.ops(OpFilter(model=MODEL), limit=1, cursor=first.next)
    assert [row.p50_ns for row in (*first.items, *second.items)] == [30.0, 5.0]


def test_unknown_values_come_last_either_way(store):
    store.profiles.save(report([run_op(0), run_op(1, p50_ns=1.0), run_op(2, p50_ns=2.0)], wall_p50_ns=3.0), BUILD.id)
    for rising, expected in ((False, [2.0, 1.0, None]), (True, [1.0, 2.0, None])):
        page, _ = store.queries.ops(OpFilter(), rising=rising)
        assert [row.p50_ns for row in page.items] == expected


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"op": "Relu"}, {"relu"}),
        ({"backend": "native"}, {"a", "b"}),
        ({"bound": "memory"}, {"b"}),
        ({"strategy": "numpy/rows"}, {"relu"}),
        ({"name": "REL"}, {"relu"}),
        ({"name": "%"}, set()),
        ({"min_p50_ns": 2.0}, {"b", "relu"}),
        ({"kind": "static"}, set()),
        ({"device": DEVICE.fingerprint, "model": MODEL}, {"a", "b", "relu"}),
    ],
)
def test_filters(store, asked, expected):
    ops = [
        run_op(0, "a", p50_ns=1.0, backend="native", bound="compute", strategy="native/direct"),
        run_op(1, "b", p50_ns=2.0, backend="native", bound="memory", strategy="native/map"),
        run_op(2, "relu", op="Relu", p50_ns=3.0, backend="numpy", strategy="numpy/rows"),
    ]
    store.profiles.save(report(ops, wall_p50_ns=7.0), BUILD.id)
    page, _ = store.queries.ops(OpFilter(**asked))
    assert {row.name for row in page.items} == expected


def test_groups_add_up_to_the_ops(store):
    ops = [run_op(n, p50_ns=float(n), op="Conv" if n % 2 else "Relu", share_percent=float(n)) for n in range(5)]
    for _ in range(2):
        store.profiles.save(report(ops, wall_p50_ns=20.0), BUILD.id)
    groups, window = store.queries.groups(OpFilter(model=MODEL), "op")
    assert [(group.key, group.rows, group.p50_ns, group.share_percent) for group in groups] == [
        ("Relu", 6, 12.0, 6.0),
        ("Conv", 4, 8.0, 4.0),
    ]
    assert len(window.runs) == 2
    by_run, _ = store.queries.groups(OpFilter(), "run")
    assert {group.key for group in by_run} == set(map(str, window.runs))


def test_the_newest_runs_are_looked_at_and_it_is_said(store, monkeypatch):
    monkeypatch.setattr(queries, "WINDOW_OPS", 4)
    numbers = [save(store, 10.0, 1.0, 2.0) for _ in range(3)]
    _, window = store.queries.ops(OpFilter(model=MODEL))
    assert (window.runs, window.older) == ((numbers[2], numbers[1]), True)


def test_what_is_not_stored_is_not_found(store):
    with pytest.raises(NotFoundError):
        store.queries.ops(OpFilter(model="f" * 64))
    with pytest.raises(NotFoundError):
        store.queries.history("f" * 64)
    with pytest.raises(RecordFormatError, match="cursor"):
        store.queries.ops(OpFilter(), cursor="1")


def test_a_run_slower_than_the_one_before_is_a_regression(store):
    first = save(store, 100.0, 10.0, 80.0)
    slower = save(store, 150.0, 10.0, 130.0)
    save(store, 300.0, 10.0, 280.0, threads=1)  # another series
    save(store, 151.0, 10.0, 131.0)  # within the noise
    (found,) = store.queries.regressions(MODEL).items
    assert (found.before.id, found.after.id) == (first, slower)
    assert found.growth_percent == pytest.approx(50)
    assert [(op.name, op.before_ns, op.after_ns) for op in found.ops] == [("conv1", 80.0, 130.0)]
    assert store.queries.regressions(threshold_percent=60).items == ()
    assert store.queries.regressions(device=DEVICE.fingerprint).items == (found,)


def test_history_is_in_the_order_of_time(store):
    numbers = [save(store, wall_p50_ns, 1.0) for wall_p50_ns in (3.0, 2.0, 1.0)]
    store.profiles.save(report(), BUILD.id)
    assert [run.id for run in store.queries.history(MODEL)] == numbers


def test_plans_are_judged_without_their_documents(store):
    store.plans.save(plan())
    (found,) = store.queries.plans(HERE, MODEL)
    assert (found.latency_ns, found.measured, found.memory_bytes, found.threads, found.stale) == (200.0, False, 3000, 2, "")
    store.plans.measured(plan().id, 150.0)
    (found,) = store.queries.plans(HERE, MODEL)
    assert (found.latency_ns, found.measured) == (150.0, True)


def test_ops_are_found_by_the_key_of_their_runs(store):
    for n in range(3):
        save(store, 100.0 + n, 1.0, 2.0)
    engine = store._database._engine
    asked: list[tuple[str, object]] = []

    def note(connection, cursor, statement, parameters, context, executemany):
        if "FROM profile_nodes" in statement:
            asked.append((statement, parameters))

    sa.event.listen(engine, "before_cursor_execute", note)
    store.queries.ops(OpFilter(model=MODEL, op="Conv"))
    store.queries.groups(OpFilter(device=DEVICE.fingerprint), "op")
    sa.event.remove(engine, "before_cursor_execute", note)
    assert len(asked) == 2
    with engine.connect() as connection:
        for statement, parameters in asked:
            lines = explained(connection, statement, parameters)
            assert any("profile_nodes" in line and ("INDEX" in line or "Index" in line) for line in lines), lines
            assert not any("SCAN profile_nodes" in line or "Seq Scan" in line for line in lines), lines
