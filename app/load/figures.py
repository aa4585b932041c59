"""Figures of a load: percentiles, throughput, errors by kind, the server's own split of the time, and the knee of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from app.load.generator import Load, Sample
from app.load.server import ModelStats
from kernels.record import record

MOST_FAILED = 0.01  # share of failures above which a load is beyond the knee
BUSY_SHARE = 0.9  # of one core, above which the generator may be what is slow


@record
class Split:
    """Where a request's time went on average, as the server counts it, in nanoseconds.

    queue_ns: waiting for the engine. compute_ns: the run of its batch. service_ns: all else between arrival and reply: decoding,
    encoding, handing over. requests: that the server answered meanwhile, those of others among them.
    """

    requests: int
    queue_ns: float
    compute_ns: float
    service_ns: float


@record
class Step:
    """The figures of one load of a sweep. Latencies are of answers, from when their requests were due; None without any.

    rows: of one request. due: requests that were due. answered: all with an answer. failures: by kind. unanswered: given up by
    Ctrl-C. requests_per_s: answers before the end / the time until then. late_p99_ns: how late the generator itself turned to
    requests of an open loop. generator_share: processor time of the generator, of one core.
    """

    clients: int
    rate_per_s: float | None
    rows: int
    elapsed_s: float
    due: int
    answered: int
    failures: Mapping[str, int]
    examples: Mapping[str, str]
    unanswered: int
    requests_per_s: float
    rows_per_s: float
    mean_ns: float | None
    p50_ns: int | None
    p90_ns: int | None
    p99_ns: int | None
    max_ns: int | None
    late_p99_ns: int | None
    generator_share: float
    interrupted: bool
    server: Split | None

    @property
    def label(self) -> str:
        """What sets it apart from others of its sweep."""
        load = _counted(self.clients, "client") if self.rate_per_s is None else f"{self.rate_per_s:g}/s"
        return f"{load}, {_counted(self.rows, 'row')}"

    @property
    def failed_share(self) -> float:
        """Share of the requests that failed."""
        return sum(self.failures.values()) / max(1, self.answered + sum(self.failures.values()))


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def step(load: Load, rows: int, sample: Sample, server: Split | None) -> Step:
    """Summarise a load."""
    latencies = np.frombuffer(sample.latencies_ns, np.int64)
    p50, p90, p99 = (quantile(latencies, share) for share in (0.5, 0.9, 0.99))
    failures = {kind: found.count for kind, found in sorted(sample.failures.items())}
    per_s = sample.in_time / sample.elapsed_s if sample.elapsed_s > 0 else 0.0
    return Step(
        clients=load.clients,
        rate_per_s=load.rate_per_s,
        rows=rows,
        elapsed_s=sample.elapsed_s,
        due=sample.due,
        answered=latencies.size,
        failures=failures,
        examples={kind: sample.failures[kind].example for kind in failures},
        unanswered=sample.due - latencies.size - sum(failures.values()),
        requests_per_s=per_s,
        rows_per_s=per_s * rows,
        mean_ns=float(latencies.mean()) if latencies.size else None,
        p50_ns=p50,
        p90_ns=p90,
        p99_ns=p99,
        max_ns=quantile(latencies, 1.0),
        late_p99_ns=quantile(np.frombuffer(sample.late_ns, np.int64), 0.99),
        generator_share=sample.busy_share,
        interrupted=sample.interrupted,
        server=server,
    )


def quantile(values: np.ndarray[Any, np.dtype[np.int64]], share: float) -> int | None:
    """Return the smallest value that at least this share of the values does not exceed; None without values."""
    return int(np.quantile(values, share, method="inverted_cdf")) if values.size else None


def split(before: ModelStats | None, after: ModelStats | None) -> Split | None:
    """Return where requests spent their time between two entries of the statistics; None where there are none, or no requests.

    `compute_infer` of the requests counts their share of a batch. A request waits for the whole batch, so its time is taken from
    `batch_stats`: each run of `batch_size` rows is waited for by as many requests as share those rows.
    """
    if before is None or after is None:
        return None
    old, new = before.inference_stats, after.inference_stats
    requests, rows = new.success.count - old.success.count, after.inference_count - before.inference_count
    if requests <= 0 or rows <= 0:
        return None
    queue = (new.queue.ns - old.queue.ns) / requests
    compute = (_row_ns(after) - _row_ns(before)) / rows
    return Split(requests, queue, compute, max(0.0, (new.success.ns - old.success.ns) / requests - queue - compute))


def _row_ns(stats: ModelStats) -> int:
    """Return the sum over all runs of their time × their rows."""
    return sum(batch.compute_infer.ns * batch.batch_size for batch in stats.batch_stats)


def knee(steps: Sequence[Step]) -> Step | None:
    """Return the load up to which throughput is worth its latency; None for fewer than three loads of one kind.

    That is the load of the highest power, throughput / mean latency (Kleinrock, "Power and deterministic rules of thumb", 1979):
    below it a server answers more at hardly more latency, beyond it requests mostly wait. Loads of which more than 1 % failed are
    beyond the knee.
    """
    powers = [
        (each.requests_per_s / each.mean_ns, each)
        for each in steps
        if each.mean_ns and not each.interrupted and each.failed_share <= MOST_FAILED
    ]
    if len(steps) < 3 or not powers or len({each.rows for each in steps}) > 1:
        return None
    return max(powers, key=lambda found: found[0])[1]


def doubts(each: Step) -> list[str]:
    """Return reasons for which the figures of a load may not be the server's alone."""
    found = []
    if each.generator_share > BUSY_SHARE:
        found.append(f"the generator was busy {100 * each.generator_share:.0f} % of a core: latencies include its own waiting")
    if each.late_p99_ns is not None and each.p99_ns is not None and each.late_p99_ns > 0.1 * each.p99_ns:
        found.append(f"the generator turned to 1 % of the requests {each.late_p99_ns / 1e6:.2f} ms or more after they were due")
    if each.server is not None and each.server.requests > each.due:
        found.append(f"the server answered {each.server.requests - each.due} requests of others meanwhile")
    return found
