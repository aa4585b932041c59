"""Random models of images whose batch, height and width are open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tests.graph.dynamic.build import Build, DynamicModel
from tests.graph.oracle import FLOAT, INT64


@dataclass(frozen=True, slots=True)
class Map:
    """An image. plane: how its height and width follow from those of the input; maps of one plane are of one size."""

    value: str
    channels: int
    plane: str = "x"


Layer = Callable[[Build, Map, list[Map]], Map | None]


def pointwise(b: Build, x: Map, _: list[Map]) -> Map:
    """An activation, as an operator or spelled out."""
    value = x.value
    match b.one_of("op", "op", "silu", "gelu", "clip", "prelu", "hardswish"):
        case "op":
            made = b.add(b.one_of("Relu", "Sigmoid", "Tanh", "HardSwish", "LeakyRelu", "Softplus", "Elu"), value)
        case "silu":
            made = b.add("Mul", value, b.add("Sigmoid", value))
        case "gelu":
            wave = b.add("Erf", b.add("Div", value, b.keep(np.sqrt(2))))
            made = b.add("Mul", b.add("Mul", value, b.add("Add", wave, b.keep(1.0))), b.keep(0.5))
        case "clip":
            made = b.add("Clip", value, b.keep(0.0), b.keep(6.0))
        case "prelu":
            made = b.add("PRelu", value, b.scales(x.channels, 1, 1))
        case _:
            made = b.add("Mul", value, b.add("HardSigmoid", value, alpha=1 / 6, beta=0.5))
    return replace(x, value=made)


def conv(b: Build, x: Map, _: list[Map]) -> Map:
    kind = b.one_of("plain", "plain", "point", "depthwise", "grouped")
    groups = {"depthwise": x.channels, "grouped": 2 if x.channels % 2 == 0 else 1}.get(kind, 1)
    k = 1 if kind == "point" else int(b.one_of(3, 3, 5))
    out = x.channels if kind == "depthwise" else groups * int(b.one_of(1, 3, 8, 16, 17))
    stride, dilation = int(b.one_of(1, 1, 1, 2)), int(b.one_of(1, 1, 1, 2)) if k == 3 else 1
    same = b.chance(8) and dilation == 1
    pad = (k - 1) * dilation // 2
    attrs = {"auto_pad": "SAME_UPPER"} if same else {"pads": [pad] * 4, "dilations": [dilation] * 2}
    made = b.add("Conv", x.value, b.weights(out, x.channels // groups, k, k), *([] if b.chance(3) else [b.weights(out)]),
                 group=groups, strides=[stride] * 2, kernel_shape=[k, k], **attrs)  # fmt: skip
    return Map(made, out, x.plane if stride == 1 else f"{x.plane}/2")  # both ways of padding round up


def transposed(b: Build, x: Map, _: list[Map]) -> Map:
    k, pad = b.one_of((2, 0), (4, 1))
    out = int(b.one_of(2, 8, 9))
    made = b.add("ConvTranspose", x.value, b.weights(x.channels, out, k, k), b.weights(out), strides=[2, 2], pads=[pad] * 4)
    return Map(made, out, f"{x.plane}*2")


def pool(b: Build, x: Map, _: list[Map]) -> Map:
    match b.one_of("max", "average", "halve", "ceil"):
        case "max":
            return Map(b.add("MaxPool", x.value, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4), x.channels, f"{x.plane}/2")
        case "average":
            made = b.add("AveragePool", x.value, kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=int(b.chance(2)))
            return replace(x, value=made)
        case "ceil":
            made = b.add("MaxPool", x.value, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
            return Map(made, x.channels, f"{x.plane}/2")
    op = b.one_of("MaxPool", "AveragePool")
    made = b.add(op, x.value, kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 1, 1])  # one pixel holds no window without
    return Map(made, x.channels, f"{x.plane}/2")


def resize(b: Build, x: Map, seen: list[Map]) -> Map:
    """By scales, to the size of another map, or to a size computed through floats as old exporters did."""
    ways: dict[str, dict[str, Any]] = {
        "nearest": {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        "linear": {"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
        "aligned": {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    }
    attrs = ways[b.one_of("nearest", "nearest", "linear", "aligned")]
    match b.one_of("scales", "like", "like", "floats"):
        case "scales":
            return Map(b.add("Resize", x.value, "", b.keep([1, 1, 2, 2]), **attrs), x.channels, f"{x.plane}*2")
        case "like":
            other = b.one_of(*seen)
            head = b.add("Slice", b.shape(x.value), b.ints(0), b.ints(2), b.ints(0))
            tail = b.add("Slice", b.shape(other.value), b.ints(2), b.ints(4), b.ints(0))
            sizes = b.add("Concat", head, tail, axis=0)
            return Map(b.add("Resize", x.value, "", "", sizes, **attrs), x.channels, other.plane)
    sides = []
    for axis in (2, 3):
        wide = b.add("Mul", b.add("Cast", b.size(x.value, axis), to=FLOAT), b.keep(2.0))
        sides.append(b.add("Cast", b.add("Floor", wide), to=INT64))
    sizes = b.listed(b.size(x.value, 0), x.channels, *sides)
    return Map(b.add("Resize", x.value, "", "", sizes, **attrs), x.channels, f"{x.plane}*2")


def joined(b: Build, x: Map, seen: list[Map]) -> Map:
    others = [other for other in seen if other.plane == x.plane]
    other = b.one_of(*others)
    same = [each for each in others if each.channels == x.channels]
    if b.chance(2) and same:
        return replace(x, value=b.add(b.one_of("Add", "Mul", "Sub"), x.value, b.one_of(*same).value))
    return Map(b.add("Concat", x.value, other.value, axis=1), x.channels + other.channels, x.plane)


def excitation(b: Build, x: Map, _: list[Map]) -> Map:
    mean = b.add("GlobalAveragePool", x.value) if b.chance(2) else b.add("ReduceMean", x.value, b.ints(2, 3), keepdims=1)
    inner = b.add("Relu", b.add("Conv", mean, b.weights(4, x.channels, 1, 1), b.weights(4)))
    gate = b.add("Sigmoid", b.add("Conv", inner, b.weights(x.channels, 4, 1, 1), b.weights(x.channels)))
    return replace(x, value=b.add("Mul", x.value, gate))


def norm(b: Build, x: Map, _: list[Map]) -> Map:
    c = x.channels
    match b.one_of("batch", "batch", "instance", "group", "layer"):
        case "batch":
            spread = b.keep(b.rng.random(c) + 0.5)
            made = b.add("BatchNormalization", x.value, b.scales(c), b.weights(c), b.weights(c), spread)
        case "instance":
            made = b.add("InstanceNormalization", x.value, b.scales(c), b.weights(c))
        case "group":  # as PyTorch writes it
            groups = 2 if c % 2 == 0 else 1
            rows = b.add("Reshape", x.value, b.ints(0, groups, -1))
            normed = b.add("InstanceNormalization", rows, b.keep(np.ones(groups)), b.keep(np.zeros(groups)))
            back = b.add("Reshape", normed, b.shape(x.value))
            made = b.add("Add", b.add("Mul", back, b.scales(c, 1, 1)), b.weights(c, 1, 1))
        case _:
            last = b.add("Transpose", x.value, perm=[0, 2, 3, 1])
            normed = b.add("LayerNormalization", last, b.scales(c), b.weights(c), axis=-1, epsilon=1e-5)
            if b.chance(2):
                normed = b.add("Add", b.add("MatMul", normed, b.weights(c, c)), b.weights(c))
            made = b.add("Transpose", normed, perm=[0, 3, 1, 2])
    return replace(x, value=made)


def shuffle(b: Build, x: Map, _: list[Map]) -> Map | None:
    if x.channels % 2:
        return None
    n, h, w = (b.size(x.value, axis) for axis in (0, 2, 3))
    apart = b.reshape(x.value, n, 2, x.channels // 2, h, w)
    swapped = b.add("Transpose", apart, perm=[0, 2, 1, 3, 4])
    return replace(x, value=b.reshape(swapped, n, x.channels, h, w) if b.chance(2) else b.reshape(swapped, n, -1, h, w))


def split(b: Build, x: Map, _: list[Map]) -> Map | None:
    if x.channels < 2:
        return None
    half = x.channels // 2
    first, second = b.add("Split", x.value, b.ints(half, x.channels - half), outputs=2, axis=1)
    if b.chance(2) and x.channels % 2 == 0:
        return Map(b.add("Mul", first, b.add("Sigmoid", second)), half, x.plane)
    return replace(x, value=b.add("Concat", second, first, axis=1))


def moved(b: Build, x: Map, _: list[Map]) -> Map:
    """Crop, step, pad, flip, or turn pixels into channels."""
    match b.one_of("crop", "step", "pad", "reflect", "flip", "depth", "space"):
        case "crop":
            cut = b.slice(x.value, 2, 1, 2**31)
            return Map(b.slice(cut, 3, 0, -1), x.channels, f"crop({x.plane})")
        case "step":
            return Map(b.slice(b.slice(x.value, 2, 0, 2**31, 2), 3, 0, 2**31, 2), x.channels, f"{x.plane}/2")
        case "pad":
            pads, value = b.ints(0, 0, 1, 2, 0, 0, 2, 1), b.keep(0.5)
            return Map(b.add("Pad", x.value, pads, value), x.channels, f"pad({x.plane})")
        case "reflect":
            pads = b.ints(0, 0, 1, 1, 0, 0, 1, 1)
            return Map(b.add("Pad", x.value, pads, mode="edge"), x.channels, f"edge({x.plane})")
        case "flip":
            return replace(x, value=b.slice(x.value, 3, -1, -(2**31), -1))
        case "space":
            out = x.channels
            wide = b.add("Conv", x.value, b.weights(4 * out, out, 1, 1))
            return Map(b.add("DepthToSpace", wide, blocksize=2, mode=b.one_of("DCR", "CRD")), out, f"{x.plane}*2")
    up = b.add("Resize", x.value, "", b.keep([1, 1, 2, 2]), mode="nearest", coordinate_transformation_mode="asymmetric",
               nearest_mode="floor")  # fmt: skip
    return Map(b.add("SpaceToDepth", up, blocksize=2), 4 * x.channels, x.plane)


def windows(b: Build, x: Map, _: list[Map]) -> Map:
    """Pad to a multiple of 4, cut into windows, mix the pixels of each, put them together and crop, as window attention does."""
    n, h, w = (b.size(x.value, axis) for axis in (0, 2, 3))
    four, c = b.whole(4), x.channels
    more = [b.add("Mod", b.add("Sub", four, b.add("Mod", side, four)), four) for side in (h, w)]
    padded = b.add("Pad", x.value, b.listed(0, 0, 0, 0, 0, 0, *more), b.keep(0.0))
    tall, wide = (b.add("Add", side, extra) for side, extra in zip((h, w), more, strict=True))
    rows, columns = (b.add("Div", side, four) for side in (tall, wide))
    apart = b.reshape(padded, n, c, rows, 4, columns, 4)
    tokens = b.reshape(b.add("Transpose", apart, perm=[0, 2, 4, 3, 5, 1]), -1, 16, c)
    scores = b.add("MatMul", tokens, b.add("Transpose", tokens, perm=[0, 2, 1]))
    mixed = b.add("MatMul", b.add("Softmax", b.add("Mul", scores, b.keep(0.2)), axis=-1), tokens)
    back = b.add("Transpose", b.reshape(mixed, n, rows, columns, 4, 4, c), perm=[0, 5, 1, 3, 2, 4])
    whole = b.reshape(back, n, c, tall, wide)
    return replace(x, value=b.slice(b.slice(whole, 2, 0, h), 3, 0, w))


def coordinates(b: Build, x: Map, _: list[Map]) -> Map:
    """Join a channel that says the column of each pixel."""
    n, h, w = (b.size(x.value, axis) for axis in (0, 2, 3))
    row = b.add("Cast", b.add("Range", b.whole(0), w, b.whole(1)), to=FLOAT)
    row = b.add("Div", row, b.add("Add", b.add("Cast", w, to=FLOAT), b.keep(1.0)))
    plane = b.add("Expand", b.reshape(row, 1, 1, 1, -1), b.listed(n, 1, h, w))
    return Map(b.add("Concat", x.value, plane, axis=1), x.channels + 1, x.plane)


def mixer(b: Build, x: Map, _: list[Map]) -> Map:
    """Pixels as tokens: a product with weights, attention over all of them, or statistics of channels."""
    n, h, w = (b.size(x.value, axis) for axis in (0, 2, 3))
    c = x.channels
    tokens = b.add("Transpose", b.reshape(x.value, n, c, -1), perm=[0, 2, 1])
    if b.chance(2):
        tokens = b.add("Add", tokens, b.add("MatMul", tokens, b.weights(c, c)))
    else:
        q, k, v = (b.add("MatMul", tokens, b.weights(c, c)) for _ in range(3))
        scores = b.add("Mul", b.add("MatMul", q, b.add("Transpose", k, perm=[0, 2, 1])), b.keep(c**-0.5))
        tokens = b.add("MatMul", b.add("Softmax", scores, axis=-1), v)
    return replace(x, value=b.reshape(b.add("Transpose", tokens, perm=[0, 2, 1]), n, c, h, w))


LAYERS: tuple[Layer, ...] = (
    pointwise, pointwise, conv, conv, conv, transposed, pool, resize, resize, joined, joined, excitation, norm, shuffle, split,
    moved, windows, coordinates, mixer,
)  # fmt: skip


def head(b: Build, x: Map) -> str:
    """Classes of each image."""
    pooled = b.add("GlobalAveragePool", x.value) if b.chance(2) else b.add("ReduceMean", x.value, b.ints(2, 3), keepdims=1)
    rows = b.add("Flatten", pooled) if b.chance(2) else b.reshape(pooled, b.size(pooled, 0), -1)
    return str(b.add("Gemm", rows, b.weights(5, x.channels), b.weights(5), transB=1))


SIDES = (1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 18, 31, 33, 40)


def image_model(seed: int) -> DynamicModel:
    """Return the model of a seed."""
    b = Build(seed)
    channels = int(b.one_of(1, 3, 3, 8, 16, 17))
    seen = [Map(b.feed("x", "batch", channels, "height", "width"), channels)]
    for _ in range(int(b.rng.integers(2, 9))):
        x = seen[-1] if not b.chance(4) else b.one_of(*seen)
        made = b.one_of(*LAYERS)(b, x, seen)
        if made is None:
            continue
        if made.channels > 40 or made.plane.count("*2") > 1:
            made = Map(b.add("Conv", made.value, b.weights(8, made.channels, 1, 1), strides=[2, 2]), 8, f"{made.plane}/2")
        seen.append(made)
    b.give(head(b, seen[-1]) if b.chance(3) else b.add("Neg", seen[-1].value))
    if b.chance(3):
        b.give(b.add("Identity", b.one_of(*seen).value))
    some = [{"batch": int(b.one_of(1, 1, 2, 3, 4)), "height": int(b.one_of(*SIDES)), "width": int(b.one_of(*SIDES))}
            for _ in range(int(b.rng.integers(4, 7)))]  # fmt: skip
    if b.chance(3):
        some.insert(1, {**some[0], "batch": int(b.one_of(0, 5))})  # only the batch differs
    return b.done([*some, some[0]])
