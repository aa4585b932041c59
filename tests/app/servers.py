"""Start server processes on free ports, for tests that need the service in its own process, and make models to serve."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from onnx import TensorProto, helper

from app.settings import DEMO_MODELS, Settings
from bench.local import free_port, serving
from profiler.device.profile import DeviceProfile
from scheduler.store import Store

ROOT = Path(__file__).parents[2]

KINDS = {
    "BOOL": TensorProto.BOOL,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


def identity_model(kind: int, dims: tuple[int | str, ...] = ("n", "m")) -> bytes:
    """Return a model that returns its input x as y. kind: element type."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "id", [value("x", kind, dims)], [value("y", kind, dims)]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


def text_model() -> bytes:
    """Return a model that returns each of its inputs: a string, a float16 and a bool tensor."""
    value = helper.make_tensor_value_info
    kinds = {"text": TensorProto.STRING, "half": TensorProto.FLOAT16, "flag": TensorProto.BOOL}
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in kinds]
    inputs = [value(name, kind, ["n"]) for name, kind in kinds.items()]
    outputs = [value(f"{name}_out", kind, ["n"]) for name, kind in kinds.items()]
    graph = helper.make_graph(nodes, "echo", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def slow_model(repeats: int = 400, width: int = 256) -> bytes:
    """Return a chain of products with a square matrix. The matrix is an input, so that no pass can fold a product."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("MatMul", ["x" if not step else f"v{step}", "w"], [f"v{step + 1}" if step + 1 < repeats else "y"])
        for step in range(repeats)
    ]
    ports = [value(name, TensorProto.FLOAT, [width, width]) for name in ("x", "w")]
    graph = helper.make_graph(nodes, "slow", ports, [value("y", TensorProto.FLOAT, [width, width])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def write_models(folder: Path) -> Path:
    """Write the demo with its labels, an identity model per datatype, and versions 1 and 3 of `versioned`. Return the folder."""
    for name in ("digits.onnx", "digits.json"):
        (folder / name).write_bytes((DEMO_MODELS / name).read_bytes())
    for name, kind in KINDS.items():
        (folder / f"id_{name.lower()}.onnx").write_bytes(identity_model(kind))
    for version in ("1", "3"):
        (folder / "versioned" / version).mkdir(parents=True)
        (folder / "versioned" / version / "model.onnx").write_bytes(identity_model(TensorProto.FLOAT))
    return folder


@contextlib.contextmanager
def serving_demo(folder: Path, machine: DeviceProfile) -> Iterator[httpx.Client]:
    """Serve the demo in this process, with a database in the folder that holds the machine's profile."""
    db = f"sqlite:///{folder / 'demo.sqlite'}"
    with Store(db) as store:
        store.devices.save(machine)
    with serving(Settings(models=DEMO_MODELS, db=db)) as found:
        yield found


@dataclass
class Server:
    """A running server process."""

    process: subprocess.Popen[bytes]
    port: int
    models: Path
    log: Path

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=f"http://{self.address}", timeout=30, **options)

    def stop(self, wait_s: float = 60) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(wait_s)


def start(folder: Path, models: Path, db: str, environment: Mapping[str, str] = {}, *options: str, cwd: Path = ROOT) -> Server:
    """Start `edgewise serve` and return when it is ready. Raises RuntimeError, with its log, if it ends or never is."""
    port = free_port() if "--port" not in options else int(options[options.index("--port") + 1])
    return launch(folder, models, port, environment, "--models", str(models), "--port", str(port), "--db", db, *options, cwd=cwd)


def launch(folder: Path, models: Path, port: int, environment: Mapping[str, str], *options: str, cwd: Path = ROOT) -> Server:
    """Start `edgewise serve` with exactly these options, and return when it is ready on that port, as `start` does."""
    log = folder / f"server-{port}.log"
    command = [sys.executable, "-P", "-m", "edgewise", "serve", *options]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=cwd, env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, stdout=output, stderr=output
        )
    server = Server(process, port, models, log)
    for _ in range(600):
        if process.poll() is not None:
            raise RuntimeError(f"the server ended:\n{log.read_text()}")
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"http://{server.address}/v2/health/ready", timeout=5).status_code == 200:
                return server
        time.sleep(0.1)
    process.kill()
    raise RuntimeError(f"the server is not ready:\n{log.read_text()}")


@contextlib.contextmanager
def running(
    folder: Path, models: Path, db: str = "", environment: Mapping[str, str] = {}, *options: str, cwd: Path = ROOT
) -> Iterator[Server]:
    """Run a server until the block ends."""
    with ending(start(folder, models, db or f"sqlite:///{folder / 'edgewise.db'}", environment, *options, cwd=cwd)) as server:
        yield server


@contextlib.contextmanager
def ending(server: Server) -> Iterator[Server]:
    """End a server process with the block."""
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.terminate()
            try:
                server.process.wait(20)
            except subprocess.TimeoutExpired:
                server.process.kill()
                server.process.wait()
