"""`python -m bench.soak --minutes 10` puts the service, with engine processes and PostgreSQL, under mixed load and failures.

Clients of every kind send requests at once while engine processes are killed, the database stops and starts, and a model is
loaded and unloaded. Beside them hostile clients ask for what never ends, does not fit or is not allowed, and each must get the
one answer that is right. Every other answer is compared with the known one. The service may refuse a request only by a 503 with
a reason, and a job of a caller who has too many by a 429. Afterwards the database must hold every write that the service
acknowledged, no request may be pending, and the service's memory must not have grown. The program prints a table, and exits with
1 and the reasons if one of these rules was broken.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import psutil
import typer
from onnx import TensorProto, helper, numpy_helper

from app.settings import DEMO_MODELS
from bench import hostile
from bench.cluster import Cluster, missing
from bench.observed import WIDTH, Client, Soak
from scheduler.build import current_build
from scheduler.errors import NotFoundError
from scheduler.local import local_fingerprint
from scheduler.store import Here, Store

ROOT = Path(__file__).parent.parent
SLOW_ROWS, FLOOD = 4096, 300
QUEUE_LIMIT = 64
HEALTH_RATE = 20.0  # liveness requests a second, sent whether or not earlier ones were answered
SETTLE_S = 60.0  # time for pending requests to end after the load
JUDGED_S = 300.0  # memory still grows by warm-up in a shorter run: it is printed and not judged
MAX_GROWTH = 1.0  # MiB a minute, of the service's own process
SETTINGS = {
    "EDGEWISE_WORKERS": "2",
    "EDGEWISE_QUEUE_LIMIT": str(QUEUE_LIMIT),
    "EDGEWISE_MAX_REQUESTS": str(2 * QUEUE_LIMIT),
    "EDGEWISE_JOBS": "false",
}
BAD_BODIES = (
    b"",
    b"{",
    b"[" * 5000,
    b'{"inputs": []}',
    b'{"inputs": [{"name": "x", "shape": [1, 16], "datatype": "FP32", "data": [1]}]}',
    b'{"inputs": [{"name": "x", "shape": [-1, 16], "datatype": "FP32", "data": []}]}',
    b'{"inputs": [{"name": "y", "shape": [1, 16], "datatype": "INT8", "data": [1]}]}',
)


def affine(path: Path) -> None:
    """Write a model y = 2x + 1 of rows of 16, whose answers are known exactly."""
    value, kind = helper.make_tensor_value_info, TensorProto.FLOAT
    nodes = [helper.make_node("Mul", ["x", "two"], ["d"]), helper.make_node("Add", ["d", "one"], ["y"])]
    constants = [numpy_helper.from_array(np.array([v], np.float32), name) for name, v in (("two", 2), ("one", 1))]
    x, y = (value(name, kind, ["n", WIDTH]) for name in ("x", "y"))
    graph = helper.make_graph(nodes, "affine", [x], [y], constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(made.SerializeToString())


def _tensor(x: np.ndarray, **more: Any) -> dict[str, Any]:
    return {"name": "x", "shape": list(x.shape), "datatype": "FP32", **more}


def _body(x: np.ndarray) -> bytes:
    return json.dumps({"inputs": [_tensor(x, data=x.reshape(-1).tolist())]}).encode()


def _is(x: np.ndarray) -> Callable[[httpx.Response], bool]:
    return lambda reply: reply.json()["outputs"][0]["data"] == (2 * x + 1).reshape(-1).tolist()


def _ends_with(x: np.ndarray) -> Callable[[httpx.Response], bool]:
    return lambda reply: reply.content.endswith((2 * x + 1).tobytes())


async def as_json(soak: Soak, client: httpx.AsyncClient) -> None:
    """Send tensors as numbers in JSON."""
    x = soak.rows()
    soak.note("json", await client.post("/v2/models/affine/infer", content=_body(x)), _is(x))


async def as_binary(soak: Soak, client: httpx.AsyncClient) -> None:
    """Send tensors in binary form after the JSON."""
    x = soak.rows()
    asked = {"inputs": [_tensor(x, parameters={"binary_data_size": x.nbytes})], "parameters": {"binary_data_output": True}}
    head = json.dumps(asked).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    reply = await client.post("/v2/models/affine/infer", content=head + x.tobytes(), headers=headers)
    soak.note("binary", reply, _ends_with(x))


async def as_raw(soak: Soak, client: httpx.AsyncClient) -> None:
    """Send a body that is only the tensor, of one row."""
    x = soak.rows()[:1]
    headers = {"Inference-Header-Content-Length": "0"}
    soak.note("raw", await client.post("/v2/models/affine/infer", content=x.tobytes(), headers=headers), _ends_with(x))


async def digits(soak: Soak, client: httpx.AsyncClient) -> None:
    """Send a request to another model, `digits`."""
    digit = soak.random.choice((3, 7))
    body = (DEMO_MODELS.parent / "images" / f"{digit}.json").read_bytes()
    reply = await client.post("/v2/models/digits/infer", content=body)
    soak.note("digits", reply, lambda r: r.json()["outputs"][0]["data"] == [digit])


async def slow_reader(soak: Soak, _: httpx.AsyncClient) -> None:
    """Read a large answer slowly, through a small TCP window."""
    x = np.arange(SLOW_ROWS * WIDTH, dtype=np.float32).reshape(SLOW_ROWS, WIDTH)
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    found.setblocking(False)
    await asyncio.get_running_loop().sock_connect(found, ("127.0.0.1", soak.port))
    reader, writer = await asyncio.open_connection(sock=found, limit=4096)
    try:
        writer.write(_head(len(body := _body(x))) + body)
        await writer.drain()
        data = bytearray()
        while part := await reader.read(16384):
            data += part
            await asyncio.sleep(0.005)
    finally:
        writer.close()
    status, content = int(data.split(b" ", 2)[1]), bytes(data).partition(b"\r\n\r\n")[2]
    soak.note("slow reader", httpx.Response(status, content=content), _is(x))


async def abandoner(soak: Soak, _client: httpx.AsyncClient) -> None:
    """Send requests and disconnect before the answer, or in the middle of the body."""
    _reader, writer = await asyncio.open_connection("127.0.0.1", soak.port)
    body = _body(soak.rows())
    writer.write(_head(len(body)) + (body if soak.random.random() < 0.7 else body[: len(body) // 2]))
    await writer.drain()
    await asyncio.sleep(soak.random.random() * 0.01)
    writer.close()
    soak.count("abandoner", "left")


def _head(length: int) -> bytes:
    lines = ("POST /v2/models/affine/infer HTTP/1.1", "Host: 127.0.0.1", "Connection: close", f"Content-Length: {length}", "", "")
    return "\r\n".join(lines).encode()


async def bad_body(soak: Soak, client: httpx.AsyncClient) -> None:
    """Send requests that have to be refused."""
    reply = await client.post("/v2/models/affine/infer", content=soak.random.choice(BAD_BODIES))
    soak.note("bad body", reply, lambda r: "error" in r.json(), status=400)


async def flood(soak: Soak, client: httpx.AsyncClient) -> None:
    """Send more requests at once than the queue may hold."""
    await asyncio.sleep(5)
    await asyncio.gather(*(as_json(soak, client) for _ in range(FLOOD)))


async def health(soak: Soak) -> None:
    """Ask for the service's liveness, which it must answer under any load. A process of its own sends the requests."""
    order = {
        "host": "127.0.0.1", "port": soak.port, "method": "GET", "path": "/v2/health/live", "headers": {}, "body": os.devnull,
        "clients": 0, "seconds": soak.end_s - time.monotonic(), "warmup": 0, "rate": HEALTH_RATE,
    }  # fmt: skip
    load = [sys.executable, "-m", "bench.load"]
    asking = await asyncio.create_subprocess_exec(*load, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    said, failed = await asking.communicate(json.dumps(order).encode())
    if asking.returncode:
        soak.broken[f"health: {failed.decode().strip()[-160:]}"] += 1
        return
    soak.health = json.loads(said)
    if soak.health["errors"]:
        soak.broken["health: another status than 200"] += soak.health["errors"]


async def writer(soak: Soak, client: httpx.AsyncClient) -> None:
    """Add a job or a plan, and keep its id if the service acknowledges it."""
    batch = soak.random.choice((1, 2, 4))
    if soak.random.random() < 0.8:
        asked = {"kind": "profile", "model": "digits", "request": {"dims": {"batch": batch}}}
        reply = await client.post("/v1/jobs", json=asked)
        soak.note("jobs", reply, lambda r: r.json()["state"] == "queued", full=429)
        if reply.status_code == 200:
            soak.jobs.append(reply.json()["id"])
            await hostile.cancel(soak, client, soak.jobs[-1])  # else the limit of a caller's jobs is soon reached
    else:
        reply = await client.post("/v1/plans", json={"model": "digits", "dims": {"batch": batch}})
        soak.note("plans", reply, lambda r: bool(r.json()["id"]))
        if reply.status_code == 200:
            soak.plans.add(reply.json()["id"])
    await asyncio.sleep(0.5)


async def visitor(soak: Soak, client: httpx.AsyncClient) -> None:
    """Load a model, run it, and unload it."""
    x = soak.rows()
    soak.note("load", await client.post("/v2/repository/models/visitor/load"), lambda _: True)
    soak.note("visitor", await client.post("/v2/models/visitor/infer", content=_body(x)), _is(x))
    soak.note("unload", await client.post("/v2/repository/models/visitor/unload"), lambda _: True)
    await asyncio.sleep(1)


async def killer(soak: Soak, _: httpx.AsyncClient) -> None:
    """Kill an engine process, seldom enough that the service does not blame a model for the deaths."""
    await asyncio.sleep(25 + 10 * soak.random.random())
    workers = [child for child in soak.server.children() if "app.engine.worker" in child.cmdline()]
    if workers:
        soak.random.choice(workers).send_signal(signal.SIGKILL)
        soak.count("kill a process", "done")


async def outage(soak: Soak, _: httpx.AsyncClient) -> None:
    """Stop the database for 5 s."""
    await asyncio.sleep(20)
    if soak.going:
        await asyncio.to_thread(soak.cluster.stop)
        await asyncio.sleep(5)
        await asyncio.to_thread(soak.cluster.start)
        soak.count("stop the database", "done")


async def watcher(soak: Soak, _: httpx.AsyncClient) -> None:
    """Record the memory of the service's own process, once a second."""
    soak.memory.append((time.monotonic(), soak.server.memory_info().rss))
    await asyncio.sleep(1)


CLIENTS: Mapping[Client, int] = {
    as_json: 3,
    as_binary: 3,
    as_raw: 2,
    digits: 3,
    slow_reader: 2,
    abandoner: 2,
    bad_body: 1,
    flood: 1,
    writer: 1,
    visitor: 1,
    killer: 1,
    outage: 1,
    watcher: 1,
    **hostile.CLIENTS,
}


async def _repeat(soak: Soak, work: Client) -> None:
    limits = httpx.Limits(max_connections=FLOOD, max_keepalive_connections=8)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{soak.port}", timeout=120, limits=limits) as client:
        while soak.going:
            try:
                await work(soak, client)
            except (httpx.HTTPError, OSError, ValueError) as error:
                soak.broken[f"{work.__name__}: {type(error).__name__} {error}"] += 1
                await asyncio.sleep(0.1)


async def _settled(soak: Soak) -> None:
    """Wait until no request is pending. Note as broken what is pending after SETTLE_S seconds."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{soak.port}", timeout=60) as client:
        end_s = time.monotonic() + SETTLE_S
        while True:
            lines = (await client.get("/metrics")).text.splitlines()
            gauges = {line for line in lines if line.startswith(("nv_inference_pending_request_count", "edgewise_engine_"))}
            waiting = sorted(line for line in gauges if float(line.rpartition(" ")[2]) != 0)
            ready = (await client.get("/v2/health/ready")).json()
            if not waiting and "database" not in ready:
                return
            if time.monotonic() > end_s:
                soak.broken[f"still pending {SETTLE_S:g} s after the load: {waiting} {ready}"] += 1
                return
            await asyncio.sleep(0.5)


def _compare(soak: Soak) -> None:
    """Look up every acknowledged job and plan, and note as broken those that the database does not have."""
    here = Here(local_fingerprint(), current_build())
    with Store(soak.cluster.url) as store:
        looked_up: tuple[tuple[str, Iterable[Any], Callable[[Any], object]], ...] = (
            ("job", soak.jobs, store.jobs.get),
            ("plan", sorted(soak.plans), lambda key: store.plans.get(key, here)),
        )
        for what, keys, find in looked_up:
            for key in keys:
                try:
                    find(key)
                except NotFoundError:
                    soak.broken[f"{what} {key}: acknowledged, but not in the database"] += 1


def growth(memory: list[tuple[float, int]]) -> float:
    """Return the growth in MiB a minute: the slope of a line fitted to the last two thirds of the samples."""
    at, rss = np.array(memory[len(memory) // 3 :], np.float64).T
    return float(np.polyfit(at / 60, rss / 2**20, 1)[0])


def report(soak: Soak, minutes: float) -> None:
    """Print all observations, and note as broken memory that grew too much in a run that is long enough to judge it."""
    for who, seen in sorted(soak.seen.items()):
        typer.echo(f"{who:<18} " + ", ".join(f"{count:,} {what}" for what, count in sorted(seen.items())))
    if soak.health:
        p50, p99, most = (soak.health[key] for key in ("p50_ms", "p99_ms", "most_ms"))
        typer.echo(
            f"{'health':<18} {soak.health['requests']:,} requests, p50 {p50:.1f} ms, p99 {p99:.1f} ms, at most {most:.0f} ms"
        )
    typer.echo(f"{'written':<18} {len(soak.jobs):,} jobs and {len(soak.plans)} plans acknowledged")
    rss = [bytes_ / 2**20 for _, bytes_ in soak.memory]
    typer.echo(f"{'memory':<18} {rss[0]:.0f} MiB at first, {rss[-1]:.0f} at last, {growth(soak.memory):+.2f} MiB a minute")
    if minutes * 60 >= JUDGED_S and growth(soak.memory) > MAX_GROWTH:
        soak.broken[f"memory grows by more than {MAX_GROWTH} MiB a minute"] += 1
    for what, count in soak.broken.most_common():
        typer.echo(f"BROKEN ×{count}: {what}")


@contextlib.contextmanager
def _folder() -> Any:
    with tempfile.TemporaryDirectory(prefix="edgewise-soak-") as name:
        folder = Path(name)
        (folder / "models").mkdir()
        affine(folder / "models" / "affine.onnx")
        affine(folder / "models" / "visitor.onnx")
        hostile.write_models(folder / "models")
        for suffix in ("onnx", "json"):
            (folder / "models" / f"digits.{suffix}").write_bytes((DEMO_MODELS / f"digits.{suffix}").read_bytes())
        yield folder


def _wait_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5).status_code == 200:
                return
        if process.poll() is not None:
            raise RuntimeError(f"the service ended:\n{log.read_text()}")
        time.sleep(0.2)


async def _run(soak: Soak) -> None:
    await asyncio.gather(health(soak), *(_repeat(soak, work) for work, count in CLIENTS.items() for _ in range(count)))
    await _settled(soak)


def main(minutes: Annotated[float, typer.Option(help="Minutes for which the load goes on.")] = 10.0) -> None:
    """Put the service under mixed load and failures, check its answers and writes, and print a table."""
    if reason := missing():
        raise typer.BadParameter(reason)
    cluster = Cluster()
    try:
        with _folder() as folder:
            with socket.socket() as found:
                found.bind(("127.0.0.1", 0))
                port = int(found.getsockname()[1])
            log = folder / "log"
            command = [sys.executable, "-m", "edgewise", "serve", "--models", str(folder / "models"), "--port", str(port)]
            with log.open("wb") as out:
                process = subprocess.Popen(
                    [*command, "--db", cluster.url], cwd=ROOT, env=os.environ | SETTINGS, stdout=out, stderr=out
                )
            try:
                _wait_ready(process, port, log)
                httpx.post(f"http://127.0.0.1:{port}/v1/plans", json={"model": "digits", "dims": {"batch": 1}}, timeout=300)
                soak = Soak(port, psutil.Process(process.pid), cluster, time.monotonic() + 60 * minutes)
                asyncio.run(_run(soak))
                if process.poll() is not None:
                    soak.broken["the service ended"] += 1
                _compare(soak)
                hostile.judge(soak, folder / "models")
                report(soak, minutes)
            finally:
                process.terminate()
                process.wait(120)
                tracebacks = log.read_text().count("Traceback")
            if tracebacks:
                soak.broken[f"{tracebacks} tracebacks in the log"] += 1
                typer.echo(log.read_text()[log.read_text().index("Traceback") :][:3000])
    finally:
        cluster.remove()
    raise typer.Exit(1 if soak.broken else 0)


if __name__ == "__main__":
    typer.run(main)
