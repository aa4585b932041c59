"""`python -m bench.serving` compares the service under load with other servers, and measures the latency that it adds to a run.

Every server runs alone on all cores but one, and the load generator on the last one. On a single core they share it. Peers run
in the environment of EDGEWISE_PEERS_PYTHON, with ONNX Runtime and batches of up to eight, as their users would run them. A peer
that is not installed there is left out, with the reason. Compare figures of one invocation only, never those of two.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import typer

from bench.local import free_port

ROOT = Path(__file__).parent.parent
PEERS = Path(__file__).parent / "peers"
START_S = 120.0
_RUN = (
    "import sys, time, json, numpy as np, edgewise\n"
    "s = edgewise.Session(sys.argv[1], threads=int(sys.argv[2])); x = {s.inputs[0].name: np.load(sys.argv[3])}; times = []\n"
    "end = time.perf_counter() + float(sys.argv[4])\n"
    "s.run(x)\n"
    "while time.perf_counter() < end or len(times) < 3:\n"
    "    t = time.perf_counter_ns(); s.run(x); times.append(time.perf_counter_ns() - t)\n"
    "print(json.dumps(sorted(times)[len(times) // 2] / 1e6))\n"
)


class LeftOutError(Exception):
    """A server or the load generator cannot run here. The message says why."""


@dataclass(frozen=True)
class Setup:
    """What all servers share. cores: on which they run. generator: core of the load generator, or None for any."""

    model: Path
    image: np.ndarray
    folder: Path
    cores: tuple[int, ...]
    generator: int | None

    @property
    def threads(self) -> int:
        """Return the number of threads of one run: one for each of the servers' cores."""
        return len(self.cores)


@dataclass(frozen=True)
class Endpoint:
    """The address, headers and body of the request that is posted again and again."""

    port: int
    path: str
    headers: dict[str, str]
    body: bytes


def pinned(cores: tuple[int, ...], command: list[str]) -> list[str]:
    """Return the command pinned to those cores, or as it is if taskset is not installed."""
    tool = shutil.which("taskset")
    return [tool, "-c", ",".join(map(str, cores)), *command] if tool and cores else command


def open_batch(source: Path, target: Path) -> None:
    """Write a copy of the model whose leading dimension is dynamic. The exports fix it to 1."""
    model = onnx.load(str(source))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.value_info[:]
    onnx.save(model, str(target))


@contextlib.contextmanager
def running(name: str, command: list[str], setup: Setup, ready: str, environment: dict[str, str]) -> Iterator[None]:
    """Run a server until the block ends. The block begins when `ready`, a URL, answers with 200.

    Raises LeftOutError if the server ends or is not ready within START_S seconds.
    """
    log = setup.folder / f"{name}.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            pinned(setup.cores, command), stdout=out, stderr=out, cwd=setup.folder, env=os.environ | environment, process_group=0
        )
    try:
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(ready, timeout=5) as reply:
                if reply.status == 200:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                raise LeftOutError(f"{name}: not ready, {log.read_text(errors='replace').strip()[-300:]}")
            time.sleep(0.2)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 15)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()


def binary_request(setup: Setup, path: str, port: int) -> Endpoint:
    """Return a request of the Open Inference Protocol that sends binary tensors and asks for binary tensors."""
    data = setup.image.tobytes()
    tensor = {"name": "x", "shape": list(setup.image.shape), "datatype": "FP32", "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return Endpoint(port, path, headers, head + data)


@contextlib.contextmanager
def edgewise(setup: Setup) -> Iterator[Endpoint]:
    """Run this project's service by `edgewise serve`."""
    port, database = free_port(), setup.folder / "bench.sqlite"
    command = [sys.executable, "-m", "edgewise", "serve", "--models", str(setup.model.parent), "--port", str(port)]
    command += ["--db", f"sqlite:///{database}", "--threads", str(setup.threads)]
    with running("edgewise", command, setup, f"http://127.0.0.1:{port}/v2/health/ready", {"PYTHONPATH": str(ROOT)}):
        yield binary_request(setup, f"/v2/models/{setup.model.stem}/infer", port)


def peers_python(package: str) -> str:
    """Return the peers' interpreter. Raises LeftOutError if it is not named or the package is not installed there."""
    python = os.environ.get("EDGEWISE_PEERS_PYTHON")
    if python is None:
        raise LeftOutError(f"{package}: EDGEWISE_PEERS_PYTHON is not set")
    found = subprocess.run([python, "-c", f"import {package}, onnxruntime"], capture_output=True, text=True, check=False)
    if found.returncode:
        raise LeftOutError(f"{package}: {found.stderr.strip().splitlines()[-1]} (in {Path(python).name})")
    return python


@contextlib.contextmanager
def litserve(setup: Setup) -> Iterator[Endpoint]:
    """Run LitServe with one worker."""
    python, port = peers_python("litserve"), free_port()
    command = [python, str(PEERS / "litserve_server.py"), str(setup.model), str(port), str(setup.threads)]
    with running("litserve", command, setup, f"http://127.0.0.1:{port}/health", {}):
        body = json.dumps({"data": base64.b64encode(setup.image.tobytes()).decode()}).encode()
        yield Endpoint(port, "/predict", {"Content-Type": "application/json"}, body)


@contextlib.contextmanager
def mlserver(setup: Setup) -> Iterator[Endpoint]:
    """Run MLServer without worker processes: the worker of MLServer 1.7 does not start with current versions of uvloop."""
    python, port = peers_python("mlserver"), free_port()
    folder = setup.folder / "mlserver"
    folder.mkdir(exist_ok=True)
    ports = {"http_port": port, "grpc_port": free_port(), "metrics_port": free_port()}
    (folder / "settings.json").write_text(json.dumps({"host": "127.0.0.1", "parallel_workers": 0, **ports}))
    described = {"name": "m", "implementation": "mlserver_server.OnnxRuntime", "parameters": {"uri": str(setup.model)}}
    (folder / "model-settings.json").write_text(json.dumps({**described, "max_batch_size": 8, "max_batch_time": 0.001}))
    command = [python, "-c", "from mlserver.cli import main; main()", "start", str(folder)]
    environment = {"PYTHONPATH": str(PEERS), "BENCH_THREADS": str(setup.threads)}
    with running("mlserver", command, setup, f"http://127.0.0.1:{port}/v2/models/m/ready", environment):
        rows = [base64.b64encode(setup.image.tobytes()).decode()]
        body = json.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": rows}]}).encode()
        yield Endpoint(port, "/v2/models/m/infer", {"Content-Type": "application/json"}, body)


SERVERS: dict[str, Callable[[Setup], Any]] = {"edgewise": edgewise, "litserve": litserve, "mlserver": mlserver}


def load(setup: Setup, endpoint: Endpoint, clients: int, seconds: float, warmup: float, rate: float | None) -> dict[str, Any]:
    """Run the load generator once and return its report. Raises LeftOutError if it fails."""
    body = setup.folder / "body.bin"
    body.write_bytes(endpoint.body)
    order = {
        "host": "127.0.0.1", "port": endpoint.port, "method": "POST", "path": endpoint.path, "headers": endpoint.headers,
        "body": str(body), "clients": clients, "seconds": seconds, "warmup": warmup, "rate": rate,
    }  # fmt: skip
    cores = () if setup.generator is None else (setup.generator,)
    command = pinned(cores, [sys.executable, "-m", "bench.load"])
    done = subprocess.run(command, input=json.dumps(order), capture_output=True, text=True, check=False)
    if done.returncode:
        raise LeftOutError(f"load generator: {done.stderr.strip()[-600:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def session_ms(setup: Setup, seconds: float) -> float:
    """Return the median of `Session.run` in ms, measured in a process of its own on the servers' cores."""
    path = setup.folder / "x.npy"
    np.save(path, setup.image)
    command = [sys.executable, "-c", _RUN, str(setup.model), str(setup.threads), str(path), str(seconds)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(pinned(setup.cores, command), capture_output=True, text=True, check=True, env=environment)
    return float(json.loads(done.stdout))


def measure(setup: Setup, name: str, clients: list[int], seconds: float, warmup: float, rate: float) -> dict[str, dict[str, Any]]:
    """Measure a closed loop for each number of clients, then an open loop. Raises LeftOutError if the server cannot run.

    seconds: length of each load. warmup: seconds before it. rate: requests a second of the open loop, 0 = none.
    """
    with SERVERS[name](setup) as endpoint:
        load(setup, endpoint, max(clients), 4 * warmup, 0, None)  # compiles everything
        found = {f"closed, {count} clients": load(setup, endpoint, count, seconds, warmup, None) for count in clients}
        if rate:
            found[f"open, {rate:g}/s"] = load(setup, endpoint, 0, seconds, warmup, rate)
        return found


def report(results: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Print one row per load and server. The ratio is a server's requests per second / the best peer's."""
    print(f"{'load':22} {'server':10} {'req/s':>9} {'p50 ms':>9} {'p99 ms':>9} {'errors':>7} {'gen CPU':>8} {'ratio':>7}")
    for kind in next(iter(results.values()), ()):
        best = max((rows[kind]["requests_per_s"] for name, rows in results.items() if name != "edgewise"), default=0.0)
        for name, rows in results.items():
            row = rows[kind]
            ratio = f"{row['requests_per_s'] / best:7.2f}" if best else "      -"
            p50, p99 = (f"{row[key]:9.2f}" if row[key] is not None else "        -" for key in ("p50_ms", "p99_ms"))
            cpu = f"{row['generator_cpu_percent']:7.0f}%"
            print(f"{kind:22} {name:10} {row['requests_per_s']:9.1f} {p50} {p99} {row['errors']:7} {cpu} {ratio}")


def main(
    model: Annotated[str, typer.Option(help="An export with one image input.")] = "mobilenet_v2",
    servers: Annotated[str, typer.Option(help="Comma-separated: edgewise, litserve, mlserver.")] = ",".join(SERVERS),
    clients: Annotated[str, typer.Option(help="Comma-separated numbers of clients of the closed loops.")] = "1,8,32",
    seconds: Annotated[float, typer.Option(help="Seconds of each load.")] = 10.0,
    warmup: Annotated[float, typer.Option(help="Seconds of warm-up before each load; they are not counted.")] = 3.0,
    rate: Annotated[float, typer.Option(help="Requests a second of the open loop, 0 = none.")] = 50.0,
    json_out: Annotated[Path | None, typer.Option(help="Also write all results to this JSON file.")] = None,
) -> None:
    """Load one server after another, print the table, then the latency that the service adds for one client."""
    exports = os.environ.get("EDGEWISE_EXPORTS")
    if not exports:
        raise SystemExit("serving: EDGEWISE_EXPORTS is not set, need the folder with the exports (see bench/README.md)")
    cores = tuple(sorted(os.sched_getaffinity(0)))
    theirs, generator = (cores[:-1], cores[-1]) if len(cores) > 1 else (cores, None)
    with tempfile.TemporaryDirectory(prefix="edgewise-serving-") as name:
        folder = Path(name)
        (folder / "models").mkdir()
        served = folder / "models" / f"{model}.onnx"
        open_batch(Path(exports) / f"{model}.onnx", served)
        image = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
        setup = Setup(served, image, folder, theirs, generator)
        results: dict[str, dict[str, dict[str, Any]]] = {}
        for server in servers.split(","):
            try:
                results[server] = measure(setup, server, [int(count) for count in clients.split(",")], seconds, warmup, rate)
            except LeftOutError as reason:
                if server == "edgewise":
                    raise
                print(f"left out: {reason}")
        print(f"{model}, server on cores {theirs}, load generator on {generator}")
        report(results)
        if "edgewise" in results and "closed, 1 clients" in results["edgewise"]:
            alone = session_ms(setup, seconds)
            through = results["edgewise"]["closed, 1 clients"]["p50_ms"]
            if through is not None:
                print(f"one client: {through:.2f} ms through the service, {alone:.2f} by Session.run: {through - alone:+.2f} ms")
        if json_out is not None:
            json_out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    typer.run(main)
