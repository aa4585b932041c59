import pytest

from kernels.cuda.errors import CudaError
from kernels.cuda.families.vector import VectorForm, Vectors
from kernels.native.errors import EmitError
from tests.kernels.cuda.families.product_cases import ADD, GATED


def test_sizes_are_no_part_of_the_code():
    assert len({Vectors(1, n, k).form("bf16").name for n, k in ((1000, 2048), (8, 64), (77, 1024))}) == 1


@pytest.mark.parametrize(("k", "run"), [(64, 8), (12, 4), (331, 1)])
def test_depth_says_how_much_moves_at_once(k, run):
    assert Vectors(1, 8, k).form("bf16").run == run


def test_results_are_shared_among_warps():
    vectors = Vectors(3, 11, 64)
    launch = vectors.launch(vectors.form("fp32"), x="x", w="w", y="y")
    assert (launch.told.items, launch.told.n, launch.blocks) == (33, 11, 5)


def test_products_that_a_kernel_does_not_serve_are_refused():
    with pytest.raises(CudaError, match=r"vectors: .*, need depth and strides in multiples of 4"):
        Vectors(1, 8, 66).launch(VectorForm("fp32", 4), x="x", w="w", y="y")
    with pytest.raises(CudaError, match="need depth and strides"):
        Vectors(1, 8, 64).launch(VectorForm("fp32", 4, expression=ADD), x="x", w="w", y="y", r0="r")


def test_empty_products_are_refused():
    with pytest.raises(CudaError, match=r"vectors: m has 0 elements, need 1"):
        Vectors(0, 8, 64)


def test_expressions_of_more_than_two_arrays_are_refused():
    operands = (*GATED.operands, GATED.operands[0])
    with pytest.raises(EmitError, match="epilogue"):
        VectorForm("fp32", 4, expression=type(GATED)(operands, GATED.steps))
