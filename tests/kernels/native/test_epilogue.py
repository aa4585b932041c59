"""Tests of the types of epilogues, and of operands that are not float32."""

import numpy as np
import pytest

from kernels.expression import DOUBLE, FLOAT, Apply, Draft, Expression
from kernels.native.emit.epilogue import Epilogue
from kernels.native.emit.geometry import Conv
from kernels.native.errors import EmitError
from kernels.native.families.conv import emit_conv, make_tile, pack_weights
from kernels.native.families.elementwise import Map, Strided, emit_map
from kernels.native.families.normalize import Rows, emit_rows
from kernels.native.families.pool import Pooling, emit_pooling
from kernels.native.memory.image import Image
from kernels.native.memory.view import View
from kernels.spec import BOOL
from tests.kernels.native.chains import chain
from tests.kernels.native.convolutions import square
from tests.kernels.native.reference import assert_close, conv_reference, place, run_kernel

INT64 = np.dtype(np.int64)


def masked(mask, number) -> Epilogue:
    """Return an epilogue that keeps the result where a mask is true, and takes an integer, as float32, elsewhere."""
    draft = Draft()
    result, where, other = draft.operand("", FLOAT), draft.operand("mask", BOOL), draft.operand("number", INT64)
    names, expression = draft.finish(draft("where", where, result, draft("cast", other)), ("",))
    assert names == ("", "number", "mask")
    return Epilogue(False, expression, (number, mask))


@pytest.mark.parametrize("outputs", [1, 2], ids=["vectors", "tails"])
def test_images_are_read_in_their_own_type(isa, outputs):
    conv = square(isa, "blocked", 5, 4, outputs * isa.lanes - outputs + 1, 1)
    rng = np.random.default_rng(0)
    shape = (1, conv.y.channels, 5, 5)
    x, w = (rng.standard_normal(size).astype(np.float32) for size in ((1, 4, 5, 5), (conv.y.channels, 4, 1, 1)))
    mask, number = rng.random(shape) < 0.5, rng.integers(-9, 9, shape)
    memories = np.zeros(conv.y.elements, np.bool_), np.zeros(conv.y.elements, np.int64)
    for array, memory in zip((mask, number), memories, strict=True):
        conv.y.store(array, memory)
    tile, y = make_tile(conv, isa, 3, 2), np.full(conv.y.elements, np.nan, np.float32)
    kernel = emit_conv(conv, tile, masked(conv.y, conv.y), isa)
    packed = pack_weights(conv, tile, isa, w)
    run_kernel(kernel, isa, x=place(conv.x, x), w=packed, r0=memories[1], r1=memories[0], y=y)
    assert_close(conv.y.load(y), np.where(mask, conv_reference(conv, x, w), number), 4)


def test_views_are_read_in_their_own_type(isa):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 37)).astype(np.float32)
    mask, number = rng.random((1, 37)) < 0.5, rng.integers(-9, 9, (6, 1))
    view, y = View.dense((6, 37)), np.full((6, 37), np.nan, np.float32)
    rows = Rows("rms_norm", view, view, (1,), 1e-3, epilogue=masked(View.dense((1, 37)), View.dense((6, 1))))
    run_kernel(emit_rows(rows, isa), isa, x=x, r0=number, r1=mask, y=y)
    exact = x / np.sqrt((x.astype(np.float64) ** 2).mean(1, keepdims=True) + 1e-3)
    assert_close(y, np.where(mask, exact, number), 37)


def test_what_does_not_fit_is_refused(isa):
    with pytest.raises(EmitError, match=r"epilogue: 0 layouts, need 1, one an operand"):
        Epilogue(False, Expression((FLOAT, FLOAT)))
    with pytest.raises(EmitError, match=r"epilogue: results are float64, need float32 or int32"):
        Epilogue(False, Expression((DOUBLE,)))
    view = View.dense((2, 3))
    with pytest.raises(EmitError, match=r"rows: mean: its epilogue makes bool of float32, need float32 of float32"):
        emit_rows(Rows("mean", view, View.dense((2, 1)), (1,), epilogue=chain("isnan")), isa)
    with pytest.raises(EmitError, match=r"rows: mean: the epilogue has a bias"):
        emit_rows(Rows("mean", view, View.dense((2, 1)), (1,), epilogue=Epilogue(bias=True)), isa)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("rounds", [False, True])
def test_small_integers_between_floats_are_not_made(isa, dtype, rounds):
    """A cast to a small integer and back keeps a float32 in its range, to the bit, whether the integer is read as well or not."""
    draft, kind = Draft(), np.dtype(dtype)
    x = draft.operand("", FLOAT)
    narrow = draft("cast", draft("round", x) if rounds else x, dtype=kind)
    made = draft("cast", narrow, dtype=FLOAT)
    values = np.array(
        [0.0, -0.0, -0.3, 0.5, 1.5, 2.5, -1.5, 254.6, 127.5, -128.7, 7e4, -7e4, np.inf, -np.inf, np.nan], np.float32
    )
    given = np.resize(values, (2, 3 * isa.lanes + 1))
    view = View.dense(given.shape)
    for result in (made, draft("cast", draft("mul", made, made), dtype=FLOAT)):
        _, expression = draft.finish(result, ("",))
        y = np.full(given.shape, np.nan, np.float32)
        run_kernel(emit_map(Map(Strided(view, FLOAT), (Strided(view, FLOAT),), expression.steps), isa), isa, x0=given, y=y)
        info = np.iinfo(kind)
        whole = np.rint(given) if rounds else np.trunc(given)
        exact = np.clip(np.where(np.isnan(given), 0, whole), info.min, info.max).astype(np.int64).astype(np.float32)
        exact = exact if result is made else exact * exact
        np.testing.assert_array_equal(y.view(np.int32), exact.view(np.int32))


@pytest.mark.parametrize("op", ["cast", "fit"])
@pytest.mark.parametrize(("dtype", "zero"), [(np.int8, 0), (np.int8, -77), (np.uint8, 130), (np.uint8, 0)])
@pytest.mark.parametrize("real", [True, False], ids=["to_float", "to_bytes"])
def test_between_quantisation_and_dequantisation(isa, op, dtype, zero, real):
    """round(x), in integers around a zero point, and back: kernels do not move it there and back, and have the same results."""
    x = np.array([-1e9, -400.5, -128.5, -50.5, -0.4, 0.0, 0.5, 1.5, 127.4, 300, 1e9, np.inf, -np.inf], np.float32)
    if op == "cast":
        x = np.append(x, np.float32(np.nan))
    small, count = np.dtype(dtype), len(x)
    steps = [
        Apply("round", (0,)), Apply("cast", (1,), (), FLOAT), Apply("add", (2, 3)), Apply(op, (4,), (), small),
        Apply("cast", (5,), (), FLOAT), Apply("sub", (6, 3)),
    ]  # fmt: skip
    if not real:
        steps += [Apply("add", (7, 3)), Apply(op, (8,), (), small)]
    image = Image.blocked(1, 1, 1, count, isa.lanes)
    one = Image(1, 1, 1, count, 1, 0, 0, 0, 0)
    epilogue: Epilogue[Image] = Epilogue(expression=Expression((FLOAT, small), tuple(steps)), operands=(one,))
    memory, made = np.zeros(image.elements, np.float32), np.dtype(np.float32) if real else small
    image.store(x.reshape(1, 1, 1, count), memory)
    y = np.zeros(image.elements, made)
    kernel = emit_pooling(Pooling(Conv(image, image, groups=1), "average"), epilogue, isa)
    run_kernel(kernel, isa, x=memory, y=y, r0=np.array([zero], dtype))
    info = np.iinfo(dtype)
    integers = np.clip(np.where(np.isnan(x), 0, np.round(x) + np.float32(zero)), info.min, info.max)
    wanted = (integers - zero).astype(np.float32) if real else integers.astype(dtype)
    found = image.load(y).reshape(-1)
    np.testing.assert_array_equal(found, wanted)
    if real:
        assert not np.signbit(found[found == 0]).any()
