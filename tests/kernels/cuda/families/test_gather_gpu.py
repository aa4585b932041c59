"""Gathers and embeddings on a GPU against numpy."""

import dataclasses

import numpy as np
import pytest

from kernels.cuda.families.gather import Gather
from tests.kernels.cuda.families import product_cases as expressions
from tests.kernels.cuda.families.cases import DTYPES, STORAGES, assert_close, draw, padded, poison

pytestmark = pytest.mark.gpu


def compute(gpu, gather, x, index, storages, blocks=None, **options):
    y = poison((gather.outer * gather.count, gather.strides[1]), storages[1])
    arrays = {"x": x, "index": index, "y": y, "watch": np.zeros(1, np.int32), **options.pop("arrays", {})}
    memory = {name: gpu.upload(array) for name, array in arrays.items()}
    launch = gather.launch(*storages, index_bits=8 * index.itemsize, **options, **{name: name for name in memory})
    gpu.run(dataclasses.replace(launch, blocks=blocks or launch.blocks), memory)
    return memory["y"].read(y), int(memory["watch"].read(np.empty(1, np.int32))[0])


@pytest.mark.parametrize("kind", [np.int32, np.int64])
@pytest.mark.parametrize("n", [64, 6, 1])
@pytest.mark.parametrize("storages", [("fp32", "fp32"), ("fp16", "fp16"), ("bf16", "bf16"), ("bf16", "fp32"), ("fp32", "fp16")])
def test_rows_are_chosen(gpu, storages, n, kind):
    x = draw((2, 30, n), storages[0])
    index = np.random.default_rng(0).integers(-30, 30, 77).astype(kind)
    found, watch = compute(gpu, Gather(30, 77, n, outer=2), x, index, storages, blocks=3)
    np.testing.assert_array_equal(found.reshape(2, 77, n), x[:, index].astype(np.float32).astype(DTYPES[storages[1]]))
    assert watch == 0


@pytest.mark.parametrize("storage", STORAGES)
def test_positions_are_added_to_an_embedding(gpu, storage):
    x, positions = draw((50, 96), storage), draw((20, 96), storage, 1)
    index = np.random.default_rng(0).integers(0, 50, 20)
    gather = Gather(50, 20, 96, x_stride=104, y_stride=100, others=(96,))
    found, _ = compute(
        gpu, gather, padded(x, 104), index, (storage, storage), expression=expressions.ADD, arrays={"r0": positions}
    )
    assert_close(found[:, :96], x[index].astype(np.float64) + positions.astype(np.float64), storage)
    assert np.isnan(found[:, 96:].astype(np.float32)).all()


@pytest.mark.parametrize("wrong", [5, -6, 2**31, -(2**62)])
def test_index_out_of_range_is_reported_and_reads_nothing(gpu, wrong):
    index = np.array([0, 4, wrong, -5], np.int64)
    x = draw((5, 8), "fp32")
    found, watch = compute(gpu, Gather(5, 4, 8), x, index, ("fp32", "fp32"))
    assert watch == 3
    np.testing.assert_array_equal(found, [x[0], x[4], np.zeros(8), x[0]])
