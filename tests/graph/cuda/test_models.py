"""Small models of every kind of layer, lowered for a GPU and computed launch by launch, against numpy."""

import numpy as np
import pytest

from graph.formats.registry import read
from tests.graph.cuda.simulated import lower_graph, simulate
from tests.graph.cuda.small import MODELS
from tests.graph.oracle import expected

LIMITS = {"fp32": 2e-5, "tf32": 1e-3, "fp16": 8e-3, "bf16": 5e-2}  # of tf32, the simulation rounds constants alone


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("name", MODELS)
def test_small_models_agree_with_numpy(name: str, precision: str) -> None:
    proto, feeds = MODELS[name]()
    found = simulate(lower_graph(read(proto).graph, precision), feeds)
    for value, wanted in expected(proto, feeds).items():
        assert found[value].shape == wanted.shape
        if wanted.dtype == np.float32:
            error = np.linalg.norm(found[value] - wanted) / np.linalg.norm(wanted)
            assert error < LIMITS[precision], f"{value}: relative error {error:.1e}"
        else:
            np.testing.assert_array_equal(found[value], wanted)
