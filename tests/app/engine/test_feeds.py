import numpy as np
import pytest

from app.engine.feeds import make_feeds, rows_of, smallest_shapes
from graph.errors import FeedError
from graph.ir import Port
from kernels.spec import STRING

X = Port("x", np.dtype(np.float32), (None, 3, None))
FIXED = Port("w", np.dtype(np.int64), (2,))
NAMED = Port("z", np.dtype(np.float32), ("batch", 4, "seq"))
RANKLESS = Port("r", np.dtype(np.float32), None)


def test_random_inputs_take_the_smallest_shapes_or_the_rows_asked_for():
    assert {name: array.shape for name, array in make_feeds([X, FIXED], {}, {}, None).items()} == {"x": (1, 3, 1), "w": (2,)}
    feeds = make_feeds([X, FIXED], {}, {}, 8)
    assert (feeds["x"].shape, feeds["w"].shape, rows_of([X, FIXED], feeds)) == ((8, 3, 1), (2,), 8)


def test_a_shape_gives_the_other_dimensions():
    assert make_feeds([X], {}, {"x": (5, 3, 7)}, None)["x"].shape == (5, 3, 7)
    assert make_feeds([X], {}, {"x": (5, 3, 7)}, 2)["x"].shape == (2, 3, 7)


def test_own_arrays_are_sent_as_they_are_or_repeated_to_the_rows():
    own = np.arange(6, dtype=np.float32).reshape(2, 3, 1)
    np.testing.assert_array_equal(make_feeds([X], {"x": own}, {}, None)["x"], own)
    np.testing.assert_array_equal(make_feeds([X], {"x": own}, {}, 3)["x"], own[[0, 1, 0]])
    np.testing.assert_array_equal(make_feeds([X], {"x": own}, {}, 1)["x"], own[:1])


def test_strings():
    assert make_feeds([Port("t", STRING, (None,))], {}, {}, 2)["t"].tolist() == ["", ""]


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({"y": np.zeros((1, 3, 1), np.float32)}, "no input of that name"),
        ({"x": np.zeros((1, 3, 1), np.float64)}, "never cast"),
        ({"x": np.zeros((1, 4, 1), np.float32)}, "need 3 in dimension 1"),
        ({"x": np.float32(1)}, "rank 0"),
    ],
)
@pytest.mark.parametrize("rows", [None, 2])
def test_arrays_that_are_not_the_model_s(own, says, rows):
    with pytest.raises(FeedError, match=says):
        make_feeds([X], own, {}, rows)


def test_rows_where_no_input_has_any():
    with pytest.raises(FeedError, match=r"batch of 2 rows: no input has an open first dimension \(w: int64"):
        make_feeds([FIXED], {}, {}, 2)
    assert rows_of([FIXED], make_feeds([FIXED], {}, {}, 1)) == 1


def test_named_dimensions_are_open():
    assert smallest_shapes([NAMED, FIXED, RANKLESS]) == {"z": (1, 4, 1), "w": (2,)}
    assert make_feeds([NAMED], {}, {}, 3)["z"].shape == (3, 4, 1)


def test_an_input_of_unknown_rank_needs_a_shape_or_an_array():
    with pytest.raises(FeedError, match="input 'r': its rank is open, give --shape r="):
        make_feeds([RANKLESS], {}, {})
    assert make_feeds([RANKLESS], {}, {"r": (2, 2)})["r"].shape == (2, 2)
    assert make_feeds([RANKLESS], {"r": np.zeros(5, np.float32)}, {})["r"].shape == (5,)
