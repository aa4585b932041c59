"""The layouts in which values come, and the nodes that make something of them: one function for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.graph.native.random_build import Build, Shape

UNARY = ("Relu", "Neg", "Tanh", "Sigmoid", "Abs", "LeakyRelu", "HardSwish", "Elu", "Erf", "HardSigmoid", "Softplus", "Mish")

# How the producer's input lies


def row_major(b: Build, shape: Shape) -> str:
    return b.feed(b.normal(*shape))


def in_blocks(b: Build, shape: Shape) -> str:
    """Blocks of channels, as a convolution leaves them; of several blocks no strides exist."""
    if len(shape) not in (3, 4):
        return row_major(b, shape)
    inner = b.one_of(1, 3, b.lanes)
    return b.add("Conv", b.feed(b.normal(shape[0], inner, *shape[2:])), b.weights(shape[1], inner, *[1] * len(shape[2:])))


def turned(b: Build, shape: Shape) -> str:
    """A view with permuted strides."""
    axes = [int(n) for n in b.rng.permutation(len(shape))]
    back = [axes.index(n) for n in range(len(shape))]
    return b.add("Transpose", b.feed(b.normal(*(shape[n] for n in axes))), perm=back)


def sliced(b: Build, shape: Shape) -> str:
    """Part of a larger value, along one dimension, row-major or in blocks."""
    axis = int(b.rng.integers(len(shape)))
    before, after = b.one_of((0, 1), (1, 0), (b.lanes, 2), (1, 3))
    whole = (*shape[:axis], shape[axis] + before + after, *shape[axis + 1 :])
    source = b.one_of(row_major, in_blocks)(b, whole)
    return b.add("Slice", source, b.ints(before), b.ints(before + shape[axis]), b.ints(axis))


def repeated(b: Build, shape: Shape) -> str:
    """A view that repeats one element along a dimension."""
    axis = int(b.rng.integers(len(shape)))
    return b.add("Expand", b.feed(b.normal(*shape[:axis], 1, *shape[axis + 1 :])), b.ints(*shape))


def channels_last(b: Build, shape: Shape) -> str:
    """An image as a grouped convolution leaves it."""
    if len(shape) not in (3, 4) or shape[1] % 2:
        return in_blocks(b, shape)
    return b.add("Conv", b.feed(b.normal(*shape)), b.weights(shape[1], shape[1] // 2, *[1] * len(shape[2:])), group=2)


LAYOUTS: Sequence[Callable[[Build, Shape], str]] = (
    row_major, in_blocks, in_blocks, in_blocks, turned, sliced, repeated, channels_last,
)  # fmt: skip


def laid_out(b: Build, shape: Shape) -> str:
    """A value of that shape in some layout."""
    return str(b.one_of(*LAYOUTS)(b, shape))


# The producers: each returns the value that it adds


def _window(b: Build, shape: Shape, most: int = 3) -> dict[str, Any]:
    """A window that fits into the padded image."""
    kernel = [int(b.one_of(1, 2, 3, most)) for _ in shape[2:]]
    before = [int(b.rng.integers(side)) for side in kernel]
    after = [max(0, side - size - low) if side > size + low else int(b.rng.integers(side))
             for side, size, low in zip(kernel, shape[2:], before, strict=True)]  # fmt: skip
    strides = [int(b.one_of(1, 1, 2, 3)) for _ in kernel]
    return {"kernel_shape": kernel, "pads": [*before, *after], "strides": strides}


def convolution(b: Build) -> str:
    x = laid_out(b, b.image())
    window, outputs = _window(b, b.shape(x), 5), b.channels()
    bias = [b.keep(b.normal(outputs))] if b.chance(2) else []
    return b.add("Conv", x, b.weights(outputs, b.shape(x)[1], *window["kernel_shape"]), *bias, **window)


def pointwise(b: Build) -> str:
    x = laid_out(b, b.image())
    strides = [int(b.one_of(1, 1, 2)) for _ in b.shape(x)[2:]]
    outputs = int(b.one_of(b.channels(), b.channels(), 64 + b.lanes))
    return b.add("Conv", x, b.weights(outputs, b.shape(x)[1], *[1] * len(strides)), strides=strides)


def three_by_three(b: Build) -> str:
    """A convolution that Winograd's algorithm can compute."""
    n, _, *plane = b.image()
    x = laid_out(b, (n, int(b.one_of(8, 16, 19)), plane[0], plane[-1]))
    pads = [1, 1, 1, 1] if min(plane) < 3 or b.chance(2) else [int(n) for n in b.rng.integers(0, 3, 4)]
    return b.add("Conv", x, b.weights(b.channels(), b.shape(x)[1], 3, 3), pads=pads)


def grouped(b: Build) -> str:
    group, n = int(b.one_of(2, 3)), int(b.one_of(1, 2))
    inputs, outputs = (group * int(b.one_of(1, 2, 3, b.lanes, b.lanes + 1)) for _ in range(2))
    x = laid_out(b, (n, inputs, b.side(), b.side()))
    window = _window(b, b.shape(x))
    return b.add("Conv", x, b.weights(outputs, inputs // group, *window["kernel_shape"]), group=group, **window)


def depthwise(b: Build) -> str:
    x = laid_out(b, b.image())
    channels, window = b.shape(x)[1], _window(b, b.shape(x), 5)
    bias = [b.keep(b.normal(channels))] if b.chance(2) else []
    return b.add("Conv", x, b.weights(channels, 1, *window["kernel_shape"]), *bias, group=channels, **window)


def transposed(b: Build) -> str:
    x = laid_out(b, b.image())
    channels, rank = b.shape(x)[1], len(b.shape(x)) - 2
    kernel, strides = ([int(b.one_of(1, 2, 3)) for _ in range(rank)] for _ in range(2))
    if b.chance(3):
        return b.add("ConvTranspose", x, b.weights(channels, 1, *kernel), group=channels, kernel_shape=kernel, strides=strides)
    return b.add("ConvTranspose", x, b.weights(channels, b.channels(), *kernel), kernel_shape=kernel, strides=strides)


def pool(b: Build) -> str:
    x = laid_out(b, b.image())
    op = b.one_of("MaxPool", "AveragePool")
    counted = {"count_include_pad": int(b.chance(2))} if op == "AveragePool" else {}
    return b.add(op, x, **_window(b, b.shape(x), 5), **counted)


def global_pool(b: Build) -> str:
    return b.add(b.one_of("GlobalAveragePool", "GlobalMaxPool"), laid_out(b, b.image()))


def resize(b: Build) -> str:
    x = laid_out(b, b.image())
    mode, where = b.one_of(
        ("nearest", "asymmetric"), ("linear", "half_pixel"), ("cubic", "half_pixel"), ("linear", "align_corners")
    )
    others = () if mode == "nearest" else (2, 3, 7)  # the nearest pixel of other ratios is a matter of rounding
    sizes = [int(b.one_of(1, size, 2 * size, *others)) for size in b.shape(x)[2:]]
    attrs: dict[str, Any] = {"nearest_mode": "floor"} if mode == "nearest" else {}
    if mode == "cubic" and len(sizes) == 1:
        mode = "linear"
    return b.add("Resize", x, "", "", b.ints(*b.shape(x)[:2], *sizes), mode=mode, coordinate_transformation_mode=where, **attrs)


def product(b: Build) -> str:
    x = laid_out(b, b.matrix())
    return b.add("MatMul", x, b.weights(b.shape(x)[-1], b.channels()))


def product_of_two(b: Build) -> str:
    x = laid_out(b, b.matrix())
    *batch, _, inner = b.shape(x)
    return b.add("MatMul", x, laid_out(b, (*batch, inner, b.channels())))


def gemm(b: Build) -> str:
    rows, inner, columns = int(b.one_of(1, 2, 7)), b.channels(), b.channels()
    turned_a, turned_b = int(b.chance(3)), int(b.chance(2))
    x = laid_out(b, (inner, rows) if turned_a else (rows, inner))
    shape = (columns, inner) if turned_b else (inner, columns)
    second = b.weights(*shape) if b.chance(2) else laid_out(b, shape)
    addend = [b.give(b.normal(*b.one_of((columns,), (1, columns), (rows, columns), (rows, 1), (1,))))] if b.chance(2) else []
    return b.add("Gemm", x, second, *addend, transA=turned_a, transB=turned_b, alpha=float(b.one_of(1.0, 0.5)))


def norm_of_rows(b: Build) -> str:
    x = laid_out(b, b.one_of(b.matrix, b.image)())
    axis = int(b.rng.integers(1, len(b.shape(x)))) - len(b.shape(x))
    rest = b.shape(x)[axis:]
    if b.chance(3):
        return b.add("RMSNormalization", x, b.keep(b.normal(*rest)), axis=axis)
    bias = [b.keep(b.normal(*rest))] if b.chance(2) else []
    return b.add("LayerNormalization", x, b.keep(b.normal(*rest)), *bias, axis=axis)


def norm_of_channels(b: Build) -> str:
    x = laid_out(b, b.image())
    channels = b.shape(x)[1]
    scale, bias = b.keep(b.normal(channels)), b.keep(b.normal(channels))
    which = b.one_of("Instance", "Group", "Batch")
    if which == "Instance":
        return b.add("InstanceNormalization", x, scale, bias)
    if which == "Group":
        groups = int(b.one_of(*(g for g in range(1, channels + 1) if channels % g == 0)))
        return b.add("GroupNormalization", x, scale, bias, num_groups=groups)
    mean, variance = b.keep(b.normal(channels)), b.keep(np.abs(b.normal(channels)) + np.float32(0.5))
    return b.add("BatchNormalization", x, scale, bias, mean, variance)


def softmax(b: Build) -> str:
    x = laid_out(b, b.one_of(b.matrix, b.image)())
    return b.add(b.one_of("Softmax", "LogSoftmax"), x, axis=int(b.rng.integers(len(b.shape(x)))))


def reduction(b: Build) -> str:
    x = laid_out(b, b.one_of(b.matrix, b.image)())
    rank = len(b.shape(x))
    axes = sorted({int(n) for n in b.rng.integers(rank, size=int(b.one_of(1, 1, 2, 3)))})
    if rank > 2 and b.chance(3):
        axes = list(range(2, rank))
    op = b.one_of(
        "ReduceMean", "ReduceMax", "ReduceSum", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp"
    )
    return b.add(op, x, b.ints(*axes), keepdims=int(not b.chance(3)))


def renamed(b: Build) -> str:
    """A view: a reshape, a permutation, a part or a repetition."""
    x = laid_out(b, b.one_of(b.matrix, b.image)())
    shape = b.shape(x)
    axis = int(b.rng.integers(len(shape)))
    match b.one_of("reshape", "transpose", "slice", "split", "expand", "unsqueeze", "identity"):
        case "reshape":
            rows = int(b.one_of(*(n for n in range(1, 9) if math.prod(shape) % n == 0)))
            return b.add("Reshape", x, b.ints(rows, -1))
        case "transpose":
            return b.add("Transpose", x, perm=[int(n) for n in b.rng.permutation(len(shape))])
        case "slice":
            start, end, step = b.one_of((0, 2, 1), (0, 2**31, 2), (-1, -(2**31), -1), (-1, 2**31, 1))
            return b.add("Slice", x, b.ints(start), b.ints(end), b.ints(axis), b.ints(step))
        case "split" if shape[axis] > 1:
            first = int(b.one_of(1, shape[axis] - 1, min(b.lanes, shape[axis] - 1)))
            return b.add("Split", x, b.ints(first, shape[axis] - first), outputs=2, axis=axis)
        case "expand":
            return b.add("Expand", x, b.ints(2, *[1] * len(shape)))
        case "unsqueeze":
            return b.add("Unsqueeze", x, b.ints(axis))
    return b.add("Identity", x)


def rearranged(b: Build) -> str:
    """A copy: a concatenation, a repetition, padding, or a move between pixels and channels."""
    x = laid_out(b, b.one_of(b.matrix, b.image)())
    shape = b.shape(x)
    axis = int(b.rng.integers(len(shape)))
    match b.one_of("concat", "tile", "pad", "depth", "space", "gather"):
        case "concat":
            others = [laid_out(b, (*shape[:axis], int(b.one_of(1, b.lanes, shape[axis])), *shape[axis + 1 :])) for _ in range(2)]
            return b.add("Concat", x, *others[: int(b.one_of(1, 2))], axis=axis)
        case "tile":
            return b.add("Tile", x, b.ints(*(int(b.one_of(1, 1, 2)) for _ in shape)))
        case "pad":
            mode = b.one_of("constant", "edge", "reflect")
            most = [2 if mode != "reflect" else min(2, size - 1) for size in shape]
            sides = [int(b.rng.integers(most[n] + 1)) if n == axis else 0 for n in range(len(shape))]
            return b.add("Pad", x, b.ints(*sides, *sides), mode=mode)
        case "depth" if len(shape) == 4:
            deep = laid_out(b, (shape[0], 4 * int(b.one_of(1, 2, b.lanes)), *shape[2:]))
            return b.add("DepthToSpace", deep, blocksize=2, mode=b.one_of("DCR", "CRD"))
        case "space" if len(shape) == 4:
            return b.add("SpaceToDepth", laid_out(b, (*shape[:2], 2 * shape[2], 2 * shape[3])), blocksize=2)
    indices = b.one_of(np.array(0), np.array([shape[axis] - 1, 0]), np.array([[0]]))
    return b.add("Gather", x, b.keep(indices.astype(np.int64)), axis=axis)


def looked_up(b: Build) -> str:
    """Rows that indices pick which only a run knows."""
    x = laid_out(b, b.one_of(b.matrix, b.image)())
    axis = int(b.rng.integers(len(b.shape(x))))
    size = b.shape(x)[axis]
    return b.add("Gather", x, b.feed(b.rng.integers(-size, size, b.one_of((3,), (1,), (2, 2)))), axis=axis)


def attention(b: Build) -> str:
    """A softmax of scaled products, masked or not, times values."""
    batch, rows, keys, size = b.one_of((), (2,), (1, 3)), b.one_of(1, 3, 9), b.one_of(1, 2, 11), b.channels()
    q, k, v = laid_out(b, (*batch, rows, size)), laid_out(b, (*batch, keys, size)), laid_out(b, (*batch, keys, b.channels()))
    rank = len(batch) + 2
    turned_k = b.add("Transpose", k, perm=[*range(rank - 2), rank - 1, rank - 2])
    scores = b.add("Mul", b.add("MatMul", q, turned_k), b.scalar(float(size) ** -0.5))
    if b.chance(2):
        scores = b.add("Add", scores, b.give(b.normal(*b.one_of((rows, keys), (1, keys), (*batch, rows, keys)))))
    return b.add("MatMul", b.add("Softmax", scores, axis=-1), v)


def joined(b: Build) -> str:
    """Results that a concatenation joins, so that their kernels write parts of one image."""
    n, channels, *plane = b.image()
    x, y = laid_out(b, (n, channels, *plane)), in_blocks(b, (n, b.lanes, *plane))
    ones = [1] * len(plane)
    made = [
        b.add("Conv", x, b.weights(int(b.one_of(b.lanes, 2 * b.lanes, 5)), channels, *ones)),
        b.add("MaxPool", y, kernel_shape=[3] * len(plane), pads=[1] * (2 * len(plane))),
        b.add("Conv", y, b.weights(b.lanes, 1, *ones), group=b.lanes),
    ]
    made = [b.add("Relu", each) if b.chance(2) else each for each in made]
    order = [int(at) for at in b.rng.permutation(3)][: int(b.one_of(2, 3))]
    return b.add("Concat", *(made[at] for at in order), axis=1)


def residual(b: Build) -> str:
    """A convolution of a result, to which that result is added."""
    x = laid_out(b, b.image())
    channels, ones = b.shape(x)[1], [1] * (len(b.shape(x)) - 2)
    first = b.add("Relu", b.add("Conv", x, b.weights(channels, channels, *ones)))
    taps = int(b.one_of(1, 3))
    window: dict[str, Any] = {"pads": [taps // 2] * (2 * len(ones)), "group": int(b.one_of(1, channels))}
    again = b.add("Conv", first, b.weights(channels, channels // window["group"], *[taps] * len(ones)), **window)
    return b.add("Add", *((first, again) if b.chance(2) else (again, first)))


def elementwise(b: Build) -> str:
    return b.add(b.one_of(*UNARY), laid_out(b, b.one_of(b.matrix, b.image)()))


PRODUCERS: Sequence[Callable[[Build], str]] = (
    convolution, pointwise, pointwise, three_by_three, grouped, depthwise, transposed, pool, global_pool, resize, product,
    product_of_two, gemm, norm_of_rows, norm_of_channels, softmax, reduction, renamed, rearranged, elementwise, looked_up,
    attention, joined, residual,
)  # fmt: skip
