"""`python -m bench.lookups [--db URL] [--rows N]` times lookups in a database of a million measurements.

It fills an empty database, by default SQLite in a temporary folder. Then it makes the lookups that requests make, with random
keys, and exits with 1 if the 99th percentile of one is above LIMIT_MS.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from sqlalchemy import text

from profiler.device.topology import read_hardware
from scheduler.build import current_build
from scheduler.local import local_fingerprint
from scheduler.store import Here, Store

LIMIT_MS = 5.0
ROWS = 1_000_000
DEVICES = 20
STRATEGIES = 5
BUILDS = 2
MODEL_SIGNATURES = 60
ROUNDS = 300
OP = "Conv"
MODEL = hashlib.sha256(b"million").hexdigest()

_FILL = """
INSERT INTO measurements (device_id, signature_id, engine_build, kernel_source, strategy, op, executed_macs, other_flops,
    moved_bytes, samples, min_ns, p50_ns, p90_ns, mean_ns, std_ns, measured_us)
SELECT d.id, s.id, b.build, :source, t.strategy, s.op, 1000, 10, 4000, 10, 90 + t.number, 100 + t.number, 120, 105, 8,
    1700000000000000
FROM signatures s CROSS JOIN devices d
CROSS JOIN (SELECT :build AS build UNION ALL SELECT '0.0.9+old') b
CROSS JOIN (%s) t
"""


def fill(store: Store, here: Here, rows: int = ROWS) -> list[str]:
    """Fill an empty database with that many measurements, in SQL. Return the keys of the signatures."""
    signatures = rows // (DEVICES * STRATEGIES * BUILDS)
    texts = {hashlib.sha256(f"Conv({n})".encode()).hexdigest(): f"Conv({n})" for n in range(signatures)}
    fingerprints = [here.device_fingerprint, *(hashlib.sha256(bytes([n])).hexdigest()[:16] for n in range(DEVICES - 1))]
    strategies = " UNION ALL ".join(
        f"SELECT 'native/direct{{tile={n}x4}}/fp32/t1' AS strategy, {n} AS number" for n in range(1, STRATEGIES + 1)
    )
    with store._database._engine.execution_options(edgewise_writes=True).begin() as connection:
        device = "INSERT INTO devices (fingerprint, name, profile, created_us, updated_us) VALUES (:f, 'd', '{}', 1, 1)"
        connection.execute(text(device), [{"f": fingerprint} for fingerprint in fingerprints])
        keys = [{"key": key, "op": OP, "text": spelled} for key, spelled in texts.items()]
        connection.execute(text("INSERT INTO signatures (key, op, text) VALUES (:key, :op, :text)"), keys)
        model = "INSERT INTO models (digest, name, nbytes, summary, created_us, updated_us) VALUES (:d, 'm', 1, '{}', 1, 1)"
        connection.execute(text(model), {"d": MODEL})
        linked = "INSERT INTO model_signatures SELECT m.id, s.id, 1 FROM models m CROSS JOIN signatures s WHERE s.id % :every = 0"
        connection.execute(text(linked), {"every": max(1, signatures // MODEL_SIGNATURES)})
        named = {"build": here.build.id, "source": here.build.kernel_source(OP)}
        connection.execute(text(_FILL % strategies), named)
    with store._database._engine.execution_options(edgewise_writes=True).begin() as connection:
        connection.execute(text("ANALYZE"))
    return list(texts)


def lookups(store: Store, here: Here, keys: list[str]) -> Mapping[str, Callable[[random.Random], object]]:
    """Return the lookups that requests make, each with random keys."""
    device = here.device_fingerprint
    found = store.measurements

    def place(rng: random.Random) -> str:
        return str(rng.randrange(1, ROWS))

    return {
        "device": lambda _: store.devices.get(device),
        "strategies of a signature on a device": lambda rng: found.page(here, device, rng.choice(keys), limit=20),
        "strategies of a signature": lambda rng: found.page(here, None, rng.choice(keys), limit=20, cursor=place(rng)),
        "strategies of a device": lambda rng: found.page(here, device, limit=20, cursor=place(rng)),
        "strategies of a model": lambda _: found.page(here, device, model=MODEL, limit=20),
        "strategies": lambda rng: found.page(here, limit=20, cursor=place(rng)),
        "best of a signature": lambda rng: found.best(here, rng.choice(keys)),
        "best of a model, 5 signatures": lambda _: found.best(here, model=MODEL, limit=5),
        "fresh of 5 signatures": lambda rng: found.fresh(here, dict.fromkeys(rng.sample(keys, 5), OP)),
        "evidence for a cost model": lambda _: found.evidence(here, limit=20),
    }


def time_lookups(store: Store, here: Here, keys: list[str], rounds: int = ROUNDS) -> dict[str, tuple[float, float]]:
    """Measure every lookup. Return the median and the 99th percentile of each, in ms."""
    rng = random.Random(0)
    taken: dict[str, tuple[float, float]] = {}
    for name, lookup in lookups(store, here, keys).items():
        lookup(rng)
        samples = []
        for _ in range(rounds):
            started = time.perf_counter_ns()
            lookup(rng)
            samples.append((time.perf_counter_ns() - started) / 1e6)
        taken[name] = statistics.median(samples), statistics.quantiles(samples, n=100)[98]
    return taken


def main() -> int:
    """Fill the database, time the lookups and print a table. Return 1 if a lookup is above LIMIT_MS, else 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--db", help="URL of an empty database")
    parser.add_argument("--rows", type=int, default=ROWS)
    asked = parser.parse_args()
    here = Here(local_fingerprint(), current_build())
    with tempfile.TemporaryDirectory() as folder, Store(asked.db or f"sqlite:///{Path(folder) / 'million.db'}") as store:
        started = time.perf_counter()
        keys = fill(store, here, asked.rows)
        print(f"{read_hardware().model}; {store.label.partition(':')[0]}; filled in {time.perf_counter() - started:.0f} s")
        taken = time_lookups(store, here, keys)
    for name, (median, worst) in taken.items():
        print(f"{name:40} median {median:7.3f} ms   p99 {worst:7.3f} ms")
    slow = [name for name, (_, worst) in taken.items() if worst > LIMIT_MS]
    if slow:
        print(f"p99 above {LIMIT_MS} ms: {', '.join(slow)}")
    return bool(slow)


if __name__ == "__main__":
    sys.exit(main())
