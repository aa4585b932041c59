"""With an engine process, models that are loaded, reloaded, uploaded and unloaded over HTTP run in the right process."""

import base64
import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from app.engine.link import ProcessLink
from app.main import create_app
from app.service import Service
from app.settings import DEMO_MODELS, Settings
from bench.local import serving
from bench.waiting import until
from profiler.device.profile import DeviceProfile
from tests.app.demo import SEVEN
from tests.app.engine import models


@dataclass
class Served:
    client: httpx.Client
    service: Service
    folder: Path

    def link(self) -> ProcessLink:
        (process,) = self.service.engine._processes
        link = until(lambda: process.link)
        assert link is not None
        return link

    def placed(self, name: str) -> list[str]:
        """Return where the model is loaded: "here" or "process", once for each loaded version."""
        engine = self.service.engine
        (process,) = engine._processes
        places: tuple[tuple[str, Any], ...] = (("here", engine._here), ("process", process))
        return [where for where, place in places for file in list(place.models.values()) if file.name == name]

    def infer(self, name: str, rows: int = 1) -> httpx.Response:
        x = np.arange(rows * 16, dtype=np.float32)
        tensor = {"name": "x", "shape": [rows, 16], "datatype": "FP32", "data": x.tolist()}
        return self.client.post(f"/v2/models/{name}/infer", json={"inputs": [tensor]})

    def load(self, name: str, **parameters: str) -> int:
        return self.client.post(f"/v2/repository/models/{name}/load", json={"parameters": parameters}).status_code


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("models")
    models.dense(folder)
    (folder / "digits.onnx").write_bytes((DEMO_MODELS / "digits.onnx").read_bytes())
    settings = Settings(models=folder, db=f"sqlite:///{tmp_path_factory.mktemp('db') / 'a.db'}", workers=1, file_uploads=True)
    app = create_app(settings)
    with serving(settings, app) as client:
        yield Served(client, app.state.service, folder)


def test_models_of_the_folder_run_in_the_process(server: Served) -> None:
    reply = server.client.post("/v2/models/digits/infer", content=SEVEN)
    assert (reply.status_code, reply.json()["parameters"]) == (200, {"plan_id": "default", "batch_rows": 1})
    assert server.placed("digits") == ["process"]
    assert server.link().process.pid != os.getpid()


def test_a_model_that_came_with_its_request_runs_in_the_service(server: Served) -> None:
    """Its file is gone once it is loaded: no process could load it, then or again."""
    data = base64.b64encode((server.folder / "dense.onnx").read_bytes()).decode()
    assert server.load("uploaded", **{"config": '{"max_batch_size": 3}', "file:7/model.onnx": data}) == 200
    assert server.placed("uploaded") == ["here"]
    ours, theirs = (server.infer(name, 2).json()["outputs"][0]["data"] for name in ("uploaded", "dense"))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    refused = server.infer("uploaded", 4)
    assert (refused.status_code, "batch-size must be <= 3" in refused.json()["error"]) == (400, True)
    assert server.client.post("/v2/repository/models/uploaded/unload").status_code == 200
    assert server.infer("uploaded").status_code == 503
    until(lambda: not server.placed("uploaded"))


def test_reloads_swap_what_the_process_runs_and_failed_ones_do_not(server: Served) -> None:
    path = server.folder / "dense.onnx"
    good = path.read_bytes()
    before = server.infer("dense").json()["outputs"][0]["data"]
    for name in ("one", "two"):
        assert server.load("dense", config=json.dumps({"parameters": {"x": {"string_value": name}}})) == 200
        assert server.infer("dense").json()["outputs"][0]["data"] == before
    path.write_bytes(b"no model")
    assert server.load("dense") == 400
    assert server.infer("dense").json()["outputs"][0]["data"] == before
    path.write_bytes(good)
    assert server.load("dense") == 200
    until(lambda: len(server.placed("dense")) == 1)
    assert server.placed("dense") == ["process"]  # the ones before are forgotten


def test_the_config_reaches_the_engine(server: Served) -> None:
    assert server.load("dense", config='{"max_batch_size": 2, "dynamic_batching": {"preferred_batch_size": [2]}}') == 200
    found = server.client.get("/v2/models/dense/config").json()
    assert (found["max_batch_size"], found["dynamic_batching"]["preferred_batch_size"]) == (2, [2])
    assert "batch-size must be <= 2" in server.infer("dense", 3).json()["error"]
    for bad in (
        {"dynamic_batching": {"surprise": 1}},
        {"instance_group": [{"count": 0}]},
        {"instance_group": [{"kind": "KIND_GPU"}]},
    ):
        assert server.load("dense", config=json.dumps(bad)) == 400
    assert server.load("dense") == 200
    assert server.infer("dense", 3).status_code == 200


def test_the_first_batch_curve_comes_from_plans(server: Served, machine: DeviceProfile) -> None:
    """The digits are asked by many at once, on a machine that was measured; statistics say how the curve is known."""
    server.service.storage.store.devices.save(machine)

    def curves() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = server.client.get("/v2/models/digits/stats").json()["model_stats"][0]["batch_curves"]
        return found

    (entry,) = server.service.repository.versions("digits")
    assert entry.session is not None
    shapes = {rows: {"image": (rows, 1, 8, 8)} for rows in (1, 2, 4)}
    times = server.service.storage.forecast(entry.session, 1, shapes)
    assert list(times) == [1, 2, 4]
    with ThreadPoolExecutor(16) as clients:
        for _ in range(100):
            list(clients.map(lambda _: server.client.post("/v2/models/digits/infer", content=SEVEN), range(32)))
            if curves() and curves()[0]["source"] != "none":
                break
    (curve,) = curves()
    assert curve["shapes"] == [[1, 8, 8]]
    assert curve["source"] in ("plan", "scaled", "measured")
    assert len(curve["ns"]) == len(curve["batch_sizes"])
    assert None not in curve["ns"]


def test_a_process_that_dies_comes_back_with_its_models(server: Served) -> None:
    before = server.link().process.pid
    os.kill(before, signal.SIGKILL)
    statuses: list[int] = []

    def is_back() -> bool:
        statuses.append(server.infer("dense").status_code)
        return statuses[-1] == 200 and server.link().process.pid != before

    until(is_back)
    assert set(statuses) <= {200, 503}
    assert server.client.post("/v2/models/digits/infer", content=SEVEN).status_code == 200
