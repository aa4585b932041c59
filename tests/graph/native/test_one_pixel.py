"""Images of one pixel or one column, whose channels lie side by side in a row-major tensor, though their rows have no length."""

import pytest

from tests.graph.native.nets import image, normal, weights
from tests.graph.oracle import check_native, make, node


@pytest.mark.parametrize("side", [(1, 1), (1, 3), (3, 1)], ids=["pixel", "row", "column"])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_a_padded_convolution_with_a_vector_of_channels(isa, kernel: int, side: tuple[int, int]) -> None:
    """Pixels around the image are copied beside it: a copy whose pixels lie as far apart as those of x overwrote itself."""
    for channels in (isa.lanes, 2 * isa.lanes):
        pads = [kernel // 2] * 4
        proto = make(
            [node("Conv", ["x", "w"], ["y"], pads=pads)],
            ["y"],
            [weights("w", isa.lanes, channels, kernel, kernel)],
            image(2, channels, *side),
        )
        check_native(proto, {"x": normal(2, channels, *side)}, isa)
