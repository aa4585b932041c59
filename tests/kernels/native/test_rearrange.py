import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.native.errors import EmitError
from kernels.native.families.elementwise import emit_map
from kernels.native.families.rearrange import convert_image, pad_tensor
from kernels.native.memory.image import Image
from kernels.native.memory.view import View
from tests.kernels.native.reference import place, run_kernel


def images(n, c, h, w, lanes):
    padded = Image.blocked(n, c, h + 2, w + 3, lanes)
    inside = Image(n, c, h, w, lanes, padded.n_stride, padded.block_stride, padded.y_stride, padded.x_stride)
    return {"nchw": Image.nchw(n, c, h, w), "nhwc": Image.nhwc(n, c, h, w), "slice": Image.nhwc(n, c, h, w, c + 3),
            "blocked": Image.blocked(n, c, h, w, lanes), "padded": inside}  # fmt: skip


@pytest.mark.parametrize("size", [(1, 3, 5, 7), (2, 16, 4, 4), (1, 40, 3, 9), (2, 37, 7, 1)], ids=str)
@pytest.mark.parametrize("target", ["nchw", "nhwc", "slice", "blocked", "padded"])
@pytest.mark.parametrize("source", ["nchw", "nhwc", "slice", "blocked", "padded"])
def test_images_are_converted_between_layouts(isa, size, source, target):
    x, y = images(*size, isa.lanes)[source], images(*size, isa.lanes)[target]  # type: ignore[call-arg]
    pixels = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    memory = np.full(y.elements + 64, np.nan, np.float32)
    for each in convert_image(x, y):
        run_kernel(emit_map(each, isa), isa, x0=place(x, pixels), y=memory)
    np.testing.assert_array_equal(y.load(memory), pixels)
    assert np.isnan(memory).sum() == memory.size - pixels.size


def test_images_of_other_sizes_or_other_blocks_are_refused():
    with pytest.raises(EmitError, match="need the same"):
        convert_image(Image.nchw(1, 3, 4, 5), Image.nchw(1, 3, 5, 4))
    with pytest.raises(EmitError, match="do not fit blocks of 16"):
        convert_image(Image.blocked(1, 64, 4, 5, 8), Image.blocked(1, 64, 4, 5, 16))


def padded(x, pads, mode, value, isa):
    """Run the maps of `pad_tensor` and return the result. Assert that they write each element once and nothing behind y."""
    shape = [size + low + high for size, (low, high) in zip(x.shape, pads, strict=True)]
    y = np.full(np.prod(shape) + 16, np.nan, np.float32)
    maps = pad_tensor(View.dense(x.shape), View.dense(shape), [low for low, _ in pads], mode, value)
    assert sum(each.y.view.size for each in maps) == np.prod(shape)
    for each in reversed(maps):
        run_kernel(emit_map(each, isa), isa, y=y, **({"x0": x} if each.operands else {}))
    assert np.isnan(y[np.prod(shape) :]).all()
    return y[: np.prod(shape)].reshape(shape)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_padding_is_numpys(isa, data):
    shape = data.draw(st.lists(st.integers(3, 20), min_size=1, max_size=3))
    pads = [data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2))) for _ in shape]
    mode = data.draw(st.sampled_from(["constant", "edge", "reflect", "wrap"]))
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    more = {"constant_values": 0.5} if mode == "constant" else {}
    np.testing.assert_array_equal(padded(x, pads, mode, 0.5, isa), np.pad(x, pads, mode, **more))


def test_constant_padding_cuts_where_it_is_negative(isa):
    x = np.arange(30, dtype=np.float32).reshape(5, 6)
    np.testing.assert_array_equal(
        padded(x, [(-1, 2), (1, -3)], "constant", 7, isa), np.pad(x[1:, :3], ((0, 2), (1, 0)), constant_values=7)
    )
    assert (padded(x, [(-7, 4), (0, 0)], "constant", 7, isa) == 7).all()
    assert (padded(np.empty((0, 3), np.float32), [(1, 1), (0, 1)], "constant", 7, isa) == 7).all()


@pytest.mark.parametrize(("mode", "pads"), [("reflect", (4, 0)), ("wrap", (0, 5)), ("edge", (-1, 2)), ("reflect", (0, -1))])
def test_padding_that_has_nothing_to_show_is_refused(mode, pads):
    with pytest.raises(EmitError, match="pad: "):
        pad_tensor(View.dense((4,)), View.dense((4 + sum(pads),)), [pads[0]], mode)
    with pytest.raises(EmitError, match="no element"):
        pad_tensor(View.dense((0,)), View.dense((2,)), [1], "edge")
