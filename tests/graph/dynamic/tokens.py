"""Random models of sequences whose batch, length and past length are open, as PyTorch's exporters write them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from onnx import TensorProto

from tests.graph.dynamic.build import Build, DynamicModel
from tests.graph.oracle import BOOL, FLOAT, INT64

LOWEST = float(np.finfo(np.float32).min)


@dataclass(frozen=True, slots=True)
class Tokens:
    """Hidden states (batch, tokens, width). mask: of the model's input, 1 where a token counts; "" where there is none.

    past: the name of the dimension of cached tokens; "" where there is no cache. longer: by how many tokens they are more.
    """

    value: str
    width: int
    heads: int
    mask: str = ""
    past: str = ""
    longer: int = 0


Layer = Callable[[Build, Tokens], Tokens]


def linear(b: Build, value: str, inner: int, out: int) -> str:
    made = b.add("MatMul", value, b.weights(inner, out))
    return made if b.chance(3) else str(b.add("Add", b.weights(out), made) if b.chance(2) else b.add("Add", made, b.weights(out)))


def normed(b: Build, value: str, width: int) -> str:
    """A layer norm as an operator or spelled out, or an RMS norm."""
    match b.one_of("layer", "spelled", "rms"):
        case "layer":
            made = b.add("LayerNormalization", value, b.scales(width), b.weights(width), axis=-1, epsilon=1e-5)
        case "spelled":
            centred = b.add("Sub", value, b.add("ReduceMean", value, b.ints(-1), keepdims=1))
            spread = b.add("ReduceMean", b.add("Pow", centred, b.keep(2.0)), b.ints(-1), keepdims=1)
            unit = b.add("Div", centred, b.add("Sqrt", b.add("Add", spread, b.keep(1e-5))))
            made = b.add("Add", b.add("Mul", unit, b.scales(width)), b.weights(width))
        case _:
            spread = b.add("ReduceMean", b.add("Pow", value, b.keep(2.0)), b.ints(-1), keepdims=1)
            root = b.add("Sqrt", b.add("Add", spread, b.keep(1e-5)))
            unit = b.add("Div", value, root) if b.chance(2) else b.add("Mul", value, b.add("Reciprocal", root))
            made = b.add("Mul", b.scales(width), unit)
    return str(made)


def feed_forward(b: Build, x: Tokens) -> Tokens:
    inner = int(b.one_of(8, 32, 33))
    value = normed(b, x.value, x.width)
    wide = linear(b, value, x.width, inner)
    match b.one_of("gelu", "tanh", "silu", "gated"):
        case "gelu":
            wave = b.add("Erf", b.add("Div", wide, b.keep(np.sqrt(2))))
            wide = b.add("Mul", b.add("Mul", wide, b.add("Add", wave, b.keep(1.0))), b.keep(0.5))
        case "tanh":
            cube = b.add("Mul", b.add("Pow", wide, b.keep(3.0)), b.keep(0.044715))
            wave = b.add("Tanh", b.add("Mul", b.add("Add", wide, cube), b.keep(0.7978846)))
            wide = b.add("Mul", b.add("Mul", wide, b.keep(0.5)), b.add("Add", wave, b.keep(1.0)))
        case "silu":
            wide = b.add("Mul", wide, b.add("Sigmoid", wide))
        case _:
            gate = linear(b, value, x.width, inner)
            wide = b.add("Mul", b.add("Mul", gate, b.add("Sigmoid", gate)), wide)
    return replace(x, value=b.add("Add", x.value, linear(b, str(wide), inner, x.width)))


def apart(b: Build, x: Tokens, value: str, heads: int) -> str:
    """Heads of their own: (batch, heads, tokens, width of a head)."""
    each = x.width // x.heads
    match b.one_of("sizes", "sizes", "zeros"):
        case "sizes":
            target = [b.size(value, 0), b.one_of(b.size(value, 1), -1), heads, each]
            made = b.reshape(value, *target)
        case _:
            made = b.add("Reshape", value, b.ints(0, 0, heads, each))
    return str(b.add("Transpose", made, perm=[0, 2, 1, 3]))


def turned(b: Build, value: str, each: int, past: str) -> str:
    """Rotary position embedding of (batch, heads, tokens, each)."""
    count = b.size(value, 2)
    first = b.size(past, 2) if past else b.whole(0)
    place = b.add("Cast", b.add("Range", first, b.add("Add", count, first), b.whole(1)), to=FLOAT)
    rates = b.keep(1.0 / 100 ** (np.arange(each // 2) / (each // 2))[None])
    angle = b.add("MatMul", b.reshape(place, -1, 1), rates)
    angle = b.add("Concat", angle, angle, axis=-1)
    half = b.add("Div", b.size(value, 3), b.whole(2)) if b.chance(2) else each // 2
    other = b.add("Concat", b.add("Neg", b.slice(value, 3, half, 2**31)), b.slice(value, 3, 0, half), axis=-1)
    return str(b.add("Add", b.add("Mul", value, b.add("Cos", angle)), b.add("Mul", other, b.add("Sin", angle))))


def masks(b: Build, x: Tokens, keys: str, queries: str, causal: bool) -> list[str]:
    """Additive masks of scores (batch, heads, queries, keys). keys, queries: numbers of tokens."""
    found = []
    if x.mask:
        flags = b.add("Cast", b.add("Unsqueeze", x.mask, b.ints(1, 2)), to=FLOAT)
        if b.chance(2):
            flags = b.add("Expand", flags, b.listed(b.size(x.mask, 0), 1, queries, b.size(x.mask, 1)))
        if b.chance(2):
            found.append(b.add("Mul", b.add("Sub", b.keep(1.0), flags), b.keep(-1e4)))
        else:
            hidden = b.add("Sub", b.keep(1.0), flags)
            found.append(b.add("Where", b.add("Cast", hidden, to=BOOL), b.keep(-1e9), hidden))
    if causal:
        here = b.add("Unsqueeze", b.add("Range", b.add("Sub", keys, queries), keys, b.whole(1)), b.ints(1))
        there = b.add("Unsqueeze", b.add("Range", b.whole(0), keys, b.whole(1)), b.ints(0))
        if b.chance(2):
            seen = b.add("LessOrEqual", there, here)
            found.append(b.add("Where", seen, b.keep(0.0), b.keep(LOWEST / 4)))
        else:
            full = b.zeros(queries, keys, value=-1e9)
            found.append(b.add("Mul", full, b.add("Cast", b.add("Greater", there, here), to=FLOAT)))
    return [str(each) for each in found]


def attention(b: Build, x: Tokens) -> Tokens:
    """Attention spelled out, with masks, a cache, rotated positions, and keys that several heads share."""
    each, shared = x.width // x.heads, x.heads if x.heads % 2 or b.chance(2) else x.heads // 2
    value = normed(b, x.value, x.width)
    if b.chance(3) and shared == x.heads:
        q, k, v = b.add("Split", linear(b, value, x.width, 3 * x.width), b.ints(*[x.width] * 3), outputs=3, axis=-1)
    else:
        q, k, v = (linear(b, value, x.width, heads * each) for heads in (x.heads, shared, shared))
    q, k, v = apart(b, x, q, x.heads), apart(b, x, k, shared), apart(b, x, v, shared)
    cached = [""] * 2
    if x.past:
        cached = [b.feed(f"past{len(b.dims)}_{which}", "batch", shared, x.past, each) for which in "kv"]
    if b.chance(3) and each % 2 == 0:
        q, k = (turned(b, operand, each, cached[0]) for operand in (q, k))
    if x.past:
        k, v = (b.add("Concat", old, new, axis=2) for old, new in zip(cached, (k, v), strict=True))
        b.give(k)
        b.give(v)
    if shared != x.heads:
        k, v = (repeated(b, operand, shared, x.heads // shared, each) for operand in (k, v))
    queries, keys = b.size(q, 2), b.size(k, 2)
    scores = b.add("MatMul", q, b.add("Transpose", k, perm=[0, 1, 3, 2]))
    scores = b.add("Div", scores, b.keep(np.sqrt(each))) if b.chance(2) else b.add("Mul", scores, b.keep(each**-0.5))
    for mask in masks(b, x, keys, queries, causal=b.chance(2)):
        scores = b.add("Add", scores, mask)
    mixed = b.add("MatMul", b.add("Softmax", scores, axis=-1), v)
    together = b.add("Transpose", mixed, perm=[0, 2, 1, 3])
    sizes = (b.size(value, 0), b.size(value, 1), b.one_of(x.width, -1))
    out = linear(b, b.reshape(str(together), *sizes), x.width, x.width)
    return replace(x, value=b.add("Add", x.value, out))


def repeated(b: Build, value: str, shared: int, times: int, each: int) -> str:
    """Let `times` heads share each head of keys or values."""
    batch, count = b.size(value, 0), b.size(value, 2)
    wide = b.add("Expand", b.add("Unsqueeze", value, b.ints(2)), b.listed(batch, shared, times, count, each))
    return b.reshape(str(wide), batch, shared * times, count, each)


def mixed_by_convolution(b: Build, x: Tokens) -> Tokens:
    """A convolution along the sequence."""
    image = b.add("Transpose", x.value, perm=[0, 2, 1])
    groups = x.width if b.chance(2) else 1
    made = b.add("Conv", image, b.weights(x.width, x.width // groups, 3), pads=[1, 1], group=groups, kernel_shape=[3])
    return replace(x, value=b.add("Add", x.value, b.add("Transpose", made, perm=[0, 2, 1])))


def scaled(b: Build, x: Tokens) -> Tokens:
    """Divide by a size that was computed, or subtract the mean over tokens that count."""
    if x.mask and not x.past and not x.longer and b.chance(2):
        flags = b.add("Cast", b.add("Unsqueeze", x.mask, b.ints(-1)), to=FLOAT)
        total = b.add("ReduceSum", b.add("Mul", x.value, flags), b.ints(1), keepdims=1)
        count = b.add("Clip", b.add("ReduceSum", flags, b.ints(1), keepdims=1), b.keep(1e-9))
        return replace(x, value=b.add("Sub", x.value, b.add("Div", total, count)))
    count = b.add("Cast", b.size(x.value, 1), to=FLOAT)
    factor = b.add("Div", b.keep(1.0), b.add("Sqrt", b.add("Add", count, b.keep(1.0))))
    return replace(x, value=b.add("Add", x.value, b.add("Mul", x.value, factor)))


def shifted(b: Build, x: Tokens) -> Tokens:
    """Add each token to the one before it."""
    first = b.zeros(b.size(x.value, 0), 1, x.width)
    before = b.add("Concat", first, b.slice(x.value, 1, 0, -1), axis=1)
    return replace(x, value=b.add("Add", x.value, before))


LAYERS: tuple[Layer, ...] = (feed_forward, feed_forward, attention, attention, attention, mixed_by_convolution, scaled, shifted)


def embedded(b: Build, width: int) -> str:
    """Tokens of a table, and of one of positions."""
    ids = b.feed("ids", "batch", "tokens", dtype=INT64)
    value = b.add("Gather", b.weights(16, width), ids)
    match b.one_of("none", "range", "slice", "counted"):
        case "range":
            places = b.add("Range", b.whole(0), b.size(ids, 1), b.whole(1))
            value = b.add("Add", value, b.add("Gather", b.weights(600, width), b.add("Unsqueeze", places, b.ints(0))))
        case "slice":
            value = b.add("Add", value, b.slice(b.keep(b.rng.standard_normal((1, 600, width)) / 4), 1, 0, b.size(ids, 1)))
        case "counted":
            ones = b.add("Cast", b.add("Not", b.add("Equal", ids, b.whole(1))), to=TensorProto.INT32)
            places = b.add("Mul", b.add("CumSum", ones, b.whole(1)), ones)
            value = b.add("Add", value, b.add("Gather", b.weights(600, width), b.add("Cast", places, to=INT64)))
    return str(value)


def ending(b: Build, x: Tokens) -> str:
    """Numbers for each token, for the first or last one, or for all together."""
    match b.one_of("all", "all", "last", "first", "mean", "pixels"):
        case "last":
            value = b.add("Gather", x.value, b.whole(-1), axis=1)
        case "first":
            value = b.add("Squeeze", b.slice(x.value, 1, 0, 1), b.ints(1))
        case "mean":
            value = b.add("ReduceMean", x.value, b.ints(1), keepdims=0)
        case "pixels" if x.longer == 0:
            rows = b.reshape(x.value, b.add("Mul", b.size(x.value, 0), b.size(x.value, 1)), x.width)
            flat = b.add("Gemm", rows, b.weights(7, x.width), b.weights(7), transB=1)
            return str(b.reshape(str(flat), b.size(x.value, 0), b.size(x.value, 1), 7))
        case _:
            value = normed(b, x.value, x.width)
    return linear(b, str(value), x.width, 7)


LENGTHS = (1, 2, 3, 5, 7, 8, 11, 15, 16, 17, 24, 31, 32, 33, 48, 63, 65, 100)


def token_model(seed: int) -> DynamicModel:
    """Return the model of a seed."""
    b = Build(seed)
    heads, each = int(b.one_of(1, 2, 4)), int(b.one_of(4, 8, 16))
    width = heads * each
    value = embedded(b, width) if b.chance(2) else b.feed("x", "batch", "tokens", width)
    x = Tokens(value, width, heads, past="past" if b.chance(3) else "")
    if b.chance(2):
        x = replace(x, mask=b.feed("mask", "batch", "total" if x.past else "tokens", dtype=INT64))
    elif b.chance(3):  # a token in front that stands for the whole sequence
        front = b.add("Expand", b.weights(1, 1, width), b.listed(b.size(value, 0), 1, width))
        x = replace(x, value=b.add("Concat", front, value, axis=1), longer=1)
    for _ in range(int(b.rng.integers(1, 5))):
        x = b.one_of(*LAYERS)(b, x)
    b.give(ending(b, x))
    some = []
    for _ in range(int(b.rng.integers(4, 7))):
        tokens, past = int(b.one_of(*LENGTHS)), int(b.one_of(0, 1, 5, 16, 37))
        some.append({"batch": int(b.one_of(1, 1, 2, 3)), "tokens": tokens, "past": past, "total": tokens + past})
    return b.done([*some, {**some[1], "batch": some[0]["batch"]}, some[0]])
