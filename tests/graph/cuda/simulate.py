"""Launches computed by numpy as their kernels compute them: from descriptors and addresses alone, in one memory.

It shows on any machine whether a lowered segment reads and writes the right elements in the right order. Memory is poisoned
first, so that what no launch wrote is NaN.
"""

import itertools

import ml_dtypes
import numpy as np

from kernels.cuda.emit.descriptor import OTHERS
from kernels.cuda.families.attention import AttentionForm
from kernels.cuda.families.columns import ColumnForm
from kernels.cuda.families.elementwise import MapForm
from kernels.cuda.families.gather import GatherForm
from kernels.cuda.families.product import Form
from kernels.cuda.families.rearrange import TransposeForm
from kernels.cuda.families.rows import RowForm
from kernels.cuda.families.sliding import WindowForm
from kernels.cuda.families.vector import VectorForm
from kernels.expression import FLOAT
from tests.graph.cuda.evaluation import evaluate

DTYPES = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16), "tf32": FLOAT}
BASE = 1 << 20  # the first address: a missing one, 0, is none


class Memory:
    """All memory of a simulated GPU."""

    def __init__(self):
        self.bytes = np.zeros(0, np.uint8)

    def allocate(self, n_bytes):
        """Return the address of new memory, every float of which is NaN."""
        address = BASE + self.bytes.size
        self.bytes = np.concatenate((self.bytes, np.full(-(-n_bytes // 256) * 256 + 256, 0xFF, np.uint8)))
        return address

    def view(self, address, dtype, shape, strides):
        """Return elements at an address; strides in elements. All must lie in memory."""
        span = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 1
        first = address - BASE
        assert first >= 0, f"address {address}"
        assert first + span * dtype.itemsize <= self.bytes.size, "beyond the end of memory"
        flat = self.bytes[first : first + span * dtype.itemsize].view(dtype)
        return np.lib.stride_tricks.as_strided(flat, shape, [stride * dtype.itemsize for stride in strides])

    def read(self, address, dtype, shape, strides):
        return self.view(address, dtype, shape, strides).astype(np.float32 if dtype.kind in "fV" else dtype)

    def write(self, address, dtype, strides, values):
        self.view(address, dtype, values.shape, strides)[...] = values.astype(dtype)


def run(memory, launch, addresses):
    """Compute a launch."""
    told = launch.bound(addresses)
    _FAMILIES[type(launch.kernel)](memory, launch.kernel, told)


def _aligned(address, n_bytes):
    assert address % n_bytes == 0, f"address {address} for accesses of {n_bytes} bytes"


def _expressed(memory, form_expression, told, dtype, result, strides_of):
    loads = [memory.read(getattr(told, name), dtype, result.shape, strides_of(getattr(told, f"{name}_stride")))
             for name in OTHERS[: len(form_expression.operands) - 1]]  # fmt: skip
    return evaluate(form_expression, [result.astype(np.float32), *loads])


def _product(memory, form, told):
    dtype = DTYPES[form.precision]
    inner = max(told.inner, 1)
    items = told.chunks // told.item_chunks if form.batched else 1
    for item in range(items):
        outer_at, inner_at = divmod(item, inner)

        def at(name, outer_at=outer_at, inner_at=inner_at):
            moved = outer_at * getattr(told, f"{name}_outer") + inner_at * getattr(told, f"{name}_inner") if form.batched else 0
            return getattr(told, name) + moved * dtype.itemsize

        w = memory.read(at("w"), dtype, (told.n, told.k), (told.w_stride, 1))
        _aligned(at("w"), form.copy_bytes)
        _aligned(at("x"), form.copy_bytes)
        x = _patches(memory, told, dtype) if form.windows else memory.read(at("x"), dtype, (told.m, told.k), (told.x_stride, 1))
        result = x @ w.T
        if form.bias:
            result = result + memory.read(told.bias, FLOAT, (told.n,), (1,))
        if form.whole:
            _aligned(at("y"), 16)
        result = _expressed(memory, form.expression, told, dtype, result, lambda stride: (stride, 1))
        memory.write(at("y"), dtype, (told.y_stride, 1), result)


def _places(told, height, width, r, s):
    """Return the rows and columns of an image that a tap meets, and which of these there are."""
    rows = np.arange(height) * told.stride_height + r * told.dilation_height - _signed(told.pad_top)
    columns = np.arange(width) * told.stride_width + s * told.dilation_width - _signed(told.pad_left)
    inside = ((rows >= 0) & (rows < told.height))[:, None] & ((columns >= 0) & (columns < told.width))
    return rows.clip(0, told.height - 1), columns.clip(0, told.width - 1), inside


def _signed(number):
    return number - (1 << 32) if number >> 31 else number


def _vector(memory, form, told):
    dtype, n = DTYPES[form.storage], told.n
    rows = told.items // n
    for name in "xw":
        _aligned(getattr(told, name), dtype.itemsize * form.run)
    x = memory.read(told.x, dtype, (rows, told.k), (told.x_stride, 1))
    result = x @ memory.read(told.w, dtype, (n, told.k), (told.w_stride, 1)).T
    result = result + memory.read(told.bias, FLOAT, (n,), (1,)) if form.bias else result
    result = _expressed(memory, form.expression, told, dtype, result, lambda stride: (stride, 1))
    memory.write(told.y, dtype, (told.y_stride, 1), result)


def _patches(memory, told, dtype):
    pixels, width = told.out_pixels, told.out_width
    height, batch, channels = pixels // width, told.m // pixels, told.channels
    across = told.kernel_width
    down = told.k // (channels * across)
    image = memory.read(told.x, dtype, (batch, told.height, told.width, channels),
                        (told.height * told.width * told.x_stride, told.width * told.x_stride, told.x_stride, 1))  # fmt: skip
    found = np.zeros((batch, height, width, down, across, channels), np.float32)
    for r, s in itertools.product(range(down), range(across)):
        rows, columns, inside = _places(told, height, width, r, s)
        found[:, :, :, r, s] = np.where(inside[..., None], image[:, rows][:, :, columns], 0)
    return found.reshape(told.m, told.k)


def _attention(memory, form, told):
    dtype = DTYPES[form.precision]
    heads = told.heads
    batch = told.chunks // told.tiles // heads
    group, depth = told.group, told.depth

    def read(name, count, rows):
        steps = [getattr(told, f"{name}_{level}") for level in ("batch", "head", "row")]
        _aligned(getattr(told, name), form.copy_bytes)
        return memory.read(getattr(told, name), dtype, (batch, count, rows, depth), (*steps, 1))

    q, k, v = read("q", heads, told.queries), read("k", heads // group, told.keys), read("v", heads // group, told.keys)
    k, v = (np.repeat(each, group, 1) for each in (k, v))
    scores = np.einsum("bhqd,bhkd->bhqk", q, k) / told.unscale
    if form.mask is not None:
        kind = np.dtype(bool) if form.mask == "bool" else DTYPES[form.mask]
        strides = (told.mask_batch, told.mask_head, told.mask_row, told.mask_key)
        mask = memory.view(told.mask, kind, scores.shape, strides)
        scores = np.where(mask, scores, -np.inf) if form.mask == "bool" else scores + mask.astype(np.float32)
    if form.causal:
        scores = np.where(np.tri(told.queries, told.keys, told.offset, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    y = np.einsum("bhqk,bhkd->bhqd", weights / weights.sum(-1, keepdims=True), v)
    memory.write(told.y, dtype, (told.y_batch, told.y_head, told.y_row, 1), y)


def _map(memory, form, told):
    sizes = [getattr(told, f"size{d}") for d in range(1, form.rank)]
    runs = told.items
    shape = [runs // max(int(np.prod(sizes)), 1), *sizes] if form.rank > 1 else [runs]
    shape[-1] *= form.run
    names = ["y", *(f"r{n}" for n in range(len(form.expression.operands)))]
    kinds = [DTYPES[storage] if dtype == FLOAT else dtype for dtype, storage in zip(form.dtypes, form.storages, strict=True)]
    strides = [[getattr(told, f"{name}_{d}") for d in range(form.rank)] for name in names]
    for name, kind, access in zip(names, kinds, form.accesses, strict=True):
        if access == "run" and form.run > 1:
            _aligned(getattr(told, name), min(16, kind.itemsize * form.run))
    loads = [
        memory.read(getattr(told, name), kind, shape, step)
        for name, kind, step in zip(names[1:], kinds[1:], strides[1:], strict=True)
    ]
    memory.write(told.y, kinds[0], strides[0], evaluate(form.expression, loads))


def _transpose(memory, form, told):
    outer = [getattr(told, f"size{d}") for d in range(1, form.outer)]
    tiles = told.tiles_across * told.tiles_down
    shape = [told.chunks // tiles // int(np.prod(outer)), *outer]
    x_outer, y_outer = ([getattr(told, f"{name}_{d}") for d in range(form.outer)] for name in "xy")
    for name, kind, run in (("x", form.x, form.x_run), ("y", form.y, form.y_run)):
        _aligned(getattr(told, name), DTYPES[kind].itemsize * run)
    values = memory.read(told.x, DTYPES[form.x], (*shape, told.down, told.across), (*x_outer, told.x_down, 1))
    memory.write(told.y, DTYPES[form.y], (*y_outer, 1, told.y_across), values)


def _rows(memory, form, told):
    x = memory.read(told.x, DTYPES[form.x], (told.rows, told.n), (told.x_stride, 1))
    _aligned(told.x, DTYPES[form.x].itemsize * form.run)
    if form.reduces:
        memory.write(told.y, DTYPES[form.y], (told.y_stride,), evaluate(form.expression, [_reduced(form.op, x, 1)]))
        return
    if form.op in ("layer_norm", "rms_norm"):
        centred = x - x.mean(1, keepdims=True) if form.op == "layer_norm" else x
        result = centred / np.sqrt((centred * centred).mean(1, keepdims=True) + told.epsilon)
        result = result * memory.read(told.scale, FLOAT, (told.n,), (1,)) if form.scale else result
        result = result + memory.read(told.bias, FLOAT, (told.n,), (1,)) if form.bias else result
    else:
        shifted = x - x.max(1, keepdims=True)
        total = np.exp(shifted).sum(1, keepdims=True)
        result = np.exp(shifted) / total if form.op == "softmax" else shifted - np.log(total)
    result = _expressed(memory, form.expression, told, DTYPES[form.y], result, lambda stride: (stride, 1))
    memory.write(told.y, DTYPES[form.y], (told.y_stride, 1), result)


def _reduced(op, x, axis):
    if op in ("sum", "mean", "max", "min"):
        return getattr(x, op)(axis)
    total = (x * x).sum(axis)
    return total if op == "sum_square" else np.sqrt(total)


def _columns(memory, form, told):
    outer = told.chunks // told.groups
    _aligned(told.x, DTYPES[form.x].itemsize * form.run)
    x = memory.read(told.x, DTYPES[form.x], (outer, told.n, told.inner), (told.x_outer, told.x_stride, 1))
    memory.write(told.y, DTYPES[form.y], (told.y_stride, 1), evaluate(form.expression, [_reduced(form.op, x, 1)]))


def _windows(memory, form, told):
    dtype, channels, across = DTYPES[form.storage], told.channels, told.kernel_width
    down, height, width = told.taps // across, told.out_height, told.out_width
    batch = told.items // (height * told.groups * told.runs)
    steps = (told.height * told.width * told.x_stride, told.width * told.x_stride, told.x_stride, 1)
    _aligned(told.x, dtype.itemsize * form.run)
    x = memory.read(told.x, dtype, (batch, told.height, told.width, channels), steps)
    w = memory.read(told.w, dtype, (down, across, channels), (across * channels, channels, 1)) if form.op == "depthwise" else None
    total = np.full((batch, height, width, channels), -np.inf if form.op == "max_pool" else 0.0, np.float32)
    counts = np.zeros((1, height, width, 1), np.float32)
    for r, s in itertools.product(range(down), range(across)):
        rows, columns, inside = _places(told, height, width, r, s)
        tap, there = x[:, rows][:, :, columns], inside[..., None]
        row, column = (np.arange(n) for n in (height, width))
        row = row * told.stride_height + r * told.dilation_height - told.pad_top + told.counted_top
        column = column * told.stride_width + s * told.dilation_width - told.pad_left + told.counted_left
        is_counted = ((row >= 0) & (row < told.counted_height))[:, None] & ((column >= 0) & (column < told.counted_width))
        counts += is_counted[None, ..., None]
        if form.op == "max_pool":
            total = np.maximum(total, np.where(there, tap, -np.inf))
        else:
            total += np.where(there, tap if w is None else tap * w[r, s], 0)
    result = (total / counts if form.op == "average_pool" else total).reshape(-1, channels)
    result = result + memory.read(told.bias, FLOAT, (channels,), (1,)) if form.bias else result
    result = _expressed(memory, form.expression, told, dtype, result, lambda stride: (stride, 1))
    memory.write(told.y, dtype, (told.y_stride, 1), result)


def _gather(memory, form, told):
    n, count = told.runs * form.run, told.count
    outer = told.items // told.runs // count
    index = memory.view(told.index, np.dtype(f"int{form.index_bits}"), (count,), (1,)).copy()
    index = np.where(index < 0, index + told.size, index)
    outside = (index < 0) | (index >= told.size)
    if outside.any():
        memory.write(told.watch, np.dtype(np.int32), (1,), np.flatnonzero(outside)[:1] + 1)
    _aligned(told.x, DTYPES[form.x].itemsize * form.run)
    x = memory.read(told.x, DTYPES[form.x], (outer, told.size, n), (told.x_outer, told.x_stride, 1))
    rows = np.where(outside[:, None], 0, x[:, np.where(outside, 0, index)]).reshape(-1, n)
    result = _expressed(memory, form.expression, told, DTYPES[form.y], rows, lambda stride: (stride, 1))
    memory.write(told.y, DTYPES[form.y], (told.y_stride, 1), result)


_FAMILIES = {
    Form: _product,
    VectorForm: _vector,
    AttentionForm: _attention,
    MapForm: _map,
    TransposeForm: _transpose,
    RowForm: _rows,
    ColumnForm: _columns,
    WindowForm: _windows,
    GatherForm: _gather,
}
