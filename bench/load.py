"""The load generator of `edgewise load` in a process of its own, for any request of HTTP: JSON orders it, and JSON reports.

The order on stdin has: host, port, method, path, headers, body (a file), clients, seconds, warmup (seconds), and rate (requests a
second). Without a rate the loop is closed; with a rate it is open, with at most MOST_UNDER_WAY requests at once.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import uvloop

from app.load.figures import Step, step
from app.load.generator import Bounds, Generator, Load
from app.load.http import Address, HttpClient

MOST_UNDER_WAY = 1024  # requests of an open loop
TIMEOUT_S = 60.0


async def run(order: dict[str, Any]) -> Step:
    """Warm up, send the requests, and return the figures."""
    address = Address("http", order["host"], order["port"])
    request = address.request(order["method"], order["path"], order["headers"], Path(order["body"]).read_bytes())
    rate = order["rate"] or None
    load = Load(MOST_UNDER_WAY if rate else order["clients"], rate)
    clients = [HttpClient(address, request) for _ in range(load.clients)]
    if order["warmup"]:
        await Generator(clients, load, Bounds(order["warmup"], timeout_s=TIMEOUT_S), asyncio.Event()).run()
    sample = await Generator(clients, load, Bounds(order["seconds"], timeout_s=TIMEOUT_S), asyncio.Event()).run()
    for client in clients:
        await client.close()
    return step(load, 1, sample, None)


def report(found: Step) -> dict[str, Any]:
    """Return req/s, latencies in ms, counts, and CPU of this process in %."""
    times_ns = {"p50_ms": found.p50_ns, "p99_ms": found.p99_ns, "most_ms": found.max_ns}
    return {
        "requests_per_s": found.requests_per_s,
        **{name: None if ns is None else ns / 1e6 for name, ns in times_ns.items()},
        "requests": found.answered,
        "errors": sum(found.failures.values()),
        "generator_cpu_percent": 100 * found.generator_share,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(report(uvloop.run(run(json.load(sys.stdin))))) + "\n")
