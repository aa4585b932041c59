"""A View describes the same elements of memory as numpy's view does."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kernels.native.memory.view import View


def of(array: np.ndarray, base: np.ndarray) -> View:
    """Return numpy's view of `base` as a View."""
    offset = (array.ctypes.data - base.ctypes.data) // array.itemsize
    return View(array.shape, tuple(s // array.itemsize for s in array.strides), offset)


def read(view: View, base: np.ndarray) -> np.ndarray:
    strides = tuple(s * base.itemsize for s in view.strides)
    return np.lib.stride_tricks.as_strided(base[view.offset :], view.shape, strides)


@st.composite
def views(draw):
    """Draw an array and a view of it that is transposed and sliced."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    base = np.arange(math.prod(shape), dtype=np.float32)
    view, array = View.dense(shape), base.reshape(shape)
    axes = draw(st.permutations(range(len(shape))))
    view, array = view.transposed(axes), array.transpose(axes)
    axis = draw(st.integers(0, len(shape) - 1))
    start = draw(st.integers(0, array.shape[axis] - 1))
    step = draw(st.integers(1, 2))
    taken = [slice(None)] * array.ndim
    taken[axis] = slice(start, None, step)
    array = array[tuple(taken)]
    return base, array, view.sliced(axis, start, array.shape[axis], step)


@given(views())
def test_transposed_slices_read_what_numpy_reads(case):
    base, array, view = case
    np.testing.assert_array_equal(read(view, base), array)
    assert view.span <= base.size
    assert view.is_dense == (view.offset == 0 and array.flags.c_contiguous)


@given(views(), st.data())
def test_reshaped_is_numpys_view_or_none(case, data):
    base, array, view = case
    left, shape = array.size, []
    while left > 1:
        size = data.draw(st.sampled_from([n for n in range(2, left + 1) if left % n == 0]))
        shape.append(size)
        left //= size
    for place in data.draw(st.lists(st.integers(0, len(shape)), max_size=2)):
        shape.insert(place, 1)
    found = view.reshaped(shape)
    expected = array.reshape(shape)
    if found is not None:
        np.testing.assert_array_equal(read(found, base), expected)
    else:
        assert not np.shares_memory(expected, base)


def test_broadcast_repeats():
    base = np.arange(6, dtype=np.float32)
    np.testing.assert_array_equal(read(View.dense((3, 1)).broadcast((2, 3, 2)), base), np.broadcast_to(base[:3, None], (2, 3, 2)))


def test_picked_drops_the_dimension():
    base = np.arange(24, dtype=np.float32)
    np.testing.assert_array_equal(read(View.dense((2, 3, 4)).picked(1, 2), base), base.reshape(2, 3, 4)[:, 2])


def test_span_of_a_dimension_walked_backwards_reaches_its_beginning():
    view = View.dense((4, 5)).sliced(1, 4, 5, -1)
    assert view.span == 20
    assert View.dense((4, 5)).sliced(0, 3, 2, -2).span == 20
