"""Products of a few rows on a GPU against float64."""

import numpy as np
import pytest

from kernels.cuda.families.vector import Vectors
from tests.kernels.cuda.families.cases import DTYPES, STORAGES, assert_close, draw, padded, poison
from tests.kernels.cuda.families.product_cases import ADD_RELU

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("size", [(1, 1000, 2048), (3, 7, 24), (1, 1, 1), (2, 33, 331), (4, 9, 4104)], ids=str)
def test_products_of_few_rows(gpu, size, storage, early):
    m, n, k = size
    x, w, other = draw((m, k), storage), draw((n, k), storage, 1), draw((m, n), storage, 2)
    bias, wide = draw((n,), "fp32", 3), n + 8
    vectors = Vectors(m, n, k, y_stride=wide, others=(n,))
    form = vectors.form(storage, bias=True, expression=ADD_RELU, early=early)
    memory = {name: gpu.upload(array) for name, array in {"x": x, "w": w, "bias": bias, "r0": other}.items()}
    memory["y"] = gpu.upload(poison((m, wide), storage))
    gpu.run(vectors.launch(form, **{name: name for name in memory}), memory)
    found = memory["y"].read(np.empty((m, wide), DTYPES[storage]))
    x, w, other = (array.astype(np.float64) for array in (x, w, other))
    assert_close(found[:, :n], np.maximum(x @ w.T + bias + other, 0), storage, np.abs(x) @ np.abs(w).T)
    assert np.isnan(found[:, n:].astype(np.float32)).all(), "what lies between rows was written to"


def test_rows_may_lie_apart(gpu):
    x = padded(draw((2, 64), "fp32"), 72)
    w = draw((16, 64), "fp32", 1)
    vectors = Vectors(2, 16, 64, x_stride=72)
    memory = {"x": gpu.upload(x), "w": gpu.upload(w), "y": gpu.upload(poison((2, 16)))}
    gpu.run(vectors.launch(vectors.form("fp32"), x="x", w="w", y="y"), memory)
    truth = x[:, :64].astype(np.float64) @ w.T
    assert_close(memory["y"].read(np.empty((2, 16), np.float32)), truth, "fp32", np.abs(x[:, :64]) @ np.abs(w).T)
