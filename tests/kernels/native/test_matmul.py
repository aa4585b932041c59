from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.native.code.compile import SPILL_LIMIT, generate
from kernels.native.errors import EmitError
from kernels.native.families.matmul import MatMul, emit_matmul, make_matmul_tile, matmul_tiles
from kernels.native.memory.view import View
from kernels.native.target.isa import ISAS
from kernels.size import Evaluation, Scope, sizes_in
from tests.kernels.native.chains import chain
from tests.kernels.native.reference import assert_close, assert_only_written, lay, run_kernel, seen
from tests.machines import MACHINES


def matrix(rows, columns, layout="rows", batch=()):
    """Return a view of a matrix: dense rows, dense columns, a slice of longer rows, every third element, or rows backwards."""
    axes = (*range(len(batch)), len(batch) + 1, len(batch))
    if layout == "columns":
        return View.dense((*batch, columns, rows)).transposed(axes)
    if layout == "slice":
        return View.dense((*batch, rows, columns + 5)).sliced(len(batch) + 1, 2, columns)
    if layout == "sparse":
        return View.dense((*batch, rows, 3 * columns)).sliced(len(batch) + 1, 1, columns, 3)
    if layout == "backwards":
        return View.dense((*batch, rows, columns)).sliced(len(batch), rows - 1, rows, -1)
    return View.dense((*batch, rows, columns))


def product(m, k, n, a="rows", b="rows", y="rows", batch=(), **more):
    return MatMul(matrix(m, k, a, batch), matrix(k, n, b, batch), matrix(m, n, y, batch), **more)


def check(matmul, isa, tile=None):
    """Run a product on random data, compare it with float64, and assert that nothing else is written. Its steps are ignored."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(view.shape).astype(np.float32) for view in (matmul.a, matmul.b))
    exact = matmul.alpha * (a.astype(np.float64) @ b)
    memory = np.full(matmul.y.span + 64, np.nan, np.float32)
    kernel = emit_matmul(matmul, tile or matmul_tiles(matmul, isa)[0], isa)
    run_kernel(kernel, isa, a=lay(matmul.a, a), b=lay(matmul.b, b), y=memory)
    assert_close(seen(matmul.y, memory), exact, a.shape[-1])
    assert_only_written(matmul.y, memory)


LAYOUTS = ["rows", "columns", "slice", "sparse", "backwards"]


@pytest.mark.parametrize("b", LAYOUTS)
@pytest.mark.parametrize("a", LAYOUTS)
def test_factors_in_any_layout(isa, a, b):
    check(product(7, 19, 2 * isa.lanes + 3, a, b), isa)
    check(product(1, 40, 13, a, b), isa)


@pytest.mark.parametrize("y", ["rows", "columns", "slice", "backwards"])
def test_results_contiguous_along_rows_or_columns(isa, y):
    for m, n in ((1, 9), (9, 1), (5, isa.lanes + 2)):
        check(product(m, 8, n, y=y), isa)


@pytest.mark.parametrize("method", ["direct", "packed"])
def test_tails_of_rows_and_columns(isa, method):
    for n in sorted({2, isa.lanes - 1, isa.lanes, isa.lanes + 1, 3 * isa.lanes, 4 * isa.lanes + 3}):
        for m in (1, 3, 4, 5, 11):
            matmul = product(m, 6, n)
            check(matmul, isa, replace(make_matmul_tile(matmul, isa, min(m, 4), 2), method=method))


@pytest.mark.parametrize("m", [1, 2, 3])
def test_few_rows_by_contiguous_columns_are_dots(isa, m):
    for k in (1, isa.lanes, 5 * isa.lanes + 3):
        for n in (1, isa.lanes - 1, 2 * isa.lanes, 3 * isa.lanes + 1):
            check(product(m, k, n, b="columns"), isa)


@pytest.mark.parametrize("m", [1, 2, 3])
def test_few_rows_by_contiguous_columns_are_chosen_to_be_dots(machine, m):
    for k in (machine.lanes, 5 * machine.lanes + 3):
        for n in (machine.lanes - 1, 2 * machine.lanes, 3 * machine.lanes + 1):
            assert matmul_tiles(product(m, k, n, b="columns"), machine)[0].method == "dots"


def test_vector_times_matrix_and_matrix_times_vector(isa):
    for k, n in ((300, 40), (33, 500)):
        check(product(1, k, n), isa)
        check(product(n, k, 1), isa)
        check(product(n, k, 1, a="columns"), isa)


def test_batches_repeat(isa):
    y = View.dense((2, 3, 5, 9))
    for a, b in (((2, 3), (1, 3)), ((2, 1), (2, 3)), ((1, 1), (2, 3)), ((2, 3), (1, 1))):
        check(MatMul(View.dense((*a, 5, 7)), View.dense((*b, 7, 9)), y), isa)


def test_batches_that_share_b_are_more_rows(isa):
    shared = MatMul(View.dense((8, 1, 6)), View.dense((1, 6, 20)), View.dense((8, 1, 20)))
    assert all(matmul_tiles(shared, machine)[0].rows > 1 for machine in MACHINES)
    check(shared, isa)


def test_heads_of_a_fused_matrix(isa):
    rows = View.dense((1, 21, 3, 2, 24))
    q, k = (rows.picked(2, n).transposed((0, 2, 1, 3)) for n in (0, 1))
    check(MatMul(q, k.transposed((0, 1, 3, 2)), View.dense((1, 2, 21, 21)), alpha=0.25), isa)


def test_chunks_of_rows_and_of_units(isa):
    for layout in ("rows", "columns"):
        matmul = product(23, 9, 2 * isa.lanes + 1, b=layout, batch=(3,))
        tile = make_matmul_tile(matmul, isa, 4, 1)
        for chunk_rows in (4, 8, 23):
            for units in (1, 2, 7):
                check(matmul, isa, replace(tile, chunk_rows=chunk_rows, units=units))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_product_on_its_tiles(isa, data):
    m, k, n = (data.draw(st.integers(1, most)) for most in (60, 50, 90))
    a, b = (data.draw(st.sampled_from(LAYOUTS)) for _ in "ab")
    batch = tuple(data.draw(st.lists(st.integers(1, 3), max_size=2)))
    matmul = product(m, k, n, a, b, data.draw(st.sampled_from(["rows", "columns", "slice"])), batch)
    check(matmul, isa, data.draw(st.sampled_from(matmul_tiles(matmul, isa))))


TILES = [(4, 2, "direct"), (1, 3, "direct"), (6, 1, "packed"), (2, 2, "packed"), (1, 1, "dots")]


def tiled(matmul, isa, tile):
    """Return a tile of a product of these rows, vectors and method."""
    rows, vectors, method = tile
    return replace(make_matmul_tile(matmul, isa, rows, vectors), rows=rows, vectors=vectors, method=method, blocks=1)


def fit_for(method, m, k, n, batch=()):
    """Return a product that a method can compute. Rows of y have gaps, so that it is not turned where it has one column."""
    return product(m, k, n, b="columns" if method == "dots" else "rows", y="slice", batch=batch)


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_one_kernel_serves_all_sizes(isa, tile):
    sizes = [(1, 64, 1), (1, 64, 500), (7, 64, 77), (197, 20, 197), (1, 2, 1), (512, 64, 512)]
    products = [fit_for(tile[2], *size, batch) for size in sizes for batch in ((), (3,), (2, 12))]
    kernels = [emit_matmul(matmul, tiled(matmul, isa, tile), isa) for matmul in products]
    assert len({kernel.name for kernel in kernels}) == len({kernel.ir for kernel in kernels}) == 1
    assert len({kernel.numbers for kernel in kernels}) == len(kernels)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_kernel_that_is_compiled_once_computes_every_shape(isa, data):
    tile = data.draw(st.sampled_from(TILES))
    m, k, n = (data.draw(st.integers(least, most)) for least, most in ((1, 30), (1 + (tile[2] == "dots"), 40), (1, 60)))
    matmul = fit_for(tile[2], m, k, n, tuple(data.draw(st.lists(st.integers(1, 3), max_size=2))))
    wanted = tiled(matmul, isa, tile)
    wanted = replace(wanted, chunk_rows=wanted.rows * data.draw(st.integers(1, 9)), units=data.draw(st.integers(1, 5)))
    first = fit_for(tile[2], 5, 5, 5)
    assert emit_matmul(matmul, wanted, isa).ir == emit_matmul(first, tiled(first, isa, tile), isa).ir
    check(matmul, isa, wanted)


@pytest.mark.parametrize("b", ["rows", "columns"])
def test_a_kernel_for_symbols_is_that_for_their_values(machine, b):
    scope = Scope()
    m, k, n, batch = (scope.symbol(name, hint) for name, hint in zip("mknb", (197, 64, 150, 3), strict=True))
    symbolic = product(m, k, n, b=b, batch=(batch,))
    tile = matmul_tiles(symbolic, machine)[0]
    kernel = emit_matmul(symbolic, tile, machine)
    found: dict[Any, None] = {}
    sizes_in((kernel.numbers, kernel.chunks, kernel.scratch_bytes), found)
    evaluation = Evaluation(scope, found)
    for values in ((2, 2, 2, 2), (3, 500, 17, 9), (512, 64, 512, 12)):
        *size, count = values
        plain = emit_matmul(product(*size, b=b, batch=(count,)), tile, machine)
        bound = kernel.at(evaluation.at(values))
        assert (bound.name, bound.numbers, bound.chunks) == (plain.name, plain.numbers, plain.chunks)
        assert bound.scratch_bytes == plain.scratch_bytes


def test_growing_keys_of_a_decoder_need_two_kernels(machine):
    def kernels(keys):
        for shapes in (product(1, 64, keys, b="columns", batch=(12,)), product(1, keys, 64, batch=(12,))):
            yield emit_matmul(shapes, matmul_tiles(shapes, machine)[0], machine).name

    assert len({name for keys in (1, 2, 15, 16, 17, 100, 512) for name in kernels(keys)}) == 2


def test_a_product_of_one_row_computes_no_others(machine):
    for n in (machine.lanes, 64, 1000):
        assert matmul_tiles(product(1, 300, n), machine)[0].rows == 1


@pytest.mark.parametrize("b", ["rows", "columns"])
def test_code_is_small(isa, b):
    for matmul in (product(197, 64, 197, b=b), product(1, 64, 197, b=b)):
        kernel = emit_matmul(matmul, matmul_tiles(matmul, isa)[0], isa)
        assert kernel.ir.count("\n") < 900


@pytest.mark.parametrize("y", ["rows", "columns"])
@pytest.mark.parametrize("m", [1, 2, 9])
def test_the_epilogue_follows_the_product(isa, m, y):
    matmul = product(m, 10, 37, b="columns", y=y, batch=(2,))
    row = View.dense((1, 1, 37)) if y == "rows" else View.dense((2, m, 1))
    matmul = replace(matmul, epilogue=chain(("add", row), "relu", (matmul.y, "sub")), alpha=0.5)
    rng = np.random.default_rng(3)
    a, b, r0, r1 = (rng.standard_normal(v.shape).astype(np.float32) for v in (matmul.a, matmul.b, row, matmul.y))
    memory = lay(matmul.y, r1)
    kernel = emit_matmul(matmul, matmul_tiles(matmul, isa)[0], isa)
    run_kernel(kernel, isa, a=lay(matmul.a, a), b=lay(matmul.b, b), r0=lay(row, r0), r1=lay(matmul.y, r1), y=memory)
    assert_close(seen(matmul.y, memory), r1 - np.maximum(0.5 * (a.astype(np.float64) @ b) + r0, 0), 10)


def test_large_products_make_enough_chunks_and_do_not_spill(tuned):
    fused = product(197, 64, 197, b="columns", batch=(12,))
    for matmul, chunks in ((fused, 24), (product(256, 256, 256), 15), (product(1, 2048, 1000), 8)):
        tile = matmul_tiles(matmul, tuned)[0]
        kernel = emit_matmul(matmul, tile, tuned)
        assert kernel.chunks >= chunks
        assert generate(kernel.ir, tuned, count_spills=True).spills <= SPILL_LIMIT


def test_nothing_outside_of_b_is_read_into_results(isa):
    matmul = product(3, 5, isa.lanes + 3, b="slice")
    for method in ("direct", "packed"):
        check(matmul, isa, replace(make_matmul_tile(matmul, isa, 3, 2), method=method))


def test_what_does_not_fit_is_refused():
    isa = ISAS["avx512"]
    with pytest.raises(EmitError, match=r"a is \(3, 4\), b is \(5, 6\)"):
        matmul_tiles(MatMul(View.dense((3, 4)), View.dense((5, 6)), View.dense((3, 6))), isa)
    with pytest.raises(EmitError, match="need rows or columns without gaps"):
        matmul_tiles(product(3, 4, 5, y="sparse"), isa)
    turned = product(9, 4, 5, b="columns")
    with pytest.raises(EmitError, match="columns of b 4, need another method than 'direct'"):
        emit_matmul(turned, replace(matmul_tiles(turned, isa)[0], method="direct"), isa)
    joined = product(3, 4, 5, epilogue=chain(("add", matrix(3, 5, "columns"))))
    tile = matmul_tiles(joined, isa)[0]
    with pytest.raises(EmitError, match=r"columns of operands are \[3\] apart, need 0 or 1"):
        emit_matmul(joined, tile, isa)
