"""Attention on a GPU against float64. Results and what lies between heads begin as NaN."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from kernels.cuda.families.attention import AttentionForm
from kernels.cuda.families.attention_problem import Attention
from tests.kernels.cuda.families.cases import draw, padded, poison
from tests.kernels.cuda.families.product_cases import DTYPES

pytestmark = pytest.mark.gpu
PRECISIONS = ("bf16", "fp16", "tf32", "fp32")
STORED = {"bf16": "bf16", "fp16": "fp16", "tf32": "fp32", "fp32": "fp32"}
# Scores are sums of products of numbers of magnitude 1; weights are rounded to the storage before they are multiplied.
ERRORS = {"bf16": 2.0**-7, "fp16": 2.0**-10, "tf32": 2.0**-8, "fp32": 2.0**-18}


def truth_of(q, k, v, scale, mask, causal, offset):
    """(batch, tokens, heads, depth) in float64."""
    group = q.shape[2] // k.shape[2]
    q, k, v = (a.astype(np.float64) for a in (q, np.repeat(k, group, 2), np.repeat(v, group, 2)))
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) * scale
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask.astype(np.float64)
    if causal:
        queries, keys = np.arange(q.shape[1])[:, None], np.arange(k.shape[1])
        scores = np.where(keys <= queries + offset, scores, -np.inf)
    with np.errstate(invalid="ignore"):
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhqk,bkhd->bqhd", weights, v)


def check(gpu, precision, batch, heads, queries, keys, depth, *, key_heads=None, mask=None, kind=None, causal=False, **options):
    storage, key_heads = STORED[precision], key_heads or heads
    gap, offset, blocks = options.pop("gap", 0), options.pop("offset", 0), options.pop("blocks", None)
    q = draw((batch, queries, heads, depth), storage)
    k, v = (draw((batch, keys, key_heads, depth), storage, seed) for seed in (1, 2))
    y = poison((batch, queries, heads, depth + gap), storage)
    problem = Attention.dense(batch, heads, queries, keys, depth + gap, key_heads=key_heads, scale=depth**-0.5)
    problem = dataclasses.replace(problem, depth=depth, offset=offset)
    arrays = {"q": padded(q, depth + gap), "k": padded(k, depth + gap), "v": padded(v, depth + gap), "y": y}
    if mask is not None:
        whole = np.broadcast_to(mask, (batch, heads, queries, keys))
        steps: Any = tuple(0 if n == 1 else s // mask.itemsize for n, s in zip(mask.shape, mask.strides, strict=True))
        arrays["mask"], problem = mask, dataclasses.replace(problem, mask=steps)
    form = AttentionForm(
        precision,
        -(-depth // 16) * 16,
        keys=options.pop("keys_of_tile", 64),
        copy_bytes=problem.copy_bytes(precision),
        causal=causal,
        mask=kind,
        **options,
    )
    memory = {name: gpu.upload(array) for name, array in arrays.items()}
    launch = problem.launch(form, **{name: name for name in memory})
    gpu.run(dataclasses.replace(launch, blocks=blocks or launch.blocks), memory)
    found = memory["y"].read(y)
    assert np.isnan(found[..., depth:].astype(np.float32)).all(), "what lies between heads was written to"
    truth = truth_of(q, k, v, problem.scale, None if mask is None else whole, causal, offset)
    np.testing.assert_allclose(found[..., :depth].astype(np.float64), truth, rtol=ERRORS[precision], atol=2 * ERRORS[precision])


@pytest.mark.parametrize("sizes", [(1, 1), (16, 16), (197, 197), (128, 300), (5, 65)], ids=str)
@pytest.mark.parametrize("depth", [32, 64, 80, 128])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_heads_of_any_size(gpu, precision, depth, sizes):
    check(gpu, precision, 2, 3, *sizes, depth)
    check(gpu, precision, 2, 3, *sizes, depth, tall=2, keys_of_tile=32)


@pytest.mark.parametrize("tall", [1, 2])
@pytest.mark.parametrize(("warps", "keys"), [(1, 16), (2, 32), (8, 64), (4, 128)])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_tiles(gpu, precision, warps, keys, tall):
    problem = Attention.dense(1, 2, 150, 203, 64)
    storage = STORED[precision]
    q, k, v = (draw((1, tokens, 2, 64), storage, seed) for seed, tokens in enumerate((150, 203, 203)))
    y = poison(q.shape, storage)
    memory = {name: gpu.upload(array) for name, array in (("q", q), ("k", k), ("v", v), ("y", y))}
    gpu.run(problem.launch(AttentionForm(precision, 64, warps, keys, tall=tall), q="q", k="k", v="v", y="y"), memory)
    truth = truth_of(q, k, v, problem.scale, None, False, 0)
    found = memory["y"].read(y).astype(np.float64)
    np.testing.assert_allclose(found, truth, rtol=ERRORS[precision], atol=2 * ERRORS[precision])


@pytest.mark.parametrize("tall", [1, 2])
@pytest.mark.parametrize("offset", [0, 70, -3])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_causal(gpu, precision, offset, tall):
    check(gpu, precision, 2, 2, 130, 200, 64, causal=True, offset=offset, tall=tall)


MASKS = {"all": (2, 3, 70, 90), "keys": (2, 1, 1, 90), "queries": (1, 1, 70, 90), "heads": (1, 3, 1, 1)}


@pytest.mark.parametrize("tall", [1, 2])
@pytest.mark.parametrize("kind", ["bool", "fp32", "own"])
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_masks(gpu, precision, name, kind, tall):
    shape, rng = MASKS[name], np.random.default_rng(5)
    kind = STORED[precision] if kind == "own" else kind
    if kind == "bool":
        mask = rng.random(shape) < 0.6
    else:
        mask = np.where(rng.random(shape) < 0.7, rng.standard_normal(shape), -np.inf).astype(np.float32).astype(DTYPES[kind])
    check(gpu, precision, 2, 3, 70, 90, 64, mask=mask, kind=kind, tall=tall)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_heads_of_keys_serve_groups(gpu, precision):
    check(gpu, precision, 2, 6, 50, 77, 64, key_heads=2)


@pytest.mark.parametrize(("depth", "gap"), [(36, 0), (64, 8), (50, 2), (20, 4)])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_heads_smaller_than_their_room_and_apart(gpu, precision, depth, gap):
    check(gpu, precision, 1, 2, 40, 100, depth, gap=gap)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_few_blocks_take_all_tiles_in_turn(gpu, precision):
    check(gpu, precision, 2, 3, 150, 100, 32, blocks=2, causal=True)


def test_scores_far_apart(gpu):
    """Scores of ±1000: the greatest comes late, and all before it vanishes."""
    q, k = np.full((1, 1, 1, 16), 8.0, np.float32), np.full((1, 130, 1, 16), -8.0, np.float32)
    k[0, 129] = 8.0
    v = draw((1, 130, 1, 16), "fp32")
    y = poison((1, 1, 1, 16))
    memory = {name: gpu.upload(array) for name, array in (("q", q), ("k", k), ("v", v), ("y", y))}
    problem = Attention.dense(1, 1, 1, 130, 16, scale=1.0)
    gpu.run(problem.launch(AttentionForm("fp32", 16), q="q", k="k", v="v", y="y"), memory)
    np.testing.assert_allclose(memory["y"].read(y)[0, 0, 0], v[0, 129, 0], rtol=2.0**-20)


@pytest.mark.parametrize("sizes", [(16, 16), (197, 197), (5, 65), (70, 300)], ids=str)
@pytest.mark.parametrize(("teams", "warps", "keys_of_tile", "depth"), [(4, 1, 32, 64), (2, 2, 64, 80), (4, 4, 64, 32)])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_teams_share_the_keys(gpu, precision, teams, warps, keys_of_tile, depth, sizes):
    check(gpu, precision, 2, 3, *sizes, depth, teams=teams, warps=warps, keys_of_tile=keys_of_tile)
    mask = np.random.default_rng(0).random((2, 1, 1, sizes[1])) < 0.5
    mask[..., 0] = True
    check(gpu, precision, 2, 3, *sizes, depth, teams=teams, warps=warps, keys_of_tile=keys_of_tile, mask=mask, kind="bool")
