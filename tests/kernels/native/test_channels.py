from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.native.errors import EmitError
from kernels.native.families.channels import Channels, emit_channels
from kernels.native.memory.image import Image
from kernels.native.target.isa import ISAS
from tests.kernels.native.reference import run_kernel


def check(what: Channels, isa, like=None) -> None:
    """Assert that every channel of y is the one that `what.order` names, and that nothing behind y is written.

    like: run the code of that kernel.
    """
    rng = np.random.default_rng(0)
    pixels, memories = [], []
    for x in what.xs:
        array = rng.integers(-90, 90, (x.batch, x.channels, x.height, x.width)).astype(what.dtype)
        memory = np.empty(x.elements, what.dtype)
        memory.view(np.uint8)[:] = 0xA5
        x.view(memory)[...] = 0
        x.store(array, memory)
        pixels.append(array)
        memories.append(memory)
    y = np.empty(what.y.elements + 32, what.dtype)
    y.view(np.uint8)[:] = 0xA5
    kernel = emit_channels(what, isa)
    if like is not None:
        assert kernel.name == like.name
        kernel = replace(kernel, emit=like.emit)
    run_kernel(kernel, isa, y=y, **{f"x{n}": memory for n, memory in enumerate(memories)})
    wanted = np.stack([pixels[number][:, channel] for number, channel in what.order], 1)
    np.testing.assert_array_equal(what.y.load(y), wanted)
    assert (y[what.y.elements :].view(np.uint8) == 0xA5).all()


def shuffled(channels: int, groups: int):
    return tuple((0, i) for i in np.arange(channels).reshape(groups, -1).T.ravel().tolist())


@pytest.mark.parametrize(("channels", "groups"), [(48, 2), (116, 2), (24, 3), (240, 8), (6, 6), (5, 1)])
def test_shuffles_of_channels(isa, channels, groups):
    image = Image.blocked(2, channels, 3, 5, isa.lanes)
    check(Channels((image,), image, shuffled(channels, groups)), isa)


def test_code_of_one_size_shuffles_others(isa):
    """Images of any size, and any number of channels that are a multiple of two blocks of each group."""
    shuffles = []
    for batch, blocks, height, width in ((1, 2, 3, 5), (2, 4, 1, 1), (1, 8, 50, 47)):
        image = Image.blocked(batch, 2 * blocks * isa.lanes, height, width, isa.lanes)
        shuffles.append(Channels((image,), image, shuffled(image.channels, 2)))
    like = emit_channels(shuffles[0], isa)
    for what in shuffles[1:]:
        check(what, isa, like)


def large(isa):
    image = Image.blocked(2, isa.lanes + 2, 50, 47, isa.lanes)
    return Channels((image,), image, shuffled(isa.lanes + 2, 2))


def test_large_images_are_cut_into_chunks(machine):
    assert emit_channels(large(machine), machine).chunks == 2 * 2 * 2


def test_chunks_of_large_images_are_the_whole(isa):
    check(large(isa), isa)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_channels_of_any_images(isa, data):
    n, height, width = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 5)))
    dtype = np.dtype(data.draw(st.sampled_from([np.float32, np.int8, np.int64])))
    sizes = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    xs = tuple(Image.blocked(n, size, height, width, isa.lanes) for size in sizes)
    every = [(number, channel) for number, size in enumerate(sizes) for channel in range(size)]
    order = tuple(data.draw(st.lists(st.sampled_from(every), min_size=1, max_size=50)))
    check(Channels(xs, Image.blocked(n, len(order), height, width, isa.lanes), order, dtype), isa)


def test_images_and_channels_that_do_not_fit_are_refused():
    isa, image = ISAS["avx2"], Image.blocked(1, 8, 3, 3, 8)
    with pytest.raises(EmitError, match="need the same pixels"):
        emit_channels(Channels((Image.blocked(1, 8, 3, 4, 8),), image, shuffled(8, 2)), isa)
    with pytest.raises(EmitError, match=r"no \(image, channel\) \[\(0, 8\)\]"):
        emit_channels(Channels((image,), image, (*shuffled(8, 2)[:7], (0, 8))), isa)
    with pytest.raises(EmitError, match="y has 8, 7 are named"):
        emit_channels(Channels((image,), image, shuffled(8, 2)[:7]), isa)
    large = Image.blocked(1, 8 * 90, 1, 1, 8)
    anyhow = tuple((0, int(channel)) for channel in np.random.default_rng(0).permutation(8 * 90))
    with pytest.raises(EmitError, match="runs of blocks, need at most 64"):
        emit_channels(Channels((large,), large, anyhow), isa)


@pytest.mark.parametrize(("order", "most"), [(shuffled(2048, 2), 4), (shuffled(464, 2), 6), (shuffled(240, 3), 6),
                                             (tuple((0, n) for n in range(3, 500)), 2)])  # fmt: skip
def test_code_grows_with_runs_and_not_with_blocks(order, most):
    """What is emitted is as large as a few blocks of code."""
    image = Image.blocked(1, 2048, 1, 1, 8)
    kernel = emit_channels(Channels((image,), Image.blocked(1, len(order), 1, 1, 8), order), ISAS["avx2"])
    assert kernel.ir.count("store <8 x i32>") <= most
