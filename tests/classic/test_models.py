"""Models of scikit-learn, XGBoost and LightGBM give what their own framework and ONNX Runtime give, plan, profile and count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import edgewise
from kernels.spec import STRING, Array
from tests.kernels.ops.models import array_of

FOLDER = Path(__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.onnx"))
NATIVE_TREES = {"boosting", "forest", "gradient", "isolation", "lightgbm", "trees", "xgboost"}
# Distances of scikit-learn's k-means and kernels are taken in float64, of the exported models in float32 as |x|² + |c|² - 2·x·c.
LOOSE = {"kmeans": 2e-5, "bayes": 2e-4}
TOLERANCE = 5e-6  # of a model's largest output: float32 against the frameworks' float64


def arrays(name: str, role: str) -> dict[str, Array]:
    """Return the inputs ("in") or the outputs of the model's own framework ("out")."""
    with np.load(FOLDER / f"{name}.npz") as file:
        found = {key.partition(" ")[2]: file[key] for key in file.files if key.startswith(role)}
    return {key: array.astype(STRING) if array.dtype.kind == "U" else array for key, array in found.items()}


def session(name: str, backend: Any = "auto", threads: int = 1) -> edgewise.Session:
    """Return a session of a model."""
    return edgewise.Session(FOLDER / f"{name}.onnx", threads=threads, backend=backend)


def assert_agree(name: str, actual: Array, expected: Array) -> None:
    """Assert that labels are equal and numbers close. Frameworks return vectors where the exported models have a column."""
    assert actual.size == expected.size
    expected = expected.reshape(actual.shape)
    if actual.dtype.kind != "f":
        np.testing.assert_array_equal(actual, expected)
        return
    tolerance = LOOSE.get(name, TOLERANCE) * np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("backend", ["numpy", "auto"])
@pytest.mark.parametrize("name", NAMES)
def test_model_agrees_with_its_framework(name, backend):
    made, wanted = session(name, backend).run(arrays(name, "in")), arrays(name, "out")
    assert list(made) == list(wanted)
    for output, expected in wanted.items():
        assert_agree(name, made[output], expected)


def _plain(value: Any) -> Array:
    """Return an output of ONNX Runtime as an array: the maps of ZipMap as rows, in the order of their labels."""
    return np.array([list(row.values()) for row in value], np.float32) if isinstance(value, list) else array_of(value)


@pytest.mark.parametrize("name", NAMES)
def test_model_agrees_with_onnxruntime(name):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    engine = ort.InferenceSession(str(FOLDER / f"{name}.onnx"), options, providers=["CPUExecutionProvider"])
    expected = engine.run(None, arrays(name, "in"))
    for actual, wanted in zip(session(name).run(arrays(name, "in")).values(), expected, strict=True):
        assert_agree(name, actual, _plain(wanted))


@pytest.mark.parametrize("name", NAMES)
def test_rows_alone_and_together_are_the_same_bits_on_any_number_of_threads(name):
    feeds = arrays(name, "in")
    together = {threads: session(name, threads=threads).run(feeds) for threads in (1, 2)}
    for output, whole in together[1].items():
        np.testing.assert_array_equal(whole, together[2][output])
    if name not in NATIVE_TREES:
        return  # products may be summed in another order for one row
    runner = session(name)
    for row in (0, 7):
        alone = runner.run({key: array[row : row + 1] for key, array in feeds.items()})
        for output, array in alone.items():
            np.testing.assert_array_equal(array, together[1][output][row : row + 1])


@pytest.mark.parametrize("name", NAMES)
def test_model_plans_profiles_and_counts(name):
    path, shapes = FOLDER / f"{name}.onnx", {key: array.shape for key, array in arrays(name, "in").items()}
    profile = edgewise.profile(path, shapes=shapes)
    assert not profile.uncounted
    assert profile.macs + profile.other_flops > 0
    runner = session(name)
    runner.run(arrays(name, "in"))
    steps = runner.plan.steps
    walks = [step for step in steps if "TreeEnsemble" in step.op]
    assert bool(walks) == (name in NATIVE_TREES)
    assert all(step.strategy.backend == "native" for step in walks)
