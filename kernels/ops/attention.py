"""Attention: softmax(Q·Kᵀ·scale + bias)·V with grouped heads, masks, causal and sliding windows, and a key-value cache."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.cost import Cost
from kernels.errors import AttributeValueError, DTypeError, ShapeError
from kernels.half import in_single
from kernels.operands import NUMBERS, element_type, one_dtype, one_of
from kernels.record import record
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.scratch import times
from kernels.spec import BOOL, FLOATS, Array, Spec

_RAW, _CAPPED, _BIASED, _SOFTMAX = range(4)  # values of qk_matmul_output


@record
class _Sizes:
    """Sizes: batch, heads of Q and of K and V, lengths of Q, of the cache and of cache and keys together, head sizes."""

    batch: int
    q_heads: int
    kv_heads: int
    q_length: int
    past: int
    total: int
    head: int
    v_head: int


def _split(name: str, spec: Spec, heads: int | None) -> tuple[int, int, int, int]:
    """(batch, heads, length, head size) of a 4-D input, or of a 3-D one that holds its heads side by side."""
    if spec.rank == 4:
        batch, found, length, size = spec.shape
        if heads not in (None, found):
            raise AttributeValueError(f"Attention: {name} is {spec}, the heads attribute is {heads}, need its {found} heads")
        return batch, found, length, size
    batch, length, width = spec.shape
    if heads is None or heads < 1 or width % heads:
        raise AttributeValueError(
            f"Attention: {name} is {spec} in {heads} heads, need q_num_heads and kv_num_heads that divide it"
        )
    return batch, heads, length, width // heads


def _sizes(q: Spec, k: Spec, v: Spec, past: Spec | None, q_heads: int | None, kv_heads: int | None) -> _Sizes:
    if q.rank not in (3, 4) or not q.rank == k.rank == v.rank:
        raise ShapeError(f"Attention: q is {q}, k is {k}, v is {v}, need three tensors of 3 axes or of 4")
    batch, heads, length, head = _split("q", q, q_heads)
    k_shape, v_shape = _split("k", k, kv_heads), _split("v", v, kv_heads)
    if k_shape[0] != batch or k_shape[3] != head or v_shape[:3] != k_shape[:3]:
        raise ShapeError(
            f"Attention: q is {q}, k is {k}, v is {v}, need one batch, q's head size in k, k's heads and length in v"
        )
    if not k_shape[1] or heads % k_shape[1]:
        raise ShapeError(f"Attention: q has {heads} heads, k has {k_shape[1]}, need a multiple")
    cached = 0 if past is None or past.rank != 4 else past.shape[2]
    return _Sizes(batch, heads, k_shape[1], length, cached, cached + k_shape[2], head, v_shape[3])


def infer(
    q: Spec,
    k: Spec,
    v: Spec,
    attn_mask: Spec | None = None,
    past_key: Spec | None = None,
    past_value: Spec | None = None,
    nonpad_kv_seqlen: Spec | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    left_window_size: int = -1,
    q_num_heads: int | None = None,
    qk_matmul_output_mode: int = 0,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
) -> tuple[Spec, ...]:
    """Y like q with v's head size; the keys and values with the cache before them; scores (batch, heads, q length, total)."""
    for name, spec in (("q", q), ("v", v)):
        require_dtype(f"Attention: {name}", spec, FLOATS)
    one_dtype("Attention: k", q, k, *([] if past_key is None else [past_key]))
    one_dtype("Attention: past_value", v, *([] if past_value is None else [past_value]))
    one_of("Attention: attribute qk_matmul_output_mode", qk_matmul_output_mode, range(4))
    if min(left_window_size, right_window_size) < -1:
        raise AttributeValueError(f"Attention: windows are {left_window_size} and {right_window_size}, need -1 (none) or more")
    if softcap < 0 or (scale is not None and not scale >= 0):
        raise AttributeValueError(f"Attention: softcap is {softcap}, scale is {scale}, need 0 or more")
    if softmax_precision is not None:
        require_dtype(
            "Attention: softmax_precision", Spec((), element_type("Attention: softmax_precision", softmax_precision)), FLOATS
        )
    n = _sizes(q, k, v, past_key, q_num_heads, kv_num_heads)
    _check_cache(n, past_key, past_value, nonpad_kv_seqlen)
    if attn_mask is not None:
        _check_mask(n, attn_mask)
    y = (n.batch, n.q_heads, n.q_length, n.v_head) if q.rank == 4 else (n.batch, n.q_length, n.q_heads * n.v_head)
    return (
        Spec(y, q.dtype),
        Spec((n.batch, n.kv_heads, n.total, n.head), k.dtype),
        Spec((n.batch, n.kv_heads, n.total, n.v_head), v.dtype),
        Spec((n.batch, n.q_heads, n.q_length, n.total), q.dtype),
    )


def _check_cache(n: _Sizes, key: Spec | None, value: Spec | None, lengths: Spec | None) -> None:
    if (key is None) != (value is None):
        raise ShapeError(f"Attention: past_key is {key}, past_value is {value}, need both or neither")
    for name, spec, size in (("past_key", key, n.head), ("past_value", value, n.v_head)):
        if spec is not None and spec.shape != (n.batch, n.kv_heads, n.past, size):
            raise ShapeError(f"Attention: {name} is {spec}, need {[n.batch, n.kv_heads, n.past, size]}")
    if lengths is None:
        return
    if key is not None or lengths.shape != (n.batch,):
        raise ShapeError(f"Attention: nonpad_kv_seqlen is {lengths}, past_key is {key}, need [{n.batch}] and no past_key")
    if lengths.dtype != np.int64:
        raise DTypeError(f"Attention: nonpad_kv_seqlen is {lengths}, need int64")


def _check_mask(n: _Sizes, mask: Spec) -> None:
    require_dtype("Attention: attn_mask", mask, NUMBERS | {BOOL})
    full = (n.batch, n.q_heads, n.q_length)
    fits = all(size in (1, whole) for size, whole in zip(mask.shape[-2::-1], full[::-1], strict=False))
    if not 1 <= mask.rank <= 4 or mask.shape[-1] > n.total or not fits:
        raise ShapeError(
            f"Attention: attn_mask is {mask}, need a shape that broadcasts to {[*full, n.total]}, or a shorter last axis"
        )


def _biased(mask: Any, lengths: Any, attrs: dict[str, Any]) -> bool:
    windows = attrs["left_window_size"] >= 0 or attrs["right_window_size"] >= 0
    return mask is not None or lengths is not None or windows or bool(attrs["is_causal"])


def cost(
    out: tuple[Spec, ...],
    q: Spec,
    k: Spec,
    v: Spec,
    attn_mask: Spec | None = None,
    past_key: Spec | None = None,
    past_value: Spec | None = None,
    nonpad_kv_seqlen: Spec | None = None,
    **attrs: Any,
) -> Cost:
    """MACs: scores · (head + value head), masked ones included. Others: 1 per q; 5 per score, 1 for a bias, 3 for a cap."""
    n = _sizes(q, k, v, past_key, attrs["q_num_heads"], attrs["kv_num_heads"])
    scores = n.batch * n.q_heads * n.q_length * n.total
    each = 5 + _biased(attn_mask, nonpad_kv_seqlen, attrs) + 3 * (attrs["softcap"] > 0)
    return Cost(macs=scores * (n.head + n.v_head), other_flops=q.elements + each * scores)


def scratch_bytes(
    out: tuple[Spec, ...],
    q: Spec,
    k: Spec,
    v: Spec,
    attn_mask: Spec | None = None,
    past_key: Spec | None = None,
    past_value: Spec | None = None,
    nonpad_kv_seqlen: Spec | None = None,
    **attrs: Any,
) -> int:
    """Scores, twice where an attribute changes them and in float64 where one asks for it; the bias and what it is made of."""
    n = _sizes(q, k, v, past_key, attrs["q_num_heads"], attrs["kv_num_heads"])
    scores, itemsize = n.batch * n.q_heads * n.q_length * n.total, max(q.dtype.itemsize, 4)
    each = itemsize * (2 + 2 * (attrs["softcap"] > 0)) + 24 * (attrs["softmax_precision"] is not None)
    batches = n.batch if nonpad_kv_seqlen is not None else 1
    biased = max(0 if attn_mask is None else math.prod(attn_mask.shape[:-1]) * n.total, batches * n.q_length * n.total)
    bias = biased * (16 + 4 * itemsize) if _biased(attn_mask, nonpad_kv_seqlen, attrs) else 0
    moved: int = times(3)(out[:3], q, k, v, attn_mask, past_key, past_value)
    return int(moved + scores * each + bias)


def _heads(x: Array, heads: int) -> Array:
    """(batch, heads, length, size) of either form."""
    return x if x.ndim == 4 else x.reshape(*x.shape[:2], heads, x.shape[2] // heads).transpose(0, 2, 1, 3)


@in_single
def run(
    out: tuple[Array | None, ...],
    q: Array,
    k: Array,
    v: Array,
    attn_mask: Array | None = None,
    past_key: Array | None = None,
    past_value: Array | None = None,
    nonpad_kv_seqlen: Array | None = None,
    **attrs: Any,
) -> None:
    """One matrix product for every key-value head, all its query heads stacked."""
    y, present_key, present_value, shown = (*out, None, None, None)[:4]
    past = None if past_key is None else Spec.of(past_key)
    n = _sizes(Spec.of(q), Spec.of(k), Spec.of(v), past, attrs["q_num_heads"], attrs["kv_num_heads"])
    queries, keys, values = _heads(q, n.q_heads), _heads(k, n.kv_heads), _heads(v, n.kv_heads)
    if past_key is not None and past_value is not None:
        keys, values = np.concatenate((past_key, keys), 2), np.concatenate((past_value, values), 2)
    for target, made in ((present_key, keys), (present_value, values)):
        if target is not None:
            np.copyto(target, made, casting="unsafe")
    factor = q.dtype.type(1 / math.sqrt(max(n.head, 1)) if attrs["scale"] is None else attrs["scale"])
    rows = n.q_heads // n.kv_heads * n.q_length
    stacked = (queries * factor).reshape(n.batch, n.kv_heads, rows, n.head)
    scores = np.matmul(stacked, keys.swapaxes(2, 3)).reshape(n.batch, n.q_heads, n.q_length, n.total)
    mode = attrs["qk_matmul_output_mode"] if shown is not None else None
    _show(shown, scores, mode == _RAW)
    if attrs["softcap"] > 0:
        cap = scores.dtype.type(attrs["softcap"])
        scores = np.tanh(scores / cap) * cap
    _show(shown, scores, mode == _CAPPED)
    bias = _bias(n, attn_mask, nonpad_kv_seqlen, attrs, scores.dtype) if _biased(attn_mask, nonpad_kv_seqlen, attrs) else None
    if bias is not None:
        scores += bias
    _show(shown, scores, mode == _BIASED)
    weights = _softmax(scores, attrs["softmax_precision"])
    if bias is not None and bias.shape[-1]:
        np.copyto(weights, 0, where=np.isneginf(bias.max(-1, keepdims=True)))  # a query without any key yields 0
    _show(shown, weights, mode == _SOFTMAX)
    if y is not None:
        result = np.matmul(weights.reshape(n.batch, n.kv_heads, rows, n.total), values)
        np.copyto(_heads(y, n.q_heads), result.reshape(n.batch, n.q_heads, n.q_length, n.v_head), casting="unsafe")


def _show(shown: Array | None, scores: Array, wanted: bool) -> None:
    if shown is not None and wanted:
        np.copyto(shown, scores, casting="unsafe")


def _bias(n: _Sizes, mask: Array | None, lengths: Array | None, attrs: dict[str, Any], dtype: Any) -> Array:
    """Return the addend of the scores, which broadcasts to them: the mask, and -inf where a query must not attend."""
    keys, offset = np.arange(n.total), np.full((1, 1, 1, 1), n.past)
    allowed = np.ones((1, 1, n.q_length, n.total), np.bool_)
    if lengths is not None:
        ends = lengths.reshape(-1, 1, 1, 1)
        offset, allowed = ends - n.q_length, allowed & (keys < ends)
    ahead = keys - (np.arange(n.q_length)[:, None] + offset)  # how far each key lies after its query
    left, right = attrs["left_window_size"], attrs["right_window_size"]
    if attrs["is_causal"]:
        allowed = allowed & (ahead <= 0)
    if left >= 0:
        allowed = allowed & (ahead >= -left)
    if right >= 0:
        allowed = allowed & (ahead <= right)
    bias: Array = np.where(allowed, dtype.type(0), dtype.type(-np.inf))
    if mask is None:
        return bias
    added = np.where(mask, dtype.type(0), dtype.type(-np.inf)) if mask.dtype == BOOL else mask.astype(dtype)
    short = n.total - mask.shape[-1]
    if short:
        added = np.pad(added, [(0, 0)] * (mask.ndim - 1) + [(0, short)], constant_values=-np.inf)
    total: Array = bias + added
    return total


def _softmax(scores: Array, precision: int | None) -> Array:
    """Softmax over the keys, in place; in float64, or of scores rounded to half precision, where an attribute asks for it."""
    given = scores.dtype
    if precision is not None:
        asked = element_type("Attention: softmax_precision", precision)
        scores = scores.astype(asked).astype(np.result_type(given, np.float64 if asked.itemsize == 8 else given), copy=False)
    if not scores.size:
        return scores.astype(given, copy=False)
    scores = np.subtract(scores, scores.max(-1, keepdims=True), out=scores)
    np.exp(scores, out=scores)
    scores /= scores.sum(-1, keepdims=True)
    return scores.astype(given, copy=False)


_QKV = ((2, 3, 4, 8), (2, 3, 6, 8), (2, 3, 6, 5))
_FLAT = ((2, 4, 24), (2, 6, 24), (2, 6, 15))
_H3 = {"q_num_heads": 3, "kv_num_heads": 3}
_BOOLS = np.arange(24).reshape(4, 6) % 3 > 0
_LENGTHS = np.array([6, 3], np.int64)
_PAST = (None, (2, 3, 2, 8), (2, 3, 2, 5))

ATTENTION = Op(
    "Attention",
    infer,
    cost,
    (Kernel("matmul", run, scratch_bytes=scratch_bytes),),
    tolerance_eps=32,
    cases=(
        Case("four_axes", inputs=_QKV, cost=Cost(macs=144 * 13, other_flops=192 + 720)),
        Case("three_axes", inputs=_FLAT, attrs=_H3),
        Case("grouped", inputs=((2, 6, 4, 8), (2, 2, 5, 8), (2, 2, 5, 8)), cost=Cost(macs=240 * 16, other_flops=384 + 1200)),
        Case("causal", inputs=_QKV, attrs={"is_causal": 1}),
        Case("mask", inputs=(*_QKV, (4, 6)), cost=Cost(macs=144 * 13, other_flops=192 + 864)),
        Case("mask_bool", inputs=(*_QKV, _BOOLS), attrs={"is_causal": 1}),
        Case("mask_by_head", inputs=(*_QKV, (2, 3, 4, 6)), attrs={"scale": 0.25}),
        Case("nothing_visible", inputs=(*_QKV, np.arange(4)[:, None] * np.ones((1, 6)) > 1)),
        Case("softcap", inputs=_QKV, attrs={"softcap": 2.0}, cost=Cost(macs=144 * 13, other_flops=192 + 1152)),
        Case("past", inputs=(*_QKV, *_PAST), attrs={"is_causal": 1}, outputs=3),
        Case("past_flat", inputs=(*_FLAT, *_PAST), attrs=_H3, outputs=3),
        Case("scores_raw", inputs=_QKV, outputs=4),
        Case("scores_capped", inputs=_QKV, attrs={"softcap": 2.0, "qk_matmul_output_mode": 1}, outputs=4),
        Case("scores_biased", inputs=(*_QKV, (4, 6)), attrs={"qk_matmul_output_mode": 2}, outputs=4),
        Case("scores_softmax", inputs=_QKV, attrs={"is_causal": 1, "qk_matmul_output_mode": 3}, outputs=4),
        Case("external_cache", inputs=(*_QKV, None, None, None, _LENGTHS), attrs={"is_causal": 1}),
        Case("windows", inputs=_QKV, attrs={"left_window_size": 1, "right_window_size": 2}),
        Case("double_softmax", inputs=_QKV, attrs={"softmax_precision": 11}),
        Case("empty_batch", inputs=((0, 3, 4, 8), (0, 3, 6, 8), (0, 3, 6, 5)), cost=Cost()),
        Case("heads_missing", inputs=_FLAT, raises=AttributeValueError),
        Case("heads_do_not_divide", inputs=((1, 3, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8)), raises=ShapeError),
        Case("head_sizes_differ", inputs=((1, 2, 4, 8), (1, 2, 4, 7), (1, 2, 4, 8)), raises=ShapeError),
        Case("mask_does_not_broadcast", inputs=(*_QKV, (3, 6)), raises=ShapeError),
        Case("past_alone", inputs=(*_QKV, None, (2, 3, 2, 8)), raises=ShapeError),
        Case("mode", inputs=_QKV, attrs={"qk_matmul_output_mode": 4}, raises=AttributeValueError),
        Case("lengths_dtype", inputs=(*_QKV, None, None, None, _LENGTHS.astype(np.int32)), raises=DTypeError),
    ),
)
