"""The bundled demo model recognises handwritten digits that it was not trained on."""

import json
from pathlib import Path

import numpy as np
import pytest

import edgewise
from app.demo.train_digits import load_split

DEMO = Path(__file__).parents[2] / "app" / "demo"


@pytest.fixture(scope="module")
def session() -> edgewise.Session:
    return edgewise.Session(DEMO / "models" / "digits.onnx")


def test_demo_model_is_small() -> None:
    assert (DEMO / "models" / "digits.onnx").stat().st_size < 1_000_000


def test_demo_accuracy_on_held_out_images(session: edgewise.Session) -> None:
    _, (images, labels) = load_split()
    digits = session.run({"image": images})["digit"]
    assert (digits == labels).mean() >= 0.98


@pytest.mark.parametrize("digit", range(10))
def test_demo_request_is_recognised(session: edgewise.Session, digit: int) -> None:
    request = json.loads((DEMO / "images" / f"{digit}.json").read_text())
    (tensor,) = request["inputs"]
    image = np.array(tensor["data"], np.float32).reshape(tensor["shape"])
    assert session.run({"image": image})["digit"].tolist() == [digit]
