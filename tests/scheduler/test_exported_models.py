"""Exports of whole architectures answer as ONNX Runtime does. The folder is the one that EDGEWISE_EXPORTS names."""

import os
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from bench.exports import EXPORTS
from graph.ir import Port
from scheduler.session import Session

FOLDER = os.environ.get("EDGEWISE_EXPORTS", "")
TOLERANCE = 1e-4  # of the largest output

pytestmark = [
    pytest.mark.exports,
    pytest.mark.skipif(not FOLDER, reason="EDGEWISE_EXPORTS names no folder of exported models"),
]


def feed(port: Port, rng: np.random.Generator) -> np.ndarray:
    shape = [dim if isinstance(dim, int) else 1 for dim in port.dims or ()]
    if port.dtype.kind == "f":
        return rng.standard_normal(shape).astype(port.dtype)
    return rng.integers(0, 1000 if port.name == "input_ids" else 2, shape).astype(port.dtype)


@pytest.mark.parametrize("name", EXPORTS)
def test_export_agrees_with_onnx_runtime(name: str) -> None:
    path = Path(FOLDER) / f"{name}.onnx"
    session = Session(path)
    rng = np.random.default_rng(0)
    feeds = {port.name: feed(port, rng) for port in session.inputs}
    ours = [session.run(feeds) for _ in range(2)]

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    judge = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    wanted = dict(zip(ours[0], judge.run(list(ours[0]), feeds), strict=True))
    assert [port.name for port in session.outputs] == [output.name for output in judge.get_outputs()]
    for outputs in ours:
        for output, expected in wanted.items():
            assert outputs[output].shape == expected.shape
            assert np.abs(outputs[output] - expected).max() <= TOLERANCE * np.abs(expected).max()
