"""A real server on a real socket, serving the demo, a model of strings and a broken file."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping

import httpx
import pytest
from fastapi import FastAPI
from onnx import TensorProto, helper

from app.main import create_app
from app.server import Server, configure
from app.settings import DEMO_MODELS, Settings
from scheduler.jobs import KINDS, Kind
from tests.waiting import until


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not os.environ.get("EDGEWISE_SLOW"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow; set EDGEWISE_SLOW to run it"))


def text_model() -> bytes:
    """Strings through Identity, two inputs of other types, one output each."""
    value = helper.make_tensor_value_info
    kinds = {"text": TensorProto.STRING, "half": TensorProto.FLOAT16, "flag": TensorProto.BOOL}
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in kinds]
    inputs = [value(name, kind, ["n"]) for name, kind in kinds.items()]
    outputs = [value(f"{name}_out", kind, ["n"]) for name, kind in kinds.items()]
    graph = helper.make_graph(nodes, "echo", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def answers(client: httpx.Client, path: str) -> bool:
    """Whether it is 200; a service that does not listen yet does not."""
    try:
        return client.get(path).status_code == 200
    except httpx.TransportError:
        return False


@contextlib.contextmanager
def serving(
    settings: Settings, app: FastAPI | None = None, *, kinds: Mapping[str, Kind] = KINDS, port: int = 0, wait: bool = True
) -> Iterator[httpx.Client]:
    """Run uvicorn on a free port, or on the one given, in a thread until the block ends. wait: until it is ready, else live."""
    port = port or free_port()
    served = app or create_app(settings, kinds=kinds)
    config = configure(served, settings.model_copy(update={"port": port, "host": "127.0.0.1"}))
    server = Server(config, served.state.service)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            until(lambda: answers(client, f"/v2/health/{'ready' if wait else 'live'}"))
            yield client
    finally:
        server.handle_exit(signal.SIGINT, None)
        thread.join()


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("models")
    for name in ("digits.onnx", "digits.json"):
        (folder / name).write_bytes((DEMO_MODELS / name).read_bytes())
    for version in ("1", "3"):
        (folder / "echo" / version).mkdir(parents=True)
        (folder / "echo" / version / "model.onnx").write_bytes(text_model())
    (folder / "broken.onnx").write_bytes(b"no model")
    (folder / "stats.onnx").write_bytes(text_model())
    database = tmp_path_factory.mktemp("db") / "edgewise.sqlite"
    with serving(
        Settings(models=folder, db=f"sqlite:///{database}", max_body_bytes=1 << 20, max_tensor_elements=1 << 18)
    ) as found:
        yield found
