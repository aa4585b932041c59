"""`python -m bench.queries [--db URL] [--rows N]` times queries about runs in a database of a million ops.

It fills an empty database, by default SQLite in a temporary folder. Then it makes the queries that the query API makes, with
random keys, and exits with 1 if the 95th percentile of one is above LIMIT_MS.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import text

from bench.lookups import MODEL
from profiler.device.topology import read_hardware
from scheduler.build import current_build
from scheduler.local import local_fingerprint
from scheduler.store import Here, Store
from scheduler.store.queries import Which

LIMIT_MS = 50.0
ROWS = 1_000_000
MODELS = 20
OPS = 250  # ops of one run
ROUNDS = 100

_RUNS = """
INSERT INTO profile_runs (model_id, device_id, kind, engine_build, macs, flops, wall_p50_ns, wall_p90_ns, schema_version, series,
    threads, precision, backend, plan_id, ops, problems, first_ns, previous_id, growth_percent, growth, payload, created_us)
SELECT 1 + n % :models, 1, 'trace', 'b', 1000, 2000, 1000 + n % 97, 1100 + n % 97, 2, 'series' || (n % :models), 2, 'fp32',
    'auto', 'default', :ops, 0, 9000, CASE WHEN n < :models THEN NULL ELSE n + 1 - :models END,
    CASE WHEN n % 7 = 0 AND n >= :models THEN 5.0 + n % 31 END, '[]', '{}', n
FROM (NUMBERS) numbers
"""
_OPS = """
INSERT INTO profile_nodes (run_id, position, node, op, macs, flops, moved_bytes, p50_ns, backend, bound, strategy, executed_macs,
    predicted_ns, roof_ns, roof_percent, wasted_ns, share_percent)
SELECT r.id, n, 'layer' || n,
    CASE n % 5 WHEN 0 THEN 'Conv' WHEN 1 THEN 'Relu' WHEN 2 THEN 'Add' WHEN 3 THEN 'MatMul' ELSE 'Resize' END,
    n * 1000, n * 2000, n * 400, (n * 7919 + r.id * 31) % 1000, CASE n % 9 WHEN 0 THEN 'numpy' ELSE 'native' END,
    CASE n % 2 WHEN 0 THEN 'compute' ELSE 'memory' END, 'native/direct', n * 1000, 100 + n, 50 + n, 50, (n * 31) % 500, 0.4
FROM profile_runs r CROSS JOIN (NUMBERS) numbers
"""


def fill(store: Store, here: Here, rows: int = ROWS) -> int:
    """Fill an empty database with that many ops, in SQL. Return the number of runs, each of which has OPS ops."""
    engine = store._database._engine
    numbers = "WITH RECURSIVE c(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM c WHERE n < {} - 1) SELECT n FROM c"
    runs = rows // OPS
    with engine.execution_options(edgewise_writes=True).begin() as connection:
        device = "INSERT INTO devices (fingerprint, name, profile, created_us, updated_us) VALUES (:f, 'd', '{}', 1, 1)"
        connection.execute(text(device), {"f": here.device_fingerprint})
        model = "INSERT INTO models (digest, name, nbytes, summary, created_us, updated_us) VALUES (:d, 'm', 1, '{}', 1, 1)"
        connection.execute(text(model), [{"d": MODEL[:-2] + f"{n:02x}"} for n in range(MODELS)])
        connection.execute(text(_RUNS.replace("NUMBERS", numbers.format(runs))), {"models": MODELS, "ops": OPS})
        connection.execute(text(_OPS.replace("NUMBERS", numbers.format(OPS))))
    with engine.execution_options(edgewise_writes=True).begin() as connection:
        connection.execute(text("ANALYZE"))
    return runs


def questions(store: Store, here: Here, runs: int) -> Mapping[str, Callable[[random.Random], object]]:
    """Return the queries that requests make, each with random keys."""
    asked = store.queries

    def run(rng: random.Random) -> Which:
        return Which(runs=(rng.randrange(1, runs + 1),))

    def model(rng: random.Random, **more: Any) -> Which:
        return Which(model=MODEL[:-2] + f"{rng.randrange(MODELS):02x}", kind="trace", **more)

    return {
        "slowest ops of a run": lambda rng: asked.ops(run(rng), "-p50_ns", 20),
        "most wasted of a model": lambda rng: asked.ops(model(rng), "-wasted_ns", 20),
        "worst predicted of a model": lambda rng: asked.ops(model(rng), "-measured_ratio", 20),
        "ops in numpy of a device": lambda _: asked.ops(Which(device=here.device_fingerprint, backend="numpy"), "-p50_ns", 20),
        "ops of a name": lambda rng: asked.ops(model(rng, name="layer7"), "position", 20),
        "a run by op type": lambda rng: asked.groups(run(rng), "op"),
        "a model by bound": lambda rng: asked.groups(model(rng), "bound"),
        "a model's runs": lambda rng: asked.groups(model(rng), "run"),
        "regressions": lambda _: asked.regressions(None, 10.0, 20),
        "regressions of a model": lambda rng: asked.regressions(model(rng).model, 10.0, 20),
        "history of a model": lambda rng: store.profiles.page(model(rng).model, None, 200, kind="trace"),
        "runs": lambda rng: store.profiles.page(limit=50, cursor=str(rng.randrange(1, runs))),
    }


def main() -> int:
    """Fill the database, time the queries and print a table. Return 1 if a query is above LIMIT_MS, else 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--db", help="URL of an empty database")
    parser.add_argument("--rows", type=int, default=ROWS)
    given = parser.parse_args()
    here = Here(local_fingerprint(), current_build())
    slow = []
    with tempfile.TemporaryDirectory() as folder, Store(given.db or f"sqlite:///{Path(folder) / 'million.db'}") as store:
        started = time.perf_counter()
        runs = fill(store, here, given.rows)
        kind = store.label.partition(":")[0]
        print(f"{read_hardware().model}; {kind}; {given.rows} ops of {runs} runs in {time.perf_counter() - started:.0f} s")
        rng = random.Random(0)
        for name, ask in questions(store, here, runs).items():
            ask(rng)
            samples = []
            for _ in range(ROUNDS):
                began = time.perf_counter_ns()
                ask(rng)
                samples.append((time.perf_counter_ns() - began) / 1e6)
            p95 = statistics.quantiles(samples, n=20)[18]
            slow += [name] if p95 > LIMIT_MS else []
            print(f"{name:30} median {statistics.median(samples):7.3f} ms   p95 {p95:7.3f} ms")
    if slow:
        print(f"p95 above {LIMIT_MS} ms: {', '.join(slow)}")
    return bool(slow)


if __name__ == "__main__":
    sys.exit(main())
