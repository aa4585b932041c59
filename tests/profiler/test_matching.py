from __future__ import annotations

from profiler.report.matching import match
from tests.scheduler.samples import report, run_op


def run(*steps):
    """Return the report of a trace. steps: (origins, p50_ns) of each."""
    ops = [run_op(n, origins[0], origins=tuple(origins), p50_ns=ns, strategy=f"s{n}") for n, (origins, ns) in enumerate(steps)]
    return report(ops, wall_p50_ns=1000.0)


def test_the_same_steps_are_matched_one_by_one():
    found = match([run(("a", 10.0), ("b", 20.0)), run(("a", 15.0), ("b", 10.0))])
    assert [(pair.key, pair.p50_ns, pair.delta_ns, pair.ratio) for pair in found] == [
        ("a", (10.0, 15.0), 5.0, 1.5),
        ("b", (20.0, 10.0), -10.0, 0.5),
    ]


def test_what_is_fused_otherwise_is_matched_as_a_whole():
    (pair,) = match([run(("ab", 10.0), ("c", 5.0)), run(("abc", 12.0))])
    assert pair.p50_ns == (15.0, 12.0)
    assert pair.strategies == ("s0 + s1", "s0")
    assert [len(ops) for ops in pair.steps] == [2, 1]


def test_a_chain_of_overlaps_is_one_group():
    (pair,) = match([run(("ab", 1.0), ("cd", 2.0)), run(("a", 1.0), ("bc", 2.0), ("d", 4.0))])
    assert pair.p50_ns == (3.0, 7.0)


def test_what_has_no_partner_says_so():
    first, second = match([run(("a", 10.0)), run(("z", 5.0))])
    assert (first.key, first.p50_ns, first.flops, first.delta_ns, first.ratio) == ("a", (10.0, None), (2010, None), None, None)
    assert second.p50_ns == (None, 5.0)


def test_counts_have_no_times():
    (pair,) = match([report([run_op(0, "a")]), run(("a", 1.0))])
    assert (pair.p50_ns, pair.flops) == ((None, 1.0), (2010, 2010))
