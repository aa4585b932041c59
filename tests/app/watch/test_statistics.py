"""The statistics of live traffic are rates and percentiles of the last seconds."""

from app.watch.statistics import MAX_RECENT, Answer, traffic

S = 1_000_000_000


def test_traffic_without_answers_knows_no_latency() -> None:
    found = traffic([[], []], 100 * S)
    assert (found.requests_per_s, found.p50_ns, found.p99_ns, found.batch_rows) == (0.0, None, None, None)


def test_traffic_counts_the_last_ten_seconds_of_all_models() -> None:
    one = [Answer(80 * S, 999, 9), *(Answer(at * S, at, 2) for at in range(91, 101))]
    other = [Answer(99 * S, 1000, 4)] * 10
    found = traffic([one, other], 100 * S)
    assert found.requests_per_s == 2.0
    assert found.p50_ns == 100
    assert found.p99_ns == 1000
    assert found.batch_rows == 3.0


def test_traffic_of_a_full_window_is_counted_over_what_is_kept() -> None:
    kept = [Answer(98 * S + at * S // MAX_RECENT, 1, 1) for at in range(MAX_RECENT)]
    assert traffic([kept], 100 * S).requests_per_s == MAX_RECENT / 2
