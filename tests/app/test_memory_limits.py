"""Models that ask for more memory than there is, in a service: refused in its error schema, while other models are served."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from app.engine.loaded import LoadedModels
from app.engine.messages import error_of, failure
from app.settings import DEMO_MODELS, Settings
from bench.local import serving
from graph.budget import model_share_bytes, process_share_bytes
from kernels.errors import OutOfMemoryError
from tests.app.demo import SEVEN
from tests.graph.vast import STATIC, ints, vast

ARENA_BYTES = 256 << 20
NAMES = ("ConstantOfShape", "Expand", "Tile", "Range", "Pad", "OneHot", "MaxPool", "AveragePool", "Einsum", "RoiAlign")


def settings(folder: Path, **changes: Any) -> Settings:
    return Settings(models=folder, db=f"sqlite:///{folder.parent / 'edgewise.sqlite'}", jobs=False, **changes)


def demo(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name in ("digits.onnx", "digits.json"):
        (folder / name).write_bytes((DEMO_MODELS / name).read_bytes())
    return folder


@pytest.fixture(scope="module", params=[0, 1], ids=["in-process", "process"])
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = demo(tmp_path_factory.mktemp("vast") / "models")
    for name in NAMES:
        (folder / f"{name}.onnx").write_bytes(STATIC[name]()[0].SerializeToString())
    grown, _ = vast("Expand", {"x": np.ones(1, np.float32), "shape": ints(1)}, "x shape")
    (folder / "grown.onnx").write_bytes(grown.SerializeToString())
    with serving(settings(folder, max_arena_bytes=ARENA_BYTES, workers=request.param)) as found:
        yield found


def infer(client: httpx.Client, name: str, feeds: dict[str, np.ndarray]) -> httpx.Response:
    types = {"float32": "FP32", "int64": "INT64"}
    inputs = [
        {"name": name, "shape": list(array.shape), "datatype": types[array.dtype.name], "data": array.reshape(-1).tolist()}
        for name, array in feeds.items()
    ]
    return client.post(f"/v2/models/{name}/infer", json={"inputs": inputs}, timeout=60)


def assert_serves(client: httpx.Client) -> None:
    reply = client.post("/v2/models/digits/infer", content=SEVEN, timeout=60)
    assert reply.status_code == 200
    assert reply.json()["outputs"][0]["data"] == [7]


@pytest.mark.parametrize("name", NAMES)
def test_a_request_that_needs_too_much_is_a_400_that_says_why(client: httpx.Client, name: str) -> None:
    reply = infer(client, name, STATIC[name]()[1])
    assert reply.status_code == 400
    assert list(reply.json()) == ["error"]
    said = "Mul: output 'vast/" if name == "Einsum" else f"{name}: "  # an Einsum runs as products, each named after it
    assert said in reply.json()["error"]
    assert re.search(r"\(node 'vast(/\w+)?'\): its run needs ", reply.json()["error"])
    assert f"the limit is {ARENA_BYTES}; use smaller shapes" in reply.json()["error"]
    assert_serves(client)


def test_a_size_that_a_request_gives_is_refused_too(client: httpx.Client) -> None:
    reply = infer(client, "grown", {"x": np.ones(1, np.float32), "shape": ints(5 << 30)})
    assert reply.status_code == 400
    assert "(node 'vast')" in reply.json()["error"]
    assert infer(client, "grown", {"x": np.ones(1, np.float32), "shape": ints(3)}).json()["outputs"][0]["data"] == [1, 1, 1]
    assert_serves(client)


def weighty(kib: int) -> bytes:
    """A model whose weights take that much."""
    weights = numpy_helper.from_array(np.ones((kib, 256), np.float32), "w")
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [kib, 256]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], [weights])
    made: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    return made


def load(client: httpx.Client, name: str) -> httpx.Response:
    return client.post(f"/v2/repository/models/{name}/load", timeout=60)


def test_a_model_is_loaded_only_where_its_weights_fit(tmp_path: Path) -> None:
    folder = demo(tmp_path / "models")
    for name in ("a", "b"):
        (folder / f"{name}.onnx").write_bytes(weighty(12 << 10))
    with serving(settings(folder, max_memory_bytes=20 << 20)) as client:
        states = {row["name"]: row["state"] for row in client.post("/v2/repository/index").json()}
        assert states == {"a": "READY", "b": "UNAVAILABLE", "digits": "READY"}
        assert_serves(client)
        refused = load(client, "b")
        assert refused.status_code == 503
        assert refused.headers["Retry-After"]
        assert "of 20971520; try again later, unload a model" in refused.json()["error"]
        assert client.post("/v2/repository/models/a/unload").status_code == 200
        assert load(client, "b").status_code == 200
        assert load(client, "a").status_code == 503
        assert_serves(client)


def test_runs_count_against_the_memory_of_the_process(tmp_path: Path) -> None:
    folder = demo(tmp_path / "models")
    (folder / "a.onnx").write_bytes(weighty(4 << 10))
    with serving(settings(folder, max_memory_bytes=7 << 20, max_body_bytes=64 << 20)) as client:
        x = np.ones((4 << 10, 256), "<f4")
        tensor = {"name": "x", "shape": x.shape, "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}
        text = json.dumps({"inputs": [tensor]}).encode()
        reply = client.post(
            "/v2/models/a/infer", content=text + x.tobytes(), headers={"Inference-Header-Content-Length": str(len(text))}
        )
        assert reply.status_code == 503
        assert reply.headers["Retry-After"]
        assert "models and runs of this process take" in reply.json()["error"]
        assert_serves(client)


def test_memory_that_the_system_refuses_is_a_503(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = demo(tmp_path / "models")

    def refuse(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 15.0 GiB")

    with serving(settings(folder)) as client:
        assert_serves(client)
        for target in ("app.engine.loaded.Session.built", "graph.run.prepared.PreparedGraph._begin"):
            with monkeypatch.context() as patch:
                patch.setattr(target, refuse)
                reply = client.post("/v2/models/digits/infer", content=SEVEN)
            assert reply.status_code == 503, target
            assert reply.headers["Retry-After"]
            assert "has no more memory" in reply.json()["error"]
            assert_serves(client)
        with monkeypatch.context() as patch:
            patch.setattr("app.models.repository.read", refuse)
            reply = load(client, "digits")
        assert reply.status_code == 503
        assert reply.headers["Retry-After"]
        assert "has no more memory" in reply.json()["error"]
        assert_serves(client)


def test_an_engine_process_says_that_memory_ran_out() -> None:
    for error in (MemoryError("Unable to allocate"), OutOfMemoryError("x: no memory")):
        found = error_of(failure(3, error))
        assert type(found) is OutOfMemoryError
    assert LoadedModels()._memory is None


def test_limits_follow_from_the_machine_unless_they_are_set() -> None:
    assert Settings().arena_limit_bytes == model_share_bytes()
    assert Settings(max_arena_bytes=5000).arena_limit_bytes == 5000
    assert Settings().process_limit_bytes == process_share_bytes()
    assert Settings(max_memory_bytes=9000, workers=2).process_limit_bytes == 3000
