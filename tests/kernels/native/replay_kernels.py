"""A fixed list of kernels of every native family, for any instruction set. `ir_replay` hashes their code.

Shapes are small. Where tails matter, channels are counted in vectors, so that every vector width meets the same cases. The list
does not depend on what this machine can run. An entry's name says what it computes; the kernels of an entry share one hash.
In the parameters, a tile of None is the one that is used without measurements.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np

from kernels.expression import FLOAT, INT32, Apply, Expression
from kernels.native.emit.epilogue import PLAIN, Epilogue
from kernels.native.emit.geometry import Conv, Depth
from kernels.native.emit.kernel import NativeKernel
from kernels.native.emit.words import INT8, UINT8, Words
from kernels.native.families.attention import Attention, attention_tiles, emit_attention, make_attention_tile
from kernels.native.families.channels import Channels, emit_channels
from kernels.native.families.conv import conv_tiles, emit_conv, make_tile
from kernels.native.families.conv_transpose import Phase, Transposed, phases
from kernels.native.families.cumulative import Cumulative, emit_cumulative
from kernels.native.families.depthwise import depthwise_tiles, emit_depthwise, make_depthwise_tile
from kernels.native.families.elements import Elements, Reduction, emit_elements
from kernels.native.families.elementwise import Map, Strided, emit_map
from kernels.native.families.forest import Combine, Total, Walk, emit_total, emit_walk
from kernels.native.families.forest import Layout as Leaves
from kernels.native.families.gather import Gather, emit_gather
from kernels.native.families.grid_sample import GridSample, emit_grid_sample
from kernels.native.families.matmul import MatMul, emit_matmul, make_matmul_tile, matmul_tiles
from kernels.native.families.normalize import Rows, emit_rows
from kernels.native.families.pool import Pooling, emit_pooling
from kernels.native.families.rearrange import PadMode, convert_image, pad_tensor
from kernels.native.families.recurrent import Cell, Recurrent, emit_recurrent, recurrent_tile
from kernels.native.families.resize import Resizing, Side, emit_resize, make_resize_tile, resize_tiles
from kernels.native.families.scatter import Scatter, emit_scatter
from kernels.native.families.select import Select, emit_select
from kernels.native.families.winograd import Winograd, make_winograd_tile, winograd_tiles
from kernels.native.families.winograd_kernels import emit_winograd
from kernels.native.memory.image import Image
from kernels.native.memory.view import View
from kernels.native.run.program import KernelCall, Ref
from kernels.native.target.isa import Isa
from kernels.ops.recurrent import activation_expressions
from kernels.registry import find
from kernels.resampling import Pass
from kernels.spec import DType
from tests.kernels.native.chains import chain

Layout = Literal["blocked", "nhwc", "slice", "nchw"]
Kernels = Sequence[NativeKernel]
Dtype = type[np.generic] | type[bool]

BIASED: Epilogue[Image] = Epilogue(bias=True)
RELU6 = ("clip", 0.0, 6.0)
Step = str | tuple[Any, ...]  # a step of `chain`


def image(layout: Layout, isa: Isa, n: int, c: int, h: int, w: int) -> Image:
    """Return an image in that layout. "slice" is a slice of the channels of a wider image."""
    if layout == "blocked":
        return Image.blocked(n, c, h, w, isa.lanes)
    if layout == "slice":
        return Image.nhwc(n, c, h, w, pixel_stride=c + 3)
    return (Image.nhwc if layout == "nhwc" else Image.nchw)(n, c, h, w)


# Convolutions


def convolution(
    isa: Isa,
    size: int,
    inputs: int,
    outputs: int,
    kernel: int = 1,
    stride: int = 1,
    dilation: int = 1,
    pad: int = 0,
    groups: int = 1,
    batch: int = 1,
    layout: Layout = "blocked",
    x_layout: Layout | None = None,
) -> Conv:
    """Return a square convolution that is padded alike on all sides."""
    out = (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
    x = image(x_layout or layout, isa, batch, inputs, size, size)
    y = image(layout, isa, batch, outputs, out, out)
    return Conv(x, y, (kernel, kernel), (stride, stride), (dilation, dilation), pad, pad, groups)


def product(isa: Isa, pixels: int, inputs: int, outputs: int, layout: Layout = "blocked", batch: int = 1) -> Conv:
    """Return a 1×1 convolution of a row of pixels."""
    return Conv(image(layout, isa, batch, inputs, 1, pixels), image(layout, isa, batch, outputs, 1, pixels))


def direct(isa: Isa, conv: Conv, tile: tuple[int, int] | None, epilogue: Epilogue[Image] = BIASED) -> Kernels:
    """Emit a direct convolution. tile: pixels × vectors; None: the first candidate."""
    return [emit_conv(conv, conv_tiles(conv, isa)[0] if tile is None else make_tile(conv, isa, *tile), epilogue, isa)]


def of_bytes(isa: Isa, conv: Conv, dtype: DType = UINT8, tile: tuple[int, int] | None = None) -> Kernels:
    """Emit a convolution of bytes whose sums are scaled and quantised to bytes again."""
    words = Words(dtype)
    counted = replace(conv, x=conv.x.words(words.depth), words=words, zero=3).joined(isa.lanes)
    return direct(isa, counted, tile, requantised(conv.y))


def requantised(y: Image) -> Epilogue[Image]:
    """Return an epilogue that multiplies sums of integers by a factor for each channel, and rounds them to bytes."""
    per_channel = replace(y, y_stride=0, x_stride=0, n_stride=0)
    steps = (Apply("cast", (0,), (), FLOAT), Apply("mul", (1, 2)), Apply("round", (3,)), Apply("cast", (4,), (), UINT8))
    return Epilogue(True, Expression((INT32, FLOAT), steps), (per_channel,))


def cut_product(isa: Isa, *, weights_inner: bool) -> Kernels:
    """Emit a convolution of a long row that is cut into shorter ones. weights_inner: order of consecutive chunks."""
    conv = product(isa, 23, 9, 3 * isa.lanes + 1, "nhwc")
    tile = replace(make_tile(conv, isa, 4, 2), row_pixels=8, rows=2, weights_inner=weights_inner)
    return [emit_conv(conv, tile, chain(("add", conv.y), bias=True), isa)]


def uneven(isa: Isa) -> Kernels:
    """Emit a convolution whose padding, kernel and image differ by side."""
    conv = Conv(Image.blocked(1, 4, 6, 7, isa.lanes), Image.blocked(1, 5, 7, 8, isa.lanes), (3, 2), top=1, left=0)
    return direct(isa, conv, (3, 1))


def merged(conv: Conv, *steps: Step) -> Epilogue[Image]:
    """Return an epilogue of a bias, a residual in the output's layout, and the given steps."""
    return chain(("add", conv.y), *steps, bias=True)


def broadcast_operands(isa: Isa, y: Image) -> Epilogue[Image]:
    """Return an epilogue with a factor for each channel, a summand for each pixel, and an image minus the result."""
    per_channel = replace(y, y_stride=0, x_stride=0, block_stride=isa.lanes, n_stride=0)
    per_pixel = Image(y.batch, y.channels, y.height, y.width, 1, 0, 0, y.width, 1)
    last = Image.nhwc(y.batch, y.channels, y.height, y.width)
    return chain(("mul", per_channel), ("add", per_pixel), (last, "sub"))


def winograd(isa: Isa, unit: int, *, fused: bool, pad: int = 1, operands: bool = False) -> Kernels:
    """Emit a Winograd convolution: one kernel if fused, else one for each phase. unit: m of F(m, 3)."""
    conv = convolution(isa, 9, isa.lanes + 3, 2 * isa.lanes + 1, 3, pad=pad)
    what = Winograd(conv, unit)
    epilogue = broadcast_operands(isa, conv.y) if operands else merged(conv, "relu")
    return emit_winograd(what, make_winograd_tile(what, isa, 4, 2, 8, fused=fused), epilogue, isa)


def default_winograd(isa: Isa) -> Kernels:
    """Emit a Winograd convolution with the tile that is used without measurements."""
    what = Winograd(convolution(isa, 14, 2 * isa.lanes, 2 * isa.lanes, 3, pad=1), 4)
    return emit_winograd(what, winograd_tiles(what, isa)[0], BIASED, isa)


def streamed_winograd(isa: Isa) -> Kernels:
    """Emit Winograd convolutions whose weights do not fit a near cache and whose points do not divide evenly into chunks."""
    conv = convolution(isa, 29, 100, 96, 3, pad=1)
    made: list[NativeKernel] = []
    for fused in (True, False):
        what = Winograd(conv, 4)
        made += emit_winograd(what, make_winograd_tile(what, isa, 4, 2, 16, fused=fused), PLAIN, isa)
    return made


def depthwise(
    isa: Isa, conv: Conv, tile: tuple[int, int] | None, epilogue: Epilogue[Image] = BIASED, rows: int | None = None
) -> Kernels:
    """Emit a depthwise convolution. tile: pixels × vectors. rows: rows of a chunk; None: by rule."""
    made = depthwise_tiles(conv, isa)[0] if tile is None else make_depthwise_tile(conv, isa, *tile)
    return [emit_depthwise(conv, made if rows is None else replace(made, rows=rows), epilogue, isa)]


def channelwise(
    isa: Isa, size: int, channels: int, kernel: int, stride: int = 1, pad: int = 0, dilation: int = 1, layout: Layout = "blocked"
) -> Conv:
    """Return a depthwise convolution: each channel by itself."""
    return convolution(isa, size, channels, channels, kernel, stride, dilation, pad, groups=channels, layout=layout)


def transposed(isa: Isa, channels: tuple[int, int], form: tuple[int, int, int, int, int], groups: int = 1) -> Transposed:
    """Return a transposed convolution. form: kernel, stride, dilation, padding and output padding, alike on all sides."""
    kernel, stride, dilation, pad, extra = form
    out = 4 * stride + (kernel - 1) * dilation + 1 - 2 * pad + extra
    x, y = image("blocked", isa, 1, channels[0], 5, 5), image("blocked", isa, 1, channels[1], out, out)
    return Transposed(x, y, (kernel, kernel), (stride, stride), (dilation, dilation), pad, pad, groups)


def _every(phase: Phase, what: Transposed, image: Image) -> Image:
    """Return the pixels of a phase."""
    return image.every(phase.first, what.strides)[0]


def phase_kernels(isa: Isa, what: Transposed) -> Kernels:
    """Emit a convolution for each phase, with a residual that is read at the phase's pixels."""
    epilogue = chain(("add", what.y), "relu", bias=True)
    made = []
    for phase in phases(what):
        mine = epilogue.laid(partial(_every, phase, what))
        if what.groups > 1:
            made.append(emit_depthwise(phase.conv, depthwise_tiles(phase.conv, isa)[0], mine, isa))
        else:
            made.append(emit_conv(phase.conv, make_tile(phase.conv, isa, min(3, phase.conv.y.width), 2), mine, isa))
    return made


# Products and attention


def matrix(rows: int, columns: int, layout: str = "rows") -> View:
    """Return a view of a matrix: dense rows, dense columns, a slice of longer rows, every third element, or rows backwards."""
    if layout == "columns":
        return View.dense((columns, rows)).transposed((1, 0))
    if layout == "slice":
        return View.dense((rows, columns + 5)).sliced(1, 2, columns)
    if layout == "sparse":
        return View.dense((rows, 3 * columns)).sliced(1, 1, columns, 3)
    if layout == "backwards":
        return View.dense((rows, columns)).sliced(0, rows - 1, rows, -1)
    return View.dense((rows, columns))


def matmul(
    isa: Isa,
    what: MatMul,
    tile: tuple[int, int] | None = None,
    method: Literal["direct", "packed", "dots"] | None = None,
    chunk: tuple[int, int] | None = None,
) -> Kernels:
    """Emit a matrix product. tile: rows × vectors. method, chunk (rows and units); None: by rule."""
    made = matmul_tiles(what, isa)[0] if tile is None else make_matmul_tile(what, isa, *tile)
    made = made if method is None else replace(made, method=method)
    return [emit_matmul(what, made if chunk is None else replace(made, chunk_rows=chunk[0], units=chunk[1]), isa)]


def of(m: int, k: int, n: int, a: str = "rows", b: str = "rows", y: str = "rows") -> MatMul:
    """Return a product of an (m, k) and a (k, n) matrix in these layouts."""
    return MatMul(matrix(m, k, a), matrix(k, n, b), matrix(m, n, y))


def with_steps(isa: Isa) -> MatMul:
    """Return a scaled product of batches with a bias, an activation and a residual."""
    m, n = 5, isa.lanes + 3
    steps = chain(("add", View.dense((1, 1, n))), "gelu", (View.dense((2, m, n)), "sub"))
    return MatMul(View.dense((2, m, 7)), View.dense((1, 7, n)), View.dense((2, m, n)), 0.5, steps)


def attend(batch: int, heads: int, queries: int, keys: int, size: int, v_size: int = 0, kv_heads: int = 0) -> Attention:
    """Return attention over dense tensors. v_size, kv_heads: 0 = as `size` and `heads`."""
    q, k = View.dense((batch, heads, queries, size)), View.dense((batch, kv_heads or heads, keys, size))
    v, y = View.dense((*k.shape[:3], v_size or size)), View.dense((batch, heads, queries, v_size or size))
    return Attention(q, k, v, y, 0.25)


def attention(isa: Isa, what: Attention, tile: tuple[int, int] | None = None, block: int = 0, groups: int = 0) -> Kernels:
    """Emit an attention kernel. tile: vectors of queries × columns of v.

    block: tiles of keys that are processed at once. groups: groups of a chunk. 0: by rule.
    """
    if tile is None:
        return [emit_attention(what, attention_tiles(what, isa)[0], isa)]
    made = replace(make_attention_tile(what, isa, *tile), keys=4)
    made = replace(made, groups=groups) if groups else made
    return [emit_attention(what, replace(made, block=block * made.keys) if block else made, isa)]


def fused_attention() -> Attention:
    """Return attention whose q, k and v lie side by side in the rows of one matrix."""
    rows = View.dense((1, 13, 3, 2, 20))
    q, k, v = (rows.picked(2, n).transposed((0, 2, 1, 3)) for n in range(3))
    return Attention(q, k, v, View.dense((1, 13, 2, 20)).transposed((0, 2, 1, 3)), 0.25)


# Rows and pools


def rows(
    isa: Isa,
    kind: Literal["softmax", "log_softmax", "layer_norm", "rms_norm", "sum", "mean", "max", "min", "prod", "l1", "l2",
                  "sum_square", "log_sum", "log_sum_exp"],
    shape: tuple[int, ...],
    axes: tuple[int, ...],
    more: Rows | None = None,
) -> Kernels:  # fmt: skip
    """Emit a kernel over the rows of a dense tensor. more: has the scale, bias and epilogue to use."""
    keeps = kind in ("softmax", "log_softmax", "layer_norm", "rms_norm")
    y = View.dense(shape if keeps else tuple(1 if n in axes else size for n, size in enumerate(shape)))
    what = Rows(kind, View.dense(shape), y, axes, 1e-3)
    return [emit_rows(what if more is None else replace(what, scale=more.scale, bias=more.bias, epilogue=more.epilogue), isa)]


def scaled(scale: View | None, bias: View | None = None, *steps: Step) -> Rows:
    """Return a scale, a bias and an epilogue for `rows`."""
    return Rows("layer_norm", View.dense((1,)), View.dense((1,)), (0,), 0.0, scale, bias, chain(*steps))


def sliced_rows(isa: Isa) -> Kernels:
    """Emit softmaxes and a mean over a tensor that is transposed and sliced."""
    x = View.dense((3, 7, 2, 40)).transposed((0, 2, 1, 3)).sliced(3, 2, 37).sliced(2, 6, 4, -2)
    means = View.dense((*x.shape[:3], 1))
    return [
        emit_rows(Rows("softmax", x, View.dense(x.shape), (3,)), isa),
        emit_rows(Rows("mean", x, means, (3,)), isa),
        emit_rows(Rows("softmax", x, View.dense(x.shape), (2,)), isa),
    ]


def pool(
    isa: Isa,
    kind: Literal["max", "average"],
    size: int,
    kernel: int,
    stride: int = 1,
    pad: int = 0,
    dilation: int = 1,
    layout: Layout = "blocked",
    *,
    counts: bool = False,
    steps: tuple[Step, ...] = (),
) -> Kernels:
    """Emit a pool over one vector of channels and a tail. counts: whether an average counts padding."""
    conv = channelwise(isa, size, isa.lanes + 3, kernel, stride, pad, dilation, layout)
    epilogue = chain(("add", conv.y), *steps) if steps else PLAIN
    return [emit_pooling(Pooling(conv, kind, (pad, pad) if counts else None), epilogue, isa)]


# Resizing


def any_taps(size_in: int, size_out: int, taps: int, begin: int, end: int) -> Pass:
    """Return a pass that reads one input after the other. Outputs before `begin` and from `end` on lie outside."""
    index = np.arange(size_out * taps).reshape(size_out, taps) % size_in
    places = np.arange(size_out)
    return Pass(0, index, np.full(index.shape, 1 / taps) if taps > 1 else None, (places < begin) | (places >= end))


def resize(
    isa: Isa,
    taps: tuple[int, int],
    *,
    separable: bool | None = None,
    layout: Layout = "blocked",
    inside: tuple[int, int, int, int] | None = None,
    steps: tuple[Step, ...] = (),
    rows: int | None = None,
) -> Kernels:
    """Emit a resize of 5 × 6 to 7 × 11 pixels. separable: None = as the tile says that is used without measurements.

    inside: rows and columns, first and end, that are not filled; None: all. rows: rows of a chunk; None: by rule.
    """
    channels = 2 * isa.lanes + 1
    x, y = image(layout, isa, 1, channels, 5, 6), image(layout, isa, 1, channels, 7, 11)
    begin, end, first, last = inside or (0, 7, 0, 11)
    sides = (
        Side(taps[0], taps[0] > 1, any_taps, (5, 7, taps[0], begin, end)),
        Side(taps[1], taps[1] > 1, any_taps, (6, 11, taps[1], first, last)),
    )
    what = Resizing(x, y, *sides, None if inside is None else 2.5)
    tile = resize_tiles(what, isa)[0] if separable is None else make_resize_tile(what, isa, 4, 2, separable=separable)
    epilogue = chain(("mul", y), *steps) if steps else PLAIN
    return [emit_resize(what, tile if rows is None else replace(tile, rows=rows), epilogue, isa)]


# Elementwise


def tensor(*shape: int, dtype: Dtype = np.float32) -> Strided:
    """Return a dense tensor."""
    return Strided(View.dense(shape), np.dtype(dtype))


def tape(isa: Isa, y: Strided, operands: Sequence[Strided], *steps: Apply) -> Kernels:
    """Emit an elementwise expression."""
    return [emit_map(Map(y, tuple(operands), steps), isa)]


def unary(
    isa: Isa, *names: str, dtype: Dtype = np.float32, to: Dtype | None = None, parameters: tuple[float, ...] = ()
) -> Kernels:
    """Emit a kernel for each function of one argument, over two vectors and a tail."""
    size = 2 * isa.lanes + 3
    x, y = tensor(size, dtype=dtype), tensor(size, dtype=to or dtype)
    return [emit_map(Map(y, (x,), (Apply(name, (0,), parameters),)), isa) for name in names]


def binary(isa: Isa, dtype: Dtype, *names: str, to: Dtype | None = None) -> Kernels:
    """Emit a kernel for each function of two arguments, over two vectors and a tail."""
    size = 2 * isa.lanes + 3
    like, y = tensor(size, dtype=dtype), tensor(size, dtype=to or dtype)
    return [emit_map(Map(y, (like, like), (Apply(name, (0, 1)),)), isa) for name in names]


def casts(isa: Isa, old: Dtype, *new: Dtype) -> Kernels:
    """Emit conversions from one type to each of the others."""
    size = isa.lanes + 3
    x = tensor(size, dtype=old)
    return [emit_map(Map(tensor(size, dtype=kind), (x,), (Apply("cast", (0,), (), np.dtype(kind)),)), isa) for kind in new]


def repeated_tape(isa: Isa) -> Kernels:
    """Emit an expression whose operands are broadcast along rows, along columns and along all axes."""
    operands = [tensor(*shape) for shape in ((2, 5, 3, 37), (5, 1, 1), (37,), ())]
    return tape(isa, operands[0], operands, Apply("mul", (0, 1)), Apply("add", (4, 2)), Apply("exp", (1,)), Apply("div", (5, 6)),
                Apply("sub", (7, 3)))  # fmt: skip


def mask_tape(isa: Isa) -> Kernels:
    """Emit an expression that compares integers, combines masks, and chooses values by the mask."""
    size, i64 = 2 * isa.lanes + 5, np.dtype(np.int64)
    operands = [tensor(size, dtype=np.int64), tensor(size, dtype=np.int64), tensor(size, dtype=bool)]
    return tape(isa, operands[0], operands, Apply("lt", (0, 1)), Apply("not", (2,)), Apply("and", (3, 4)),
                Apply("constant", (), (7,), i64), Apply("add", (0, 6)), Apply("where", (5, 7, 1)))  # fmt: skip


def strided_tape(isa: Isa) -> Kernels:
    """Emit an expression whose operands are transposed, read backwards, and read at every third element."""
    shape = (5, isa.lanes + 3)
    views = (View.dense(shape[::-1]).transposed((1, 0)), View.dense(shape).sliced(1, shape[1] - 1, shape[1], -1),
             View.dense((shape[0], 3 * shape[1])).sliced(1, 1, shape[1], 3))  # fmt: skip
    return tape(isa, tensor(*shape), [Strided(view) for view in views], Apply("mul", (0, 1)), Apply("add", (3, 2)))


# Copies


def copies(isa: Isa, view: View) -> Kernels:
    """Emit copies into row-major memory, one for each size of elements."""
    dtypes: tuple[DType, ...] = tuple(np.dtype(kind) for kind in (np.int8, np.int16, np.float32, np.int64))
    return [emit_map(Map(Strided(View.dense(view.shape), dtype), (Strided(view, dtype),)), isa) for dtype in dtypes]


def conversions(isa: Isa, source: Layout, target: Layout) -> Kernels:
    """Emit the kernels that convert an image from one layout to another."""
    channels = 2 * isa.lanes + 3
    x, y = image(source, isa, 2, channels, 3, 5), image(target, isa, 2, channels, 3, 5)
    return [emit_map(each, isa) for each in convert_image(x, y)]


def padding(isa: Isa, mode: PadMode) -> Kernels:
    """Emit the kernels that pad a matrix on all sides."""
    return [emit_map(each, isa) for each in pad_tensor(View.dense((5, 21)), View.dense((8, 26)), (1, 2), mode, 0.5)]


def shuffle(isa: Isa, groups: int, dtype: Dtype) -> Kernels:
    """Emit a shuffle that takes one channel of each group in turn."""
    channels = 12 * groups
    one = Image.blocked(2, channels, 3, 5, isa.lanes)
    order = tuple((0, i) for i in np.arange(channels).reshape(groups, -1).T.ravel().tolist())
    return [emit_channels(Channels((one,), one, order, np.dtype(dtype)), isa)]


def joined_channels(isa: Isa) -> Kernels:
    """Emit a concatenation of the channels of two images, without the first three."""
    xs = Image.blocked(1, isa.lanes + 5, 3, 4, isa.lanes), Image.blocked(1, 9, 3, 4, isa.lanes)
    order = [*((0, n) for n in range(3, isa.lanes + 5)), *((1, n) for n in range(9))]
    return [emit_channels(Channels(xs, Image.blocked(1, len(order), 3, 4, isa.lanes), tuple(order)), isa)]


def gather(isa: Isa, elements: int, dtype: Dtype, indices: Dtype = np.int64) -> Kernels:
    """Emit a gather of nine rows out of fifty."""
    what = Gather.along(View.dense((2, 50, elements)), View.dense((2, 9, elements)), np.dtype(dtype), np.dtype(indices))
    return [emit_gather(what, isa)]


def gather_by_tuples(isa: Isa) -> Kernels:
    """Emit a gather of rows, each by two indices."""
    what = Gather(View.dense((2, 5, 7, 37)), View.dense((2, 9, 2)), View.dense((2, 9, 37)))
    return [emit_gather(what, isa)]


def elements(isa: Isa, axis: int, *reductions: Reduction | None) -> Kernels:
    """Emit kernels that pick or write elements along an axis, one for each reduction; None picks."""
    views = View.dense((5, 7, 4)), View.dense((3, 7, 4)), View.dense((3, 7, 4))
    return [emit_elements(Elements(*views, axis, reduction), isa) for reduction in reductions]


def scatter(isa: Isa, elements: int, *reductions: Reduction) -> Kernels:
    """Emit kernels that write rows, each by two indices, one for each reduction."""
    table = View.dense((5, 7, elements))
    return [emit_scatter(Scatter(table, 9, reduction, index_dtype=np.dtype(np.int32)), isa) for reduction in reductions]


def totals(isa: Isa, elements: int, *kinds: Literal["add", "mul"], exclusive: bool = False) -> Kernels:
    """Emit kernels of running totals, one for each kind."""
    view = View.dense((3, 9, elements))
    return [emit_cumulative(Cumulative(view, view, kind, exclusive=exclusive), isa) for kind in kinds]


def forest(isa: Isa, dtype: Dtype, *layouts: Leaves, combine: Combine = "add", nans: bool = False) -> Kernels:
    """Emit the walks of a forest whose leaves lie in each of these layouts, and the sums of its blocks."""
    kind = np.dtype(dtype)
    walks = [emit_walk(Walk(9, 5, 1 if each == "number" else 3, 20, kind, kind, each, combine, nans), isa) for each in layouts]
    return [*walks, emit_total(Total(9, 3, 2, kind, combine), isa)]


def selection(isa: Isa, *dtypes: Dtype, largest: bool) -> Kernels:
    """Emit kernels that select five of nine elements, one for each type."""
    return [emit_select(Select(View.dense((3, 9, 4)), 5, largest, np.dtype(dtype)), isa) for dtype in dtypes]


def volumes(isa: Isa, size: int, kernel: tuple[int, int, int], *, apart: bool = False) -> Conv:
    """Return a convolution, with `apart` of each channel by itself, over volumes whose sides are that size."""
    channels, (planes, rows, columns) = isa.lanes + 3, kernel
    x = Image.blocked(1, channels, size * size, size, isa.lanes)
    depth = Depth(size, size, planes, front=planes // 2)
    return Conv(x, x, (rows, columns), top=rows // 2, left=columns // 2, groups=channels if apart else 1, depth=depth)


def grid_sample(isa: Isa, mode: Literal["nearest", "linear", "cubic"], outside: Literal["zeros", "reflection"]) -> Kernels:
    """Return the kernel that samples an image of two vectors of channels."""
    x, y = (Image.blocked(1, 2 * isa.lanes, *size, isa.lanes) for size in ((5, 7), (4, 6)))
    return [emit_grid_sample(GridSample(x, y, View.dense((1, 4, 6, 2)), mode, outside), isa)]


def recurrent(isa: Isa, op: Literal["LSTM", "GRU", "RNN"], batch: int, **form: bool) -> Kernels:
    """Return the kernel of a layer of five steps in both directions. form: of the cell."""
    kinds: Mapping[str, Literal["lstm", "gru", "rnn"]] = {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn"}
    cell = Cell(kinds[op], activation_expressions(op, find(op).bind({}))[0], **form)
    tile, state = recurrent_tile(cell, batch, 70, isa), View.dense((2, batch, 70))
    projected, y = View.dense((5, 2, batch, 40 * isa.lanes)), View.dense((5, 2, batch, 70))
    c = state if cell.has_c else None
    return [emit_recurrent(Recurrent(cell, projected, y, state, state, c, c), tile, isa)]


ROW, COLUMN = (3, 67), (2, 9, 35)  # shapes: the last axis is whole vectors and a tail; the axis is not the last

KERNELS: Mapping[str, Callable[[Isa], Kernels]] = {
    # products of pixels
    "conv 1x1, tails of pixels and channels": lambda isa: direct(isa, product(isa, 7, 19, 2 * isa.lanes + 2), (3, 2)),
    "conv 1x1, channels last": lambda isa: direct(isa, product(isa, 7, 17, isa.lanes + 5, "nhwc"), (3, 2)),
    "conv 1x1, slice of channels": lambda isa: direct(isa, product(isa, 6, 17, 2 * isa.lanes, "slice"), (4, 1), PLAIN),
    "conv 1x1, batches": lambda isa: direct(isa, product(isa, 5, 8, 2 * isa.lanes, batch=3), (2, 1)),
    "conv 1x1, cut rows, weights inner": lambda isa: cut_product(isa, weights_inner=True),
    "conv 1x1, cut rows, weights outer": lambda isa: cut_product(isa, weights_inner=False),
    "conv 1x1, one pixel": lambda isa: direct(isa, product(isa, 1, 40, 3 * isa.lanes), None),
    "conv 1x1, default tile": lambda isa: direct(isa, product(isa, 49, 2 * isa.lanes, 4 * isa.lanes), None),
    "conv 1x1, most vectors": lambda isa: direct(isa, product(isa, 4, 16, 6 * isa.lanes), (1, 6)),
    # bytes
    "conv of bytes 3x3": lambda isa: of_bytes(isa, convolution(isa, 8, 5, isa.lanes + 3, 3, pad=1), tile=(4, 2)),
    "conv of signed bytes 3x3": lambda isa: of_bytes(isa, convolution(isa, 8, 5, isa.lanes + 3, 3, pad=1), INT8, (4, 2)),
    "conv of bytes 3x3, stride 2, default tile": lambda isa: of_bytes(isa, convolution(isa, 14, 16, isa.lanes, 3, 2, pad=1)),
    "conv of bytes 1x1": lambda isa: of_bytes(isa, product(isa, 49, 40, 2 * isa.lanes + 5, "nhwc")),
    "conv of bytes 3x3, groups": lambda isa: of_bytes(isa, convolution(isa, 8, 32, 32, 3, pad=1, groups=8)),
    "depthwise of bytes 3x3": lambda isa: depthwise(
        isa,
        replace(conv := channelwise(isa, 8, 2 * isa.lanes + 3, 3, 1, 1), words=Words(INT8), zero=3),
        (3, 2),
        requantised(conv.y),
    ),
    "max pool of bytes 3x3": lambda isa: [emit_pooling(
        Pooling(replace(channelwise(isa, 11, 2 * isa.lanes, 3, 2, 1), words=Words(UINT8)), "max"),
        Epilogue(expression=Expression((FLOAT,), (Apply("cast", (0,), (), UINT8),))), isa,
    )],
    # windows over pixels
    "conv 3x3": lambda isa: direct(isa, convolution(isa, 8, 5, isa.lanes + 3, 3, pad=1), (4, 2)),
    "conv 3x3, default tile": lambda isa: direct(isa, convolution(isa, 14, isa.lanes, 2 * isa.lanes, 3, pad=1), None),
    "conv 3x3, stride 2": lambda isa: direct(isa, convolution(isa, 11, 5, isa.lanes + 3, 3, 2, pad=1), (4, 2)),
    "conv 3x3, dilation 2": lambda isa: direct(isa, convolution(isa, 11, 5, isa.lanes, 3, 1, 2, 2), (4, 1)),
    "conv 3x3, not padded": lambda isa: direct(isa, convolution(isa, 8, 5, isa.lanes, 3), (3, 1)),
    "conv 3x3, channels last": lambda isa: direct(isa, convolution(isa, 8, 5, isa.lanes + 3, 3, pad=1, layout="nhwc"), (4, 2)),
    "conv 5x5, stride 2": lambda isa: direct(isa, convolution(isa, 11, 3, isa.lanes, 5, 2, pad=2), (3, 1)),
    "conv 7x7, stride 2, first layer": lambda isa: direct(
        isa, convolution(isa, 15, 3, 2 * isa.lanes, 7, 2, pad=3, batch=2, x_layout="nchw"), (4, 2)
    ),
    "conv 4x4, stride 3, dilation 2": lambda isa: direct(isa, convolution(isa, 11, 5, isa.lanes, 4, 3, 2, 3), (2, 1)),
    "conv 1x1, stride 2": lambda isa: direct(isa, convolution(isa, 8, 5, isa.lanes + 3, 1, 2), (4, 2)),
    "conv 5x5, larger than the image": lambda isa: direct(isa, convolution(isa, 2, 3, isa.lanes, 5, pad=2), (2, 1)),
    "conv 3x2, uneven padding": uneven,
    "conv 3x3, blocks of inputs and a rest": lambda isa: direct(
        isa, convolution(isa, 6, 2 * isa.lanes + 3, isa.lanes, 3, pad=1), (2, 1)
    ),
    "conv 3x3, groups of blocks": lambda isa: direct(
        isa, convolution(isa, 6, 2 * isa.lanes, 4 * isa.lanes, 3, pad=1, groups=2), (3, 1)
    ),
    "conv 3x3, groups of two channels": lambda isa: direct(
        isa, convolution(isa, 6, 2 * isa.lanes + 2, 2 * isa.lanes + 2, 3, pad=1, groups=isa.lanes + 1).joined(isa.lanes), (4, 1)
    ),
    "conv 3x3, groups, channels last": lambda isa: direct(
        isa, convolution(isa, 6, 6, 10, 3, pad=1, groups=2, layout="nhwc"), (3, 1)
    ),
    # epilogues of a convolution
    "conv 3x3, relu": lambda isa: direct(isa, convolution(isa, 7, 4, isa.lanes, 3, pad=1), (3, 1), chain("relu", bias=True)),
    "conv 1x1, clip": lambda isa: direct(isa, product(isa, 7, 9, isa.lanes + 1), (3, 2), chain(RELU6, bias=True)),
    "conv 1x1, silu": lambda isa: direct(isa, product(isa, 7, 9, 2 * isa.lanes), (3, 2), chain("silu", bias=True)),
    "conv 3x3, residual and relu": lambda isa: direct(
        isa, conv := convolution(isa, 7, 4, isa.lanes + 2, 3, pad=1), (3, 2), merged(conv, "relu")
    ),
    "conv 1x1, broadcast operands": lambda isa: direct(
        isa, conv := convolution(isa, 5, 6, isa.lanes + 3), (3, 2), broadcast_operands(isa, conv.y)
    ),
    # Winograd
    "winograd F(2, 3), fused": lambda isa: winograd(isa, 2, fused=True),
    "winograd F(2, 3), split": lambda isa: winograd(isa, 2, fused=False, pad=0),
    "winograd F(4, 3), fused": lambda isa: winograd(isa, 4, fused=True),
    "winograd F(4, 3), split": lambda isa: winograd(isa, 4, fused=False),
    "winograd F(4, 3), broadcast operands": lambda isa: winograd(isa, 4, fused=False, operands=True),
    "winograd F(4, 3), default tile": default_winograd,
    "winograd F(6, 3), split": lambda isa: winograd(isa, 6, fused=False),
    "winograd F(4, 3), many channels": streamed_winograd,
    # depthwise
    "depthwise 3x3": lambda isa: depthwise(isa, channelwise(isa, 8, 2 * isa.lanes + 3, 3, 1, 1), (3, 2)),
    "depthwise 3x3, stride 2, default tile": lambda isa: depthwise(isa, channelwise(isa, 11, 3 * isa.lanes, 3, 2, 1), None),
    "depthwise 5x5, relu": lambda isa: depthwise(
        isa, channelwise(isa, 9, isa.lanes, 5, 1, 2), (4, 1), chain("relu", bias=True)
    ),
    "depthwise 3x3, dilation 2, channels last": lambda isa: depthwise(
        isa, channelwise(isa, 9, isa.lanes + 3, 3, 1, 2, 2, "nhwc"), (3, 1)
    ),
    "depthwise 3x3, residual and silu": lambda isa: depthwise(
        isa, conv := channelwise(isa, 7, isa.lanes, 3, 1, 1), (4, 1), merged(conv, "silu")
    ),
    "depthwise 3x3, rows in chunks": lambda isa: depthwise(isa, channelwise(isa, 7, isa.lanes, 3, 1, 1), (3, 1), rows=2),
    # transposed convolution
    "transposed 2x2, stride 2": lambda isa: phase_kernels(isa, transposed(isa, (5, isa.lanes + 3), (2, 2, 1, 0, 0))),
    "transposed 4x4, stride 2": lambda isa: phase_kernels(isa, transposed(isa, (5, isa.lanes), (4, 2, 1, 1, 0))),
    "transposed 3x3, stride 2, output padding": lambda isa: phase_kernels(
        isa, transposed(isa, (5, 2 * isa.lanes), (3, 2, 1, 1, 1))
    ),
    "transposed 3x3, dilation 2": lambda isa: phase_kernels(isa, transposed(isa, (3, isa.lanes), (3, 2, 2, 1, 1))),
    "transposed 1x1, stride 2, empty phases": lambda isa: phase_kernels(isa, transposed(isa, (3, isa.lanes), (1, 2, 1, 0, 1))),
    "transposed 4x4, each channel by itself": lambda isa: phase_kernels(
        isa, transposed(isa, (isa.lanes + 1, isa.lanes + 1), (4, 2, 1, 1, 0), groups=isa.lanes + 1)
    ),
    # products of matrices
    "matmul, direct, tails": lambda isa: matmul(isa, of(11, 6, 2 * isa.lanes + 3), (4, 2), "direct"),
    "matmul, packed, tails": lambda isa: matmul(isa, of(11, 6, 2 * isa.lanes + 3), (4, 2), "packed"),
    "matmul, packed, columns of b": lambda isa: matmul(isa, of(7, 19, 2 * isa.lanes + 3, b="columns"), (3, 2), "packed"),
    "matmul, packed, sparse b": lambda isa: matmul(isa, of(7, 9, isa.lanes + 3, b="sparse"), (3, 2), "packed"),
    "matmul, dots": lambda isa: matmul(isa, of(2, 5 * isa.lanes + 3, 2 * isa.lanes + 1, b="columns")),
    "matmul, default tile": lambda isa: matmul(isa, of(24, 32, 4 * isa.lanes)),
    "matmul, one row": lambda isa: matmul(isa, of(1, 40, 3 * isa.lanes + 2)),
    "matmul, one column": lambda isa: matmul(isa, of(3 * isa.lanes, 33, 1, a="columns")),
    "matmul, a backwards, y in columns": lambda isa: matmul(isa, of(5, 8, isa.lanes + 2, a="backwards", y="columns")),
    "matmul, slices": lambda isa: matmul(isa, of(6, 9, isa.lanes, "slice", "slice", "slice")),
    "matmul, chunks with tails": lambda isa: matmul(isa, of(11, 6, 4 * isa.lanes), (2, 1), "direct", (4, 5)),
    "matmul, batches, scale and steps": lambda isa: matmul(isa, with_steps(isa)),
    # attention
    "attention, default tile": lambda isa: attention(isa, attend(1, 2, isa.lanes + 3, 19, 16)),
    "attention, shared heads, v of its own size": lambda isa: attention(isa, attend(2, 4, 9, 12, 8, isa.lanes + 3, 2), (1, 1)),
    "attention, mask": lambda isa: attention(
        isa, replace(attend(2, 3, 13, 11, 8), mask=View.dense((2, 1, 13, 11)), blind="zero"), (1, 1)
    ),
    "attention, mask of keys": lambda isa: attention(
        isa, replace(attend(2, 1, 9, 11, 8), mask=View.dense((2, 1, 1, 11))), (1, 1)
    ),
    "attention, causal": lambda isa: attention(isa, replace(attend(1, 1, 13, 17, 8), causal=True, past=3), (1, 1)),
    "attention, chunks with a tail": lambda isa: attention(isa, attend(1, 5, isa.lanes, 5, 5), (1, 1), groups=2),
    "attention, blocks of keys": lambda isa: attention(isa, attend(1, 1, isa.lanes + 5, 22, 5), (2, 1), 2),
    "attention, blocks of keys, mask by queries": lambda isa: attention(
        isa, replace(attend(1, 2, 9, 14, 5), mask=View.dense((1, 1, 14, 9)).transposed((0, 1, 3, 2))), (1, 1), 1
    ),
    "attention, slices of one matrix": lambda isa: attention(isa, fused_attention(), (1, 2)),
    # rows
    "softmax, last axis": lambda isa: rows(isa, "softmax", ROW, (1,)),
    "softmax, other axis": lambda isa: rows(isa, "softmax", COLUMN, (1,)),
    "log softmax": lambda isa: [*rows(isa, "log_softmax", ROW, (1,)), *rows(isa, "log_softmax", COLUMN, (1,))],
    "softmax, steps": lambda isa: rows(
        isa, "softmax", ROW, (1,), scaled(None, None, ("add", View.dense(ROW)), "relu", (View.dense((3, 1)), "sub"))
    ),
    "softmax and mean, slices": sliced_rows,
    "layer norm, scale and bias": lambda isa: rows(
        isa, "layer_norm", ROW, (1,), scaled(View.dense((1, 67)), View.dense((67,)).broadcast(ROW))
    ),
    "layer norm, other axis": lambda isa: rows(isa, "layer_norm", COLUMN, (1,)),
    "layer norm, two axes": lambda isa: rows(
        isa, "layer_norm", (4, 3, 10), (1, 2), scaled(View.dense((1, 3, 10)), View.dense((1, 3, 10)))
    ),
    "instance norm": lambda isa: rows(
        isa, "layer_norm", (2, 6, 49), (2,), scaled(View.dense((1, 6, 1)), View.dense((1, 6, 1)))
    ),
    "rms norm, scale": lambda isa: rows(isa, "rms_norm", ROW, (1,), scaled(View.dense((1, 67)))),
    # reductions
    "sum, last axis": lambda isa: rows(isa, "sum", ROW, (1,)),
    "sum, other axis": lambda isa: rows(isa, "sum", COLUMN, (1,)),
    "sum, two axes of four": lambda isa: rows(isa, "sum", (2, 3, 4, 5), (1, 3)),
    "sum, many rows": lambda isa: rows(isa, "sum", (300, 7, 31), (2,)),
    "mean, steps": lambda isa: rows(
        isa, "mean", ROW, (1,), scaled(None, None, ("mul", View.dense((3, 1))), "tanh")
    ),
    "mean, blocked image": lambda isa: rows(isa, "mean", (2, 3, 49, isa.lanes), (2,)),
    "max, min and prod": lambda isa: [
        *rows(isa, "max", ROW, (1,)), *rows(isa, "min", COLUMN, (1,)), *rows(isa, "prod", ROW, (1,)),
    ],
    "norms l1 and l2, sum of squares": lambda isa: [
        *rows(isa, "l1", ROW, (1,)), *rows(isa, "l2", COLUMN, (1,)), *rows(isa, "sum_square", ROW, (1,)),
    ],
    "log of sums": lambda isa: [
        *rows(isa, "log_sum", ROW, (1,)), *rows(isa, "log_sum_exp", ROW, (1,)), *rows(isa, "log_sum_exp", COLUMN, (1,)),
    ],
    # pools
    "max pool 2x2": lambda isa: pool(isa, "max", 8, 2, 2),
    "max pool 3x3, stride 2, padded": lambda isa: pool(isa, "max", 11, 3, 2, 1),
    "max pool 2x2, dilation 3": lambda isa: pool(isa, "max", 9, 2, 1, 1, 3),
    "max pool 3x3, channels last": lambda isa: pool(isa, "max", 7, 3, 2, 1, layout="nhwc"),
    "average pool 3x3, padding left out": lambda isa: pool(isa, "average", 9, 3, 2, 1),
    "average pool 3x3, padding counted": lambda isa: pool(isa, "average", 9, 3, 2, 1, counts=True),
    "average pool, whole plane": lambda isa: pool(isa, "average", 7, 7),
    "average pool 3x3, rows in chunks": lambda isa: pool(isa, "average", 53, 3, 1, 1),
    "average pool 35x35, at the border": lambda isa: pool(isa, "average", 40, 35, 3, 15),
    "average pool 3x3, residual and relu": lambda isa: pool(isa, "average", 9, 3, 1, 1, steps=("relu",)),
    # resizing
    "resize, nearest": lambda isa: resize(isa, (1, 1)),
    "resize, linear, default tile": lambda isa: resize(isa, (2, 2)),
    "resize, linear, direct": lambda isa: resize(isa, (2, 2), separable=False),
    "resize, linear, separable, channels last": lambda isa: resize(isa, (2, 2), separable=True, layout="nhwc"),
    "resize, cubic, separable": lambda isa: resize(isa, (4, 4), separable=True),
    "resize, many taps": lambda isa: resize(isa, (19, 24), separable=True),
    "resize, filled outside, steps": lambda isa: resize(isa, (2, 2), separable=False, inside=(1, 4, 2, 9), steps=(RELU6,)),
    "resize, nothing inside, rows in chunks": lambda isa: resize(isa, (2, 2), separable=False, inside=(0, 7, 4, 4), rows=3),
    "resize, filled outside, separable": lambda isa: resize(isa, (2, 1), separable=True, inside=(2, 6, 0, 1)),
    # elementwise operations on fp32
    "map f32, arithmetic": lambda isa: binary(isa, np.float32, "add", "sub", "mul", "div", "max", "min", "prelu", "pow"),
    "map f32, comparisons": lambda isa: binary(isa, np.float32, "lt", "le", "gt", "ge", "eq", "ne", to=bool),
    "map f32, rectifiers": lambda isa: unary(
        isa, "relu", "clip", "leaky_relu", "thresholded_relu", "hard_sigmoid", "hard_swish", "softsign"
    ),
    "map f32, exponentials": lambda isa: unary(isa, "exp", "log", "sigmoid", "tanh", "erf", "softplus"),
    "map f32, activations": lambda isa: unary(isa, "elu", "selu", "celu", "silu", "mish", "gelu", "gelu_tanh"),
    "map f32, roots and rounding": lambda isa: unary(
        isa, "neg", "abs", "square", "sqrt", "reciprocal", "rsqrt", "floor", "ceil", "round", "sign"
    ),
    "map f32, sine and cosine": lambda isa: unary(isa, "sin", "cos"),
    "map f32, powers": lambda isa: [
        kernel for exponent in (-2.0, 0.0, 0.5, 1.0, 3.0, 4.0, 1.7) for kernel in unary(isa, "pow", parameters=(exponent,))
    ],
    "map f32, NaN and infinity": lambda isa: unary(isa, "isnan", "isinf", to=bool),
    "map f32, operands that repeat": repeated_tape,
    "map f32, strided operands": strided_tape,
    "map f32, many chunks": lambda isa: tape(
        isa, tensor(60_001), [tensor(60_001), tensor(60_001)], Apply("mul", (0, 1)), Apply("silu", (2,))
    ),
    "map f32, constant": lambda isa: tape(
        isa, Strided(View.dense((9, 40)).sliced(1, 3, 21)), [], Apply("constant", (), (1.5,))
    ),
    # elementwise operations on other types
    "map f64, arithmetic": lambda isa: binary(isa, np.float64, "add", "sub", "mul", "div", "max", "min"),
    "map f64, functions": lambda isa: unary(
        isa, "neg", "abs", "square", "sqrt", "reciprocal", "floor", "ceil", "round", "relu", "clip", dtype=np.float64
    ),
    "map i64, arithmetic": lambda isa: binary(isa, np.int64, "add", "sub", "mul", "max", "min", "div", "rem", "mod"),
    "map i32, bits and shifts": lambda isa: binary(isa, np.int32, "and", "or", "xor", "shl", "shr"),
    "map u8, arithmetic": lambda isa: binary(isa, np.uint8, "add", "mul", "max", "div", "mod", "shl", "shr"),
    "map i16, functions": lambda isa: unary(isa, "neg", "abs", "square", "sign", "not", dtype=np.int16),
    "map u32, comparisons": lambda isa: binary(isa, np.uint32, "lt", "ge", "eq", to=bool),
    "map bool, logic": lambda isa: [*binary(isa, np.bool_, "and", "or", "xor", "eq"), *unary(isa, "not", dtype=np.bool_)],
    "map i64, masks and a choice": mask_tape,
    "map, casts of floats": lambda isa: [
        *casts(isa, np.float32, np.int32, np.int64, np.uint8, np.bool_, np.float64),
        *casts(isa, np.float64, np.float32, np.int64),
    ],
    "map, casts of integers": lambda isa: [
        *casts(isa, np.int64, np.int8, np.int32, np.float32, np.bool_), *casts(isa, np.uint8, np.int64, np.float32),
        *casts(isa, np.bool_, np.float32, np.int64),
    ],
    # copies
    "copy, transposed": lambda isa: copies(isa, View.dense((2, 37, 19)).transposed((0, 2, 1))),
    "copy, axes in another order": lambda isa: copies(isa, View.dense((3, 7, 5, 11)).transposed((0, 2, 1, 3))),
    "copy, slice": lambda isa: copies(isa, View.dense((6, 40)).sliced(1, 3, 21).sliced(0, 5, 3, -2)),
    "copy, steps and backwards": lambda isa: copies(isa, View.dense((5, 80)).sliced(1, 78, 40, -2)),
    "copy, written backwards": lambda isa: [
        emit_map(Map(Strided(View.dense((5, 37)).sliced(1, 36, 37, -1)), (tensor(5, 37),)), isa)
    ],
    "copy, repeated": lambda isa: copies(isa, View.dense((5, 1, 19)).broadcast((3, 5, 4, 19))),
    "image, rows to blocks": lambda isa: conversions(isa, "nchw", "blocked"),
    "image, blocks to rows": lambda isa: conversions(isa, "blocked", "nchw"),
    "image, channels last to blocks": lambda isa: conversions(isa, "nhwc", "blocked"),
    "image, blocks to a slice of channels": lambda isa: conversions(isa, "blocked", "slice"),
    "pad, constant": lambda isa: padding(isa, "constant"),
    "pad, edge": lambda isa: padding(isa, "edge"),
    "pad, reflect": lambda isa: padding(isa, "reflect"),
    "pad, wrap": lambda isa: padding(isa, "wrap"),
    "channels, shuffle of 2 groups": lambda isa: shuffle(isa, 2, np.float32),
    "channels, shuffle of 3 groups, i64": lambda isa: shuffle(isa, 3, np.int64),
    "channels, two images joined": joined_channels,
    "gather, long rows": lambda isa: gather(isa, 768, np.float32),
    "gather, odd rows, i8 by i32": lambda isa: gather(isa, 37, np.int8, np.int32),
    "gather, elements, i64": lambda isa: gather(isa, 1, np.int64),
    "gather, by tuples": gather_by_tuples,
    "elements, picked": lambda isa: elements(isa, 0, None),
    "elements, written": lambda isa: elements(isa, 0, "none", "add", "mul", "max", "min"),
    "scatter, rows": lambda isa: scatter(isa, 37, "none", "add", "max"),
    "totals of columns": lambda isa: totals(isa, 37, "add", "mul"),
    "totals of rows, without the element itself": lambda isa: totals(isa, 1, "add", "mul", exclusive=True),
    "forest": lambda isa: forest(isa, np.float32, "number", "entry", "row"),
    "forest of doubles, missing values": lambda isa: forest(isa, np.float64, "number", "row", combine="maxnum", nans=True),
    "largest, in order": lambda isa: selection(isa, np.float32, np.int8, np.uint32, largest=True),
    "smallest, in order": lambda isa: selection(isa, np.float32, np.int32, largest=False),
    "scatter, elements": lambda isa: scatter(isa, 1, "none", "mul", "min"),
    "conv 3x3x3": lambda isa: direct(isa, volumes(isa, 7, (3, 3, 3)), (4, 1)),
    "depthwise 3x1x3": lambda isa: depthwise(isa, volumes(isa, 7, (3, 1, 3), apart=True), (3, 1)),
    "maximum 3x3x3": lambda isa: [emit_pooling(Pooling(volumes(isa, 7, (3, 3, 3), apart=True), "max"), PLAIN, isa)],
    "average 3x3x3": lambda isa: [emit_pooling(Pooling(volumes(isa, 7, (3, 3, 3), apart=True), "average"), PLAIN, isa)],
    "grid sample, linear": lambda isa: grid_sample(isa, "linear", "zeros"),
    "grid sample, cubic, reflected": lambda isa: grid_sample(isa, "cubic", "reflection"),
    "LSTM, one sequence": lambda isa: recurrent(isa, "LSTM", 1),
    "LSTM, peepholes and lengths": lambda isa: recurrent(isa, "LSTM", 3, peepholes=True, coupled=True, lengths=True),
    "GRU": lambda isa: recurrent(isa, "GRU", 2),
    "GRU, resets behind the product": lambda isa: recurrent(isa, "GRU", 7, linear=True),
    "RNN": lambda isa: recurrent(isa, "RNN", 7),
}  # fmt: skip


# Programs

X, ARENA, Y, WEIGHTS = range(4)  # slots of a program


def bottleneck(isa: Isa) -> Sequence[KernelCall]:
    """Return the calls of an inverted residual block: expand, depthwise, project and add the input."""
    c = isa.lanes
    expand, middle = convolution(isa, 9, c, 3 * c), channelwise(isa, 9, 3 * c, 3, 1, 1)
    project = convolution(isa, 9, 3 * c, c)
    second = Ref(ARENA, 4 * expand.y.elements)
    (first,) = direct(isa, expand, (4, 2), chain("relu", bias=True))
    (window,) = depthwise(isa, middle, (3, 1), chain("relu", bias=True))
    (last,) = direct(isa, project, (6, 1), merged(project))
    return (
        KernelCall(first, {"x": Ref(X), "w": Ref(WEIGHTS), "b": Ref(WEIGHTS, 4096), "y": Ref(ARENA)}),
        KernelCall(window, {"x": Ref(ARENA), "w": Ref(WEIGHTS, 8192), "b": Ref(WEIGHTS, 9216), "y": second}, grain=2),
        KernelCall(last, {"x": second, "w": Ref(WEIGHTS, 16384), "b": Ref(WEIGHTS, 65536), "r0": Ref(X), "y": Ref(Y)}),
    )


def with_scratch(isa: Isa) -> Sequence[KernelCall]:
    """Return two calls of a kernel that needs scratch, with no barrier between them, then a call without one of its arguments."""
    (packed,) = matmul(isa, of(11, 6, 2 * isa.lanes + 3), (4, 2), "packed")
    (add,) = binary(isa, np.float32, "add")
    return (
        KernelCall(packed, {"a": Ref(X), "b": Ref(WEIGHTS), "y": Ref(ARENA)}, barrier=False),
        KernelCall(packed, {"a": Ref(X, 264), "b": Ref(WEIGHTS, 1024), "y": Ref(ARENA, 4096)}),
        KernelCall(add, {"x0": Ref(ARENA), "y": Ref(Y)}, grain=4),
    )


PROGRAMS: Mapping[str, Callable[[Isa], Sequence[KernelCall]]] = {
    "inverted residual": bottleneck,
    "scratch and steps that do not wait": with_scratch,
    "no step": lambda _isa: (),
}
