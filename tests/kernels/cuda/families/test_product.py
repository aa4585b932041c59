import shutil
import subprocess

import numpy as np
import pytest

from kernels.cuda.emit.unit import Block
from kernels.cuda.families.product import Form
from kernels.cuda.families.product_work import UNITS, Tile
from kernels.cuda.ptx import TARGETS, generate
from kernels.expression import FLOAT, Apply, Expression
from kernels.native.emit.types import I32
from kernels.native.errors import EmitError
from tests.kernels.cuda.families.host import build
from tests.kernels.cuda.families.product_cases import ADD_RELU, CLIP, GATED, GELU, SILU, SMALL

TALL = Tile(128, 32, 4, 1, 2)
FORMS = {
    "bf16": Form("bf16", SMALL, bias=True),
    "fp16_windows_of_4": Form("fp16", TALL, windows=True, copy_bytes=8, bias=True, expression=CLIP),
    "tf32_windows_residual": Form("tf32", SMALL, windows=True, expression=ADD_RELU),
    "fp32_gelu": Form("fp32", SMALL, bias=True, expression=GELU),
    "fp32_odd": Form("fp32", TALL, copy_bytes=4, whole=False, expression=GATED),
    "bf16_odd": Form("bf16", TALL, copy_bytes=2, whole=False, bias=True, expression=SILU),
}
INSTRUCTIONS = {
    "bf16": "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
    "fp16": "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
    "tf32": "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
    "fp32": "fma.rn.f32",
}
PTX = [TARGETS[8, 0], TARGETS[9, 0]]


@pytest.mark.parametrize("target", PTX, ids=lambda target: target.cpu)
@pytest.mark.parametrize("name", FORMS)
def test_kernels_compile(name, target, tmp_path):
    form = FORMS[name]
    found = generate(form.emit(), target).decode()
    assert f".target {target.cpu}" in found
    assert INSTRUCTIONS[form.precision] in found
    assert form.copy_bytes == 2 or f", {form.copy_bytes}, " in found
    assert "st.local" not in found
    if shutil.which("ptxas") is None:
        return
    (tmp_path / "module.ptx").write_text(found)
    command = ["ptxas", f"-arch={target.cpu}", str(tmp_path / "module.ptx"), "-o", str(tmp_path / "module.cubin")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", [Block(32, 32), Block(64, 64), Block(16, 16), Block(32, 48)], ids=str)
@pytest.mark.parametrize("precision", UNITS)
def test_threads_of_a_warp_share_all_results_between_them(precision, block):
    unit = UNITS[precision][1]
    runs = []

    def emit(k, rows_at, columns_at, lane, _):
        rows, columns, numbers = unit.places(k, k.convert("trunc", lane, I32), block)
        for values, at in ((rows, rows_at), (columns, columns_at)):
            for n, value in enumerate(values):
                k.store(value, at, n)
        runs.append((len(rows), len(columns), numbers))

    places = build(emit)
    (n_rows, n_columns, numbers) = runs[0]
    assert sorted(n for row in numbers for run in row for n in run) == list(range(unit.results(block)))
    seen = set()
    for lane in range(32):
        rows, columns = np.zeros(n_rows, np.int32), np.zeros(n_columns, np.int32)
        places(rows.ctypes.data, columns.ctypes.data, lane, 0)
        seen |= {(row, column + at) for row in rows.tolist() for column in columns.tolist() for at in range(unit.run(block))}
    assert seen == {(row, column) for row in range(block.rows) for column in range(block.columns)}


@pytest.mark.parametrize("block", [Block(32, 32), Block(16, 16)], ids=str)
@pytest.mark.parametrize("precision", UNITS)
def test_rows_of_the_right_tile_are_all_columns_once(precision, block):
    def emit(k, out, _, n, __):
        with k.loop("row", 0, n) as row:
            k.store(UNITS[precision][1].column_of(k, k.convert("trunc", row, I32), block), out, row)

    out = np.zeros(96, np.int32)
    build(emit)(out.ctypes.data, 0, 96, 0)
    assert sorted(out.tolist()) == list(range(96))


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_kernels_of_groups_of_warps_compile_and_keep_their_products_under_way(precision, tmp_path):
    form = Form(precision, Tile(128, 128, 8, 1, 3), windows=True, bias=True, groups=True)
    found = generate(form.emit(), TARGETS[9, 0]).decode()
    assert found.count("wgmma.mma_async.sync.aligned.m64n128k") == 4
    assert "fence.proxy.async" in found
    if shutil.which("ptxas") is None:
        return
    (tmp_path / "module.ptx").write_text(found)
    command = ["ptxas", "-v", "-arch=sm_90a", str(tmp_path / "module.ptx"), "-o", str(tmp_path / "module.cubin")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "serialized" not in done.stderr, "products wait for one another"


def test_name_tells_forms_apart():
    names = {form.name for form in FORMS.values()}
    assert len(names) == len(FORMS)
    assert FORMS["bf16"].name == "bf16_product_64x64w2x2s3_c16_bias"
    assert FORMS["fp32_odd"].name.startswith("fp32_product_128x32w4x1s2_c4_part_mul_add_")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tile": Tile(64, 64, 3, 2, 3)}, "tile 64x64w3x2s3, need 2 warps or more of multiples of 16x16"),
        ({"tile": Tile(32, 32, 1, 1, 3)}, "need 2 warps or more"),
        ({"tile": Tile(64, 64, 2, 2, 1)}, "2 stages or more"),
        ({"groups": True}, "groups of warps for bf16, tile 64x64w2x2s3, need tf32, bf16, fp16, 4 down"),
        ({"groups": True, "precision": "fp32", "tile": Tile(64, 64, 4, 1, 3)}, "groups of warps for fp32"),
        ({"copy_bytes": 1}, "copies of 1 bytes, need 2 to 16"),
        ({"copy_bytes": 2, "precision": "fp32"}, "copies of 2 bytes, need 4 to 16"),
        ({"expression": Expression((FLOAT,), (Apply("gt", (0, 0)),))}, "need float32 of float32"),
        ({"expression": Expression((FLOAT,) * 4, (Apply("add", (0, 3)),))}, "and 3 at most"),
    ],
)
def test_forms_that_no_kernel_computes_are_refused(options, says):
    with pytest.raises(EmitError, match=says):
        Form(**{"precision": "bf16", "tile": SMALL, **options})
