"""Every family's kernels compile for both generations of GPUs, are assembled where ptxas is installed, and spill no register."""

import re
import shutil
import subprocess

import numpy as np
import pytest

from kernels.cuda.emit.kernel import Kernel
from kernels.cuda.families.attention import AttentionForm
from kernels.cuda.families.columns import ColumnForm
from kernels.cuda.families.elementwise import MapForm
from kernels.cuda.families.gather import GatherForm
from kernels.cuda.families.product import Form
from kernels.cuda.families.product_work import Tile
from kernels.cuda.families.rearrange import TransposeForm
from kernels.cuda.families.resize import ResizeForm
from kernels.cuda.families.rows import RowForm
from kernels.cuda.families.sliding import WindowForm
from kernels.cuda.families.vector import VectorForm
from kernels.cuda.ptx import TARGETS, generate
from kernels.expression import DOUBLE, FLOAT, Apply, Expression
from kernels.spec import BOOL
from tests.kernels.cuda.families.product_cases import ADD, ADD_RELU, GELU, SILU, SMALL

TEAMS = Tile(32, 64, 2, 2, 4, 4)
WHERE = Expression((BOOL, FLOAT, FLOAT), (Apply("where", (0, 1, 2)),))
WIDENED = Expression((DOUBLE, np.dtype(np.int8)), (Apply("cast", (1,), dtype=DOUBLE), Apply("add", (0, 2))))
KERNELS: list[tuple[Kernel, tuple[str, ...]]] = [  # with instructions that their code must have
    (MapForm(ADD_RELU, ("bf16", "bf16", "bf16"), ("run", "run", "same"), 2, 8), ("ld.global.v4.b32", "st.global.v4.b32")),
    (MapForm(GELU, ("fp32", "fp32"), ("strided", "run"), 6, 1), ("st.global.b32",)),
    (MapForm(WHERE, ("fp16", "fp32", "fp32", "fp16"), ("run", "run", "strided", "run"), 3, 8), ("ld.global.v2.b32",)),
    (MapForm(WIDENED, ("fp32", "fp32", "fp32"), ("run", "run", "run"), 1, 1), ("ld.global.b64", "ld.global.b8")),
    (TransposeForm("fp32", "bf16", 4, 8, 2), ("ld.global.v4.b32", "st.global.v4.b32", "bar")),
    (TransposeForm("bf16", "fp32", 1, 1, 3), ("ld.global.b16",)),
    (RowForm("softmax", "bf16", "bf16", 8, 32, 4), ("shfl.sync.bfly",)),
    (RowForm("log_softmax", "fp32", "fp16", 1, 1024, 0), ("bar",)),
    (RowForm("layer_norm", "fp32", "fp32", 4, 256, 4, scale=True, bias=True, expression=ADD), ("sqrt", "ld.global.v4.b32")),
    (RowForm("rms_norm", "bf16", "bf16", 8, 1024, 4, scale=True, expression=SILU), ("sqrt",)),
    (RowForm("l2", "fp16", "fp32", 8, 32, 1), ("sqrt",)),
    (ColumnForm("mean", "bf16", "bf16", 8), ("shfl.sync.bfly", "bar")),
    (ColumnForm("max", "fp32", "fp32", 1), ("max",)),
    (WindowForm("depthwise", "bf16", 8, 9, bias=True, expression=ADD), ("fma.rn.f32",)),
    (WindowForm("max_pool", "fp32", 4, 4), ("max.NaN.f32",)),
    (WindowForm("average_pool", "fp16", 1, 9), ("ld.global.b16",)),
    (WindowForm("depthwise", "bf16", 8, 3, 4), ("fma.rn.f32",)),
    (WindowForm("average_pool", "fp32", 4, 5, 2), ("ld.global.v4.b32",)),
    (ColumnForm("min", "fp16", "fp32", 4, 2, 1024), ("min.NaN.f32", "bar")),
    (GatherForm("bf16", "fp32", 4, 32, ADD), ("ld.global.v2.b32",)),
    (GatherForm("fp16", "fp16", 8, 64), ("ld.global.b64",)),
    (ResizeForm("bf16", 8), ("fma.rn.f32",)),
    (ResizeForm("fp32", 1, copies=True), ("ld.global.b32",)),
    (Form("bf16", SMALL, batched=True), ("mma.sync.aligned.m16n8k16",)),
    (
        AttentionForm("bf16", 64),
        ("mma.sync.aligned.m16n8k16.row.col.f32.bf16", "ex2.approx.ftz.f32", "ldmatrix.sync.aligned.m8n8.x4.trans"),
    ),
    (AttentionForm("fp16", 80, 4, 64, causal=True), ("mma.sync.aligned.m16n8k16.row.col.f32.f16", "cp.async.cg")),
    (AttentionForm("bf16", 128, 4, 64, mask="bool"), ("ld.global.b8",)),
    (AttentionForm("bf16", 128, 4, 32, causal=True, tall=2), ("ldmatrix",)),
    (AttentionForm("tf32", 64, mask="fp32"), ("mma.sync.aligned.m16n8k8",)),
    (AttentionForm("fp32", 32, 1, 16, 8), ("cp.async.ca",)),
    (AttentionForm("bf16", 64, 1, 32, teams=4), ("barrier.sync.aligned", "ld.shared.v4.b32")),
    (Form("bf16", TEAMS, early=True, expression=ADD), ("barrier.sync.aligned", "prefetch.global.L2", "ld.shared.v4.b32")),
    (Form("tf32", TEAMS, windows=True, bias=True), ("mma.sync.aligned.m16n8k8",)),
    (VectorForm("bf16", 8, bias=True, expression=SILU, early=True), ("fma.rn.f32", "shfl.sync.bfly")),
]
CLUSTERS = [Form("bf16", TEAMS, early=True, cluster=4), Form("tf32", Tile(64, 32, 4, 1, 4, 4), groups=True, cluster=8)]
PTX = [TARGETS[8, 0], TARGETS[9, 0]]


@pytest.mark.parametrize("target", PTX, ids=lambda target: target.cpu)
@pytest.mark.parametrize(("kernel", "instructions"), KERNELS, ids=[kernel.name for kernel, _ in KERNELS])
def test_kernels_compile(kernel, instructions, target, tmp_path):
    found = generate(kernel.emit(), target).decode()
    assert f".target {target.cpu}" in found
    assert f".maxntid {kernel.threads}" in found
    assert [text for text in instructions if text not in found] == []
    assert not re.search(r"\.local|call\.uni", found), "registers in memory, or functions that are not inlined"
    if shutil.which("ptxas") is None:
        return
    (tmp_path / "module.ptx").write_text(found)
    command = ["ptxas", "-v", f"-arch={target.cpu}", str(tmp_path / "module.ptx"), "-o", str(tmp_path / "module.cubin")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "0 bytes spill stores" in done.stderr


def test_names_tell_kernels_apart():
    assert len({kernel.name for kernel, _ in KERNELS}) == len(KERNELS)


@pytest.mark.parametrize(("kernel", "_"), KERNELS, ids=[kernel.name for kernel, _ in KERNELS])
def test_names_are_symbols_that_every_assembler_takes(kernel, _):
    assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", kernel.name)


@pytest.mark.parametrize("form", CLUSTERS, ids=lambda form: form.name)
def test_blocks_of_a_cluster_read_one_another(form):
    found = generate(form.emit(), TARGETS[9, 0]).decode()
    assert f".reqnctapercluster {form.cluster}" in found
    assert "ld.shared::cluster.v4.b32" in found
    assert found.count("barrier.cluster.arrive.aligned") == 2, "before the sums are read, and before they may be overwritten"


@pytest.mark.parametrize("kernel", [kernel for kernel, _ in KERNELS], ids=lambda kernel: kernel.name)
def test_launches_overlap_where_gpus_can(kernel):
    older, newer = (generate(kernel.emit(), target).decode() for target in PTX)
    assert "griddepcontrol" not in older
    assert newer.count("griddepcontrol.launch_dependents") == 1
    ir = kernel.emit()  # in the order in which it was emitted, which PTX does not keep
    wait = ir.index("griddepcontrol.wait")
    assert ir.index("st.global") > wait, "nothing is written before the launches ahead have ended"
    reads = [ir.index(word) for word in ("ld.global", "cp.async") if word in ir]
    assert min(reads) > wait or _reads_weights_first(kernel)


def _reads_weights_first(kernel):
    weighs = isinstance(kernel, WindowForm) and kernel.op == "depthwise"
    return weighs or getattr(kernel, "early", False) or (isinstance(kernel, RowForm) and kernel.scale)
