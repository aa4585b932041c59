"""Products and convolutions on a GPU against float64. Results, padding and memory between rows are poisoned with NaN."""

import numpy as np
import pytest

from kernels.cuda.driver import Driver
from kernels.cuda.errors import NoDriverError
from kernels.cuda.families.problem import Cut, Problem, Window
from kernels.cuda.families.product import Tile, emit_product
from kernels.cuda.ptx import compile_ptx, find_target
from kernels.native.code.cache import CodeCache, Source
from tests.kernels.cuda.families import product_cases as cases
from tests.kernels.cuda.families.product_cases import SMALL, WIDE, form_for, make_data, tolerance, window

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def context():
    try:
        device = Driver().device()
    except NoDriverError as error:
        pytest.skip(str(error))
    with device.open() as context:
        yield context


def load(context, form):
    source = Source.of_kernel(form.name, lambda: emit_product(form))
    module = context.load(compile_ptx(source, find_target(context.device.capability), CodeCache.default()))
    function = module.function(form.name)
    function.allow_shared(form.tile.shared_bytes)
    return function


def upload(context, array):
    memory = context.allocate(array.nbytes)
    memory.write(np.ascontiguousarray(array))
    return memory


def compute(context, form, problem, data, slices=1, blocks=None, launches=1, alias=False):
    """Run a kernel on poisoned results, and return all of y's memory. alias: y is the first of the other matrices."""
    cut = Cut.into(form, problem, slices)
    function = load(context, form)
    poison = np.full((problem.m, problem.strides[2]), np.nan, np.float32).astype(data.x.dtype)
    x, w, bias = upload(context, data.x), upload(context, data.w), upload(context, data.bias)
    others = [upload(context, other) for other in data.others]
    y = others[0] if alias else upload(context, poison)
    partial = upload(context, np.full(max(4, cut.partial_bytes) // 4, np.nan, np.float32))
    counters = upload(context, np.zeros(max(4, cut.counter_bytes), np.uint8))
    descriptor = cut.descriptor(x, w, y, bias=bias, others=others, partial=partial, counters=counters)
    with context.stream() as stream:
        for _ in range(launches):
            if not alias:
                y.write(poison, stream)
            stream.launch(
                function,
                (descriptor,),
                blocks=blocks or cut.chunks,
                threads=form.tile.threads,
                shared_bytes=form.tile.shared_bytes,
            )
        stream.synchronize()
    return y.read(poison)


def check(context, form, problem, **options):
    data = make_data(form, problem)
    y = compute(context, form, problem, data, **options).astype(np.float64)
    error = np.abs(y[:, : problem.n] - data.truth)
    worst = np.unravel_index(np.argmax(np.where(np.isnan(error), np.inf, error - tolerance(form, data))), error.shape)
    assert (error <= tolerance(form, data)).all(), (worst, y[worst], data.truth[worst], tolerance(form, data)[worst])
    assert np.isnan(y[:, problem.n :]).all(), "what lies between rows was written to"


PRECISIONS = ("fp32", "tf32", "bf16", "fp16")


@pytest.mark.parametrize("tile", [SMALL, WIDE], ids=lambda tile: tile.name)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("size", [(64, 64, 64), (1, 8, 8), (197, 136, 72), (129, 264, 1024), (300, 72, 200)], ids=str)
def test_product_of_whole_copies(context, precision, tile, size):
    problem = Problem(*size)
    check(context, form_for(precision, tile, problem, bias=True), problem)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("size", [(1, 1, 1), (3, 5, 7), (65, 63, 66), (130, 13, 130), (70, 70, 68)], ids=str)
def test_product_of_odd_sizes(context, precision, size):
    problem = Problem(*size)
    check(context, form_for(precision, SMALL, problem, bias=True), problem)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("slices", [2, 3, 8])
def test_slices_of_the_depth_are_added_up_and_counters_return_to_zero(context, precision, slices):
    problem = Problem(70, 136, 1096)
    check(context, form_for(precision, SMALL, problem, bias=True, expression=cases.RELU), problem, slices=slices, launches=3)


def test_slices_are_added_in_the_same_order_each_time(context):
    problem = Problem(197, 768, 3072)
    form = form_for("bf16", SMALL, problem)
    data = make_data(form, problem)
    found = [compute(context, form, problem, data, slices=8) for _ in range(5)]
    assert all((other == found[0]).all() for other in found)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("slices", [1, 4])
def test_few_blocks_take_all_chunks_in_turn(context, precision, slices):
    problem = Problem(500, 264, 520)
    check(context, form_for(precision, SMALL, problem, bias=True), problem, slices=slices, blocks=5)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_that_lie_apart_are_left_as_they_were_between(context, precision):
    problem = Problem(67, 72, 136, x_stride=144, w_stride=152, y_stride=80, others=(96,))
    check(context, form_for(precision, SMALL, problem, expression=cases.ADD), problem)


EPILOGUES = {"relu": cases.RELU, "clip": cases.CLIP, "silu": cases.SILU, "gelu": cases.GELU, "gated": cases.GATED}


@pytest.mark.parametrize("columns", [72, 70])
@pytest.mark.parametrize("name", EPILOGUES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_epilogues(context, precision, name, columns):
    expression = EPILOGUES[name]
    problem = Problem(67, columns, 136, others=(columns,) * (len(expression.operands) - 1))
    check(context, form_for(precision, SMALL, problem, bias=True, expression=expression), problem)


@pytest.mark.parametrize("slices", [1, 3])
@pytest.mark.parametrize("columns", [72, 70])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_residual_may_be_the_output(context, precision, columns, slices):
    problem = Problem(131, columns, 520, others=(columns,))
    check(context, form_for(precision, SMALL, problem, expression=cases.ADD_RELU), problem, alias=True, slices=slices)


WINDOWS = {
    "1x1": window(2, 7, 64, 1),
    "1x1s2": window(2, 14, 64, 1, stride=2),
    "3x3": window(2, 14, 64, 3, pad=1),
    "3x3s2": window(1, 15, 32, 3, stride=2, pad=1),
    "3x3d2": window(1, 12, 16, 3, pad=2, dilation=2),
    "7x7s2_of_3": window(1, 30, 3, 7, stride=2, pad=3),
    "7x7s2_of_4": window(1, 30, 4, 7, stride=2, pad=3),
    "5x3_uneven": Window(2, 9, 13, 24, (5, 3), (2, 1), (2, 0, 1, 1)),
    "larger_than_image": window(3, 3, 8, 7, pad=3),
}


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_convolutions(context, precision, name):
    problem = Problem.convolution(WINDOWS[name], 72)
    check(context, form_for(precision, SMALL, problem, bias=True, expression=cases.RELU), problem)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_convolution_in_slices_of_pixels_that_lie_apart(context, precision):
    problem = Problem.convolution(window(1, 9, 64, 3, pad=1), 128, x_stride=96, y_stride=136)
    check(context, form_for(precision, WIDE, problem, bias=True), problem, slices=5)


GROUPS = [Tile(64, 64, 4, 1, 3), Tile(128, 128, 8, 1, 2), Tile(64, 32, 4, 1, 4), Tile(128, 256, 8, 1, 3)]


@pytest.fixture
def hopper(context):
    if context.device.capability != (9, 0):
        pytest.skip(f"wgmma needs compute capability 9.0, this GPU has {context.device.capability}")


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("slices", [1, 3])
@pytest.mark.parametrize("tile", GROUPS, ids=lambda tile: tile.name)
@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_products_by_groups_of_warps(context, precision, tile, slices):
    problem = Problem(197, 264, 1096, others=(264,))
    form = form_for(precision, tile, problem, bias=True, expression=cases.ADD_RELU, groups=True)
    check(context, form, problem, slices=slices, alias=True)


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_convolutions_by_groups_of_warps(context, precision, name):
    problem = Problem.convolution(WINDOWS[name], 70)
    check(context, form_for(precision, GROUPS[0], problem, bias=True, groups=True), problem, blocks=3)
