"""com.microsoft.MatMulNBits and GatherBlockQuantized: weights of 2, 4 or 8 bits, scaled in blocks, packed several to a byte.

A weight is (q - zero point) · scale, both those of its block. The first of the weights in a byte is in its lowest bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from kernels.batch_axis import Application, only_first_input_has_rows
from kernels.cost import Cost
from kernels.errors import AttributeValueError, DTypeError, IndexRangeError, ShapeError, UnsupportedError
from kernels.half import in_single
from kernels.operands import INDICES, REALS, axis_of, check_indices, one_dtype, one_of
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.scratch import FIXED_BYTES
from kernels.spec import Array, DType, Spec

_F32, _U8, _I32 = np.dtype(np.float32), np.dtype(np.uint8), np.dtype(np.int32)
_NIBBLES: frozenset[DType] = frozenset({np.dtype(ml_dtypes.int4), np.dtype(ml_dtypes.uint4)})
BITS = (2, 4, 8)
_LEAST_BLOCK = 16


def unpack(packed: Array, bits: int, count: int) -> Array:
    """Return the first `count` numbers of each row of bytes, uint8, of that many bits each, the lowest bits first."""
    if bits == 8:
        return packed[..., :count]
    parts = packed[..., None] >> np.arange(0, 8, bits, dtype=np.uint8) & np.uint8((1 << bits) - 1)
    return parts.reshape(*packed.shape[:-1], -1)[..., :count]


def _check_block(name: str, block: int, bits: int) -> None:
    one_of(f"{name}: bits", bits, BITS)
    if block < _LEAST_BLOCK or block & (block - 1):
        raise AttributeValueError(f"{name}: block_size is {block}, need a power of two of {_LEAST_BLOCK} or more")


def _bytes_for(count: int, bits: int) -> int:
    return -(-count * bits // 8)


def dequantised(
    b: Array,
    scales: Array,
    zero_points: Array | None = None,
    g_idx: Array | None = None,
    *,
    K: int,
    N: int,
    bits: int,
    block_size: int,
) -> Array:
    """Return the weights of a MatMulNBits (N, K) in float32. Raises IndexRangeError where g_idx names a block that is not."""
    blocks = -(-K // block_size)
    weights = unpack(b.reshape(N, -1), bits, K).astype(_F32)
    if zero_points is None:
        weights -= _F32.type(1 << (bits - 1))
    else:
        points = zero_points_of(zero_points, N, blocks, bits)
        weights -= _of_each_weight(points.astype(_F32), block_size, K, g_idx)
    weights *= _of_each_weight(scales.reshape(N, blocks).astype(_F32), block_size, K, g_idx)
    return weights


def zero_points_of(zero_points: Array, columns: int, blocks: int, bits: int) -> Array:
    """Return the zero points of a MatMulNBits as (columns, blocks): uint8 where they are packed as the weights are."""
    if zero_points.dtype == _U8:
        return unpack(zero_points.reshape(columns, -1), bits, blocks)
    return zero_points.reshape(columns, blocks)


def is_in_words(attrs: Mapping[str, Any], *, ordered: bool) -> bool:
    """Whether a MatMulNBits has weights of 4 bits in whole blocks, as native kernels read them. ordered: by a g_idx."""
    return attrs["bits"] == 4 and attrs["K"] % attrs["block_size"] == 0 and not ordered


def _of_each_weight(values: Array, block: int, count: int, g_idx: Array | None) -> Array:
    """Return what each weight of a row takes of a value for each block: that of its place, or that which g_idx names."""
    if g_idx is None:
        return np.repeat(values, block, axis=1)[:, :count]
    check_indices("MatMulNBits: g_idx", g_idx, values.shape[1])
    return values[:, g_idx[:count]]


def infer_matmul(
    a: Spec,
    b: Spec,
    scales: Spec,
    zero_points: Spec | None = None,
    g_idx: Spec | None = None,
    bias: Spec | None = None,
    *,
    K: int,
    N: int,
    accuracy_level: int = 0,
    bits: int = 4,
    block_size: int,
    weight_prepacked: int = 0,
) -> Spec:
    """(…, N) of a (…, K). b is uint8 (N, blocks, bytes of a block); scales and zero points are (N, blocks), or as one row.

    Zero points are packed as the weights are, each row from a byte of its own, or numbers of a's type; 2^(bits - 1) where absent.
    g_idx: the block that each of the K weights belongs to. accuracy_level is a permission to round a, which is not made use of.
    """
    name = "MatMulNBits"
    require_dtype(f"{name}: a", a, REALS)
    one_dtype(name, a, scales)
    require_dtype(f"{name}: b", b, frozenset({_U8}))
    _check_block(name, block_size, bits)
    if weight_prepacked:
        raise UnsupportedError(f"{name}: weight_prepacked is {weight_prepacked}, weights packed for a GPU are not read; need 0")
    if K < 1 or N < 1 or not a.rank or a.shape[-1] != K:
        raise ShapeError(f"{name}: a is {a}, K is {K} and N is {N}, need (…, K)")
    blocks = -(-K // block_size)
    _check_elements(f"{name}: b", b, (N, blocks, block_size * bits // 8))
    _check_elements(f"{name}: scales", scales, (N, blocks))
    if zero_points is not None:
        if zero_points.dtype not in (_U8, a.dtype):
            raise DTypeError(f"{name}: zero_points is {zero_points}, need uint8 or the dtype of a {a}")
        width = _bytes_for(blocks, bits) if zero_points.dtype == _U8 else blocks
        _check_elements(f"{name}: zero_points", zero_points, (N, width))
    if g_idx is not None and (g_idx.dtype != _I32 or g_idx.rank != 1 or g_idx.elements < K):
        raise ShapeError(f"{name}: g_idx is {g_idx}, need int32 [{K}] or longer")
    if bias is not None:
        one_dtype(name, a, bias)
        _check_elements(f"{name}: bias", bias, (N,))
    return Spec((*a.shape[:-1], N), a.dtype)


def _check_elements(subject: str, spec: Spec, wanted: tuple[int, ...]) -> None:
    """Raise unless a tensor has that shape, or as many elements in one row."""
    if spec.shape not in (wanted, (math.prod(wanted),)):
        raise ShapeError(f"{subject} is {spec}, need {list(wanted)}")


def cost_matmul(
    out: tuple[Spec, ...],
    a: Spec,
    b: Spec,
    scales: Spec,
    zero_points: Spec | None = None,
    g_idx: Spec | None = None,
    bias: Spec | None = None,
    **attrs: int,
) -> Cost:
    """MACs: outputs · K. A bias: one per output. The weights are dequantised once for all runs."""
    return Cost(macs=out[0].elements * attrs["K"], other_flops=(bias is not None) * out[0].elements)


@in_single
def run_matmul(
    out: tuple[Array, ...],
    a: Array,
    b: Array,
    scales: Array,
    zero_points: Array | None = None,
    g_idx: Array | None = None,
    bias: Array | None = None,
    **attrs: int,
) -> None:
    """Dequantise all weights in float32, then BLAS."""
    (y,) = out
    sizes = {name: attrs[name] for name in ("K", "N", "bits", "block_size")}
    weights = dequantised(b, scales, zero_points, g_idx, **sizes)
    np.matmul(a.reshape(-1, attrs["K"]), weights.T, out=y.reshape(-1, attrs["N"]))
    if bias is not None:
        y += bias.reshape(-1)


def matmul_scratch_bytes(out: tuple[Spec, ...], a: Spec, *inputs: Spec | None, **attrs: int) -> int:
    """The weights as bytes and twice in float32, what each takes of its block, and copies of a and y in single precision."""
    return FIXED_BYTES + 16 * attrs["K"] * attrs["N"] + 8 * (a.elements + out[0].elements)


def matmul_mixes_rows(call: Application) -> str:
    """As a matrix product with constant weights."""
    first = call.input(0)
    if first is not None and len(first.shape) < 2:
        return "its rows are summed over"
    return only_first_input_has_rows(call)


def _layout(data: Spec | Array, bits: int) -> tuple[tuple[int, ...], int]:
    """Return the shape of the weights in data, and how many of them are in a byte."""
    packed = 8 // bits if data.dtype == _U8 else 1
    return (*data.shape[:-1], data.shape[-1] * packed), packed


def infer_gather(
    data: Spec,
    indices: Spec,
    scales: Spec,
    zero_points: Spec | None = None,
    *,
    bits: int = 4,
    block_size: int = 128,
    gather_axis: int = 0,
    quantize_axis: int = 1,
) -> Spec:
    """Gather's shape of the weights in the scales' dtype. data is int4, uint4, or uint8 packed along the last axis.

    scales have the shape of the weights, but one for each block along quantize_axis; zero points are the same, packed as the
    weights are. Absent, they are 0, or 2^(bits - 1) of packed weights.
    """
    name = "GatherBlockQuantized"
    require_dtype(f"{name}: data", data, _NIBBLES | {_U8})
    require_dtype(f"{name}: indices", indices, INDICES)
    require_dtype(f"{name}: scales", scales, REALS)
    _check_block(name, block_size, bits)
    along, blocked = axis_of(name, gather_axis, data.rank), axis_of(name, quantize_axis, data.rank)
    if data.dtype == _U8 and (along or along == blocked):
        raise AttributeValueError(
            f"{name}: gather_axis is {gather_axis} and quantize_axis {quantize_axis}, need 0 and another for packed weights"
        )
    shape, packed = _layout(data, bits)
    if data.dtype != _U8 and bits != 4:
        raise AttributeValueError(f"{name}: bits is {bits}, need 4 for data {data}")
    counts = tuple(-(-size // block_size) if axis == blocked else size for axis, size in enumerate(shape))
    if scales.shape != counts:
        raise ShapeError(f"{name}: scales are {scales}, need {list(counts)} for data {data} of {bits} bits")
    if zero_points is not None:
        one_dtype(name, data, zero_points)
        wanted = (*counts[:-1], -(-counts[-1] // packed))
        if zero_points.shape != wanted:
            raise ShapeError(f"{name}: zero_points are {zero_points}, need {list(wanted)} for scales {scales}")
    if indices.value is not None:
        check_indices(f"{name}: indices", indices.value, shape[along])
    return Spec((*shape[:along], *indices.shape, *shape[along + 1 :]), scales.dtype)


def cost_gather(out: tuple[Spec, ...], *inputs: Spec | None, **attrs: int) -> Cost:
    """Per output: subtract the zero point, multiply."""
    return Cost(other_flops=2 * out[0].elements)


@in_single
def run_gather(
    out: tuple[Array, ...],
    data: Array,
    indices: Array,
    scales: Array,
    zero_points: Array | None = None,
    *,
    bits: int = 4,
    block_size: int = 128,
    gather_axis: int = 0,
    quantize_axis: int = 1,
) -> None:
    """Gather bytes and scales, then dequantise what was gathered."""
    (y,) = out
    along, blocked = gather_axis % data.ndim, quantize_axis % data.ndim
    check_indices("GatherBlockQuantized: indices", indices, data.shape[along])
    if not y.size:
        return
    shape, packed = _layout(data, bits)

    def gathered(values: Array) -> Array:
        return np.take(values, indices, along, mode="wrap")

    axis = blocked if blocked < along else blocked + indices.ndim - 1  # of the result, for an axis that is not gathered
    spread = blocked != along

    def of_each(values: Array) -> Array:
        if not spread:
            return np.take(values, np.where(indices < 0, indices + shape[along], indices) // block_size, along)
        return np.repeat(gathered(values), block_size, axis)[tuple(map(slice, y.shape))]

    weights = gathered(data)
    np.copyto(y, unpack(weights, bits, shape[-1]) if packed > 1 else weights, casting="unsafe")
    if zero_points is not None:
        points = unpack(zero_points, bits, scales.shape[-1]) if packed > 1 else zero_points
        y -= of_each(points).astype(_F32)
    elif data.dtype == _U8:
        y -= _F32.type(1 << (bits - 1))
    y *= of_each(scales)


def gather_scratch_bytes(out: tuple[Spec, ...], data: Spec, indices: Spec, scales: Spec, *rest: Spec | None, **attrs: int) -> int:
    """What is gathered as bytes, its scales and zero points, repeated for each weight, in single; zero points unpacked."""
    return FIXED_BYTES + 24 * out[0].elements + 8 * indices.elements * attrs["block_size"] + 12 * scales.elements


def gather_mixes_rows(call: Application) -> str:
    """Rows of indices look up weights that do not depend on the batch."""
    indices = call.input(1)
    if indices is None or not indices.is_rows or call.attrs["gather_axis"]:
        return "its rows are not those of its indices"
    late = [each for each in (call.input(0), *call.inputs[2:]) if each is not None and not each.is_free]
    return f"{late[0].name!r} depends on the batch" if late else ""


def _u(*shape: int) -> Array:
    return (np.arange(math.prod(shape)) * 37 % 251).astype(np.uint8).reshape(shape)


def _f(*shape: int) -> Array:
    return (np.arange(1, math.prod(shape) + 1) / (64 * math.prod(shape))).astype(np.float32).reshape(shape)


_FOUR: dict[str, Any] = {"K": 40, "N": 3, "block_size": 16}  # three blocks a row, the last one half full
_B4 = _u(3, 3, 8)
_ORDER = np.array([*range(0, 3), *[2, 1, 0] * 13], np.int32)[:40]
_MATMUL = (
    Case("four_bits", inputs=((2, 40), _B4, _f(3, 3)), attrs=_FOUR, cost=Cost(macs=240)),
    Case("zero_points", inputs=((2, 5, 40), _B4, _f(3, 3), _u(3, 2)), attrs=_FOUR, cost=Cost(macs=1200)),
    Case("as_one_row", inputs=((2, 40), _B4, _f(9), _u(6)), attrs=_FOUR),
    Case("zero_points_float", inputs=((2, 40), _B4, _f(3, 3), _f(3, 3) * 99), attrs=_FOUR),
    Case("bias", inputs=((2, 40), _B4, _f(3, 3), None, None, (3,)), attrs=_FOUR, cost=Cost(240, 6)),
    Case("ordered", inputs=((2, 40), _B4, _f(3, 3), None, _ORDER), attrs=_FOUR),
    Case("ordered_zero_points", inputs=((2, 40), _B4, _f(3, 3), _u(3, 2), _ORDER), attrs=_FOUR),
    Case("two_bits", inputs=((2, 64), _u(3, 2, 8), _f(3, 2), _u(3, 1)), attrs={"K": 64, "N": 3, "block_size": 32, "bits": 2}),
    Case("eight_bits", inputs=((2, 32), _u(3, 2, 16), _f(3, 2), _u(3, 2)), attrs={"K": 32, "N": 3, "block_size": 16, "bits": 8}),
    Case("eight_bits_centred", inputs=((2, 32), _u(3, 2, 16), _f(3, 2)), attrs={"K": 32, "N": 3, "block_size": 16, "bits": 8}),
    Case("vector", inputs=((40,), _B4, _f(3, 3)), attrs=_FOUR),
    Case(
        "half", inputs=(np.linspace(-1, 1, 80).astype(np.float16).reshape(2, 40), _B4, _f(3, 3).astype(np.float16)), attrs=_FOUR
    ),
    Case("empty", inputs=((0, 40), _B4, _f(3, 3)), attrs=_FOUR, cost=Cost()),
    Case("bits_three", inputs=((2, 40), _B4, _f(3, 3)), attrs={**_FOUR, "bits": 3}, raises=AttributeValueError),
    Case("block_odd", inputs=((2, 40), _B4, _f(3, 3)), attrs={**_FOUR, "block_size": 24}, raises=AttributeValueError),
    Case("prepacked", inputs=((2, 40), _B4, _f(3, 3)), attrs={**_FOUR, "weight_prepacked": 1}, raises=UnsupportedError),
    Case("scales_length", inputs=((2, 40), _B4, _f(3, 2)), attrs=_FOUR, raises=ShapeError),
    Case("inner_differs", inputs=((2, 39), _B4, _f(3, 3)), attrs=_FOUR, raises=ShapeError),
    Case("of_floats", inputs=((2, 40), (3, 3, 8), _f(3, 3)), attrs=_FOUR, raises=DTypeError),
)
_IDS = np.array([[1, 0, -1], [2, 2, -4]], np.int64)
_BLOCK = {"block_size": 16}
_GATHER = (
    Case("four_bits", inputs=(_u(4, 20), _IDS, _f(4, 3)), attrs=_BLOCK, cost=Cost(other_flops=2 * 240)),
    Case("zero_points", inputs=(_u(4, 20), _IDS, _f(4, 3), _u(4, 2)), attrs=_BLOCK),
    Case("two_bits", inputs=(_u(4, 8), _IDS, _f(4, 2), _u(4, 1)), attrs={**_BLOCK, "bits": 2}),
    Case("eight_bits", inputs=(_u(4, 32), _IDS, _f(4, 2)), attrs={**_BLOCK, "bits": 8}),
    Case("three_axes", inputs=(_u(4, 2, 16), np.array([3, 1], np.int32), _f(4, 2, 2)), attrs={**_BLOCK, "quantize_axis": -1}),
    Case("nibbles", inputs=((_u(4, 20) % 16).astype(ml_dtypes.uint4), _IDS, _f(4, 2)), attrs=_BLOCK),
    Case(
        "gathered_blocks",
        inputs=((_u(20, 3) % 16).astype(ml_dtypes.uint4), np.array([-1, 3, 17]), _f(2, 3)),
        attrs={**_BLOCK, "quantize_axis": 0},
    ),
    Case(
        "by_column",
        inputs=((_u(20, 3) % 8).astype(ml_dtypes.int4), np.array([[2, 0]]), _f(2, 3), (_u(2, 3) % 8).astype(ml_dtypes.int4)),
        attrs={**_BLOCK, "quantize_axis": 0, "gather_axis": 1},
    ),
    Case("half", inputs=(_u(4, 20), _IDS, _f(4, 3).astype(np.float16)), attrs=_BLOCK),
    Case("no_index", inputs=(_u(4, 20), np.zeros((0, 2), np.int64), _f(4, 3)), attrs=_BLOCK, cost=Cost()),
    Case("index_out_of_range", inputs=(_u(4, 20), np.array([4]), _f(4, 3)), attrs=_BLOCK, raises=IndexRangeError),
    Case("packed_columns", inputs=(_u(4, 20), _IDS, _f(4, 3)), attrs={**_BLOCK, "gather_axis": 1}, raises=AttributeValueError),
    Case("scales_length", inputs=(_u(4, 20), _IDS, _f(4, 2)), attrs=_BLOCK, raises=ShapeError),
    Case("of_signed_bytes", inputs=(_u(4, 20).astype(np.int8), _IDS, _f(4, 3)), attrs=_BLOCK, raises=DTypeError),
)

OPS = (
    Op(
        "com.microsoft.MatMulNBits",
        infer_matmul,
        cost_matmul,
        (Kernel("blas", run_matmul, scratch_bytes=matmul_scratch_bytes),),
        tolerance_eps=16,
        mixes_rows=matmul_mixes_rows,
        cases=_MATMUL,
    ),
    Op(
        "com.microsoft.GatherBlockQuantized",
        infer_gather,
        cost_gather,
        (Kernel("take", run_gather, scratch_bytes=gather_scratch_bytes),),
        mixes_rows=gather_mixes_rows,
        cases=_GATHER,
    ),
)
