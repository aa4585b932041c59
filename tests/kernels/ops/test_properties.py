"""Rules that hold for any shape and value, against the plainest statement of each."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kernels.errors import IndexRangeError, ShapeError
from kernels.operands import broadcast
from kernels.registry import evaluate, find
from kernels.spec import Array, Spec

FEW = settings(max_examples=60, deadline=None)
SIZES = st.integers(0, 5)
SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=5)
BOUNDS = st.one_of(st.integers(-9, 9), st.sampled_from([-(2**63), 2**63 - 1, -(2**31), 2**31 - 1]))


def run(name: str, *inputs: Any, **attrs: Any) -> Array:
    return evaluate(find(name), [None if x is None else np.asarray(x) for x in inputs], attrs)[0]


def numbered(shape: tuple[int, ...]) -> Array:
    return np.arange(math.prod(shape), dtype=np.float32).reshape(shape)


@FEW
@given(hnp.mutually_broadcastable_shapes(num_shapes=3, max_dims=4, max_side=4))
def test_broadcast_is_numpys(shapes):
    assert broadcast("x", *shapes.input_shapes) == shapes.result_shape


@FEW
@given(hnp.array_shapes(max_dims=4, max_side=4), hnp.array_shapes(max_dims=4, max_side=4))
def test_broadcast_refuses_what_numpy_refuses(a, b):
    try:
        expected = np.broadcast_shapes(a, b)
    except ValueError:
        with pytest.raises(ShapeError):
            broadcast("x", a, b)
    else:
        assert broadcast("x", a, b) == expected


def _sliced(size: int, start: int, end: int, step: int) -> list[int]:
    """Return the indices of a slice as ONNX defines them.

    The size is added to negative bounds. Then the start is clamped to [0, size] or, with a negative step, to [0, size - 1],
    and the end to [0, size] or [-1, size - 1].
    """
    start, end = (bound + size if bound < 0 else bound for bound in (start, end))
    if step > 0:
        return list(range(min(max(start, 0), size), min(max(end, 0), size), step))
    return list(range(min(max(start, 0), size - 1), min(max(end, -1), size - 1), step)) if size else []


@FEW
@given(SIZES, BOUNDS, BOUNDS, st.integers(-4, 4).filter(bool))
def test_slice_takes_what_the_definition_names(size, start, end, step):
    x = numbered((2, size))
    y = run("Slice", x, [start], [end], [1], [step])
    np.testing.assert_array_equal(y, x[:, _sliced(size, start, end, step)])


@FEW
@given(SHAPES, st.data())
def test_transpose_back_and_forth_is_identity(shape, data):
    perm = tuple(data.draw(st.permutations(range(len(shape)))))
    back = tuple(int(i) for i in np.argsort(perm))
    x = numbered(shape)
    np.testing.assert_array_equal(run("Transpose", run("Transpose", x, perm=perm), perm=back), x)


@FEW
@given(SHAPES, st.data())
def test_split_then_concat_is_identity(shape, data):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    cuts = sorted(data.draw(st.lists(st.integers(0, shape[axis]), max_size=3)))
    sizes = np.diff([0, *cuts, shape[axis]]).astype(np.int64)
    x = numbered(shape)
    parts = evaluate(find("Split"), [x, sizes], {"axis": axis})
    np.testing.assert_array_equal(run("Concat", *parts, axis=axis), x)


@FEW
@given(SHAPES, st.data(), st.sampled_from(["constant", "reflect", "edge", "wrap"]))
def test_pad_is_numpys(shape, data, mode):
    before, after = (data.draw(st.lists(st.integers(0, 7), min_size=len(shape), max_size=len(shape))) for _ in range(2))
    assume(mode != "reflect" or min(shape) > 1)
    x = numbered(shape)
    expected = np.pad(x, list(zip(before, after, strict=True)), mode=mode)
    np.testing.assert_array_equal(run("Pad", x, np.array([*before, *after], np.int64), mode=mode), expected)


@FEW
@given(SHAPES, st.data())
def test_pad_undoes_itself(shape, data):
    pads = np.array(data.draw(st.lists(st.integers(0, 4), min_size=2 * len(shape), max_size=2 * len(shape))), np.int64)
    x = numbered(shape)
    np.testing.assert_array_equal(run("Pad", run("Pad", x, pads), -pads), x)


@FEW
@given(SHAPES, st.data(), st.sampled_from(["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"]))
def test_reduction_is_numpys(shape, data, name):
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True))
    keep = data.draw(st.booleans())
    x = np.random.default_rng(1).uniform(0.5, 1.5, shape)
    plain = {"ReduceSum": np.sum, "ReduceMean": np.mean, "ReduceMax": np.max, "ReduceMin": np.min, "ReduceProd": np.prod}[name]
    y = run(name, x, np.array(axes, np.int64), keepdims=int(keep))
    np.testing.assert_allclose(y, plain(x, axis=tuple(axes), keepdims=keep), rtol=1e-12)


def test_unpooled_maxima_are_where_they_were():
    x = np.random.default_rng(3).permutation(2 * 3 * 7 * 6).astype(np.float32).reshape(2, 3, 7, 6) + 1
    window = {"kernel_shape": (2, 3), "strides": (2, 3)}
    maxima, places = evaluate(find("MaxPool"), [x], window)
    y = run("MaxUnpool", maxima, places, np.array(x.shape), **window)
    np.testing.assert_array_equal(y, np.where(np.isin(x, maxima), x, 0))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (9,)], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_power_is_cs_however_the_exponents_lie(dtype, shape):
    numbers = [0.0, -0.0, 1.0, -1.0, 4.0, -2.0, math.inf, -math.inf, math.nan]
    for exponent in [*numbers, 0.5, -0.5, 3.0]:
        y = run("Pow", np.array(numbers, dtype), np.full(shape, exponent, dtype)).ravel()
        expected = np.array([_c_power(x, exponent) for x in numbers])
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(np.signbit(y)[~np.isnan(expected)], np.signbit(expected)[~np.isnan(expected)])


def _c_power(x: float, y: float) -> float:
    """Return C's pow(x, y), where Python raises: a pole, or a root of a negative number."""
    try:
        return math.pow(x, y)
    except ValueError:
        if x:
            return math.nan
        return math.copysign(math.inf, x) if y % 2 == 1 else math.inf


@FEW
@given(st.integers(-128, 127), st.integers(-128, 127).filter(bool))
def test_integer_division_truncates_and_leaves_the_fmod(a, b):
    assume((a, b) != (-128, -1))  # the one quotient int8 cannot hold
    x, y = np.array(a, np.int8), np.array(b, np.int8)
    quotient = int(run("Div", x, y))
    assert quotient == int(a / b)
    assert quotient * b + int(run("Mod", x, y, fmod=1)) == a
    assert int(run("Mod", x, y)) == a % b


@FEW
@given(SHAPES, st.data())
def test_gather_with_every_index_is_identity(shape, data):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x, size = numbered(shape), shape[axis]
    np.testing.assert_array_equal(run("Gather", x, np.arange(size), axis=axis), x)
    np.testing.assert_array_equal(run("Gather", x, np.arange(-size, 0), axis=axis), x)


@FEW
@given(SHAPES, st.data())
def test_scatter_elements_undoes_gather_elements(shape, data):
    axis = data.draw(st.integers(0, len(shape) - 1))
    x = numbered(shape)
    order = np.argsort(np.random.default_rng(2).random(shape), axis=axis)
    taken = run("GatherElements", x, order, axis=axis)
    np.testing.assert_array_equal(run("ScatterElements", np.zeros_like(x), order, taken, axis=axis), x)


@FEW
@given(SHAPES, st.data())
def test_topk_of_everything_sorts(shape, data):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    largest = data.draw(st.booleans())
    x = np.random.default_rng(3).integers(0, 4, shape).astype(np.float32)
    values, indices = evaluate(find("TopK"), [x, np.array([shape[axis]])], {"axis": axis, "largest": int(largest)})
    expected = np.sort(x, axis)
    np.testing.assert_array_equal(values, np.flip(expected, axis) if largest else expected)
    np.testing.assert_array_equal(np.take_along_axis(x, indices, axis), values)


@FEW
@given(SHAPES)
def test_nonzero_finds_its_elements(shape):
    x = (np.random.default_rng(4).random(shape) > 0.5).astype(np.float32)
    found = run("NonZero", x)
    assert (x[tuple(found)] != 0).all()
    assert found.shape == (x.ndim, np.count_nonzero(x))


@FEW
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.sampled_from(["DCR", "CRD"]))
def test_depth_to_space_undoes_space_to_depth(c, h, w, block, mode):
    x = numbered((2, c, h * block, w * block))
    deep = run("SpaceToDepth", x, blocksize=block, mode=mode)
    np.testing.assert_array_equal(run("DepthToSpace", deep, blocksize=block, mode=mode), x)


@FEW
@given(SHAPES, st.sampled_from(["nearest", "linear", "cubic"]), st.sampled_from(["half_pixel", "align_corners", "asymmetric"]))
def test_resize_to_the_same_size_is_identity(shape, mode, coordinates):
    x = numbered(shape)
    sizes = np.array(shape, np.int64)
    np.testing.assert_array_equal(run("Resize", x, None, None, sizes, mode=mode, coordinate_transformation_mode=coordinates), x)


@FEW
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from(["linear", "cubic"]), st.booleans())
def test_resize_keeps_a_constant(size, wanted, mode, antialias):
    x = np.full((1, 1, size), 3.5, np.float32)
    y = run("Resize", x, None, None, np.array([1, 1, wanted]), mode=mode, antialias=int(antialias))
    np.testing.assert_allclose(y, 3.5, rtol=1e-6)


@FEW
@given(st.integers(1, 40), st.booleans())
def test_inverse_dft_undoes_dft(points, onesided):
    x = np.random.default_rng(5).standard_normal((2, points, 1))
    there = run("DFT", x, onesided=int(onesided))
    back = run("DFT", there, np.array(points), inverse=1, onesided=int(onesided))
    np.testing.assert_allclose(back[..., 0], x[..., 0], atol=1e-12)


def _without_values(name: str, *inputs: Array, **attrs: Any) -> None:
    """Infer the outputs' specs without the inputs' values, then run with the values."""
    op = find(name)
    bound = op.bind(attrs)
    out = op.infer_specs([Spec(x.shape, x.dtype) for x in inputs], bound)
    op.kernels[0].run(tuple(np.empty(spec.shape, spec.dtype) for spec in out), *inputs, **bound)


X = numbered((3, 4))
ONE_TOO_FAR: list[tuple[str, tuple[Array, ...], dict[str, Any]]] = [
    ("Gather", (X, np.array([3])), {}),
    ("Gather", (X, np.array([-5])), {"axis": 1}),
    ("GatherElements", (X, np.array([[3, 0, 0, 0]])), {}),
    ("GatherND", (X, np.array([[2, 4]])), {}),
    ("ScatterElements", (X, np.array([[-4]]), X[:1, :1]), {}),
    ("ScatterND", (X, np.array([[0, -5]]), X[0, :1]), {}),
    ("TensorScatter", (X[None], X[None, :2], np.array([2])), {"axis": 1}),
    ("ReverseSequence", (X, np.array([1, 4, 1, 1])), {}),
]


@pytest.mark.parametrize(("name", "inputs", "attrs"), ONE_TOO_FAR, ids=[f"{c[0]}-{i}" for i, c in enumerate(ONE_TOO_FAR)])
def test_index_outside_is_refused_at_run_time(name, inputs, attrs):
    """An index tensor computed by the model reaches no memory but the data's."""
    with pytest.raises(IndexRangeError, match=name):
        _without_values(name, *inputs, **attrs)


def test_random_ops_repeat_with_a_seed_and_differ_without():
    op = find("RandomNormal")
    seeded = [evaluate(op, [], {"shape": (8,), "seed": 4.0})[0] for _ in range(2)]
    free = [evaluate(op, [], {"shape": (8,)})[0] for _ in range(2)]
    np.testing.assert_array_equal(seeded[0], seeded[1])
    assert not np.array_equal(free[0], free[1])


def test_bernoulli_follows_the_probability():
    x = np.array([[0.0] * 4000, [0.25] * 4000, [1.0] * 4000], np.float32)
    drawn = run("Bernoulli", x, seed=1.0).mean(1)
    assert drawn[0] == 0
    assert drawn[2] == 1
    assert abs(drawn[1] - 0.25) < 0.03


def test_multinomial_follows_the_probabilities():
    x = np.log(np.array([[0.2, 0.5, 0.3]], np.float32))
    drawn = run("Multinomial", x, sample_size=6000, seed=1.0)[0]
    np.testing.assert_allclose(np.bincount(drawn, minlength=3) / 6000, [0.2, 0.5, 0.3], atol=0.03)
