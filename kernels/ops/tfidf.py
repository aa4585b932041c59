"""TfIdfVectorizer: how often each n-gram of a vocabulary occurs in a row of tokens, weighted.

An n-gram's tokens lie equally far apart, 1 to max_skip_count + 1. The vocabulary holds the n-grams one after another, shortest
first; `ngram_counts` says where those of each length begin, and `ngram_indexes` to which output each n-gram counts.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kernels.batch_axis import first_input_has_rows
from kernels.cost import Cost
from kernels.errors import AttributeValueError, ShapeError
from kernels.operands import INDICES, one_of
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.scratch import FIXED_BYTES
from kernels.spec import STRING, Array, Spec

MOST_OUTPUTS = 1 << 24  # of a row: a vocabulary of this many n-grams fits no model file
_MODES = ("TF", "IDF", "TFIDF")


def infer(
    x: Spec,
    *,
    max_gram_length: int,
    max_skip_count: int,
    min_gram_length: int,
    mode: str,
    ngram_counts: Sequence[int],
    ngram_indexes: Sequence[int],
    pool_int64s: Sequence[int] | None = None,
    pool_strings: Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
) -> Spec:
    """float32, as long as the largest index says, for each row of x, which is (tokens) or (rows, tokens)."""
    one_of("TfIdfVectorizer: attribute mode", mode, _MODES)
    if (pool_int64s is None) == (pool_strings is None):
        raise AttributeValueError("TfIdfVectorizer: 0 or 2 of pool_int64s and pool_strings are given, need one of them")
    require_dtype("TfIdfVectorizer: x", x, INDICES if pool_int64s is not None else frozenset({STRING}))
    if x.rank not in (1, 2):
        raise ShapeError(f"TfIdfVectorizer: x is {x}, need (tokens) or (rows, tokens)")
    if not 1 <= min_gram_length <= max_gram_length or max_skip_count < 0:
        given = f"n-grams of {min_gram_length}…{max_gram_length} tokens, {max_skip_count} skipped"
        raise AttributeValueError(f"TfIdfVectorizer: {given}, need 1 ≤ min ≤ max and 0 or more")
    grams = sum(1 for _ in _pool(tuple(ngram_counts), tuple(pool_int64s or pool_strings or ())))
    if grams != len(ngram_indexes) or not ngram_indexes:
        raise AttributeValueError(
            f"TfIdfVectorizer: {grams} n-grams, {len(ngram_indexes)} ngram_indexes, need as many, at least one"
        )
    if min(ngram_indexes) < 0 or max(ngram_indexes) >= MOST_OUTPUTS:
        raise AttributeValueError(f"TfIdfVectorizer: ngram_indexes up to {max(ngram_indexes)}, need 0…{MOST_OUTPUTS - 1}")
    if weights is not None and len(weights) != len(ngram_indexes):
        raise AttributeValueError(f"TfIdfVectorizer: {len(weights)} weights, need one for each of {len(ngram_indexes)} n-grams")
    return Spec((*x.shape[:-1], max(ngram_indexes) + 1), np.dtype(np.float32))


def _pool(counts: tuple[int, ...], pool: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """Yield the n-grams of a vocabulary in order. Raises AttributeValueError where the counts do not divide it."""
    ends = (*counts[1:], len(pool))
    for length, (start, end) in enumerate(zip(counts, ends, strict=False), 1):
        if not 0 <= start <= end <= len(pool) or (end - start) % length:
            raise AttributeValueError(
                f"TfIdfVectorizer: {length}-grams from {start} to {end} of {len(pool)}, need whole ones in order"
            )
        yield from (pool[at : at + length] for at in range(start, end, length))


@functools.lru_cache(16)
def _vocabulary(counts: tuple[int, ...], pool: tuple[Any, ...]) -> Mapping[tuple[Any, ...], int]:
    """Return the position of each n-gram."""
    return {gram: position for position, gram in enumerate(_pool(counts, pool))}


def _gathered(tokens: int, shortest: int, longest: int, skips: int) -> int:
    """Return how many n-grams a row has."""
    return sum(
        max(0, tokens - (length - 1) * apart)
        for length in range(shortest, min(longest, tokens) + 1)
        for apart in range(1, 2 if length == 1 else min(skips + 1, tokens) + 1)
    )


def cost(out: tuple[Spec, ...], x: Spec, **attrs: Any) -> Cost:
    """One addition for each n-gram of a row; where n-grams have weights, one multiplication per output."""
    rows, tokens = (x.shape[0] if x.rank == 2 else 1), x.shape[-1]
    longest = min(attrs["max_gram_length"], len(attrs["ngram_counts"]))
    grams = _gathered(tokens, attrs["min_gram_length"], longest, attrs["max_skip_count"])
    weighs = attrs["weights"] is not None and attrs["mode"] != "TF"
    return Cost(other_flops=rows * grams + weighs * out[0].elements)


def run(
    out: tuple[Array, ...],
    x: Array,
    *,
    max_gram_length: int,
    max_skip_count: int,
    min_gram_length: int,
    mode: str,
    ngram_counts: Sequence[int],
    ngram_indexes: Sequence[int],
    pool_int64s: Sequence[int] | None,
    pool_strings: Sequence[str] | None,
    weights: Sequence[float] | None,
) -> None:
    """Look every n-gram of a row up."""
    vocabulary = _vocabulary(tuple(ngram_counts), tuple(pool_int64s or pool_strings or ()))
    lengths = range(min_gram_length, min(max_gram_length, len(ngram_counts)) + 1)
    weighs = np.array(weights, np.float32) if mode != "TF" and weights is not None else np.float32(1)
    for row, tokens in zip(np.atleast_2d(out[0]), np.atleast_2d(x).tolist(), strict=True):
        counts = np.zeros(len(ngram_indexes), np.float32)
        for gram in _grams(tuple(tokens), lengths, max_skip_count + 1):
            if (position := vocabulary.get(gram)) is not None:
                counts[position] += 1
        row[...] = 0
        np.add.at(row, list(ngram_indexes), (np.minimum(counts, 1) if mode == "IDF" else counts) * weighs)


def scratch_bytes(out: tuple[Spec, ...], x: Spec, **attrs: Any) -> int:
    """The tokens and the vocabulary as Python objects, and a row of counts."""
    pool = len(attrs["pool_int64s"] or attrs["pool_strings"] or ())
    return FIXED_BYTES + 64 * x.elements + 160 * (pool + len(attrs["ngram_indexes"]))


def _grams(tokens: tuple[Any, ...], lengths: range, farthest: int) -> Iterator[tuple[Any, ...]]:
    """Yield every n-gram of a row; single tokens once, since nothing lies between them."""
    for length in lengths:
        for apart in range(1, 2 if length == 1 else farthest + 1):
            starts = len(tokens) - (length - 1) * apart
            if starts <= 0:
                break
            for start in range(starts):
                yield tokens[start : start + (length - 1) * apart + 1 : apart]


_POOL = {
    "ngram_counts": (0, 4),
    "ngram_indexes": (0, 1, 2, 3, 4, 5, 6),
    "pool_int64s": (2, 3, 5, 4, 5, 6, 7, 8, 6, 7),
    "min_gram_length": 2,
    "max_gram_length": 2,
    "max_skip_count": 5,
    "mode": "TF",
}
_TOKENS = np.array([[1, 1, 3, 3, 3, 7], [8, 6, 7, 5, 6, 8]], np.int32)
_WEIGHTS = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
_TEXTS = {name: value for name, value in _POOL.items() if name != "pool_int64s"} | {
    "pool_strings": ("a", "b", "c", "d", "a", "b", "b", "c", "c", "a"),
    "min_gram_length": 1,
}

TF_IDF = Op(
    "TfIdfVectorizer",
    infer,
    cost,
    (Kernel("dictionary", run, scratch_bytes=scratch_bytes),),
    mixes_rows=first_input_has_rows,
    cases=(
        Case("pairs", inputs=(_TOKENS,), attrs=_POOL, cost=Cost(other_flops=30)),
        Case("all_lengths", inputs=(_TOKENS[1],), attrs={**_POOL, "min_gram_length": 1}, cost=Cost(other_flops=21)),
        Case("weighted", inputs=(_TOKENS,), attrs={**_POOL, "mode": "TFIDF", "weights": _WEIGHTS}),
        Case("once", inputs=(_TOKENS,), attrs={**_POOL, "mode": "IDF", "min_gram_length": 1, "weights": _WEIGHTS}),
        Case("texts", inputs=(np.array(["a", "b", "c", "a"], STRING),), attrs=_TEXTS),
        Case(
            "permuted",
            inputs=(_TOKENS,),
            attrs={**_POOL, "ngram_indexes": (6, 5, 4, 3, 2, 1, 0), "mode": "TFIDF", "weights": _WEIGHTS, "max_skip_count": 0},
        ),
        Case("endless_skips", inputs=(_TOKENS,), attrs={**_POOL, "max_skip_count": 1 << 62}),
        Case("cut_pair", inputs=(_TOKENS,), attrs={**_POOL, "ngram_counts": (0, 3)}, raises=AttributeValueError),
        Case(
            "vast_output",
            inputs=(_TOKENS,),
            attrs={**_POOL, "ngram_indexes": (0, 1, 2, 3, 4, 5, 1 << 40)},
            raises=AttributeValueError,
        ),
        Case("three_axes", inputs=(_TOKENS[None],), attrs=_POOL, raises=ShapeError),
        Case("mode", inputs=(_TOKENS,), attrs={**_POOL, "mode": "BM25"}, raises=AttributeValueError),
    ),
)
