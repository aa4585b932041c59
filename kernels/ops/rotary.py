"""RotaryEmbedding: rotation of pairs of numbers in each head by an angle that depends on their position."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from kernels.composite import Parts, Value, written
from kernels.cost import Cost
from kernels.errors import AttributeValueError, DTypeError, ShapeError
from kernels.half import in_single
from kernels.operands import check_indices, one_dtype
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.spec import FLOATS, Array, Spec


def _layout(x: Spec | Array, num_heads: int) -> tuple[int, int, int, int]:
    """(batch, length, heads, head size) of x (batch, heads, length, size), or (batch, length, heads · size)."""
    if len(x.shape) == 4:
        return x.shape[0], x.shape[2], x.shape[1], x.shape[3]
    if len(x.shape) != 3:
        raise ShapeError(f"RotaryEmbedding: x is {x}, need 3 axes or 4")
    if num_heads < 1 or x.shape[2] % num_heads:
        raise AttributeValueError(f"RotaryEmbedding: num_heads is {num_heads}, need a divisor of the {x.shape[2]} in x {x}")
    return x.shape[0], x.shape[1], num_heads, x.shape[2] // num_heads


def infer(
    x: Spec,
    cos_cache: Spec,
    sin_cache: Spec,
    position_ids: Spec | None = None,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Spec:
    """Same shape and dtype as x. The caches are (positions, half) with position_ids, else (batch, length, half)."""
    require_dtype("RotaryEmbedding: x", x, FLOATS)
    one_dtype("RotaryEmbedding", x, cos_cache, sin_cache)
    batch, length, _, size = _layout(x, num_heads)
    turned = rotary_embedding_dim or size
    if not 0 < turned <= size or turned % 2:
        raise AttributeValueError(f"RotaryEmbedding: rotary_embedding_dim is {turned}, need an even number up to {size}")
    if position_ids is not None:
        if position_ids.dtype != np.int64:
            raise DTypeError(f"RotaryEmbedding: position_ids is {position_ids}, need int64")
        if position_ids.shape != (batch, length):
            raise ShapeError(f"RotaryEmbedding: position_ids is {position_ids}, need {[batch, length]}")
    wanted = (*cos_cache.shape[:1], turned // 2) if position_ids is not None else (batch, length, turned // 2)
    if cos_cache.shape != wanted or sin_cache.shape != wanted:
        raise ShapeError(f"RotaryEmbedding: caches are {cos_cache} and {sin_cache}, need both {list(wanted)} for x {x}")
    return Spec(x.shape, x.dtype)


def cost(out: tuple[Spec, ...], x: Spec, *inputs: Spec | None, **attrs: Any) -> Cost:
    """3 per turned element: two multiplications and an addition."""
    batch, length, heads, size = _layout(x, attrs["num_heads"])
    return Cost(other_flops=3 * batch * length * heads * (attrs["rotary_embedding_dim"] or size))


@in_single
def run(
    out: tuple[Array, ...], x: Array, cos_cache: Array, sin_cache: Array, position_ids: Array | None = None, **attrs: Any
) -> None:
    """(a, b) becomes (a·cos - b·sin, a·sin + b·cos): the halves of a head, or neighbours when interleaved."""
    shape = _layout(x, attrs["num_heads"])
    given, y = (array.swapaxes(1, 2) if array.ndim == 4 else array.reshape(shape) for array in (x, out[0]))
    turned = attrs["rotary_embedding_dim"] or shape[3]
    if position_ids is not None:
        check_indices("RotaryEmbedding: position_ids", position_ids, len(cos_cache))
        cos_cache, sin_cache = cos_cache[position_ids], sin_cache[position_ids]
    cos, sin = cos_cache[:, :, None], sin_cache[:, :, None]
    if attrs["interleaved"]:
        first, second = slice(0, turned, 2), slice(1, turned, 2)
    else:
        first, second = slice(0, turned // 2), slice(turned // 2, turned)
    a, b = given[..., first], given[..., second]
    y[..., first] = a * cos - b * sin
    y[..., second] = a * sin + b * cos
    y[..., turned:] = given[..., turned:]


_IDS = np.array([[0, 3, 1], [6, 5, 4]], np.int64)
_CACHE = ((7, 4), (7, 4))


def write(
    parts: Parts,
    x: Value,
    cos_cache: Value,
    sin_cache: Value,
    position_ids: Value | None = None,
    *,
    interleaved: int,
    num_heads: int,
    rotary_embedding_dim: int,
) -> Value:
    """As products and sums of the halves of each head, for native kernels."""
    _, _, heads, size = _layout(x.spec, num_heads)
    turned = rotary_embedding_dim or size
    apart = x if x.spec.rank == 4 else parts("Reshape", x, parts.numbers(0, 0, heads, size))
    caches = (cos_cache, sin_cache)
    angles = caches if position_ids is None else [parts("Gather", cache, position_ids, axis=0) for cache in caches]
    cos, sin = (parts("Unsqueeze", angle, parts.numbers(1 if x.spec.rank == 4 else 2)) for angle in angles)
    rest: list[Value] = []
    if turned != size:
        apart, *rest = parts.several(2, "Split", apart, parts.numbers(turned, size - turned), axis=-1)
    if interleaved:
        apart = parts("Reshape", apart, parts.numbers(0, 0, 0, turned // 2, 2))
        pair = parts.several(2, "Split", apart, axis=-1, num_outputs=2)
        a, b = (parts("Squeeze", each, parts.numbers(-1)) for each in pair)
    else:
        a, b = parts.several(2, "Split", apart, axis=-1, num_outputs=2)
    first = parts("Sub", parts("Mul", a, cos), parts("Mul", b, sin))
    second = parts("Add", parts("Mul", a, sin), parts("Mul", b, cos))
    if interleaved:
        both = (parts("Unsqueeze", each, parts.numbers(-1)) for each in (first, second))
        y = parts("Reshape", parts("Concat", *both, axis=-1), parts.numbers(0, 0, 0, turned))
        y = y if not rest else parts("Concat", y, *rest, axis=-1)
    else:
        y = parts("Concat", first, second, *rest, axis=-1)
    return y if x.spec.rank == 4 else parts("Reshape", y, parts.numbers(0, 0, x.shape[2]))


ROTARY_EMBEDDING = Op(
    "RotaryEmbedding",
    infer,
    cost,
    (Kernel("halves", run),),
    parts=functools.partial(written, "RotaryEmbedding", write),
    cases=(
        Case("four_axes", inputs=((2, 5, 3, 8), *_CACHE, _IDS), cost=Cost(other_flops=720)),
        Case("three_axes", inputs=((2, 3, 40), *_CACHE, _IDS), attrs={"num_heads": 5}, cost=Cost(other_flops=720)),
        Case("interleaved", inputs=((2, 5, 3, 8), *_CACHE, _IDS), attrs={"interleaved": 1}),
        Case("part", inputs=((2, 5, 3, 12), *_CACHE, _IDS), attrs={"rotary_embedding_dim": 8, "num_heads": 5}),
        Case("no_ids", inputs=((2, 5, 3, 8), (2, 3, 4), (2, 3, 4))),
        Case("odd", inputs=((2, 5, 3, 7), *_CACHE, _IDS), raises=AttributeValueError),
        Case("heads_missing", inputs=((2, 3, 40), *_CACHE, _IDS), raises=AttributeValueError),
        Case("cache_width", inputs=((2, 5, 3, 8), (7, 3), (7, 3), _IDS), raises=ShapeError),
        Case("ids_dtype", inputs=((2, 5, 3, 8), *_CACHE, _IDS.astype(np.int32)), raises=DTypeError),
    ),
)
