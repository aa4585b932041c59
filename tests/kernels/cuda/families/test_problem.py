import dataclasses

import pytest

from kernels.cuda.driver import Attribute
from kernels.cuda.errors import CudaError, GpuUnsupportedError
from kernels.cuda.families.candidates import candidates
from kernels.cuda.families.problem import Batch, Cut, Problem
from kernels.cuda.families.product import Form
from tests.kernels.cuda import fake as fakes
from tests.kernels.cuda.families.product_cases import ADD, SMALL, form_for, window


@pytest.fixture
def device():
    return fakes.fake_driver(fakes.FakeCuda()).device()


def test_convolution_is_a_product_over_its_windows():
    problem = Problem.convolution(window(2, 14, 64, 3, stride=2, pad=1), 128)
    assert (problem.m, problem.n, problem.k, problem.strides) == (2 * 7 * 7, 128, 9 * 64, (64, 576, 128))
    assert problem.flops == 2 * 98 * 128 * 576


@pytest.mark.parametrize(
    ("problem", "bf16", "fp32"),
    [
        (Problem(5, 8, 64), (16, True), (16, True)),
        (Problem(5, 8, 12), (8, True), (16, True)),
        (Problem(5, 6, 7), (2, False), (4, False)),
        (Problem(5, 8, 64, y_stride=12), (16, False), (16, True)),
        (Problem(5, 8, 64, others=(9,)), (16, False), (16, False)),
        (Problem.convolution(window(1, 9, 3, 7), 64), (2, True), (4, True)),
        (Problem.convolution(window(1, 9, 4, 7), 64), (8, True), (16, True)),
    ],
    ids=str,
)
def test_copies_are_as_large_as_every_row_allows(problem, bf16, fp32):
    assert (problem.copy_bytes("bf16"), problem.whole("bf16")) == bf16
    assert (problem.copy_bytes("fp32"), problem.whole("fp32")) == fp32


@pytest.mark.parametrize(("asked", "slices"), [(1, 1), (4, 4), (7, 6), (100, 16)])
def test_every_slice_has_work(asked, slices):
    cut = Cut.into(form_for("bf16", SMALL, Problem(65, 64, 1000)), Problem(65, 64, 1000), asked)
    assert (cut.steps, cut.slices, cut.chunks) == (16, slices, 2 * slices)
    assert (cut.slices - 1) * -(-cut.steps // cut.slices) < cut.steps
    assert (cut.partial_bytes, cut.counter_bytes) == ((0, 0) if slices == 1 else (4 * 64 * 64 * cut.chunks, 8))


@pytest.mark.parametrize("others", [(1 << 30,), (8, 1 << 30)])
def test_other_matrices_that_kernels_cannot_count_are_refused(others):
    with pytest.raises(CudaError, match=f"product: r{len(others) - 1} has 5368709120 elements"):
        Problem(5, 8, 64, others=others)


@pytest.mark.parametrize(
    ("options", "says"),
    [({"m": 0}, "m has 0 elements, need 1 to"), ({"n": 1 << 20, "k": 1 << 20}, "w has 1099511627776 elements, need 1 to")],
)
def test_sizes_that_kernels_cannot_count_are_refused(options, says):
    with pytest.raises(CudaError, match=says):
        Problem(**{"m": 2, "n": 2, "k": 2, **options})


@pytest.mark.parametrize(
    "change", [{"windows": True}, {"copy_bytes": 16}, {"whole": True}, {"expression": ADD}], ids=lambda change: next(iter(change))
)
def test_kernel_that_does_not_serve_the_problem_is_refused(change):
    problem = Problem(5, 6, 12)
    form = form_for("bf16", SMALL, problem)
    assert Cut.into(form, problem).chunks == 1
    with pytest.raises(GpuUnsupportedError, match=r"need copies of 8 bytes, whole=False, the kernel is bf16_"):
        Cut.into(dataclasses.replace(form, **change), problem)


def test_values_that_are_missing_are_named():
    cut = Cut.into(Form("bf16", SMALL, bias=True), Problem(64, 64, 128), 2)
    with pytest.raises(
        CudaError, match=r"names for \['w', 'x', 'y'\], need them for \['bias', 'counters', 'partial', 'w', 'x', 'y'\]"
    ):
        cut.launch(x="a", w="b", y="c")


def test_batch_counts_every_item():
    batch = Batch(2, 3, x=(6 * 5 * 64, 5 * 64), w=(0, 0), y=(120, 40))
    problem = Problem(5, 8, 64, batch=batch)
    cut = Cut.into(form_for("bf16", SMALL, problem), problem)
    assert (cut.chunks, problem.flops) == (6, 6 * 2 * 5 * 8 * 64)
    assert problem.whole("bf16")
    assert not Problem(5, 8, 64, batch=dataclasses.replace(batch, y=(120, 41))).whole("bf16")
    assert Problem(5, 8, 64, batch=dataclasses.replace(batch, x=(1920, 322))).copy_bytes("bf16") == 4


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"y": (1 << 31, 0)}, "y has 2147483688 elements"),
        ({"inner": 0}, "inner has 0 elements"),
        ({"others": ((0, 0),)}, "batch steps of 1 other matrices, need 0"),
    ],
    ids=["far", "empty", "others"],
)
def test_batches_that_kernels_cannot_count_are_refused(change, says):
    batch = dataclasses.replace(Batch(2, 3, x=(0, 0), w=(0, 0), y=(120, 40)), **change)
    with pytest.raises(CudaError, match=says):
        Problem(5, 8, 64, batch=batch)


def test_candidates_fit_the_gpu_and_slice_the_depth_where_there_are_few_tiles(device, monkeypatch):
    few, many = Problem(49, 512, 4608), Problem(25088, 512, 4608)
    assert {cut.slices for cut in candidates("bf16", few, device)} > {1, 8}
    assert {cut.slices for cut in candidates("bf16", many, device)} == {1}
    names = [(cut.form.name, cut.slices) for cut in candidates("bf16", few, device)]
    assert len(set(names)) == len(names)
    assert any(cut.form.groups for cut in candidates("bf16", few, device))
    assert not any(cut.form.groups for cut in candidates("fp32", few, device))
    monkeypatch.setitem(fakes.H200, Attribute.SHARED_BYTES_PER_BLOCK, 70 << 10)
    monkeypatch.setattr(device, "capability", (8, 6))
    small = list(candidates("bf16", few, device))
    assert small
    assert all(cut.form.tile.shared_bytes <= 70 << 10 and not cut.form.groups for cut in small)
