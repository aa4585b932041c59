from array import array
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from app.load.figures import Split, doubts, knee, quantile, split, step
from app.load.generator import Failures, Load, Sample
from app.load.server import BatchStats, ModelStats, Total, Totals


def sample(**fields):
    given: dict[str, Any] = {
        "latencies_ns": array("q", [5_000_000, 1_000_000]),
        "due": 2,
        "in_time": 2,
        "elapsed_s": 0.5,
        "busy_share": 0.02,
    }
    return Sample(**(given | fields))


def entry(success=(0, 0), queue=0, rows=0, batches=()):
    totals = Totals(Total(*success), Total(success[0], queue))
    return ModelStats("1", rows, totals, [BatchStats(size, Total(1, ns)) for size, ns in batches])


def at(per_s, mean_ns, **fields):
    made = step(Load(1), 1, sample(), None)
    return replace(made, requests_per_s=per_s, mean_ns=mean_ns, **fields)


def test_quantiles_are_values_that_were_measured():
    values = np.arange(1, 101)
    assert [quantile(values, share) for share in (0.5, 0.9, 0.99, 1.0)] == [50, 90, 99, 100]
    assert quantile(np.array([7]), 0.5) == 7
    assert quantile(np.array([], np.int64), 0.5) is None


def test_step_of_a_load():
    failures = {"503": Failures(1, "full")}
    found = step(Load(4, 10.0), 8, sample(due=5, in_time=1, failures=failures, late_ns=array("q", [3])), None)
    assert (found.answered, found.unanswered, found.failures, found.examples) == (2, 2, {"503": 1}, {"503": "full"})
    assert (found.requests_per_s, found.rows_per_s, found.mean_ns) == (2.0, 16.0, 3e6)
    assert (found.p50_ns, found.p99_ns, found.max_ns, found.late_p99_ns) == (1_000_000, 5_000_000, 5_000_000, 3)
    assert (found.label, found.failed_share) == ("10/s, 8 rows", 1 / 3)


def test_step_without_answers():
    found = step(Load(1), 1, sample(latencies_ns=array("q"), in_time=0), None)
    assert (found.mean_ns, found.p50_ns, found.max_ns, found.unanswered, found.requests_per_s) == (None, None, None, 2, 0.0)


def test_split_of_requests_that_shared_a_batch():
    """Four requests of 2 rows: two alone (10 ns each), two together in one run of 14 ns for which both of them waited."""
    before = entry((3, 300), 30, 6, [(2, 100)])
    after = entry((7, 300 + 200), 30 + 40, 14, [(2, 100 + 20), (4, 14)])
    assert split(before, after) == Split(4, 10.0, (10 + 10 + 14 + 14) / 4, 50 - 10 - 12)


@pytest.mark.parametrize(("before", "after"), [(None, entry()), (entry(), None), (entry((3, 3), 0, 3), entry((3, 3), 0, 3))])
def test_no_split_without_statistics_or_requests(before, after):
    assert split(before, after) is None


def test_knee_is_where_throughput_stops_paying_for_latency():
    """A server of two cores that takes 1 ms: two clients double the throughput, further ones only wait."""
    steps = [at(min(n, 2) * 1000, max(n, 2) * 0.5e6) for n in (1, 2, 4, 8)]
    assert knee(steps) is steps[1]


def test_knee_of_rates():
    """Utilisation ρ of one core with random arrivals: the wait of an M/M/1 queue, 1 / (1 - ρ). Its power is highest at 0.5."""
    steps = [at(100 * share, 1e6 / (1 - share)) for share in (0.1, 0.3, 0.5, 0.7, 0.9)]
    assert knee(steps) is steps[2]


def test_no_knee_among_loads_that_failed_or_cannot_be_compared():
    fine, failing = at(10, 1e6), at(1000, 1e6, failures={"503": 1})
    assert knee([fine, fine]) is None
    assert knee([fine, fine, replace(fine, rows=8)]) is None
    assert knee([failing] * 3) is None
    assert knee([fine, fine, failing]) is fine


def test_doubts_tell_when_the_generator_is_what_is_slow():
    calm = step(Load(1, 10.0), 1, sample(late_ns=array("q", [100])), Split(2, 1, 1, 1))
    assert doubts(calm) == []
    assert "busy 98 % of a core" in doubts(replace(calm, generator_share=0.98))[0]
    assert "1.50 ms or more after they were due" in doubts(replace(calm, late_p99_ns=1_500_000))[0]
    assert doubts(replace(calm, server=Split(9, 1, 1, 1))) == ["the server answered 7 requests of others meanwhile"]
