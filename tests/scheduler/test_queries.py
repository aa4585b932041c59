"""Queries about stored runs return what the reports hold, in any order and page size, on both databases."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scheduler.build import Build
from scheduler.errors import NotFoundError, RecordFormatError
from scheduler.store.queries import MOST_RUNS, SORT_KEYS, Which
from tests.scheduler.samples import BUILD, DEVICE, MODEL, plan, report, run_op

OPS = (
    run_op(
        0, "stem", p50_ns=30.0, share_percent=30.0, wasted_ns=10.0, predicted_ns=15.0, bound="compute", strategy="native/direct"
    ),
    run_op(1, "pool", op="MaxPool", macs=0, flops=90, p50_ns=10.0, share_percent=10.0, wasted_ns=9.0, bound="memory"),
    run_op(2, "odd_100%", op="Resize", macs=0, flops=0, p50_ns=50.0, share_percent=50.0, backend="numpy", strategy="numpy/whole"),
    run_op(3, "head", p50_ns=None, share_percent=0.0, strategy="native/direct_tall"),
)


@pytest.fixture
def runs(store):
    """Store two runs, and the plan that they need. The ops of the first take half the time. Return the store."""
    store.plans.save(plan())
    fast = [op.model_copy(update={"p50_ns": None if op.p50_ns is None else op.p50_ns / 2}) for op in OPS]
    store.profiles.save(report(fast, wall_p50_ns=50.0), "a")
    store.profiles.save(report(OPS, wall_p50_ns=100.0), "b")
    return store


def names(page):
    return [(found.run, found.name) for found in page.items]


def test_the_slowest_come_first_and_untimed_ones_last(runs):
    assert names(runs.queries.ops(Which(runs=(2,)))) == [(2, "odd_100%"), (2, "stem"), (2, "pool"), (2, "head")]
    assert names(runs.queries.ops(Which(runs=(2,)), "p50_ns")) == [(2, "pool"), (2, "stem"), (2, "odd_100%"), (2, "head")]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(SORT_KEYS), descending=st.booleans(), limit=st.integers(1, 5))
def test_pages_together_are_the_whole_in_order(runs, key, descending, limit):
    sort = f"-{key}" if descending else key
    pages, cursor = list[Any](), None
    while cursor is not None or not pages:
        pages.append(runs.queries.ops(Which(model=MODEL), sort, limit, cursor))
        cursor = pages[-1].next
    found = [op for page in pages for op in page.items]
    assert len({(op.run, op.position) for op in found}) == len(found) == 8
    known = [value for op in found if (value := getattr(op, key)) is not None]
    assert [getattr(op, key) for op in found][: len(known)] == sorted(known, reverse=descending)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"op": "MaxPool"}, ["pool"]),
        ({"bound": "compute"}, ["stem"]),
        ({"backend": "numpy"}, ["odd_100%"]),
        ({"strategy": "native/direct"}, ["stem", "head"]),
        ({"strategy": "native/direct_"}, ["head"]),
        ({"name": "100%"}, ["odd_100%"]),
        ({"name": "_"}, ["odd_100%"]),
        ({"min_p50_ns": 30.0}, ["odd_100%", "stem"]),
    ],
)
def test_filters_take_what_they_say(runs, changes, wanted):
    assert [name for _, name in names(runs.queries.ops(Which(runs=(2,), **changes)))] == wanted


def test_the_ratio_is_measured_to_predicted(runs):
    found = runs.queries.ops(Which(runs=(2,)), "-measured_ratio").items
    assert (found[0].name, found[0].measured_ratio) == ("stem", 2.0)
    assert found[1].measured_ratio is None


def test_groups_are_the_sums_of_their_ops(runs):
    found = {item.group: item for item in runs.queries.groups(Which(runs=(2,)), "op").items}
    assert list(found) == ["Resize", "Conv", "MaxPool"]
    conv = found["Conv"]
    assert (conv.rows, conv.p50_ns, conv.share_percent, conv.flops, conv.macs, conv.wasted_ns) == (
        2,
        30.0,
        30.0,
        4020,
        2000,
        10.0,
    )
    assert found["Resize"].wasted_ns is None


def test_groups_of_several_runs_share_the_mean(runs):
    found = {item.group: item for item in runs.queries.groups(Which(runs=(1, 2)), "op").items}
    assert (found["Conv"].p50_ns, found["Conv"].share_percent) == (45.0, 30.0)
    by_run = {item.group: item for item in runs.queries.groups(Which(model=MODEL), "run").items}
    assert {group: (item.p50_ns, item.share_percent) for group, item in by_run.items()} == {"1": (45.0, 90.0), "2": (90.0, 90.0)}


def test_a_question_names_what_it_is_about(runs):
    with pytest.raises(RecordFormatError, match="neither run, model nor device"):
        runs.queries.ops(Which())
    with pytest.raises(RecordFormatError, match=f"{MOST_RUNS + 1} runs are named, need at most {MOST_RUNS}"):
        runs.queries.ops(Which(runs=tuple(range(MOST_RUNS + 1))))
    with pytest.raises(RecordFormatError, match="sort is '-speed', need one of position"):
        runs.queries.ops(Which(runs=(1,)), "-speed")
    with pytest.raises(RecordFormatError, match="sort is 'position', need one of rows"):
        runs.queries.groups(Which(runs=(1,)), "op", "position")
    with pytest.raises(NotFoundError):
        runs.queries.ops(Which(model="0" * 64))
    assert runs.queries.ops(Which(runs=(99,))).items == ()


def test_a_slower_run_is_a_regression_with_the_ops_that_grew(runs):
    (found,) = runs.queries.regressions(MODEL, 99.0).items
    assert (found.before.id, found.after.id, found.growth_percent) == (1, 2, pytest.approx(100.0))
    assert found.noise_percent == pytest.approx(1.0)
    assert [(item.name, item.before_ns, item.after_ns) for item in found.ops][:2] == [
        ("odd_100%", 25.0, 50.0),
        ("stem", 15.0, 30.0),
    ]
    assert runs.queries.regressions(None, 101.0).items == ()


def test_plans_are_judged_without_their_documents(runs):
    (card,) = runs.queries.plans(BUILD, MODEL, DEVICE.fingerprint)
    assert (card.plan_id, card.latency_ns, card.measured, card.stale) == (plan().id, plan().predicted_ns, False, "")
    runs.plans.measured(plan().id, 77.0)
    (card,) = runs.queries.plans(Build("new", {}), MODEL)
    assert (card.latency_ns, card.measured) == (77.0, True)
    assert "made by engine build" in card.stale
