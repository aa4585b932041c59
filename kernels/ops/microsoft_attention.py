"""com.microsoft's attention: Attention, MultiHeadAttention, GroupQueryAttention with its cache, RotaryEmbedding.

All are written as ONNX's own Attention and what goes before and behind it. Definitions are those of ONNX Runtime's
ContribOperators.md. There, a cache is grown (a past of P tokens, a present of P + S), or a buffer that has room for all
tokens and is written to at the place where a row's tokens end.
"""

from __future__ import annotations

import numpy as np

from kernels.composite import Parts, Value, composite
from kernels.cost import Cost
from kernels.errors import ShapeError, UnsupportedError
from kernels.operands import INDICES, known_scalar
from kernels.registry import Case, require_dtype
from kernels.size import most
from kernels.spec import size_array

_MASKED = -10000.0  # what is added to the scores of masked keys, by default
_INT64 = 7  # ONNX's number


def _heads(parts: Parts, x: Value, heads: int) -> Value:
    """(batch, heads, length, size) of (batch, length, heads · size)."""
    if x.spec.rank != 3 or x.shape[2] % heads:
        raise ShapeError(f"an input is {x.spec}, need (batch, length, width) and a width of {heads} whole heads")
    return parts("Transpose", parts("Reshape", x, parts.numbers(0, 0, heads, x.shape[2] // heads)), perm=(0, 2, 1, 3))


def _flat(parts: Parts, y: Value) -> Value:
    """(batch, length, heads · size) of (batch, heads, length, size)."""
    return parts("Reshape", parts("Transpose", y, perm=(0, 2, 1, 3)), parts.numbers(0, 0, y.shape[1] * y.shape[3]))


def _range(parts: Parts, stop: int) -> Value:
    """The positions from 0 to `stop`, int64."""
    return parts("Range", *(parts.constant(size_array(number)) for number in (0, stop, 1)))


def _bias(
    parts: Parts, name: str, mask: Value | None, added: Value | None, batch: int, queries: int, keys: int, filtered: float
) -> Value | None:
    """Return what is added to the scores: `filtered` where a mask forbids a key, and an input.

    mask: lengths (batch), ends and starts (2 · batch), or flags (batch, keys), (batch, queries, keys), (batch, 1, most, most).
    """
    if mask is None:
        return added
    positions = (
        None if mask.spec.rank != 1 else parts("Unsqueeze", parts("CastLike", _range(parts, keys), mask), parts.numbers(0))
    )
    if positions is not None and mask.shape == (batch,):
        allowed = parts("Less", positions, parts("Unsqueeze", mask, parts.numbers(1)))
    elif positions is not None and mask.shape == (2 * batch,):
        ends, starts = parts.several(2, "Split", parts("Unsqueeze", mask, parts.numbers(1)), axis=0, num_outputs=2)
        allowed = parts("And", parts("Less", positions, ends), parts("GreaterOrEqual", positions, starts))
    elif mask.shape in ((batch, keys), (batch, queries, keys)):
        allowed = parts("Greater", mask, parts.number(0, mask))
    elif mask.spec.rank == 4 and mask.shape[:2] == (batch, 1) and min(mask.shape[2:]) >= keys:
        ends = parts.numbers(keys, keys)
        cut = parts("Slice", mask, parts.numbers(keys - queries, 0), ends, parts.numbers(2, 3))
        allowed = parts("Greater", cut, parts.number(0, mask))
    else:
        shapes = f"[{batch}], [{2 * batch}], {[batch, keys]} or {[batch, queries, keys]}"
        raise ShapeError(f"{name}: mask is {mask.spec}, need one of {shapes}")
    missing = 4 - allowed.spec.rank
    if missing:
        allowed = parts("Unsqueeze", allowed, parts.numbers(*range(1, 1 + missing)))
    zero, low = (parts.constant(np.array(number, np.float32)) for number in (0, filtered))
    bias = parts("Where", allowed, zero, low)
    return bias if added is None else parts("Add", parts("CastLike", bias, added), added)


def _attend(
    parts: Parts,
    q: Value,
    k: Value,
    v: Value,
    heads: tuple[int, int],
    past: tuple[Value, Value] | None,
    added: Value | None,
    *,
    causal: int,
    scale: float | None,
    softcap: float = 0.0,
    window: int = -1,
) -> tuple[Value, Value, Value]:
    """Return the results (batch, length, width), and the keys and values with those of the past (batch, heads, total, size).

    heads: of q, and of k and v. window: how many keys a query sees, its own included; -1 for all.
    """
    attrs = {"scale": scale or None, "softcap": softcap}
    keys, values = (each if each.spec.rank == 4 else _heads(parts, each, heads[1]) for each in (k, v))
    if past is None:
        if q.spec.rank == 3 and k.spec.rank == 3:
            attrs |= {"q_num_heads": heads[0], "kv_num_heads": heads[1]}
        elif q.spec.rank == 3:
            q = _heads(parts, q, heads[0])
        seen = {"is_causal": causal, "left_window_size": window - 1 if window > 0 else -1}
        y = parts("Attention", q, k, v, added, **attrs, **seen)
        return (_flat(parts, y) if y.spec.rank == 4 else y), keys, values
    if past[0].spec.rank != 4 or past[1].spec.rank != 4:
        raise ShapeError(f"past is {past[0].spec} and {past[1].spec}, need (batch, heads, length, size)")
    length, before = q.shape[-2], past[0].shape[2]
    keys, values = (parts("Concat", old, new, axis=2) for old, new in zip(past, (keys, values), strict=True))
    if causal and (length != 1 or window > 0):
        positions = parts("Add", _range(parts, length), parts.numbers(before))
        added = _hidden(parts, _causal(parts, parts("Unsqueeze", positions, parts.numbers(0)), keys.shape[2], window), added)
    return (
        _flat(parts, parts("Attention", q if q.spec.rank == 4 else _heads(parts, q, heads[0]), keys, values, added, **attrs)),
        keys,
        values,
    )


def _hidden(parts: Parts, seen: Value, added: Value | None) -> Value:
    """Return what is added to the scores, -infinity for a key that is not seen; the flags alone where there is nothing to add."""
    return seen if added is None else parts("Where", seen, added, parts.number(-np.inf, added))


def write_attention(
    parts: Parts,
    x: Value,
    weights: Value,
    bias: Value | None = None,
    mask_index: Value | None = None,
    past: Value | None = None,
    attention_bias: Value | None = None,
    past_sequence_length: Value | None = None,
    *,
    num_heads: int,
    do_rotary: int = 0,
    mask_filter_value: float = _MASKED,
    past_present_share_buffer: int = 0,
    qkv_hidden_sizes: tuple[int, ...] | None = None,
    rotary_embedding_dim: int = 0,
    scale: float | None = None,
    unidirectional: int = 0,
) -> tuple[Value, ...]:
    """(batch, length, values), and the keys and values so far (2, batch, heads, total, size). x: (batch, length, inputs)."""
    if do_rotary or past_present_share_buffer or past_sequence_length is not None:
        found = f"do_rotary {do_rotary}, past_present_share_buffer {past_present_share_buffer}"
        raise UnsupportedError(f"Attention: {found}, only 0 and a past that grows are supported")
    if x.spec.rank != 3 or weights.spec.rank != 2 or num_heads < 1:
        raise ShapeError(
            f"Attention: x is {x.spec}, weights are {weights.spec}, {num_heads} heads, need three axes, two, and heads"
        )
    sizes = qkv_hidden_sizes or (weights.shape[1] // 3,) * 3
    if len(sizes) != 3 or sum(sizes) != weights.shape[1] or any(size % num_heads for size in sizes) or sizes[0] != sizes[1]:
        raise ShapeError(
            f"Attention: weights are {weights.spec}, sizes of q, k and v {sizes}, need sizes of {num_heads} heads that fit"
        )
    product = parts("MatMul", x, weights)
    product = product if bias is None else parts("Add", product, bias)
    q, k, v = parts.several(3, "Split", product, parts.numbers(*sizes), axis=-1)
    before = None
    if past is not None:
        if past.spec.rank != 5 or past.shape[0] != 2:
            raise ShapeError(f"Attention: past is {past.spec}, need (2, batch, heads, length, size)")
        halves = parts.several(2, "Split", past, axis=0, num_outputs=2)
        before = (parts("Squeeze", halves[0], parts.numbers(0)), parts("Squeeze", halves[1], parts.numbers(0)))
    batch, length = x.shape[:2]
    total = length + (0 if past is None else past.shape[3])
    added = _bias(parts, "Attention", mask_index, attention_bias, batch, length, total, mask_filter_value)
    heads = (num_heads, num_heads)
    y, keys, values = _attend(parts, q, k, v, heads, before, _like(parts, added, q), causal=unidirectional, scale=scale)
    if sizes[2] != sizes[0]:
        return (y,)
    present = parts("Concat", *(parts("Unsqueeze", each, parts.numbers(0)) for each in (keys, values)), axis=0)
    return y, present


def _like(parts: Parts, added: Value | None, q: Value) -> Value | None:
    return added if added is None or added.dtype == q.dtype else parts("CastLike", added, q)


def write_multi_head(
    parts: Parts,
    query: Value,
    key: Value | None = None,
    value: Value | None = None,
    bias: Value | None = None,
    key_padding_mask: Value | None = None,
    attention_bias: Value | None = None,
    past_key: Value | None = None,
    past_value: Value | None = None,
    past_sequence_length: Value | None = None,
    cache_indirection: Value | None = None,
    *,
    num_heads: int,
    mask_filter_value: float = _MASKED,
    scale: float | None = None,
    unidirectional: int = 0,
) -> tuple[Value, ...]:
    """(batch, length, values), and the keys and values with those of the past (batch, heads, total, size).

    query: (batch, length, width); (batch, length, heads, 3, size) holds all three. key and value: (batch, length, width) or
    (batch, heads, length, size); key (batch, length, heads, 2, size) holds both.
    """
    if past_sequence_length is not None or cache_indirection is not None:
        raise UnsupportedError(
            f"MultiHeadAttention: {query.spec} with past_sequence_length or cache_indirection is not supported"
        )
    if num_heads < 1 or query.spec.rank not in (3, 5):
        raise ShapeError(f"MultiHeadAttention: query is {query.spec}, {num_heads} heads, need 3 axes or 5, and at least one head")
    batch, length = query.shape[:2]
    if query.spec.rank == 5:
        q, k, v = _unpacked(parts, query, 3)
    elif key is not None and key.spec.rank == 5:
        q, (k, v) = query, _unpacked(parts, key, 2)
    elif key is not None and value is not None and key.spec.rank == value.spec.rank:
        q, k, v = query, key, value
    else:
        raise ShapeError(
            f"MultiHeadAttention: key is {key and key.spec}, value is {value and value.spec} for query {query.spec}, need both"
        )
    if bias is not None:
        q, k, v = _add_bias(parts, bias, q, k, v)
    past = 0 if past_key is None or past_key.spec.rank != 4 else past_key.shape[2]
    total = past + k.shape[2 if k.spec.rank == 4 else 1]
    added = _bias(parts, "MultiHeadAttention", key_padding_mask, attention_bias, batch, length, total, mask_filter_value)
    before = None if past_key is None or past_value is None else (past_key, past_value)
    heads = (num_heads, num_heads)
    return _attend(parts, q, k, v, heads, before, _like(parts, added, q), causal=unidirectional, scale=scale)


def _unpacked(parts: Parts, packed: Value, count: int) -> tuple[Value, ...]:
    """(batch, heads, length, size) of each of several that lie in one (batch, length, heads, count, size)."""
    if packed.shape[3] != count:
        raise ShapeError(f"MultiHeadAttention: packed input is {packed.spec}, need (batch, length, heads, {count}, size)")
    split = parts.several(count, "Split", packed, axis=3, num_outputs=count)
    return tuple(parts("Transpose", parts("Squeeze", each, parts.numbers(3)), perm=(0, 2, 1, 3)) for each in split)


def _add_bias(parts: Parts, bias: Value, q: Value, k: Value, v: Value) -> tuple[Value, Value, Value]:
    """Add a vector that holds the biases of all three; keys and values of four axes have theirs already."""
    if q.spec.rank != 3:
        raise UnsupportedError(f"MultiHeadAttention: bias {bias.spec} of a packed query {q.spec} is not supported")
    width = q.shape[2]
    if k.spec.rank == 4:
        own = parts("Slice", bias, parts.numbers(0), parts.numbers(width), parts.numbers(0))
        return parts("Add", q, own), k, v
    each = parts.several(3, "Split", bias, parts.numbers(width, k.shape[2], v.shape[2]), axis=0)
    first, second, third = (parts("Add", given, own) for given, own in zip((q, k, v), each, strict=True))
    return first, second, third


def write_rotary(
    parts: Parts,
    x: Value,
    position_ids: Value,
    cos_cache: Value,
    sin_cache: Value,
    *,
    interleaved: int = 0,
    is_packed_batching: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
    scale: float = 1.0,
) -> Value:
    """ONNX's RotaryEmbedding of x, (batch, length, width) or (batch, heads, length, size). position_ids: all, or the first."""
    if scale != 1 or is_packed_batching or x.spec.rank not in (3, 4) or cos_cache.spec.rank != 2:
        raise UnsupportedError(
            f"RotaryEmbedding: scale {scale}, is_packed_batching {is_packed_batching}, x {x.spec}, caches {cos_cache.spec}, "
            "only 1, 0, 3 axes or 4, and 2 axes are supported"
        )
    batch, length = x.shape[0], x.shape[-2]
    if position_ids.shape == (1,):
        positions = parts("Expand", parts("Add", _range(parts, length), position_ids), parts.numbers(batch, length))
    else:
        positions = position_ids
    heads = 0 if x.spec.rank == 4 else num_heads or x.shape[2] // max(2 * cos_cache.shape[1], 1)
    attrs = {"interleaved": interleaved, "num_heads": heads, "rotary_embedding_dim": rotary_embedding_dim}
    return parts("RotaryEmbedding", x, cos_cache, sin_cache, positions, **attrs)


def write_group_query(
    parts: Parts,
    query: Value,
    key: Value | None = None,
    value: Value | None = None,
    past_key: Value | None = None,
    past_value: Value | None = None,
    seqlens_k: Value | None = None,
    total_sequence_length: Value | None = None,
    cos_cache: Value | None = None,
    sin_cache: Value | None = None,
    position_ids: Value | None = None,
    attention_bias: Value | None = None,
    head_sink: Value | None = None,
    *,
    kv_num_heads: int,
    num_heads: int,
    do_rotary: int = 0,
    local_window_size: int = -1,
    qk_output: int = 0,
    rotary_interleaved: int = 0,
    scale: float | None = None,
    smooth_softmax: int = 0,
    softcap: float = 0.0,
) -> tuple[Value, ...]:
    """(batch, length, width), and the keys and values with those of the past (batch, key heads, present, size).

    query: (batch, length, width), without key and value those lie behind it. seqlens_k: of each row, its tokens less one.
    total_sequence_length: of the longest row. A past as long as that, or longer, is a buffer that the tokens are written to.
    """
    if head_sink is not None or smooth_softmax > 0 or qk_output:
        found = f"smooth_softmax {smooth_softmax}, qk_output {qk_output}, head_sink {head_sink and head_sink.spec}"
        raise UnsupportedError(f"GroupQueryAttention: {found}, none of them is supported")
    if seqlens_k is None or total_sequence_length is None or query.spec.rank != 3 or min(num_heads, kv_num_heads) < 1:
        raise ShapeError(
            f"GroupQueryAttention: query is {query.spec}, {num_heads} and {kv_num_heads} heads, need three axes, heads, "
            "seqlens_k and total_sequence_length"
        )
    batch, length = query.shape[:2]
    if seqlens_k.spec.elements != batch:
        raise ShapeError(f"GroupQueryAttention: seqlens_k is {seqlens_k.spec}, need {batch} numbers, one for each row")
    for name, spec in (("seqlens_k", seqlens_k.spec), ("total_sequence_length", total_sequence_length.spec)):
        require_dtype(f"GroupQueryAttention: {name}", spec, INDICES)
    total = known_scalar("GroupQueryAttention: total_sequence_length", total_sequence_length.spec)
    q, k, v = _split_packed(parts, query, key, value, num_heads, kv_num_heads)
    past = 0 if past_key is None else past_key.shape[2] if past_key.spec.rank == 4 else 0
    if total < length or (past and past + length < total):
        raise ShapeError(
            f"GroupQueryAttention: {past} tokens in the past, {length} new, {total} in all, need 0 ≤ new ≤ all ≤ both"
        )
    positions = _positions(parts, seqlens_k, batch, length, is_prompt=total == length)
    if do_rotary:
        if cos_cache is None or sin_cache is None or cos_cache.spec.rank != 2:
            raise ShapeError(f"GroupQueryAttention: do_rotary is {do_rotary}, need cos_cache and sin_cache of two axes")
        turned = positions if position_ids is None else position_ids
        attrs = {"interleaved": rotary_interleaved, "rotary_embedding_dim": 2 * cos_cache.shape[-1]}
        q, k = (
            parts("RotaryEmbedding", each, cos_cache, sin_cache, turned, num_heads=count, **attrs)
            for each, count in ((q, num_heads), (k, kv_num_heads))
        )
    if past_key is None or past_value is None or past == 0 or (batch == 1 and past + length == total):
        # all rows have as many tokens before: the new ones stand behind them
        before = (past_key, past_value) if past and past_key is not None and past_value is not None else None
        return _attend(
            parts,
            q,
            k,
            v,
            (num_heads, kv_num_heads),
            before,
            attention_bias,
            causal=1,
            scale=scale,
            softcap=softcap,
            window=local_window_size,
        )
    present = most(past, total)
    first = parts("Squeeze", parts("Slice", positions, parts.numbers(0), parts.numbers(1), parts.numbers(1)), parts.numbers(1))
    written = [
        parts("TensorScatter", _lengthened(parts, kept, present - past), _heads(parts, new, kv_num_heads), first, axis=2)
        for kept, new in ((past_key, k), (past_value, v))
    ]
    mask = _causal(parts, positions, present, local_window_size)
    added = None if attention_bias is None else _lengthened(parts, attention_bias, present - attention_bias.shape[-1], axis=3)
    seen = _hidden(parts, mask, added)
    y = parts("Attention", _heads(parts, q, num_heads), *written, seen, scale=scale or None, softcap=softcap)
    return _flat(parts, y), *written


def _split_packed(
    parts: Parts, query: Value, key: Value | None, value: Value | None, heads: int, kv_heads: int
) -> tuple[Value, ...]:
    if key is not None and value is not None and key.spec.rank == value.spec.rank == 3:
        return query, key, value
    size, rest = divmod(query.shape[2], heads + 2 * kv_heads)
    if key is not None or value is not None or rest:
        raise ShapeError(
            f"GroupQueryAttention: query is {query.spec}, need key and value too, or all three in it, in whole heads"
        )
    return parts.several(3, "Split", query, parts.numbers(heads * size, kv_heads * size, kv_heads * size), axis=-1)


def _positions(parts: Parts, seqlens_k: Value, batch: int, length: int, *, is_prompt: bool) -> Value:
    """The position of every new token, (batch, length) in int64. The tokens of a prompt begin at 0, however long a row is."""
    steps = parts("Unsqueeze", _range(parts, length), parts.numbers(0))
    if is_prompt:
        return parts("Expand", steps, parts.numbers(batch, length))
    ends = parts("Reshape", parts("Cast", seqlens_k, to=_INT64), parts.numbers(batch, 1))
    return parts("Add", parts("Sub", ends, parts.numbers(length - 1)), steps)


def _lengthened(parts: Parts, kept: Value, more: int, axis: int = 2) -> Value:
    """Append zeros along an axis."""
    if more == 0:
        return kept
    shape = [more if i == axis else size for i, size in enumerate(kept.shape)]
    return parts("Concat", kept, parts("Expand", parts.number(0, kept), parts.numbers(*shape)), axis=axis)


def _causal(parts: Parts, positions: Value, keys: int, window: int) -> Value:
    """Which keys each query sees, (batch, 1, queries, keys) in bool: none behind it, and with a window its nearest alone."""
    queries = parts("Unsqueeze", positions, parts.numbers(1, 3))
    each = _range(parts, keys)
    seen = parts("LessOrEqual", each, queries)
    if window <= 0:
        return seen
    return parts("And", seen, parts("Greater", each, parts("Sub", queries, parts.numbers(window))))


_I32 = np.int32
_X, _W, _B = (2, 3, 8), (8, 24), (24,)
_FLAGS = np.array([[1, 1, 0], [1, 1, 1]], _I32)
_N2 = {"num_heads": 2}
_QKV = ((2, 3, 8), (2, 5, 8), (2, 5, 8))
_TURN, _TURN16 = ((9, 2), (9, 2)), ((9, 8), (9, 8))
_GROUPED = {"num_heads": 4, "kv_num_heads": 2}
_G = ((1, 1, 64), (1, 1, 32), (1, 1, 32))
_PAST = ((1, 2, 3, 16), (1, 2, 3, 16))


def _lengths(*values: int) -> tuple[np.ndarray[tuple[int], np.dtype[np.int32]], np.ndarray[tuple[()], np.dtype[np.int32]]]:
    return np.array(values, _I32) - _I32(1), np.array(max(values), _I32)


OPS = (
    composite(
        "com.microsoft.Attention",
        write_attention,
        (
            Case(
                "plain",
                inputs=(_X, _W, _B),
                attrs=_N2,
                outputs=2,
                cost=Cost(macs=6 * 192 + 2 * 2 * 9 * 8, other_flops=144 + 48 + 180),
            ),
            Case("causal", inputs=(_X, _W, _B), attrs={**_N2, "unidirectional": 1, "scale": 0.3}),
            Case("lengths", inputs=(_X, _W, _B, np.array([2, 3], _I32)), attrs=_N2),
            Case("ends_and_starts", inputs=(_X, _W, _B, np.array([3, 2, 1, 0], _I32)), attrs=_N2),
            Case("flags", inputs=(_X, _W, None, _FLAGS), attrs=_N2),
            Case("flags_by_query", inputs=(_X, _W, _B, np.tri(3, dtype=_I32)[None].repeat(2, 0)), attrs=_N2),
            Case("past", inputs=(_X, _W, _B, None, (2, 2, 2, 4, 4)), attrs={**_N2, "unidirectional": 1}, outputs=2),
            Case("added", inputs=(_X, _W, _B, _FLAGS, None, (2, 2, 3, 3)), attrs=_N2),
            Case("value_size", inputs=(_X, (8, 20), (20,)), attrs={**_N2, "qkv_hidden_sizes": (8, 8, 4)}),
            Case("mask_shape", inputs=(_X, _W, _B, np.ones((2, 4), _I32)), attrs=_N2, raises=ShapeError),
            Case("heads", inputs=(_X, _W, _B), attrs={"num_heads": 3}, raises=ShapeError),
            Case("rotary", inputs=(_X, _W, _B), attrs={**_N2, "do_rotary": 1}, raises=UnsupportedError),
        ),
    ),
    composite(
        "com.microsoft.MultiHeadAttention",
        write_multi_head,
        (
            Case("cross", inputs=_QKV, attrs=_N2, cost=Cost(macs=2 * 2 * 15 * 8, other_flops=48 + 300)),
            Case("empty", inputs=((0, 3, 8), (0, 5, 8), (0, 5, 8)), attrs=_N2, outputs=3, cost=Cost()),
            Case("bias", inputs=(*_QKV, (24,)), attrs=_N2),
            Case("lengths", inputs=(*_QKV, None, np.array([2, 5], _I32)), attrs=_N2),
            Case(
                "flags",
                inputs=(*_QKV, None, np.arange(10, dtype=_I32).reshape(2, 5) % 3),
                attrs={**_N2, "mask_filter_value": -50.0},
            ),
            Case("added", inputs=(*_QKV, None, None, (1, 2, 3, 5)), attrs=_N2),
            Case("past", inputs=(*([(2, 3, 8)] * 3), None, None, None, (2, 2, 4, 4), (2, 2, 4, 4)), attrs=_N2, outputs=3),
            Case("causal", inputs=((2, 3, 8),) * 3, attrs={**_N2, "unidirectional": 1}),
            Case("four_axes", inputs=((2, 3, 8), (2, 2, 5, 4), (2, 2, 5, 4)), attrs=_N2),
            Case("packed", inputs=((2, 3, 2, 3, 4),), attrs=_N2),
            Case("packed_pair", inputs=((2, 3, 8), (2, 5, 2, 2, 4)), attrs=_N2),
            Case("value_missing", inputs=_QKV[:2], attrs=_N2, raises=ShapeError),
            Case("heads", inputs=_QKV, attrs={"num_heads": 3}, raises=ShapeError),
        ),
    ),
    composite(
        "com.microsoft.RotaryEmbedding",
        write_rotary,
        (
            Case("positions", inputs=((2, 3, 8), np.array([[0, 1, 2], [4, 5, 8]]), *_TURN), cost=Cost(other_flops=144)),
            Case("first", inputs=((2, 3, 8), np.array([5]), *_TURN), attrs={"interleaved": 1}),
            Case("heads_first", inputs=((2, 2, 3, 4), np.array([[0, 1, 2], [4, 5, 8]]), *_TURN)),
            Case(
                "part",
                inputs=((2, 3, 16), np.array([1]), *_TURN),
                attrs={"num_heads": 2, "rotary_embedding_dim": 4},
            ),
            Case("scale", inputs=((2, 3, 8), np.array([5]), *_TURN), attrs={"scale": 2.0}, raises=UnsupportedError),
        ),
    ),
    composite(
        "com.microsoft.GroupQueryAttention",
        write_group_query,
        (
            Case(
                "prompt",
                inputs=((1, 3, 64), (1, 3, 32), (1, 3, 32), None, None, *_lengths(3)),
                attrs=_GROUPED,
                outputs=3,
            ),
            Case("grown", inputs=(*_G, *_PAST, *_lengths(4)), attrs=_GROUPED, outputs=3),
            Case("rotary", inputs=(*_G, *_PAST, *_lengths(4), *_TURN16), attrs={**_GROUPED, "do_rotary": 1}, outputs=3),
            Case(
                "rotary_interleaved",
                inputs=((1, 3, 64), (1, 3, 32), (1, 3, 32), None, None, *_lengths(3), *_TURN16),
                attrs={**_GROUPED, "do_rotary": 1, "rotary_interleaved": 1},
                outputs=3,
            ),
            Case(
                "rows_of_other_lengths",
                inputs=((2, 1, 64), (2, 1, 32), (2, 1, 32), (2, 2, 5, 16), (2, 2, 5, 16), *_lengths(3, 6), *_TURN16),
                attrs={**_GROUPED, "do_rotary": 1},
            ),
            Case(
                "buffer",
                inputs=((1, 1, 64), (1, 1, 32), (1, 1, 32), (1, 2, 8, 16), (1, 2, 8, 16), *_lengths(4)),
                attrs=_GROUPED,
            ),
            Case("window", inputs=(*_G, *_PAST, *_lengths(4)), attrs={**_GROUPED, "local_window_size": 2}, outputs=3),
            Case(
                "window_of_rows",
                inputs=((2, 1, 64), (2, 1, 32), (2, 1, 32), (2, 2, 5, 16), (2, 2, 5, 16), *_lengths(6, 6)),
                attrs={**_GROUPED, "local_window_size": 3},
                outputs=3,
            ),
            Case("softcap", inputs=(*_G, *_PAST, *_lengths(4)), attrs={**_GROUPED, "softcap": 2.0, "scale": 0.4}, outputs=3),
            Case("packed", inputs=((1, 3, 128), None, None, None, None, *_lengths(3)), attrs=_GROUPED, outputs=3),
            Case("added", inputs=(*_G, *_PAST, *_lengths(4), None, None, None, (1, 4, 1, 4)), attrs=_GROUPED, outputs=3),
            Case("lengths_missing", inputs=(*_G, *_PAST), attrs=_GROUPED, raises=ShapeError),
            Case("caches_missing", inputs=(*_G, *_PAST, *_lengths(4)), attrs={**_GROUPED, "do_rotary": 1}, raises=ShapeError),
            Case("sink", inputs=(*_G, *_PAST, *_lengths(4)), attrs={**_GROUPED, "smooth_softmax": 1}, raises=UnsupportedError),
        ),
    ),
)
