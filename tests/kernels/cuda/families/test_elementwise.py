from typing import Any

import numpy as np
import pytest

from kernels.cuda.errors import CudaError
from kernels.cuda.families.elementwise import Array, Map, MapForm, merged
from kernels.expression import FLOAT, Apply, Expression
from kernels.native.errors import EmitError
from tests.kernels.cuda.families.product_cases import ADD, RELU


@pytest.mark.parametrize(
    ("shape", "strides", "sizes", "steps"),
    [
        ((2, 3, 4), [(12, 4, 1), (12, 4, 1)], [24], [[1], [1]]),
        ((2, 3, 4), [(12, 4, 1), (0, 0, 1)], [6, 4], [[4, 1], [0, 1]]),
        ((2, 3, 4), [(12, 4, 1), (3, 1, 0)], [6, 4], [[4, 1], [1, 0]]),
        ((2, 3, 4), [(1, 8, 2), (12, 4, 1)], [12, 2], [[2, 1], [1, 12]]),
        ((1, 5, 1), [(9, 1, 7), (0, 1, 0)], [5], [[1], [1]]),
        ((1, 1), [(1, 1), (0, 0)], [1], [[1], [1]]),
    ],
    ids=["dense", "row", "column", "order_of_the_result", "ones", "single"],
)
def test_dimensions_that_lie_in_one_another_are_one(shape, strides, sizes, steps):
    assert merged(shape, strides) == (sizes, steps)


@pytest.mark.parametrize(
    ("shape", "result", "operand", "run", "accesses"),
    [
        ((8, 64), Array((64, 1), "bf16"), Array((64, 1), "bf16"), 8, ("run", "run")),
        ((8, 64), Array((64, 1)), Array((64, 1)), 4, ("run", "run")),
        ((8, 64), Array((64, 1), "bf16"), Array((64, 1)), 8, ("run", "run")),
        ((8, 6), Array((8, 1), "fp16"), Array((8, 1), "fp16"), 2, ("run", "run")),
        ((8, 64), Array((66, 1), "bf16"), Array((64, 1), "bf16"), 2, ("run", "run")),
        ((8, 64), Array((64, 1), "bf16"), Array((1, 8), "bf16"), 8, ("run", "strided")),
        ((8, 64), Array((64, 1), "bf16"), Array((1, 0), "bf16"), 8, ("run", "same")),
        ((8, 64), Array((128, 2)), Array((64, 1)), 1, ("strided", "run")),
        ((7, 13), Array((13, 1)), Array((13, 1)), 1, ("run", "run")),
    ],
)
def test_runs_are_as_long_as_every_array_allows(shape, result, operand, run, accesses):
    launch: Any = Map(RELU, shape, result, (operand,)).launch(y="y", r0="x")
    assert (launch.kernel.run, launch.kernel.accesses) == (run, accesses)
    assert launch.told.items == np.prod(shape) // run


def test_sizes_are_no_part_of_the_code():
    first, second = (Map(RELU, (n,), Array((1,)), (Array((1,)),)).launch(y="y", r0="x") for n in (400, 4_000_000))
    assert first.kernel.name == second.kernel.name
    assert first.blocks < second.blocks


@pytest.mark.parametrize(
    ("shape", "strides", "says"),
    [
        ((4, 4), (4,), r"strides \(4,\) of operand 0, need one of 0 or more for each size of \(4, 4\)"),
        ((4, 4), (4, -1), r"strides \(4, -1\) of operand 0"),
        ((4, 4), (1 << 30, 1), r"operand 0 of shape \(4, 4\), strides \(1073741824, 1\), need 1 to 2147483647 elements"),
        ((4, 0), (4, 1), r"shape \(4, 0\) has 0 elements, need 1 to 2147483647"),
    ],
    ids=["few", "negative", "far", "empty"],
)
def test_arrays_that_kernels_cannot_count_are_refused(shape, strides, says):
    with pytest.raises(CudaError, match=says):
        Map(RELU, shape, Array((4, 1)), (Array(strides),))


def test_more_dimensions_than_a_kernel_has_are_refused():
    shape = (2,) * 8
    apart = Array(tuple(3**d for d in range(8)))
    with pytest.raises(CudaError, match="8 dimensions that do not lie in one another, need 6 at most"):
        Map(RELU, shape, apart, (Array((0, 1) * 4),)).launch(y="y", r0="x")


def test_forms_that_no_kernel_computes_are_refused():
    with pytest.raises(EmitError, match="2 operands of 7 dimensions, need 6 of 6 at most"):
        MapForm(ADD, ("fp32",) * 3, ("run",) * 3, 7, 1)
    with pytest.raises(EmitError, match="there is no gelu"):
        MapForm(Expression((np.dtype(np.int64),), (Apply("gelu", (0,)),)), ("fp32",) * 2, ("run",) * 2, 1, 1)


def test_names_tell_types_apart():
    cast = Expression((FLOAT,), (Apply("cast", (0,), dtype=np.dtype(np.int64)),))
    assert MapForm(cast, ("fp32", "bf16"), ("run", "run"), 1, 8).name.startswith("i64run_map_rank1_run8_bf16run_cast_")
