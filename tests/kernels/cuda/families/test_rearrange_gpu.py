"""Copies between orders of dimensions on a GPU against numpy."""

import dataclasses

import numpy as np
import pytest

from kernels.cuda.families.elementwise import Array
from kernels.cuda.families.rearrange import TransposeForm, copy
from tests.kernels.cuda.families.cases import DTYPES, STORAGES, draw, poison, strided

pytestmark = pytest.mark.gpu


def dense(shape):
    """Return the strides of an array whose elements lie side by side."""
    return tuple(int(np.prod(shape[d + 1 :])) for d in range(len(shape)))


def permuted_strides(shape, order):
    """Return the strides, by the axes of `shape`, of an array whose axes lie in that order."""
    steps = dense([shape[axis] for axis in order])
    return tuple(steps[order.index(axis)] for axis in range(len(shape)))


ORDERS = {
    "nchw_to_nhwc": ((2, 64, 28, 28), (0, 2, 3, 1)),
    "nhwc_to_nchw": ((2, 28, 28, 64), (0, 3, 1, 2)),
    "three_channels": ((2, 3, 30, 30), (0, 2, 3, 1)),
    "odd": ((3, 17, 13, 7), (0, 2, 3, 1)),
    "wide": ((1, 200, 9, 15), (0, 2, 3, 1)),
    "heads": ((2, 33, 4, 32), (0, 2, 1, 3)),
    "reversed": ((20, 15, 30), (2, 1, 0)),
    "matrix": ((129, 66), (1, 0)),
    "five": ((2, 3, 16, 2, 24), (1, 3, 4, 0, 2)),
    "same": ((5, 40), (0, 1)),
}


@pytest.mark.parametrize("storages", [(a, b) for a in STORAGES for b in STORAGES], ids=lambda pair: f"{pair[0]}_to_{pair[1]}")
@pytest.mark.parametrize("name", ORDERS)
def test_orders(gpu, name, storages):
    shape, order = ORDERS[name]
    x = draw(shape, storages[0])
    y = poison([shape[axis] for axis in order], storages[1])
    launch = copy(shape, Array(dense(shape), storages[0]), Array(permuted_strides(shape, order), storages[1]), x="x", y="y")
    memory = {"x": gpu.upload(x), "y": gpu.upload(y)}
    gpu.run(launch, memory)
    np.testing.assert_array_equal(memory["y"].read(y), x.transpose(order).astype(np.float32).astype(DTYPES[storages[1]]))


@pytest.mark.parametrize("channels", [3, 40])
def test_gaps_are_left_as_they_were(gpu, channels):
    x = draw((2, channels, 20, 20), "fp32")
    y = poison((2, 20, 20, channels + 5), "bf16")
    pixel = channels + 5
    launch = copy(x.shape, Array(dense(x.shape)), Array((400 * pixel, 1, 20 * pixel, pixel), "bf16"), x="x", y="y")
    memory = {"x": gpu.upload(x), "y": gpu.upload(y)}
    gpu.run(launch, memory)
    found = memory["y"].read(y)
    np.testing.assert_array_equal(found[..., :channels], x.transpose(0, 2, 3, 1).astype(DTYPES["bf16"]))
    assert np.isnan(found[..., channels:].astype(np.float32)).all()


def test_few_blocks_take_all_tiles_in_turn(gpu):
    x, y = draw((3, 200, 300), "fp16"), poison((3, 300, 200), "fp16")
    launch = copy(x.shape, Array(dense(x.shape), "fp16"), Array(permuted_strides(x.shape, (0, 2, 1)), "fp16"), x="x", y="y")
    assert isinstance(launch.kernel, TransposeForm)
    memory = {"x": gpu.upload(x), "y": gpu.upload(y)}
    gpu.run(dataclasses.replace(launch, blocks=2), memory)
    np.testing.assert_array_equal(memory["y"].read(y), x.transpose(0, 2, 1))


def test_part_of_a_larger_array(gpu):
    whole, y = draw((50, 80), "fp32"), poison((64, 40))
    launch = copy((40, 64), Array((80, 1)), Array((1, 40)), x="x", y="y")
    memory = {"x": gpu.upload(whole), "y": gpu.upload(y)}
    gpu.run(launch, memory)
    np.testing.assert_array_equal(memory["y"].read(y), strided(whole, (40, 64), (80, 1)).T)
