"""The address arithmetic of GPU kernels, compiled for this machine and compared with a convolution's definition."""

import ctypes

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.cuda.emit.descriptor import Fields
from kernels.cuda.emit.source import Rows, Windows
from kernels.cuda.families.problem import Problem, Window, describe_window
from kernels.cuda.families.product import ProductDescriptor
from kernels.native.emit.types import I32, I64
from tests.kernels.cuda.families.host import build
from tests.kernels.cuda.families.product_cases import patches

SOURCES = {"windows": Windows, "rows": lambda fields: Rows(fields, "m", "x_stride")}


@pytest.fixture(scope="module")
def places():
    """By source: a function that returns the offset of every element, and -1 where there is none."""
    made = {}
    for name, source in SOURCES.items():

        def emit(k, descriptor, out, rows, depth, source=source):
            factor = source(Fields(k, descriptor, ProductDescriptor))
            with k.loop("row", 0, rows) as m, k.loop("depth", 0, depth) as d:
                parts = factor.row(k.convert("trunc", m, I32)), factor.depth(k.convert("trunc", d, I32))
                offset, valid = factor.place(*parts)
                k.store(k.select(valid, k.convert("sext", offset, I64), k.const(I64, -1)), out, m * depth + d)

        made[name] = build(emit)

    def find(name, descriptor, rows, depth):
        out = np.empty((rows, depth), np.int64)
        made[name](ctypes.addressof(descriptor), out.ctypes.data, rows, depth)
        return out

    return find


def gather(x, places):
    """Return what a kernel copies: the elements at those offsets, and 0 where there is none."""
    return np.where(places < 0, 0, x.reshape(-1)[np.maximum(places, 0)])


@st.composite
def windows(draw):
    size = st.integers(1, 9)
    pair = st.tuples(st.integers(1, 4), st.integers(1, 4))
    small = st.integers(0, 3)
    window = Window(
        draw(st.integers(1, 3)), draw(size), draw(size), draw(st.integers(1, 5)), draw(pair), draw(st.tuples(size, size)),
        draw(st.tuples(small, small, small, small)), draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
    )  # fmt: skip
    return window if min(window.out) > 0 else None


@settings(max_examples=300, deadline=None)
@given(window=windows().filter(lambda window: window is not None), spare=st.integers(0, 3), seed=st.integers(0, 99))
def test_windows_find_every_element_of_a_convolution(places, window, spare, seed):
    problem = Problem.convolution(window, 4, x_stride=window.channels + spare)
    x = np.full((window.batch, window.height, window.width, window.channels + spare), np.nan)
    x[..., : window.channels] = np.random.default_rng(seed).standard_normal(x[..., : window.channels].shape)
    descriptor = ProductDescriptor(m=problem.m, k=problem.k, x_stride=problem.strides[0])
    describe_window(descriptor, window)
    found = gather(x, places("windows", descriptor, problem.m + 3, problem.k + 3))
    np.testing.assert_array_equal(found[: problem.m, : problem.k], patches(x[..., : window.channels], window))
    assert not found[problem.m :].any(), "rows beyond the last count as 0"
    assert not found[:, problem.k :].any(), "depth beyond the last counts as 0"


def test_rows_end_where_the_matrix_does(places):
    x = np.arange(1, 36.0).reshape(5, 7)
    found = gather(x, places("rows", ProductDescriptor(m=5, k=6, x_stride=7), 8, 9))
    np.testing.assert_array_equal(found[:5, :6], x[:, :6])
    assert not found[5:].any()
    assert not found[:, 6:].any()


@settings(max_examples=500, deadline=None)
@given(divisor=st.integers(1, 2**31 - 1), quotient=st.integers(0, 2**31 - 1), near=st.sampled_from([-1, 0, 1]))
def test_divisors_divide_exactly(divisor, quotient, near):
    descriptor = ProductDescriptor()
    descriptor.set_divisor("tiles", divisor)
    for dividend in (min(max(quotient * divisor + near, 0), 2**31 - 1), quotient, 2**31 - 1):
        assert dividend * descriptor.tiles_factor >> descriptor.tiles_shift == dividend // divisor
    assert descriptor.tiles_factor < 2**32
