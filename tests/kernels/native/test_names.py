import re

import numpy as np
import pytest

from kernels.native.emit.geometry import Conv
from kernels.native.emit.kernel import DIGEST_DIGITS, NAME_CHARACTERS, kernel_name
from kernels.native.emit.names import name_dtype, name_layouts, name_order, name_window
from kernels.native.families.conv import emit_conv, make_tile
from kernels.native.memory.image import Image
from kernels.native.memory.view import View
from kernels.native.target.isa import ISAS
from kernels.spec import BOOL
from tests.kernels.native.chains import chain
from tests.kernels.native.replay_kernels import KERNELS

ISA = ISAS["avx512"]
DIGEST = rf"[0-9a-f]{{{DIGEST_DIGITS}}}"


def test_name_tells_tile_set_layout_window_and_epilogue():
    x, y = Image.blocked(1, 64, 56, 56, 16), Image.blocked(1, 128, 28, 28, 16)
    conv = Conv(x, y, (3, 3), (2, 2), top=1, left=1)
    name = emit_conv(conv, make_tile(conv, ISA, 6, 4), chain("relu", bias=True), ISA).name
    assert re.fullmatch(rf"f32_conv2d_6x64__avx512_nchw16c_s2_bias_relu_{DIGEST}", name)


@pytest.mark.parametrize("isa", ["sse", "neon_i8mm"])
def test_every_name_is_a_bounded_symbol_of_the_grammar(isa):
    names = {kernel.name for make in KERNELS.values() for kernel in make(ISAS[isa])}
    grammar = re.compile(rf"(f32|f64|[iu](8|16|32|64)|bool|b[1248])_[a-z0-9_]+?__{isa}(_[a-z0-9]+)*_{DIGEST}")
    assert len(names) > 100
    assert [name for name in names if not grammar.fullmatch(name) or len(name) > NAME_CHARACTERS] == []


def test_words_are_left_out_from_where_there_is_no_room_and_the_digest_never():
    name = kernel_name("f32_map40_4x16", "key", ISA, ["add"] * 40)
    assert re.fullmatch(rf"f32_map40_4x16__avx512(_add)+_{DIGEST}", name)
    assert NAME_CHARACTERS - len("_add") < len(name) <= NAME_CHARACTERS


def test_another_key_or_set_is_another_name():
    names = {kernel_name("f32_map1", key, isa) for key in ("a", "b") for isa in (ISAS["sse"], ISA)}
    assert len(names) == 4


@pytest.mark.parametrize(
    ("kernel", "strides", "dilations", "groups", "name"),
    [
        ((3, 3), (1, 1), (1, 1), 1, "3x3"),
        ((1, 7), (2, 2), (1, 1), 1, "1x7s2"),
        ((3, 3), (2, 1), (2, 2), 4, "3x3s2x1d2g4"),
        ((3, 3), (1, 1), (1, 1), 32, "3x3"),
    ],
)
def test_window(kernel, strides, dilations, groups, name):
    image = Image.nchw(1, 32, 9, 9)
    assert name_window(Conv(image, image, kernel, strides, dilations, groups=groups)) == name


def test_layouts():
    blocked, last, first = Image.blocked(1, 32, 4, 4, 16), Image.nhwc(1, 32, 4, 4), Image.nchw(1, 32, 4, 4)
    assert [name_layouts(blocked, blocked), name_layouts(last, last)] == ["nchw16c", "nhwc"]
    assert name_layouts(first, blocked) == "nchw_to_nchw16c"


def test_types_and_orders():
    assert [name_dtype(np.dtype(np.int64)), name_dtype(BOOL)] == ["i64", "bool"]
    matrix = View.dense((4, 6))
    orders = [name_order(view) for view in (matrix, matrix.transposed((1, 0)), matrix.sliced(1, 0, 3, 2))]
    assert orders == ["rows", "columns", "strided"]
