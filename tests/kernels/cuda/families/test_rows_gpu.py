"""Softmax, norms and reductions of rows and of columns on a GPU against float64."""

import dataclasses
from typing import get_args

import numpy as np
import pytest

from kernels.cuda.emit.epilogue import UNCHANGED
from kernels.cuda.emit.reduce import Reduced
from kernels.cuda.families.columns import Columns
from kernels.cuda.families.rows import RowForm, RowOp, Rows
from tests.kernels.cuda.families import product_cases as expressions
from tests.kernels.cuda.families.cases import STORAGES, assert_close, draw, padded, poison

pytestmark = pytest.mark.gpu
OPS = ("softmax", "log_softmax", "layer_norm", "rms_norm", *get_args(Reduced))
EPSILON = 1e-5


def truth_of(op, x, scale=1.0, bias=0.0, axis=-1):
    """Return the result in float64, and the magnitudes that its errors are relative to."""
    if op in ("softmax", "log_softmax"):
        shifted = x - x.max(axis, keepdims=True)
        total = np.exp(shifted).sum(axis, keepdims=True)
        result = np.exp(shifted) / total if op == "softmax" else shifted - np.log(total)
        return result, np.abs(result) * 4 + (np.abs(x) if op == "log_softmax" else 0)
    if op in ("layer_norm", "rms_norm"):
        centred = x - x.mean(axis, keepdims=True) if op == "layer_norm" else x
        result = centred / np.sqrt(np.square(centred).mean(axis, keepdims=True) + EPSILON) * scale
        return result + bias, np.abs(result) + np.abs(scale) * 8 + np.abs(bias)
    functions = {
        "sum": np.sum,
        "mean": np.mean,
        "max": np.max,
        "min": np.min,
        "sum_square": lambda a, axis: np.square(a).sum(axis),
        "l2": lambda a, axis: np.sqrt(np.square(a).sum(axis)),
    }
    sizes = np.abs(x).sum(axis) / (x.shape[axis] if op == "mean" else 1)
    result = functions[op](x, axis=axis)
    return result, sizes if op in ("sum", "mean") else np.abs(result)


def check(gpu, op, storage, rows, n, *, form=None, to=None, norm=False, residual=False, apart=0, blocks=None):
    to = to or storage
    x = draw((rows, n), storage)
    arrays = {"x": padded(x, n + apart)}
    problem = Rows(rows, n, x_stride=n + apart)
    reduces = op in get_args(Reduced)
    if not reduces:
        problem = dataclasses.replace(problem, y_stride=n + apart)
    expression = UNCHANGED
    if residual:
        other = draw((rows, n), to, 3)
        arrays["r0"] = padded(other, n + apart)
        problem, expression = dataclasses.replace(problem, others=(n + apart,)), expressions.ADD_RELU
    if norm:
        arrays |= {"scale": draw((n,), "fp32", 1), "bias": draw((n,), "fp32", 2)}
    form = form or problem.form(op, storage, to, scale=norm, bias=norm, expression=expression)
    y = poison((rows,) if reduces else (rows, n + apart), to)
    memory = {name: gpu.upload(array) for name, array in (arrays | {"y": y}).items()}
    launch = problem.launch(form, epsilon=EPSILON, **{name: name for name in memory})
    gpu.run(dataclasses.replace(launch, blocks=blocks or launch.blocks), memory)
    found = memory["y"].read(y)
    scales = {name: arrays[name].astype(np.float64) for name in ("scale", "bias") if norm}
    truth, sizes = truth_of(op, x.astype(np.float64), **scales)
    if residual:
        truth = np.maximum(truth + other.astype(np.float64), 0)
        sizes = sizes + np.abs(other.astype(np.float64))
    if not reduces:
        assert np.isnan(found[:, n:].astype(np.float32)).all(), "what lies between rows was written to"
        found = found[:, :n]
    assert_close(found, truth, to, sizes)


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (33, 64), (9, 197), (17, 768), (3, 1000), (2, 4096)], ids=str)
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("op", OPS)
def test_rows(gpu, op, storage, shape):
    check(gpu, op, storage, *shape, norm=op in ("layer_norm", "rms_norm"))


@pytest.mark.parametrize("n", [50257, 131072])
@pytest.mark.parametrize("storage", ["fp32", "bf16"])
@pytest.mark.parametrize("op", ["softmax", "layer_norm", "sum", "max"])
def test_rows_that_no_block_can_hold(gpu, op, storage, n):
    check(gpu, op, storage, 3, n)


@pytest.mark.parametrize(("team", "held"), [(32, 0), (256, 0), (1024, 0), (256, 8), (1024, 2)])
@pytest.mark.parametrize("op", OPS)
def test_every_way_to_share_a_row_gives_the_same(gpu, op, team, held):
    check(gpu, op, "fp32", 11, 1004, form=RowForm(op, "fp32", "fp32", 4, team, held))


@pytest.mark.parametrize("op", ["softmax", "layer_norm"])
def test_rows_that_lie_apart_and_few_blocks(gpu, op):
    check(gpu, op, "bf16", 101, 136, apart=8, blocks=2)
    check(gpu, op, "bf16", 101, 136, apart=3, blocks=2)


@pytest.mark.parametrize("to", ["fp32", "bf16"])
@pytest.mark.parametrize("op", ["softmax", "rms_norm", "mean"])
def test_rows_of_another_precision(gpu, op, to):
    check(gpu, op, "fp16", 7, 264, to=to)


@pytest.mark.parametrize("storage", STORAGES)
def test_residual_and_activation_behind_a_norm(gpu, storage):
    check(gpu, "layer_norm", storage, 19, 96, norm=True, residual=True)


def test_softmax_of_a_row_that_is_all_minus_infinity_is_nan_and_of_large_numbers_is_not(gpu):
    x = np.array([[-np.inf] * 8, [3e38] * 8, [-3e38, 0] * 4], np.float32)
    memory = {"x": gpu.upload(x), "y": gpu.upload(poison((3, 8)))}
    rows = Rows(3, 8)
    gpu.run(rows.launch(rows.form("softmax", "fp32"), x="x", y="y"), memory)
    found = memory["y"].read(np.empty((3, 8), np.float32))
    assert np.isnan(found[0]).all()
    np.testing.assert_allclose(found[1], 1 / 8, rtol=1e-6)
    np.testing.assert_allclose(found[2], [0, 1 / 4] * 4, rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 49, 64), (3, 100, 7), (1, 1000, 72), (5, 3, 2048)], ids=str)
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("op", get_args(Reduced))
def test_columns(gpu, op, storage, shape):
    x, y = draw(shape, storage), poison((shape[0], shape[2]), storage)
    memory = {"x": gpu.upload(x), "y": gpu.upload(y)}
    gpu.run(Columns(*shape).launch(op, storage, x="x", y="y"), memory)
    truth, sizes = truth_of(op, x.astype(np.float64), axis=1)
    assert_close(memory["y"].read(y), truth, storage, sizes)


def test_columns_with_gaps_an_activation_and_few_blocks(gpu):
    x, y = padded(draw((3, 20, 40), "fp16"), 48), poison((3, 56), "fp32")
    memory = {"x": gpu.upload(x), "y": gpu.upload(y)}
    columns = Columns(3, 20, 40, x_stride=48, y_stride=56)
    launch = columns.launch("sum", "fp16", "fp32", expressions.RELU, x="x", y="y")
    gpu.run(dataclasses.replace(launch, blocks=2), memory)
    found, values = memory["y"].read(y), x[..., :40].astype(np.float64)
    assert_close(found[:, :40], np.maximum(values.sum(1), 0), "fp32", np.abs(values).sum(1))
    assert np.isnan(found[:, 40:]).all()


def test_every_operation_of_rows_is_tested():
    names = {name for part in get_args(RowOp) for name in (get_args(part) or (part,))}
    assert names == set(OPS)
