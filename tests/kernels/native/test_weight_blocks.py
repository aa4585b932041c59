"""Products with weights of 4 bits, beside float64 of the dequantised weights."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.native.emit.epilogue import Epilogue
from kernels.native.errors import EmitError
from kernels.native.families.weight_blocks import (
    BlockedProduct,
    emit_blocked_product,
    pack_block_scales,
    pack_weight_blocks,
    tile_of,
)
from kernels.native.memory.image import Image
from kernels.ops.weight_blocks import unpack
from tests.kernels.native.chains import chain
from tests.kernels.native.reference import PLAIN, epilogue_operands, run_kernel


def rows_image(rows: int, columns: int, step: int) -> Image:
    return Image(1, columns, 1, rows, columns, 0, 0, rows * step, step)


def check(isa, rows: int, columns: int, blocks: int, block: int, *, points=True, gap=0, added=False) -> None:
    """Run a product over poisoned memory and compare it. gap: elements between rows of x, which are NaN."""
    rng, depth = np.random.default_rng(0), blocks * block
    x = rng.standard_normal((rows, depth)).astype(np.float32)
    b = rng.integers(0, 256, (columns, blocks, block // 2)).astype(np.uint8)
    scales = rng.uniform(-0.02, 0.02, (columns, blocks)).astype(np.float32)
    zeros = rng.integers(0, 16, (columns, blocks)).astype(np.uint8) if points else None
    integers = unpack(b.reshape(columns, -1), 4, depth).reshape(columns, blocks, block).astype(np.float64)
    weights = ((integers - (8 if zeros is None else zeros[..., None])) * scales[..., None]).reshape(columns, depth)
    exact, tile = x.astype(np.float64) @ weights.T, tile_of(rows, isa)
    given = np.full((rows, depth + gap), np.nan, np.float32)
    given[:, :depth] = x
    y_image = rows_image(rows, columns, columns)
    epilogue: Epilogue[Image] = chain(("add", y_image), bias=False) if added else PLAIN
    operands, wanted = epilogue_operands(epilogue, exact.T.reshape(1, columns, 1, rows), rng)
    y = np.full(rows * columns + 64, np.nan, np.float32)
    product = BlockedProduct(rows_image(rows, depth, depth + gap), y_image, block, epilogue)
    run_kernel(
        emit_blocked_product(product, tile, isa),
        isa,
        x=given,
        w=pack_weight_blocks(b, tile, isa),
        s=pack_block_scales(scales, zeros, tile, isa),
        sums=np.ascontiguousarray(x.reshape(rows, blocks, block).sum(2)),
        y=y,
        **operands,
    )
    bound = np.abs(x).astype(np.float64) @ np.abs(16 * scales).repeat(block, 1).T
    error = np.abs(y[: rows * columns].reshape(rows, columns) - wanted.reshape(columns, rows).T)
    assert (error <= 2.0**-22 * depth**0.5 * bound.max() + 1e-6).all()
    assert np.isnan(y[rows * columns :]).all()


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 13])
def test_rows(isa, rows):
    check(isa, rows, 2 * isa.lanes, 2, 32)


def test_columns_need_not_fill_vectors(isa):
    for columns in (1, isa.lanes - 1, isa.lanes + 1, 5 * isa.lanes + 3):
        check(isa, 1, columns, 1, 32)
        check(isa, 3, columns, 1, 32)


@pytest.mark.parametrize("block", [16, 64, 128])
def test_blocks(isa, block):
    check(isa, 2, isa.lanes, 3, block)
    check(isa, 1, isa.lanes, 1, block, points=False)


def test_rows_with_gaps_and_an_operand(isa):
    check(isa, 4, isa.lanes + 2, 2, 16, gap=5, added=True)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(1, 20), st.integers(1, 80), st.integers(1, 5), st.sampled_from([16, 32]), st.booleans())
def test_any_product(isa, rows, columns, blocks, block, points):
    check(isa, rows, columns, blocks, block, points=points)


def test_parts_of_blocks_are_refused(isa):
    product = BlockedProduct(rows_image(1, 40, 40), rows_image(1, 8, 8), 16, PLAIN)
    with pytest.raises(EmitError, match="blocks of 16 weights in rows of 40, need whole blocks"):
        emit_blocked_product(product, (1, 2), isa)


def test_one_kernel_serves_all_sizes(isa):
    kernels = {
        emit_blocked_product(BlockedProduct(rows_image(1, depth, depth), rows_image(1, n, n), block, PLAIN), (1, 2), isa).name
        for depth, n, block in ((64, 9, 16), (128, 100, 32), (256, 24, 128))
    }
    assert len(kernels) == 1
