from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.native.code.compile import SPILL_LIMIT, generate
from kernels.native.errors import EmitError
from kernels.native.families.attention import Attention, attention_tiles, emit_attention, make_attention_tile
from kernels.native.memory.view import View
from kernels.native.target.isa import ISAS
from kernels.size import Evaluation, Scope, sizes_in
from tests.kernels.native.reference import assert_only_written, lay, run_kernel, seen


def dense(batch, heads, queries, keys, size, v_size=None, kv_heads=None, **more):
    kv_heads, v_size = kv_heads or heads, v_size or size
    q, k = View.dense((batch, heads, queries, size)), View.dense((batch, kv_heads, keys, size))
    v, y = View.dense((batch, kv_heads, keys, v_size)), View.dense((batch, heads, queries, v_size))
    return Attention(q, k, v, y, size**-0.5, **more)


def random_mask(shape, rng):
    mask = rng.standard_normal(shape)
    mask[rng.random(shape) < 0.3] = -np.inf
    mask[..., 0] = 0.25  # so that every query sees something
    return mask.astype(np.float32)


def reference(attention, q, k, v, mask=None):
    group = q.shape[1] // k.shape[1]
    q, k, v = (a.astype(np.float64) for a in (q, k, v))
    k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)
    scores = q @ k.swapaxes(2, 3) * attention.scale
    if mask is not None:
        scores = scores + mask
    if attention.causal:
        ahead = np.arange(k.shape[2]) - np.arange(q.shape[2])[:, None]
        scores = np.where(ahead > attention.past, -np.inf, scores)
    with np.errstate(invalid="ignore"):
        e = np.exp(scores - scores.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True) @ v


def run(attention, isa, tile=None, **given):
    """Run attention on random data. Return the kernel's result and the one in float64. given: arrays to use instead."""
    rng = np.random.default_rng(0)
    views = {"q": attention.q, "k": attention.k, "v": attention.v}
    arrays = {name: rng.standard_normal(view.shape).astype(np.float32) for name, view in views.items()}
    if attention.mask:
        arrays["mask"], views["mask"] = random_mask(attention.mask.shape, rng), attention.mask
    arrays |= given
    memory = np.full(attention.y.span + 64, np.nan, np.float32)
    kernel = emit_attention(attention, tile or attention_tiles(attention, isa)[0], isa)
    run_kernel(kernel, isa, **{name: lay(views[name], array) for name, array in arrays.items()}, y=memory)
    got = seen(attention.y, memory).copy()
    assert_only_written(attention.y, memory)
    return got, reference(attention, **arrays)


def check(attention, isa, tile=None, **given):
    got, exact = run(attention, isa, tile, **given)
    np.testing.assert_allclose(got, exact, rtol=0, atol=2e-5)


@pytest.mark.parametrize("size", [1, 16, 40, 64])
def test_lengths_with_tails(isa, size):
    for queries, keys in ((1, 1), (1, 77), (13, 5), (isa.lanes, isa.lanes), (3 * isa.lanes + 1, 50)):
        check(dense(1, 2, queries, keys, size), isa)


def test_large_heads(isa):
    check(dense(1, 1, 21, 30, 256), isa)
    check(dense(1, 2, 9, 17, 80, v_size=72), isa)


def test_v_has_a_size_of_its_own(isa):
    for v_size in (1, 5, isa.lanes, 3 * isa.lanes + 2):
        check(dense(2, 2, 11, 19, 24, v_size), isa)


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_heads_share_keys_and_values(isa, kv_heads):
    check(dense(2, 6, 10, 12, 16, kv_heads=kv_heads), isa)


def fused(batch, heads, length, size):
    """Return attention whose q, k and v lie side by side in the rows of one matrix. Rows of y hold all heads."""
    rows = View.dense((batch, length, 3, heads, size))
    q, k, v = (rows.picked(2, n).transposed((0, 2, 1, 3)) for n in range(3))
    return Attention(q, k, v, View.dense((batch, length, heads, size)).transposed((0, 2, 1, 3)), size**-0.5)


def test_slices_of_one_matrix_are_read_in_place(isa):
    attention = fused(2, 3, 29, 20)
    matrix = np.random.default_rng(1).standard_normal(attention.v.span).astype(np.float32)
    q, k, v = (seen(view, matrix) for view in (attention.q, attention.k, attention.v))
    y = np.full(attention.y.span, np.nan, np.float32)
    run_kernel(emit_attention(attention, attention_tiles(attention, isa)[0], isa), isa, q=matrix, k=matrix, v=matrix, y=y)
    np.testing.assert_allclose(seen(attention.y, y), reference(attention, q, k, v), rtol=0, atol=2e-5)


def test_other_batches_and_heads_may_lie_anywhere(isa):
    q = View.dense((3, 7, 2, 40)).transposed((2, 0, 1, 3)).sliced(3, 3, 33).sliced(2, 6, 4, -2)
    kv = View.dense((9, 3, 2, 40)).transposed((2, 1, 0, 3)).sliced(3, 7, 33)
    check(Attention(q, kv, kv, q, 0.2), isa)


@pytest.mark.parametrize("shape", [(2, 3, 21, 19), (1, 1, 21, 19), (2, 1, 1, 19), (1, 3, 1, 1)])
def test_masks_repeat(isa, shape):
    check(dense(2, 3, 21, 19, 16, mask=View.dense(shape)), isa)


def test_masks_may_be_contiguous_along_queries_or_repeat_with_stride_0(isa):
    turned = View.dense((2, 3, 19, 37)).transposed((0, 1, 3, 2)).sliced(2, 2, 35)
    check(dense(2, 3, 35, 19, 16, mask=turned), isa)
    repeated = View((2, 3, 35, 19), (38, 0, 0, 2), 1)
    mask = np.broadcast_to(random_mask((2, 1, 1, 19), np.random.default_rng(0)), repeated.shape)
    check(dense(2, 3, 35, 19, 16, mask=repeated), isa, mask=mask)


@pytest.mark.parametrize("past", [0, 3, 30])
def test_causal(isa, past):
    for queries, keys in ((1, 8), (40, 40), (7, 50), (50, 7)):
        check(dense(2, 1, queries, keys, 8, causal=True, past=past), isa)
    check(dense(1, 2, 40, 43, 8, causal=True, past=past, mask=View.dense((1, 1, 40, 43))), isa)


@pytest.mark.parametrize("more", [{}, {"mask": View.dense((1, 2, 37, 75))}, {"causal": True, "past": 20}])
@pytest.mark.parametrize("vectors", [1, 2])
def test_keys_in_blocks(isa, vectors, more):
    attention = dense(1, 2, 37, 75, 20, v_size=isa.lanes + 3, **more)
    tile = replace(make_attention_tile(attention, isa, vectors, 1), keys=6)  # few: every tail is code to compile
    for blocks in (1, 2, 3):
        check(attention, isa, replace(tile, block=blocks * tile.keys))


def test_more_keys_than_one_block_takes(isa):
    attention = dense(1, 1, 3, 2100, 4)
    tile = attention_tiles(attention, isa)[0]
    assert tile.block < 1024
    check(attention, isa, tile)


def test_every_group_of_a_chunk_is_done(isa):
    attention = dense(2, 3, 2 * isa.lanes + 1, 9, 8)
    tile = make_attention_tile(attention, isa, 1, 1)
    for groups in (1, 2, 5, 18):
        check(attention, isa, replace(tile, groups=groups))


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_attention_on_its_tiles(isa, data):
    def draw(low, high):
        return data.draw(st.integers(low, high))

    kv_heads, queries, keys = draw(1, 2), draw(1, 70), draw(1, 90)
    more: dict[str, Any] = {}
    if data.draw(st.booleans()):
        more["mask"] = View.dense((1, 1, data.draw(st.sampled_from((1, queries))), keys))
    if data.draw(st.booleans()):
        more |= {"causal": True, "past": draw(0, 9)}
    attention = dense(1, kv_heads * draw(1, 2), queries, keys, draw(1, 33), draw(1, 40), kv_heads, **more)
    tile = data.draw(st.sampled_from(attention_tiles(attention, isa)))
    if data.draw(st.booleans()):
        tile = replace(tile, block=tile.keys * draw(1, 3))
    check(attention, isa, tile)


def tiled(attention, isa, vectors, block=40):
    """Return a tile of so many vectors of queries, which is the same for all sizes. block: keys at once."""
    return replace(make_attention_tile(attention, isa, vectors, 1), rows=4, block=block)


@pytest.mark.parametrize("vectors", [1, 2])
def test_one_kernel_serves_all_lengths_heads_and_sizes(isa, vectors):
    lengths = [(1, 1), (1, 500), (7, 77), (197, 197), (512, 512)]
    attentions = [dense(*heads, *length, size, v_size) for heads in ((1, 1), (2, 12)) for length in lengths for size, v_size in
                  ((1, 1), (64, 64), (40, 72))]  # fmt: skip
    kernels = [emit_attention(each, tiled(each, isa, vectors), isa) for each in attentions]
    assert len({kernel.name for kernel in kernels}) == len({kernel.ir for kernel in kernels}) == 1
    assert len({kernel.numbers for kernel in kernels}) == len(kernels)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_kernel_that_is_compiled_once_computes_every_shape(isa, data):
    def draw(low, high):
        return data.draw(st.integers(low, high))

    kv_heads, queries, keys = draw(1, 2), draw(1, 40), draw(1, 90)
    kind = data.draw(st.sampled_from(("plain", "causal", "mask", "turned")))
    more = {
        "plain": {}, "causal": {"causal": True, "past": draw(0, 40)}, "mask": {"mask": View.dense((1, 1, 1, keys))},
        "turned": {"mask": View.dense((1, 1, max(queries, 2), keys)).sliced(2, 0, queries)},
    }[kind]  # fmt: skip
    attention = dense(draw(1, 2), kv_heads * draw(1, 3), queries, keys, draw(1, 33), draw(1, 40), kv_heads, **more)
    check(attention, isa, tiled(attention, isa, draw(1, 2), block=draw(1, 90)))


@pytest.mark.parametrize("queries", [None, 1])
def test_a_kernel_for_symbols_is_that_for_their_values(machine, queries):
    scope = Scope()
    batch, length, keys = (scope.symbol(name, hint) for name, hint in (("batch", 3), ("queries", 90), ("keys", 150)))

    def masked(batch, length, keys):
        return dense(batch, 4, queries or length, keys, 64, causal=True, past=keys - 1, mask=View.dense((batch, 1, 1, keys)))

    symbolic = masked(batch, length, keys)
    tile = attention_tiles(symbolic, machine)[0]
    kernel = emit_attention(symbolic, tile, machine)
    found: dict[Any, None] = {}
    sizes_in((kernel.numbers, kernel.chunks, kernel.scratch_bytes), found)
    evaluation = Evaluation(scope, found)
    for values in ((2, 2, 2), (5, 77, 500), (12, 512, 512)):
        plain, bound = emit_attention(masked(*values), tile, machine), kernel.at(evaluation.at(values))
        assert (bound.name, bound.numbers, bound.chunks) == (plain.name, plain.numbers, plain.chunks)
        assert bound.scratch_bytes == plain.scratch_bytes


def test_growing_keys_of_a_decoder_need_two_kernels_at_most(machine):
    steps = [dense(1, 12, 1, keys, 64, causal=True, past=keys - 1) for keys in (1, 2, 15, 16, 100, 512, 2000)]
    assert len({emit_attention(step, attention_tiles(step, machine)[0], machine).name for step in steps}) <= 2


def test_scratch_does_not_grow_with_many_keys(machine):
    few, many = (dense(1, 1, 64, keys, 64) for keys in (1024, 8192))
    tile = attention_tiles(few, machine)[0]
    kernels = [
        emit_attention(each, replace(tile, block=attention_tiles(each, machine)[0].block), machine) for each in (few, many)
    ]
    assert kernels[0].scratch_bytes == kernels[1].scratch_bytes < 1 << 20


def test_code_is_small(isa):
    attention = dense(1, 12, 197, 197, 64)
    assert emit_attention(attention, attention_tiles(attention, isa)[0], isa).ir.count("\n") < 2200


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("blind", ["nan", "zero"])
def test_queries_that_see_nothing(isa, blind, blocks):
    attention = dense(1, 1, 9, 40, 8, mask=View.dense((1, 1, 9, 40)), blind=blind)
    tile = make_attention_tile(attention, isa, 1, 1)
    mask = np.zeros(attention.mask.shape, np.float32)
    mask[..., 4, :] = -np.inf
    mask[..., 5, :39] = -np.inf
    got, exact = run(attention, isa, replace(tile, block=tile.keys) if blocks else tile, mask=mask)
    assert np.isnan(exact[0, 0, 4]).all()
    exact[0, 0, 4] = 0 if blind == "zero" else np.nan
    np.testing.assert_allclose(got, exact, rtol=0, atol=2e-5)


def test_large_scores_do_not_overflow(isa):
    attention = dense(1, 1, 5, 40, 8)
    got, exact = run(attention, isa, q=np.full((1, 1, 5, 8), 300, np.float32))
    np.testing.assert_allclose(got, exact, rtol=0, atol=2e-3)


def test_nan_and_infinite_scores_stay_with_their_query(isa):
    for size in (8, 40):
        attention = dense(1, 1, 20, size, 8)
        q = np.random.default_rng(2).standard_normal((1, 1, 20, 8)).astype(np.float32)
        q[0, 0, 3, 1], q[0, 0, 17, 2] = np.nan, np.inf
        got, exact = run(attention, isa, q=q)
        assert np.isnan(got[0, 0, [3, 17]]).all()
        others = [n for n in range(20) if n not in (3, 17)]
        np.testing.assert_allclose(got[0, 0, others], exact[0, 0, others], rtol=0, atol=2e-5)


def test_default_tiles_do_not_spill(tuned):
    for attention in (fused(1, 12, 197, 64), dense(1, 12, 128, 128, 64, mask=View.dense((1, 1, 128, 128)))):
        tile = attention_tiles(attention, tuned)[0]
        assert tile.keys * tile.vectors >= 8
        assert generate(emit_attention(attention, tile, tuned).ir, tuned, count_spills=True).spills <= SPILL_LIMIT


def test_what_cannot_be_read_is_refused():
    isa, plain = ISAS["avx512"], dense(1, 2, 8, 8, 16)
    tile = attention_tiles(plain, isa)[0]
    with pytest.raises(EmitError, match="elements of a row of k are 8 apart, need 1"):
        emit_attention(replace(plain, k=View.dense((1, 2, 16, 8)).transposed((0, 1, 3, 2))), tile, isa)
    with pytest.raises(EmitError, match=r"k is \(1, 3, 8, 16\)"):
        emit_attention(replace(plain, k=View.dense((1, 3, 8, 16))), tile, isa)
    with pytest.raises(EmitError, match=r"the mask is \(1, 1, 8, 7\), need \(1, 2, 8, 8\) or 1"):
        emit_attention(replace(plain, mask=View.dense((1, 1, 8, 7))), tile, isa)
    with pytest.raises(EmitError, match="need 1 along queries or keys"):
        emit_attention(replace(plain, mask=View.dense((1, 1, 8, 16)).sliced(3, 0, 8, 2)), tile, isa)
