import pytest

from kernels.cuda.errors import CudaError
from kernels.cuda.families.candidates import row_candidates
from kernels.cuda.families.columns import ColumnForm, Columns
from kernels.cuda.families.gather import Gather
from kernels.cuda.families.rows import RowForm, Rows
from kernels.cuda.families.sliding import Windows
from kernels.native.errors import EmitError
from tests.kernels.cuda.families.product_cases import ADD, RELU, window


@pytest.mark.parametrize(
    ("n", "storage", "run", "team", "held"),
    [
        (1, "fp32", 1, 32, 1),
        (64, "fp32", 4, 32, 1),
        (197, "bf16", 1, 32, 8),
        (768, "bf16", 8, 32, 4),
        (768, "fp32", 4, 32, 8),
        (4096, "fp32", 4, 256, 4),
        (20000, "bf16", 8, 1024, 4),
        (50257, "bf16", 1, 1024, 0),
    ],
)
def test_fewest_threads_that_hold_a_row(n, storage, run, team, held):
    form = Rows(3, n).form("softmax", storage)
    assert (form.run, form.team, form.held) == (run, team, held)
    assert form.most is None or form.most >= n


def test_candidates_all_serve_the_rows():
    rows = Rows(10, 768)
    forms = list(row_candidates(rows, rows.form("layer_norm", "bf16", scale=True)))
    assert [(form.team, form.held) for form in forms] == [(32, 4), (256, 1), (1024, 1), (1024, 0)]
    for form in forms:
        rows.launch(form, x="x", y="y", scale="s")


def test_blocks_have_a_row_each_or_one_for_each_warp():
    rows = Rows(17, 64)
    assert rows.launch(rows.form("max", "fp32"), x="x", y="y").blocks == 3
    assert rows.launch(RowForm("max", "fp32", "fp32", 4, 256, 1), x="x", y="y").blocks == 17


@pytest.mark.parametrize(
    ("rows", "form", "says"),
    [
        (Rows(2, 6), RowForm("softmax", "fp32", "fp32", 4), "multiples of 4"),
        (Rows(2, 64, x_stride=66), RowForm("softmax", "fp32", "fp32", 4), "multiples of 4"),
        (Rows(2, 256), RowForm("softmax", "fp32", "fp32", 4), "rows of 128 at most"),
        (Rows(2, 64), RowForm("softmax", "fp32", "fp32", 4, expression=ADD), "which|what fp32_softmax"),
    ],
    ids=["columns", "stride", "long", "operands"],
)
def test_rows_that_a_kernel_does_not_serve_are_refused(rows, form, says):
    with pytest.raises(CudaError, match=says):
        rows.launch(form, x="x", y="y")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"team": 64}, "in each of 64 threads"),
        ({"held": 16}, "16 runs of 4 elements"),
        ({"scale": True}, "need one of"),
        ({"op": "sum", "expression": ADD}, "sum: 1 matrices, need none for one element a row"),
        ({"run": 8}, "runs of 8 elements of fp32"),
    ],
    ids=["team", "held", "scale", "reduced", "run"],
)
def test_forms_that_no_kernel_computes_are_refused(options, says):
    with pytest.raises(EmitError, match=says):
        RowForm(**{"op": "softmax", "x": "fp32", "y": "fp32", "run": 4, **options})


@pytest.mark.parametrize(("problem", "name"), [(Rows, "rows"), (lambda a, b: Columns(a, b, 4), "outer")], ids=["rows", "columns"])
def test_empty_problems_are_refused(problem, name):
    with pytest.raises(CudaError, match=f"{name} has 0 elements, need 1 to"):
        problem(0, 4)


@pytest.mark.parametrize(
    ("problem", "says"),
    [
        (lambda: Rows(1 << 10, 64, y_stride=1 << 22), "rows: y has"),
        (lambda: Rows(1 << 10, 64, others=(1 << 22,)), "rows: r0 has"),
        (lambda: Columns(1 << 10, 9, 64, y_stride=1 << 22), "columns: y has"),
        (lambda: Windows(window(1 << 10, 14, 64, 3), others=(64, 1 << 22)), "windows: r1 has"),
        (lambda: Gather(9, 1 << 10, 64, others=(1 << 22,)), "gather: r0 has"),
    ],
    ids=["rows", "others", "columns", "windows", "gather"],
)
def test_arrays_that_kernels_cannot_count_are_refused(problem, says):
    with pytest.raises(CudaError, match=f"{says} \\d+ elements, need 1 to 2147483647"):
        problem()


@pytest.mark.parametrize(
    ("columns", "run", "across", "threads", "blocks"),
    [
        (Columns(2, 49, 2048), 8, 8, 256, 2 * 32),
        (Columns(2, 12544, 32), 8, 4, 1024, 2),
        (Columns(1, 9, 3), 1, 2, 256, 2),
        (Columns(1, 9, 64, x_stride=68), 4, 8, 256, 2),
        (Columns(1, 9, 1), 1, 1, 256, 1),
    ],
)
def test_blocks_of_columns(columns, run, across, threads, blocks):
    launch = columns.launch("mean", "bf16", x="x", y="y")
    assert (launch.kernel.run, launch.kernel.across, launch.kernel.threads, launch.blocks) == (run, across, threads, blocks)


def test_column_forms_that_no_kernel_computes_are_refused():
    with pytest.raises(EmitError, match="3 runs in 256 threads"):
        ColumnForm("sum", "fp32", "fp32", 4, 3)
    with pytest.raises(EmitError, match="sum and 2 operands"):
        ColumnForm("sum", "fp32", "fp32", 4, expression=ADD)
    assert ColumnForm("sum", "fp32", "fp32", 4, expression=RELU).name.startswith("fp32_sum_of_columns_run4_8x32_relu_")
