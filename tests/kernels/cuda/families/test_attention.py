import dataclasses

import pytest

from kernels.cuda.driver import Attribute
from kernels.cuda.errors import CudaError, GpuUnsupportedError
from kernels.cuda.families.attention import AttentionForm
from kernels.cuda.families.attention_problem import Attention
from kernels.cuda.families.candidates import MOST_VALUES, attention_candidates
from kernels.native.errors import EmitError
from tests.kernels.cuda import fake as fakes

DENSE = Attention.dense(2, 6, 197, 300, 64, key_heads=2)


def test_dense_arrays_lie_by_tokens_and_heads():
    assert DENSE.q == DENSE.y == (197 * 384, 64, 384)
    assert DENSE.k == DENSE.v == (300 * 128, 64, 128)
    assert DENSE.scale == 0.125
    assert DENSE.flops == 2 * (2 * 2 * 6 * 197 * 300 * 64)


def test_launch_is_told_its_sizes():
    launch = DENSE.launch(AttentionForm("bf16", 64, warps=2, tall=2), q="q", k="k", v="v", y="y")
    told = launch.told
    assert (launch.blocks, told.tiles, told.heads, told.group, told.keys) == (2 * 6 * 4, 4, 6, 3, 300)
    assert (told.scale_log2, told.unscale) == (pytest.approx(0.125 * 1.442695), 8)


@pytest.mark.parametrize(("depth", "bf16", "fp32"), [(64, 16, 16), (36, 8, 16), (50, 4, 8), (35, 2, 4)])
def test_copies_are_as_large_as_every_row_allows(depth, bf16, fp32):
    attention = Attention.dense(1, 2, 8, 8, depth)
    assert (attention.copy_bytes("bf16"), attention.copy_bytes("fp32")) == (bf16, fp32)


@pytest.mark.parametrize(
    ("attention", "form"),
    [
        (Attention.dense(1, 1, 8, 8, 80), AttentionForm("bf16", 64)),
        (Attention.dense(1, 1, 8, 8, 36), AttentionForm("bf16", 48)),
        (Attention.dense(1, 1, 8, 8, 35), AttentionForm("bf16", 48, copy_bytes=4)),
        (DENSE, AttentionForm("bf16", 64, mask="bool")),
        (dataclasses.replace(DENSE, mask=(0, 0, 300, 1)), AttentionForm("bf16", 64)),
    ],
    ids=["deep", "copies", "odd", "no_mask", "mask"],
)
def test_attention_that_a_kernel_does_not_serve_is_refused(attention, form):
    with pytest.raises(GpuUnsupportedError, match="the kernel is bf16_attention_64x64w4_head"):
        attention.launch(form, q="q", k="k", v="v", y="y")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"key_heads": 4}, "6 heads of queries for 4 of keys"),
        ({"scale": 0.0}, "scale 0.0, need"),
        ({"keys": 0}, "k has|keys has 0 elements"),
        ({"mask": (0, 6 << 28, 300, 1)}, "mask has 8053122780 elements"),
        ({"q": (1 << 31, 64, 384)}, "q has 2147559616 elements"),
    ],
    ids=["heads", "scale", "empty", "mask", "far"],
)
def test_attentions_that_kernels_cannot_compute_are_refused(change, says):
    with pytest.raises(CudaError, match=says):
        dataclasses.replace(DENSE, **change)


@pytest.mark.parametrize(
    "options",
    [
        {"depth": 60},
        {"depth": 272},
        {"keys": 8},
        {"warps": 3},
        {"copy_bytes": 2},
        {"precision": "fp32", "copy_bytes": 4},
        {"tall": 3},
    ],
)
def test_forms_that_no_kernel_computes_are_refused(options):
    with pytest.raises(EmitError, match="attention: "):
        AttentionForm(**{"precision": "bf16", "depth": 64, **options})


def test_candidates_fit_the_gpu(monkeypatch):
    device = fakes.fake_driver(fakes.FakeCuda()).device()
    every = list(attention_candidates("bf16", DENSE, device, causal=True))
    assert len({form.name for form in every}) == len(every)
    assert {(form.tall, form.keys) for form in every} >= {(1, 128), (2, 32)}
    assert max(form.values for form in every) <= MOST_VALUES
    monkeypatch.setitem(fakes.H200, Attribute.SHARED_BYTES_PER_BLOCK, 60 << 10)
    few = list(attention_candidates("bf16", DENSE, device))
    assert few
    assert all(form.shared_bytes <= 60 << 10 for form in few)
