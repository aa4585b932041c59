from typing import Any

import pytest

from kernels.cuda.errors import CudaError
from kernels.cuda.families.elementwise import Array, MapForm
from kernels.cuda.families.rearrange import TransposeForm, copy
from kernels.native.errors import EmitError


def images(batch, channels, pixels):
    """Return the launch that puts the channels of images last."""
    x, y = Array((channels * pixels, pixels, 1)), Array((channels * pixels, 1, channels), "bf16")
    return copy((batch, channels, pixels), x, y, x="x", y="y")


def test_innermost_dimensions_are_exchanged_in_tiles():
    launch = images(2, 64, 900)
    assert launch.kernel == TransposeForm("fp32", "bf16", 4, 8)
    assert (launch.told.across, launch.told.down, launch.told.x_down, launch.told.y_across) == (900, 64, 900, 64)
    assert launch.blocks == launch.told.chunks == 2 * 15


@pytest.mark.parametrize("channels", [3, 4, 11])
def test_few_channels_are_no_tile(channels):
    assert isinstance(images(2, channels, 900).kernel, MapForm)


def test_copy_that_keeps_the_innermost_dimension_is_a_map():
    launch = copy((2, 33, 4, 32), Array((4224, 128, 32, 1)), Array((4224, 32, 1056, 1)), x="x", y="y")
    assert isinstance(launch.kernel, MapForm)
    assert (launch.kernel.run, launch.names) == (4, {"y": "y", "r0": "x"})


def test_runs_depend_on_alignment():
    launch: Any = copy((50, 30), Array((31, 1)), Array((1, 52)), x="x", y="y")
    assert (launch.kernel.x_run, launch.kernel.y_run) == (1, 2)


def test_other_names_are_refused():
    with pytest.raises(CudaError, match=r"names for \['x'\], need them for \['x', 'y'\]"):
        copy((4, 4), Array((4, 1)), Array((4, 1)), x="x")


@pytest.mark.parametrize(
    ("options", "says"),
    [((8, 4, 1), "runs of 8 elements of fp32"), ((3, 4, 1), "runs of 3"), ((4, 4, 4), "4 outer dimensions, need 1 to 3")],
)
def test_forms_that_no_kernel_computes_are_refused(options, says):
    with pytest.raises(EmitError, match=says):
        TransposeForm("fp32", "fp32", *options)
