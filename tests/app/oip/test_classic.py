"""Models of ai.onnx.ml over HTTP: labels, the scores under the maps of ZipMap, strings, and maps as two inputs."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from app.settings import Settings
from bench.local import serving
from tests.classic.test_models import FOLDER, arrays
from tests.graph.test_maps import vectorizer

DATATYPES = {"float32": "FP32", "object": "BYTES", "int64": "INT64"}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name in ("forest", "encoded"):
        shutil.copy(FOLDER / f"{name}.onnx", folder)
    onnx.save(vectorizer(), folder / "words.onnx")
    settings = Settings(models=Path(folder), db=f"sqlite:///{folder}/x.db")
    with serving(settings) as opened:
        yield opened


def infer(client, name, feeds):
    inputs = [
        {"name": key, "shape": array.shape, "datatype": DATATYPES[array.dtype.name], "data": array.ravel().tolist()}
        for key, array in feeds.items()
    ]
    return client.post(f"/v2/models/{name}/infer", json={"inputs": inputs})


@pytest.mark.parametrize("name", ["forest", "encoded"])
def test_models_answer_as_their_framework(client, name):
    feeds, answers = arrays(name, "in"), arrays(name, "out")
    plain = ~np.any([np.isnan(array).any(1) for array in feeds.values() if array.dtype.kind == "f"], 0)  # JSON has no NaN
    reply = infer(client, name, {key: array[plain] for key, array in feeds.items()}).json()
    made = {output["name"]: output for output in reply["outputs"]}
    for key, answer in answers.items():
        wanted = answer[plain]
        assert made[key]["shape"] == list(wanted.shape)
        if wanted.dtype.kind == "O":
            assert made[key]["data"] == wanted.tolist()
        else:
            np.testing.assert_allclose(made[key]["data"], wanted.ravel(), rtol=1e-5, atol=1e-6)


def test_a_map_is_two_inputs(client):
    names = {port["name"]: port["datatype"] for port in client.get("/v2/models/words").json()["inputs"]}
    assert names == {"words.keys": "BYTES", "words.values": "FP32"}
    feeds = {"words.keys": np.array(["a", "z"], object), "words.values": np.array([1.5, 2], np.float32)}
    assert infer(client, "words", feeds).json()["outputs"][0]["data"] == [0, 1.5, 0]
    short = infer(client, "words", {**feeds, "words.values": np.ones(3, np.float32)})
    assert short.status_code == 400
    assert "words.size" in short.json()["error"]
