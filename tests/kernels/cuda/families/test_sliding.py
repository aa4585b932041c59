import pytest

from kernels.cuda.errors import CudaError
from kernels.cuda.families.candidates import window_candidates
from kernels.cuda.families.problem import Window
from kernels.cuda.families.sliding import WindowForm, Windows
from kernels.native.errors import EmitError
from tests.kernels.cuda.families.product_cases import ADD, window

SAME = Window(1, 14, 14, 64, (3, 3), (1, 1), (1, 1, 1, 1))


def test_sizes_are_no_part_of_the_code():
    forms = [Windows(window(1, size, 64, kernel, pad=1)).form("max_pool", "bf16") for size, kernel in ((14, 3), (56, 3), (56, 7))]
    assert len({form.name for form in forms}) == 1


@pytest.mark.parametrize(("batch", "pixels", "taps"), [(1, 1, 9), (512, 4, 3)])
def test_threads_take_several_pixels_where_there_are_many(batch, pixels, taps):
    form = Windows(Window(batch, 56, 56, 64, (3, 3))).form("depthwise", "bf16")
    assert (form.pixels, form.taps) == (pixels, taps)


def test_items_are_groups_of_pixels_and_runs_of_channels():
    windows = Windows(SAME)
    for form in window_candidates(windows.form("max_pool", "bf16")):
        assert windows.launch(form, x="x", y="y").told.items == 14 * -(-14 // form.pixels) * 64 // form.run


def test_padding_is_counted_where_asked():
    told = [
        Windows(SAME, count_padding=flag).launch(WindowForm("average_pool", "fp32", 4), x="x", y="y").told
        for flag in (False, True)
    ]
    assert [(each.counted_top, each.counted_height) for each in told] == [(0, 14), (1, 16)]


def test_window_without_any_place_is_refused():
    with pytest.raises(CudaError, match=r"windows: \w+ has 0 elements"):
        Windows(Window(1, 2, 2, 8, (3, 3)))


@pytest.mark.parametrize(
    "windows", [Windows(window(1, 14, 6, 3)), Windows(SAME, x_stride=66), Windows(SAME, others=(64,))], ids=str
)
def test_windows_that_a_kernel_does_not_serve_are_refused(windows):
    with pytest.raises(CudaError, match="need channels and strides in multiples of 8"):
        windows.launch(WindowForm("max_pool", "bf16", 8), x="x", y="y")


@pytest.mark.parametrize("options", [{"taps": 7}, {"pixels": 3}, {"pixels": 2, "taps": 9}, {"bias": True}], ids=str)
def test_forms_that_no_kernel_computes_are_refused(options):
    with pytest.raises(EmitError, match=r"max_pool: \d taps of \d pixels"):
        WindowForm(**{"op": "max_pool", "storage": "fp32", "run": 4, "expression": ADD, **options})
