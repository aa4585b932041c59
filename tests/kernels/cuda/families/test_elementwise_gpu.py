"""Elementwise maps on a GPU against numpy. Results begin as NaN, and so does what lies between them."""

import dataclasses
from math import erf

import numpy as np
import pytest

from kernels.cuda.families.elementwise import Array, Map
from kernels.expression import DOUBLE, FLOAT, Apply, Expression
from kernels.spec import BOOL
from tests.kernels.cuda.families import product_cases as expressions
from tests.kernels.cuda.families.cases import DTYPES, STORAGES, assert_close, draw, poison, strided

pytestmark = pytest.mark.gpu
INT64, INT8 = np.dtype(np.int64), np.dtype(np.int8)


def compute(gpu, expression, shape, result, operands, arrays, y, blocks=None):
    launch = Map(expression, shape, result, operands).launch(y="y", **{f"r{n}": f"r{n}" for n in range(len(operands))})
    memory = {f"r{n}": gpu.upload(array) for n, array in enumerate(arrays)} | {"y": gpu.upload(y)}
    gpu.run(dataclasses.replace(launch, blocks=blocks or launch.blocks), memory)
    return memory["y"].read(y)


LAYOUTS = {
    "dense": ((6, 33, 64), (2112, 64, 1), (2112, 64, 1)),
    "row": ((6, 33, 64), (2112, 64, 1), (0, 0, 1)),
    "column": ((6, 33, 64), (2112, 64, 1), (33, 1, 0)),
    "plane": ((6, 33, 64), (2112, 64, 1), (1, 0, 0)),
    "one": ((6, 33, 64), (2112, 64, 1), (0, 0, 0)),
    "odd": ((5, 7, 13), (91, 13, 1), (0, 13, 1)),
    "exchanged": ((5, 12, 24), (288, 24, 1), (288, 1, 12)),
    "six": ((2, 3, 2, 3, 2, 5), (360, 1, 180, 3, 90, 9), (0, 1, 0, 3, 0, 9)),
    "gaps": ((9, 24), (40, 1), (32, 1)),
    "single": ((1,), (1,), (1,)),
    "large": ((1, 70001), (70001, 1), (0, 1)),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("storage", STORAGES)
def test_broadcasting(gpu, storage, name):
    shape, first, second = LAYOUTS[name]
    sizes = [1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) for strides in (first, second)]
    a, b = draw((sizes[0],), storage), draw((sizes[1],), storage, 1)
    operands = (Array(first, storage), Array(second, storage))
    y = compute(gpu, expressions.ADD_RELU, shape, Array(first, storage), operands, (a, b), poison((sizes[0],), storage))
    left, right = (strided(array.astype(np.float64), shape, s) for array, s in ((a, first), (b, second)))
    assert_close(strided(y, shape, first), np.maximum(left + right, 0), storage)
    strided(y, shape, first)[...] = np.nan
    assert np.isnan(y.astype(np.float32)).all(), "what lies between was written to"


@pytest.mark.parametrize("name", ["silu", "gelu", "clip"])
@pytest.mark.parametrize("storage", STORAGES)
def test_functions(gpu, storage, name):
    expression = {"silu": expressions.SILU, "gelu": expressions.GELU, "clip": expressions.CLIP}[name]
    x = draw((4099,), storage)
    y = compute(gpu, expression, x.shape, Array((1,), storage), (Array((1,), storage),), (x,), poison(x.shape, storage))
    assert_close(y, expressions.apply(expression, x.astype(np.float64)), storage, np.abs(x.astype(np.float64)))


WIDE = {
    "exp": np.exp,
    "sigmoid": lambda x: np.where(x < 0, np.exp(np.minimum(x, 0)), 1) / (1 + np.exp(-np.abs(x))),
    "softplus": lambda x: np.logaddexp(x, 0),
    "erf": np.vectorize(erf),
    "tanh": np.tanh,
}


@pytest.mark.parametrize("name", WIDE)
def test_functions_over_their_whole_range(gpu, name):
    x = np.concatenate([np.linspace(-110, 95, 40001), np.linspace(-1, 1, 4001), [np.inf, -np.inf, np.nan]]).astype(np.float32)
    expression = Expression((FLOAT,), (Apply(name, (0,)),))
    y = compute(gpu, expression, x.shape, Array((1,)), (Array((1,)),), (x,), poison(x.shape))
    with np.errstate(over="ignore", invalid="ignore"):
        truth = WIDE[name](x.astype(np.float64))
    truth = np.where(truth > np.finfo(np.float32).max, np.inf, truth)
    np.testing.assert_allclose(y, truth, rtol=2.0**-20, atol=2.0**-126)


@pytest.mark.parametrize("to", STORAGES)
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("size", [4096, 1001])
def test_casts_between_precisions_are_rounded_to_even(gpu, storage, to, size):
    x = draw((size,), storage)
    y = compute(gpu, expressions_unchanged(), (size,), Array((1,), to), (Array((1,), storage),), (x,), poison((size,), to))
    np.testing.assert_array_equal(y, x.astype(np.float32).astype(DTYPES[to]))


def expressions_unchanged():
    return Expression((FLOAT,))


def test_few_blocks_take_all_runs_in_turn(gpu):
    x = draw((100_003,), "fp32")
    y = compute(gpu, expressions.RELU, x.shape, Array((1,)), (Array((1,)),), (x,), poison(x.shape), blocks=3)
    np.testing.assert_array_equal(y, np.maximum(x, 0))


def test_result_may_be_an_operand(gpu):
    x, other = draw((513, 8), "bf16"), draw((8,), "bf16", 1)
    memory = {"x": gpu.upload(x), "other": gpu.upload(other)}
    operands = (Array((8, 1), "bf16"), Array((0, 1), "bf16"))
    gpu.run(Map(expressions.ADD, x.shape, operands[0], operands).launch(y="x", r0="x", r1="other"), memory)
    assert_close(memory["x"].read(x.copy()), x.astype(np.float64) + other.astype(np.float64), "bf16")


TYPED = {
    "where": Expression((BOOL, FLOAT, FLOAT), (Apply("where", (0, 1, 2)),)),
    "compare": Expression((FLOAT, FLOAT), (Apply("lt", (0, 1)),)),
    "to_int64": Expression((FLOAT,), (Apply("cast", (0,), dtype=INT64),)),
    "of_int64": Expression((INT64, INT64), (Apply("add", (0, 1)), Apply("cast", (2,), dtype=FLOAT))),
    "int8": Expression((INT8, INT8), (Apply("mul", (0, 1)),)),
    "double": Expression((DOUBLE, FLOAT), (Apply("cast", (1,), dtype=DOUBLE), Apply("add", (0, 2)))),
}
NUMPY = {
    "where": np.where,
    "compare": np.less,
    "to_int64": lambda a: a.astype(np.int64),
    "of_int64": lambda a, b: (a + b).astype(np.float32),
    "int8": np.multiply,
    "double": lambda a, b: a + b.astype(np.float64),
}


@pytest.mark.parametrize("size", [96, 35, 1])
@pytest.mark.parametrize("name", TYPED)
def test_other_types(gpu, name, size):
    rng, expression = np.random.default_rng(0), TYPED[name]
    arrays = [
        rng.standard_normal((3, size)).astype(dtype)
        if dtype.kind == "f"
        else rng.integers(0, 2 if dtype == BOOL else 99, (3, size), dtype)
        for dtype in expression.operands
    ]
    truth = NUMPY[name](*arrays)
    rows = Array((size, 1))
    y = compute(gpu, expression, (3, size), rows, (rows,) * len(arrays), arrays, np.full_like(truth, 77))
    np.testing.assert_array_equal(y, truth)
