"""The attributes of windows are declared once and resolved to paddings and positions."""

import pytest

from kernels.errors import AttributeValueError, ShapeError, UnsupportedError
from kernels.registry import find
from kernels.windows import Sliding, window

SLIDING = {"auto_pad": "NOTSET", "dilations": None, "pads": None, "strides": None}


def test_every_convolution_and_pool_declares_the_same_attributes() -> None:
    for name in ("AveragePool", "Conv", "ConvInteger", "ConvTranspose", "LpPool", "MaxPool", "QLinearConv"):
        defaults = find(name).defaults
        assert {key: defaults[key] for key in SLIDING} == SLIDING
        required = [key for key, value in defaults.items() if key == "kernel_shape" and value is not None]
        assert list(defaults) == [*required, *sorted(set(defaults) - set(required))], "required first, then by name"


def test_an_op_may_declare_some_of_them() -> None:
    assert set(SLIDING) - set(find("DeformConv").defaults) == {"auto_pad"}
    with pytest.raises(UnsupportedError, match="attribute 'auto_pad' is unknown"):
        find("DeformConv").bind({"auto_pad": "VALID"})


@pytest.mark.parametrize(("auto_pad", "begin", "end"), [("SAME_UPPER", 0, 1), ("SAME_LOWER", 1, 0), ("VALID", 0, 0)])
def test_padding_that_follows_from_the_sizes(auto_pad: str, begin: int, end: int) -> None:
    view = window("Pool", (5,), (2,), Sliding(auto_pad=auto_pad, pads=(3, 3)))
    assert (view.begin, view.end) == ((begin,), (end,))
    assert view.out == (5 if auto_pad != "VALID" else 4,)


def test_a_window_that_does_not_fit_is_refused() -> None:
    with pytest.raises(AttributeValueError, match=r"Pool: auto_pad is 'SAME', need one of"):
        window("Pool", (5,), (2,), Sliding(auto_pad="SAME"))
    with pytest.raises(AttributeValueError, match=r"Pool: pads is \[1\], need 2 sizes ≥ 0"):
        window("Pool", (5,), (2,), Sliding(pads=(1,)))
    with pytest.raises(AttributeValueError, match=r"Pool: strides is \[0\], need 1 sizes ≥ 1"):
        window("Pool", (5,), (2,), Sliding(strides=(0,)))
    with pytest.raises(ShapeError, match=r"a window of 9 is wider than the input 5 padded by 1 and 1"):
        window("Pool", (5,), (5,), Sliding(dilations=(2,), pads=(1, 1)))
