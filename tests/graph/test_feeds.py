"""Wrong inputs of a run are refused with an error that names the value, the rule and the place."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from graph.errors import FeedError
from graph.ir import Port
from graph.run.feeds import check_feeds
from kernels.spec import STRING

F32, STR = np.dtype(np.float32), STRING
X = Port("x", F32, (2, 3))


def array(*shape: int, dtype=np.float32) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def test_a_fitting_array_is_passed_as_it_is() -> None:
    x = array(2, 3)
    assert check_feeds([X], {"x": x})["x"] is x


def test_feeds_come_back_in_the_order_of_the_ports() -> None:
    ports = [Port(name, F32, ()) for name in "cab"]
    assert list(check_feeds(ports, {name: array() for name in "abc"})) == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("feeds", "says"),
    [
        ({}, r"x: input is missing, the inputs are x: float32\[2,3\] \(feeds\)"),
        ({"y": array(2, 3)}, "x: input is missing"),
        ({"x": array(2, 3), "z": array()}, r"z: no input of that name, the inputs are x: float32\[2,3\] \(feeds\)"),
        ({"x": array(2, 3, dtype=np.float64)}, r"x: dtype is float64, need float32, feeds are never cast \(feeds\)"),
        ({"x": array(2, 3, dtype=np.float16)}, "x: dtype is float16, need float32"),
        ({"x": array(2, 3, dtype=object)}, "x: dtype is object, need float32"),
        ({"x": array(6)}, r"x: shape is \(6,\), rank 1, need rank 2 of x: float32\[2,3\] \(feeds\)"),
        ({"x": array(2, 4)}, r"x: shape is \(2, 4\), need 3 in dimension 1 of x: float32\[2,3\] \(feeds\)"),
        ({"x": array(0, 3)}, "need 2 in dimension 0"),
        ({"x": [[1.0, 2.0, 3.0]] * 2}, r"x: feed is a list, need a numpy array \(feeds\)"),
        ({"x": None}, "x: feed is a NoneType"),
        ({"x": b"\x00" * 24}, "x: feed is a bytes"),
    ],
    ids=["none", "other", "extra", "f64", "f16", "object", "rank", "size", "empty", "list", "null", "bytes"],
)
def test_a_misfit_is_refused(feeds, says) -> None:
    with pytest.raises(FeedError, match=says):
        check_feeds([X], feeds)


def test_the_place_is_the_callers() -> None:
    with pytest.raises(FeedError, match=r"\(request 7\)"):
        check_feeds([X], {}, "request 7")


@pytest.mark.parametrize("value", [array(2, 3).astype(">f4"), np.asfortranarray(array(2, 3)), array(2, 6)[:, ::2]])
def test_foreign_byte_order_and_strides_are_copied(value: np.ndarray) -> None:
    taken = check_feeds([X], {"x": value})["x"]
    assert taken.dtype == F32
    assert taken.dtype.isnative
    assert taken.flags.c_contiguous
    np.testing.assert_array_equal(taken, value)


def test_an_unaligned_array_is_copied() -> None:
    raw = np.zeros(25, np.uint8)[1:].view(np.float32).reshape(2, 3)
    assert not raw.flags.aligned
    assert check_feeds([X], {"x": raw})["x"].flags.aligned


def test_a_numpy_scalar_is_a_rank_0_array() -> None:
    assert check_feeds([Port("x", F32, ())], {"x": np.float32(3)})["x"].shape == ()


def test_bfloat16_is_taken() -> None:
    bf16 = np.dtype(ml_dtypes.bfloat16)
    assert check_feeds([Port("x", bf16, (2,))], {"x": np.ones(2, bf16)})["x"].dtype == bf16


def test_subclasses_of_array_become_plain() -> None:
    class Tagged(np.ndarray):
        pass

    assert type(check_feeds([X], {"x": array(2, 3).view(Tagged)})["x"]) is np.ndarray


@pytest.mark.parametrize("value", [np.array(["a", "bc"]), np.array(["a", "bc"], object)], ids=["unicode", "object"])
def test_strings_are_object_arrays_of_str(value: np.ndarray) -> None:
    taken = check_feeds([Port("s", STR, (2,))], {"s": value})["s"]
    assert taken.dtype == STR
    assert taken.tolist() == ["a", "bc"]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.array([b"a", b"b"]), "s: dtype is bytes8, need strings"),
        (np.array(["a", 1], object), r"s: element \(1,\) is a int, need str in every element"),
        (np.array([1.0, 2.0]), "s: dtype is float64, need strings"),
    ],
    ids=["bytes", "mixed", "floats"],
)
def test_other_things_than_strings_are_refused(value, says) -> None:
    with pytest.raises(FeedError, match=says):
        check_feeds([Port("s", STR, (2,))], {"s": value})


def test_a_named_dimension_is_one_size_everywhere() -> None:
    ports = [Port("a", F32, ("n", 2)), Port("b", F32, (None, "n"))]
    assert check_feeds(ports, {"a": array(3, 2), "b": array(9, 3)})
    with pytest.raises(FeedError, match=r"b: shape is \(9, 4\), need n=3 in dimension 1 as in input a"):
        check_feeds(ports, {"a": array(3, 2), "b": array(9, 4)})


def test_open_rank_takes_any_shape() -> None:
    for shape in [(), (0,), (1, 2, 3)]:
        assert check_feeds([Port("x", F32, None)], {"x": array(*shape)})["x"].shape == shape


@given(hnp.arrays(st.sampled_from(["<f4", ">f4", "<f8", "<i4", "?"]), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0)))
@settings(max_examples=60)
def test_what_is_accepted_has_the_dtype_and_the_values_of_the_feed(value: np.ndarray) -> None:
    port = Port("x", F32, None)
    if value.dtype.newbyteorder("=") == F32:
        np.testing.assert_array_equal(check_feeds([port], {"x": value})["x"], value)
    else:
        with pytest.raises(FeedError, match="dtype"):
            check_feeds([port], {"x": value})
