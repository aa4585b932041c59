import math

from hypothesis import given
from hypothesis import strategies as st

from kernels.native.emit.nest import Axis, Nest, chunk_count, cut, make_nest
from kernels.native.memory.view import View


def test_axes_that_follow_each_other_in_every_view_are_one():
    nest = make_nest([View.dense((2, 3, 4, 5)), View.dense((2, 3, 4, 5)), View.dense((3, 1, 1)).broadcast((2, 3, 4, 5))])
    assert nest.axes == (Axis(2, (60, 60, 0)), Axis(3, (20, 20, 1)), Axis(20, (1, 1, 0)))
    assert make_nest([View.dense((2, 3, 4))] * 2).axes == (Axis(1, (0, 0)), Axis(24, (1, 1)))


def test_axes_are_in_the_order_of_what_is_written():
    y = View.dense((4, 3, 2)).transposed((2, 0, 1))
    assert [axis.size for axis in make_nest([y, View((2, 4, 3), (100, 7, 30))]).axes] == [4, 3, 2]


def test_what_is_written_backwards_is_walked_forwards():
    nest = make_nest([View((5,), (-1,), 4), View((5,), (3,), 2)])
    assert nest.columns == Axis(5, (1, -3))
    assert nest.offsets == (0, 14)


def test_rows_are_where_an_operand_lies_contiguous_that_does_not_along_the_columns():
    x = View.dense((6, 5, 4)).transposed((2, 1, 0))
    nest = make_nest([View.dense((4, 5, 6)), x])
    assert (nest.rows.size, nest.columns.size, nest.turned) == (4, 6, {1})


UNITS = st.tuples(st.integers(1, 16), st.integers(1, 64))


@given(st.lists(st.integers(1, 70), min_size=2, max_size=4), UNITS, st.integers(1, 100_000), st.booleans())
def test_chunks_are_whole_tiles_of_about_the_budget(sizes, units, budget, turned):
    nest = Nest(tuple(Axis(size, (1,)) for size in sizes), (0,), frozenset({1}) if turned else frozenset())
    pieces = cut(nest, units, budget)
    every = [1] * (len(sizes) - 2) + [*units]
    assert all(piece == size or piece % unit == 0 for piece, size, unit in zip(pieces, sizes, every, strict=True))
    assert math.prod(pieces) <= max(budget, math.prod(units))
    assert chunk_count(nest.sizes, pieces) >= math.prod(sizes) / math.prod(pieces)
