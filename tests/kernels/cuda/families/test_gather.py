from typing import Any

import numpy as np
import pytest

from kernels.cuda.errors import CudaError, GpuUnsupportedError
from kernels.cuda.families.gather import Gather, GatherForm
from kernels.cuda.families.resize import Resize, table_of
from kernels.native.errors import EmitError
from kernels.resampling import Pass
from tests.kernels.cuda.families.product_cases import ADD


def test_gather_is_told_its_sizes():
    launch: Any = Gather(50, 20, 96, outer=3, x_stride=104, y_stride=100, others=(96,)).launch(
        "bf16", expression=ADD, x="x", index="i", y="y", watch="w", r0="r"
    )
    told = launch.told
    assert (launch.kernel.run, told.items, told.x_outer, told.runs, told.count) == (4, 3 * 20 * 24, 50 * 104, 24, 20)


def test_gather_refuses_what_it_cannot_count_or_read():
    with pytest.raises(CudaError, match="gather: x has 2147483648 elements"):
        Gather(1 << 21, 4, 1 << 10)
    with pytest.raises(EmitError, match="indices of 8 bits, need 32 or 64"):
        GatherForm("fp32", "fp32", 4, 8)
    with pytest.raises(CudaError, match="need them for"):
        Gather(4, 4, 4).launch("fp32", x="x", y="y")


def linear(size_out, taps, outside=False):
    index = np.tile(np.arange(taps), (size_out, 1))
    return Pass(0, index, np.full((size_out, taps), 1 / taps), np.full(size_out, outside))


def test_tables_hold_an_index_and_the_bits_of_a_weight():
    table = table_of(linear(3, 2))
    assert table.shape == (3, 2, 2)
    np.testing.assert_array_equal(table[..., 0], [[0, 1]] * 3)
    np.testing.assert_array_equal(table[..., 1].view(np.float32), np.full((3, 2), 0.5, np.float32))


def test_outputs_outside_the_input_are_refused():
    with pytest.raises(GpuUnsupportedError, match="outputs outside the input"):
        table_of(linear(3, 2, outside=True))


def test_resize_is_told_its_sizes():
    resize = Resize(2, (4, 5), 24, linear(8, 2), linear(10, 4), y_stride=28)
    launch: Any = resize.launch("fp16", x="x", y="y", rows="r", columns="c")
    told = launch.told
    assert (launch.kernel.run, launch.kernel.copies) == (4, False)
    assert (told.items, told.row_taps, told.column_taps, told.out_pixels) == (2 * 80 * 6, 2, 4, 80)


def test_resize_that_is_empty_is_refused():
    with pytest.raises(CudaError, match="resize: x has 0 elements"):
        Resize(0, (4, 5), 24, linear(8, 2), linear(10, 2))
