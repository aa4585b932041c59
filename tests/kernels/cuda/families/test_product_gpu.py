"""Products and convolutions on a GPU against float64. Results, padding and memory between rows are poisoned with NaN."""

import dataclasses

import numpy as np
import pytest

from kernels.cuda.families.problem import Batch, Cut, Problem, Window
from kernels.cuda.families.product_work import Tile
from tests.kernels.cuda.families import product_cases as cases
from tests.kernels.cuda.families.product_cases import SMALL, WIDE, form_for, make_data, tolerance, window

pytestmark = pytest.mark.gpu


def compute(gpu, form, problem, data, slices=1, blocks=None, launches=1, alias=False):
    """Run a kernel on poisoned results, and return all of y's memory. alias: y is the first of the other matrices."""
    cut = Cut.into(form, problem, slices)
    poison = np.full((problem.m, problem.strides[2]), np.nan, np.float32).astype(data.x.dtype)
    arrays = {"x": data.x, "w": data.w, "bias": data.bias, "y": poison}
    arrays |= {f"r{n}": other for n, other in enumerate(data.others)}
    arrays |= {"partial": np.full(max(4, cut.partial_bytes) // 4, np.nan, np.float32)}
    arrays |= {"counters": np.zeros(max(4, cut.counter_bytes), np.uint8)}
    memory = {name: gpu.upload(array) for name, array in arrays.items()}
    if alias:
        memory["y"] = memory["r0"]
    launch = cut.launch(**{name: name for name in cut.needs})
    launch = dataclasses.replace(launch, blocks=blocks or launch.blocks)
    for _ in range(launches):
        if not alias:
            memory["y"].write(poison)
        gpu.run(launch, memory)
    return memory["y"].read(poison)


def check(gpu, form, problem, **options):
    data = make_data(form, problem)
    y = compute(gpu, form, problem, data, **options).astype(np.float64)
    error = np.abs(y[:, : problem.n] - data.truth)
    worst = np.unravel_index(np.argmax(np.where(np.isnan(error), np.inf, error - tolerance(form, data))), error.shape)
    assert (error <= tolerance(form, data)).all(), (worst, y[worst], data.truth[worst], tolerance(form, data)[worst])
    assert np.isnan(y[:, problem.n :]).all(), "what lies between rows was written to"


PRECISIONS = ("fp32", "tf32", "bf16", "fp16")


@pytest.mark.parametrize("tile", [SMALL, WIDE], ids=lambda tile: tile.name)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("size", [(64, 64, 64), (1, 8, 8), (197, 136, 72), (129, 264, 1024), (300, 72, 200)], ids=str)
def test_product_of_whole_copies(gpu, precision, tile, size):
    problem = Problem(*size)
    check(gpu, form_for(precision, tile, problem, bias=True), problem)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("size", [(1, 1, 1), (3, 5, 7), (65, 63, 66), (130, 13, 130), (70, 70, 68)], ids=str)
def test_product_of_odd_sizes(gpu, precision, size):
    problem = Problem(*size)
    check(gpu, form_for(precision, SMALL, problem, bias=True), problem)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("slices", [2, 3, 8])
def test_slices_of_the_depth_are_added_up_and_counters_return_to_zero(gpu, precision, slices):
    problem = Problem(70, 136, 1096)
    check(gpu, form_for(precision, SMALL, problem, bias=True, expression=cases.RELU), problem, slices=slices, launches=3)


def test_slices_are_added_in_the_same_order_each_time(gpu):
    problem = Problem(197, 768, 3072)
    form = form_for("bf16", SMALL, problem)
    data = make_data(form, problem)
    found = [compute(gpu, form, problem, data, slices=8) for _ in range(5)]
    assert all((other == found[0]).all() for other in found)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("slices", [1, 4])
def test_few_blocks_take_all_chunks_in_turn(gpu, precision, slices):
    problem = Problem(500, 264, 520)
    check(gpu, form_for(precision, SMALL, problem, bias=True), problem, slices=slices, blocks=5)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_that_lie_apart_are_left_as_they_were_between(gpu, precision):
    problem = Problem(67, 72, 136, x_stride=144, w_stride=152, y_stride=80, others=(96,))
    check(gpu, form_for(precision, SMALL, problem, expression=cases.ADD), problem)


EPILOGUES = {"relu": cases.RELU, "clip": cases.CLIP, "silu": cases.SILU, "gelu": cases.GELU, "gated": cases.GATED}


@pytest.mark.parametrize("columns", [72, 70])
@pytest.mark.parametrize("name", EPILOGUES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_epilogues(gpu, precision, name, columns):
    expression = EPILOGUES[name]
    problem = Problem(67, columns, 136, others=(columns,) * (len(expression.operands) - 1))
    check(gpu, form_for(precision, SMALL, problem, bias=True, expression=expression), problem)


@pytest.mark.parametrize("slices", [1, 3])
@pytest.mark.parametrize("columns", [72, 70])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_residual_may_be_the_output(gpu, precision, columns, slices):
    problem = Problem(131, columns, 520, others=(columns,))
    check(gpu, form_for(precision, SMALL, problem, expression=cases.ADD_RELU), problem, alias=True, slices=slices)


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
def test_convolutions(gpu, precision, name):
    problem = Problem.convolution(WINDOWS[name], 72)
    check(gpu, form_for(precision, SMALL, problem, bias=True, expression=cases.RELU), problem)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_convolution_in_slices_of_pixels_that_lie_apart(gpu, precision):
    problem = Problem.convolution(window(1, 9, 64, 3, pad=1), 128, x_stride=96, y_stride=136)
    check(gpu, form_for(precision, WIDE, problem, bias=True), problem, slices=5)


GROUPS = [Tile(64, 64, 4, 1, 3), Tile(128, 128, 8, 1, 2), Tile(64, 32, 4, 1, 4), Tile(128, 256, 8, 1, 3)]


@pytest.fixture
def hopper(gpu):
    if gpu.context.device.capability != (9, 0):
        pytest.skip(f"wgmma needs compute capability 9.0, this GPU has {gpu.context.device.capability}")


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("slices", [1, 3])
@pytest.mark.parametrize("tile", GROUPS, ids=lambda tile: tile.name)
@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_products_by_groups_of_warps(gpu, precision, tile, slices):
    problem = Problem(197, 264, 1096, others=(264,))
    form = form_for(precision, tile, problem, bias=True, expression=cases.ADD_RELU, groups=True)
    check(gpu, form, problem, slices=slices, alias=True)


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_convolutions_by_groups_of_warps(gpu, precision, name):
    problem = Problem.convolution(WINDOWS[name], 70)
    check(gpu, form_for(precision, GROUPS[0], problem, bias=True, groups=True), problem, blocks=3)


@pytest.mark.parametrize("slices", [1, 3])
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_batches_of_products_of_two_arrays(gpu, precision, shared, slices):
    """Heads that lie side by side in a token's row, as x and y; the factor w may be one for all items of the outer batch."""
    outer, inner, m, n, k = 2, 3, 70, 40, 200
    dtype = cases.DTYPES[precision]
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(np.float32).astype(dtype) for shape in ((outer, m, inner, k), (outer, inner, n, k)))
    y = np.full((outer, m, inner, n), np.nan, np.float32).astype(dtype)
    steps = Batch(outer, inner, x=(m * inner * k, k), w=(0 if shared else inner * n * k, n * k), y=(m * inner * n, n))
    problem = Problem(m, n, k, x_stride=inner * k, y_stride=inner * n, batch=steps)
    cut = Cut.into(form_for(precision, SMALL, problem), problem, slices)
    arrays = {"x": x, "w": w, "y": y, "partial": np.zeros(max(4, cut.partial_bytes), np.uint8)}
    memory = {
        name: gpu.upload(array) for name, array in (arrays | {"counters": np.zeros(max(4, cut.counter_bytes), np.uint8)}).items()
    }
    gpu.run(cut.launch(**{name: name for name in cut.needs}), memory)
    left, right = x.astype(np.float64), (np.repeat(w[:1], outer, 0) if shared else w).astype(np.float64)
    truth = np.einsum("omik,oink->omin", left, right)
    sizes = np.einsum("omik,oink->omin", np.abs(left), np.abs(right))
    found = memory["y"].read(y).astype(np.float64)
    assert (np.abs(found - truth) <= (2 * cases.EPSILONS[precision] + 2.0**-20) * sizes).all()


@pytest.mark.parametrize("cluster", [1, 2, 8])
@pytest.mark.parametrize("groups", [False, True], ids=["mma", "wgmma"])
@pytest.mark.parametrize("size", [(70, 136, 8), (49, 64, 1096), (197, 72, 328)], ids=str)
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_teams_and_clusters_share_the_depth(gpu, precision, size, groups, cluster):
    problem = Problem(*size, others=(size[1],))
    if (groups or cluster > 1) and gpu.context.device.capability != (9, 0):
        pytest.skip("wgmma and clusters need compute capability 9.0")
    tile = Tile(64, 32, 4, 1, 4, 4) if groups else Tile(32, 64, 2, 2, 4, 4)
    options = {"bias": True, "expression": cases.ADD_RELU, "groups": groups, "early": True, "cluster": cluster}
    check(gpu, form_for(precision, tile, problem, **options), problem, launches=2)


def test_teams_of_one_tile_each_give_the_same_bits(gpu):
    problem = Problem(197, 768, 3072)
    form = form_for("bf16", Tile(32, 64, 2, 2, 4, 4), problem, early=True)
    data = make_data(form, problem)
    found = [compute(gpu, form, problem, data) for _ in range(5)]
    assert all((other == found[0]).all() for other in found)
