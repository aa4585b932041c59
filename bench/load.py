"""A load generator for a process of its own. It reads a JSON order from stdin and writes a JSON report to stdout.

The order has: host, port, method, path, headers, body (a file), clients, seconds, warmup (seconds), rate (requests a second).
Without a rate the loop is closed: every client sends its next request as soon as it has an answer. With a rate the loop is open:
requests are due at random times of that mean rate, whether or not earlier ones were answered. Latency counts from when a request
was due, so that a server which falls behind cannot hide it. The module imports nothing but the standard library.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from pathlib import Path
from typing import Any


class Connection:
    """One keep-alive connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, request: bytes) -> int:
        """Send a request, read the whole reply, and return its status."""
        self.writer.write(request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
        await self.reader.readexactly(int(fields["content-length"]))
        return int(lines[0].split()[1])


class Load:
    """The requests of one order, and the latencies and errors of their replies."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.order = order
        body = Path(order["body"]).read_bytes()
        headers = {"Host": "127.0.0.1", "Content-Length": str(len(body)), **order["headers"]}
        lines = [f"{order['method']} {order['path']} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        self.request = "\r\n".join(lines).encode() + body
        self.latencies_ns: list[int] = []
        self.errors = 0
        self.counts_from_ns = 0

    async def connect(self) -> Connection:
        """Open a connection to the server."""
        return Connection(*await asyncio.open_connection(self.order["host"], self.order["port"], limit=1 << 24))

    async def send(self, connection: Connection, due_ns: int) -> None:
        """Send one request. It counts if it was due after the warm-up."""
        status = await connection.ask(self.request)
        if due_ns >= self.counts_from_ns:
            if status == 200:
                self.latencies_ns.append(time.monotonic_ns() - due_ns)
            else:
                self.errors += 1

    async def closed(self, end_ns: int) -> None:
        """Run one client of a closed loop until `end_ns`."""
        connection = await self.connect()
        while (now_ns := time.monotonic_ns()) < end_ns:
            await self.send(connection, now_ns)
        connection.writer.close()

    async def open(self, end_ns: int) -> None:
        """Send requests at random times until `end_ns`. A connection is opened when none is idle."""
        idle: list[Connection] = []
        tasks: set[asyncio.Task[None]] = set()
        gaps = random.Random(0)
        due_ns = time.monotonic_ns()

        async def one(due_ns: int) -> None:
            connection = idle.pop() if idle else await self.connect()
            await self.send(connection, due_ns)
            idle.append(connection)

        while due_ns < end_ns:
            await asyncio.sleep(max(0, due_ns - time.monotonic_ns()) / 1e9)
            task = asyncio.create_task(one(due_ns))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            due_ns += int(gaps.expovariate(self.order["rate"]) * 1e9)
        while tasks:
            await asyncio.wait(tasks)
        for connection in idle:
            connection.writer.close()

    async def run(self) -> dict[str, Any]:
        """Warm up, send the requests, and return the report: req/s, latencies in ms, counts, and CPU of this process in %."""
        began_ns = time.monotonic_ns()
        self.counts_from_ns = began_ns + int(self.order["warmup"] * 1e9)
        end_ns = self.counts_from_ns + int(self.order["seconds"] * 1e9)
        cpu_s = time.process_time()
        if self.order["rate"]:
            await self.open(end_ns)
        else:
            await asyncio.gather(*(self.closed(end_ns) for _ in range(self.order["clients"])))
        seconds = (time.monotonic_ns() - self.counts_from_ns) / 1e9
        found = sorted(self.latencies_ns)
        return {
            "requests_per_s": len(found) / seconds,
            "p50_ms": _quantile(found, 0.5),
            "p99_ms": _quantile(found, 0.99),
            "most_ms": _quantile(found, 1),
            "requests": len(found),
            "errors": self.errors,
            "generator_cpu_percent": 100 * (time.process_time() - cpu_s) / (seconds + self.order["warmup"]),
        }


def _quantile(ascending_ns: list[int], share: float) -> float | None:
    """Return the latency in milliseconds that this share of requests does not exceed, or None for an empty list."""
    return ascending_ns[min(int(len(ascending_ns) * share), len(ascending_ns) - 1)] / 1e6 if ascending_ns else None


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(Load(json.load(sys.stdin)).run())) + "\n")
