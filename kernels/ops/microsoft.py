"""com.microsoft's fused ops that are no more than their parts: products, normalizations, images and crops.

What ONNX Runtime's optimizer and Olive write into files; definitions are those of ONNX Runtime's ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kernels.composite import Parts, Value, composite
from kernels.cost import Cost
from kernels.errors import AttributeValueError, DTypeError, ShapeError
from kernels.operands import one_of
from kernels.registry import Case
from kernels.spec import Array

_ACTIVATIONS = {"Relu": 0, "Sigmoid": 0, "Tanh": 0, "Softplus": 0, "LeakyRelu": 1, "Elu": 1, "HardSigmoid": 2}


def write_gemm(
    parts: Parts,
    a: Value,
    b: Value,
    c: Value | None = None,
    *,
    activation: str,
    activation_alpha: float | None = None,
    activation_beta: float | None = None,
    activation_gamma: float | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Value:
    """Gemm's shape, then an activation."""
    one_of("FusedGemm: attribute activation", activation, sorted(_ACTIVATIONS))
    names = ("alpha", "beta")[: _ACTIVATIONS[activation]]
    given = {"alpha": activation_alpha, "beta": activation_beta}
    y = parts("Gemm", a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)
    return parts(activation, y, **{name: given[name] for name in names if given[name] is not None})


def write_simplified_norm(
    parts: Parts, x: Value, scale: Value, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Value:
    """RMSNormalization, by the name it had in ONNX Runtime first."""
    return parts("RMSNormalization", x, scale, axis=axis, epsilon=epsilon, stash_type=stash_type)


def write_embeddings(
    parts: Parts,
    input_ids: Value,
    segment_ids: Value | None,
    word: Value,
    position: Value,
    segment: Value | None,
    gamma: Value,
    beta: Value,
    mask: Value | None = None,
    position_ids: Value | None = None,
    *,
    epsilon: float = 1e-12,
    mask_index_type: int = 0,
) -> tuple[Value, ...]:
    """(batch, length, hidden) normalised; the number of tokens that the mask has of each row; the sum before it is normalised."""
    if input_ids.spec.rank != 2 or word.spec.rank != 2 or position.spec.rank != 2:
        raise ShapeError(
            f"EmbedLayerNormalization: input_ids {input_ids.spec}, words {word.spec}, positions {position.spec}, need 2 axes each"
        )
    if (segment_ids is None) != (segment is None):
        raise ShapeError(f"EmbedLayerNormalization: segments of {input_ids.spec}, need both segment_ids and their embedding")
    batch, length = input_ids.shape
    if position_ids is None:
        rows = parts("Slice", position, parts.numbers(0), parts.numbers(length), parts.numbers(0))
    else:
        rows = parts("Gather", position, position_ids, axis=0)
    total = parts("Add", parts("Gather", word, input_ids, axis=0), rows)
    if segment is not None and segment_ids is not None:
        total = parts("Add", total, parts("Gather", segment, segment_ids, axis=0))
    y = parts("LayerNormalization", total, gamma, beta, axis=-1, epsilon=epsilon)
    if mask is None:
        counts = parts("ConstantOfShape", parts.numbers(batch), value=np.zeros(1, np.int32))
    else:
        ones = parts("Equal", mask, parts.number(1, mask))
        counts = parts("ReduceSum", parts("Cast", ones, to=6), parts.numbers(1), keepdims=0)
    return y, counts, total


def write_bias_split_gelu(parts: Parts, x: Value, bias: Value) -> Value:
    """The first half of x + bias along the last axis times GELU of the second; x: (batch, length, width)."""
    if x.spec.rank != 3 or x.shape[2] % 2:
        raise ShapeError(f"BiasSplitGelu: x is {x.spec}, need (batch, length, an even width)")
    left, right = parts.several(2, "Split", parts("Add", x, bias), axis=-1, num_outputs=2)
    return parts("Mul", left, parts("Gelu", right))


def write_group_norm(
    parts: Parts,
    x: Value,
    gamma: Value,
    beta: Value,
    *,
    activation: int,
    groups: int,
    channels_last: int = 1,
    epsilon: float = 1e-5,
) -> Value:
    """GroupNormalization of an image (n, h, w, c), or (n, c, h, w), then SiLU where activation is 1."""
    one_of("GroupNorm: attribute activation", activation, (0, 1))
    if x.spec.rank != 4:
        raise ShapeError(f"GroupNorm: x is {x.spec}, need an image of four axes")
    image = parts("Transpose", x, perm=(0, 3, 1, 2)) if channels_last else x
    scale, bias = (value if value.dtype == x.dtype else parts("CastLike", value, x) for value in (gamma, beta))
    y = parts("GroupNormalization", image, scale, bias, num_groups=groups, epsilon=epsilon)
    if activation:
        y = parts("Swish", y)
    return parts("Transpose", y, perm=(0, 2, 3, 1)) if channels_last else y


def write_nhwc_conv(
    parts: Parts,
    x: Value,
    w: Value,
    b: Value | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: tuple[int, ...] | None = None,
    group: int = 1,
    kernel_shape: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> Value:
    """Conv of images (n, h, w, c) by weights (outputs, h, w, c / group)."""
    if x.spec.rank != 4 or w.spec.rank != 4:
        raise ShapeError(f"NhwcConv: x is {x.spec}, w is {w.spec}, need four axes each")
    image, weights = parts("Transpose", x, perm=(0, 3, 1, 2)), parts("Transpose", w, perm=(0, 3, 1, 2))
    sliding = {"auto_pad": auto_pad, "dilations": dilations, "pads": pads, "strides": strides}
    y = parts("Conv", image, weights, b, group=group, kernel_shape=kernel_shape, **sliding)
    return parts("Transpose", y, perm=(0, 2, 3, 1))


def write_crop(parts: Parts, x: Value, *, border: Sequence[int] | None = None, scale: Sequence[int] | None = None) -> Value:
    """An image (n, c, h, w) without its border (left, top, right, bottom), or `scale` (height, width) of it from there on."""
    if x.spec.rank != 4 or len(border or ()) != 4 or len(scale or (1, 1)) != 2:
        raise ShapeError(f"Crop: x is {x.spec}, border {border}, scale {scale}, need four axes, four numbers, and two or none")
    left, top, right, bottom = border or ()
    height, width = scale or (x.shape[2] - top - bottom, x.shape[3] - left - right)
    fits = all(
        first >= 0 and size > 0 and first + size <= whole
        for first, size, whole in ((top, height, x.shape[2]), (left, width, x.shape[3]))
    )
    if not fits or min(right, bottom) < 0:
        raise ShapeError(f"Crop: x is {x.spec}, border {border}, scale {scale}, need a part of the image")
    ends = parts.numbers(top + height, left + width)
    return parts("Slice", x, parts.numbers(top, left), ends, parts.numbers(2, 3))


_GEMM = ((2, 3), (3, 4), (4,))
_IDS = np.array([[1, 0, 2], [2, 2, 1]], np.int32)
_TABLES: tuple[tuple[int, ...] | Array | None, ...] = ((3, 4), (5, 4), (2, 4), (4,), (4,))
_MASK = np.array([[1, 1, 0], [1, 1, 1]], np.int32)

OPS = (
    composite(
        "com.microsoft.FusedGemm",
        write_gemm,
        (
            Case("relu", inputs=_GEMM, attrs={"activation": "Relu"}, cost=Cost(macs=24, other_flops=16)),
            Case("leaky", inputs=_GEMM[:2], attrs={"activation": "LeakyRelu", "activation_alpha": 0.3, "alpha": 2.0}),
            Case(
                "hard_sigmoid", inputs=_GEMM, attrs={"activation": "HardSigmoid", "activation_alpha": 0.1, "activation_beta": 0.4}
            ),
            Case("unknown", inputs=_GEMM, attrs={"activation": "Erf"}, raises=AttributeValueError),
            Case("shapes", inputs=((2, 3), (4, 3)), attrs={"activation": "Relu"}, raises=ShapeError),
        ),
    ),
    composite(
        "SimplifiedLayerNormalization",
        write_simplified_norm,
        (
            Case("last_axis", inputs=((2, 3, 8), (8,)), cost=Cost(other_flops=192)),
            Case("epsilon", inputs=((3, 8), (8,)), attrs={"epsilon": 0.1}),
            Case("ints", inputs=(np.ones((2, 3), np.int32), (3,)), raises=DTypeError),
        ),
    ),
    composite(
        "com.microsoft.EmbedLayerNormalization",
        write_embeddings,
        (
            Case("all", inputs=(_IDS, _IDS % 2, *_TABLES, _MASK), outputs=3, cost=Cost(other_flops=2 * 24 + 7 * 24)),
            Case("no_segments", inputs=(_IDS, None, *_TABLES[:2], None, *_TABLES[3:]), outputs=2),
            Case("positions", inputs=(_IDS, _IDS % 2, *_TABLES, None, _IDS), outputs=2),
            Case("one_segment", inputs=(_IDS, None, *_TABLES), raises=ShapeError),
            Case("three_axes", inputs=(_IDS[None], None, *_TABLES[:2], None, *_TABLES[3:]), raises=ShapeError),
        ),
    ),
    composite(
        "com.microsoft.BiasSplitGelu",
        write_bias_split_gelu,
        (
            Case("halves", inputs=((2, 3, 8), (8,)), cost=Cost(other_flops=48 + 5 * 24 + 24)),
            Case("odd", inputs=((2, 3, 7), (7,)), raises=ShapeError),
        ),
    ),
    composite(
        "com.microsoft.GroupNorm",
        write_group_norm,
        (
            Case(
                "silu", inputs=((2, 3, 5, 8), (8,), (8,)), attrs={"groups": 2, "activation": 1}, cost=Cost(other_flops=13 * 240)
            ),
            Case("planes", inputs=((2, 8, 3, 5), (8,), (8,)), attrs={"groups": 4, "activation": 0, "channels_last": 0}),
            Case("half", inputs=(np.ones((1, 2, 2, 4), np.float16), (4,), (4,)), attrs={"groups": 2, "activation": 0}),
            Case("groups", inputs=((2, 3, 5, 8), (8,), (8,)), attrs={"groups": 3, "activation": 1}, raises=AttributeValueError),
            Case("three_axes", inputs=((2, 3, 8), (8,), (8,)), attrs={"groups": 2, "activation": 1}, raises=ShapeError),
        ),
    ),
    composite(
        "com.microsoft.NhwcConv",
        write_nhwc_conv,
        (
            Case("image", inputs=((1, 5, 4, 3), (6, 3, 3, 3), (6,)), attrs={"pads": (1, 1, 1, 1)}, cost=Cost(6 * 20 * 27, 120)),
            Case("groups", inputs=((2, 5, 4, 4), (6, 1, 3, 2)), attrs={"group": 2, "strides": (2, 1)}),
            Case("channels", inputs=((1, 5, 4, 3), (6, 3, 3, 4)), raises=ShapeError),
        ),
    ),
    composite(
        "Crop",
        write_crop,
        (
            Case("border", inputs=((1, 2, 5, 6),), attrs={"border": (1, 2, 2, 1)}, cost=Cost()),
            Case("scale", inputs=((1, 2, 5, 6),), attrs={"border": (1, 2, 0, 0), "scale": (2, 3)}),
            Case("outside", inputs=((1, 2, 5, 6),), attrs={"border": (1, 2, 0, 0), "scale": (4, 3)}, raises=ShapeError),
            Case("three", inputs=((1, 2, 5, 6),), attrs={"border": (1, 2, 0)}, raises=ShapeError),
        ),
    ),
)
