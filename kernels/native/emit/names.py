"""Words for the names of kernels: what a reader of a trace or a log wants to know of one, shortly.

A name is `<dtype>_<op>_<rows>x<columns>__<isa>_<words>_<digest>`, for instance
`f32_conv2d_6x64__avx512_nchw16c_3x3s2_bias_relu_1a2b3c4d5e6f`: 6 pixels by 64 channels of results are in registers at once, x and
y lie in blocks of 16 channels, the window is 3×3 with stride 2, and a bias and a ReLU follow.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kernels.expression import Expression
from kernels.native.emit.epilogue import Epilogue
from kernels.native.emit.geometry import Conv
from kernels.native.memory.image import Image
from kernels.native.memory.view import View
from kernels.spec import BFLOAT16, DType


def name_dtype(dtype: DType) -> str:
    """f32, bf16, i64, u8…, and bool."""
    return dtype.name if dtype.kind == "b" else f"{'bf' if dtype == BFLOAT16 else dtype.kind}{8 * dtype.itemsize}"


def name_layouts(x: Image, y: Image) -> str:
    """nchw, nhwc, nchw16c…, of the input and, where it differs, of the output."""
    before, after = _name_layout(x), _name_layout(y)
    return before if before == after else f"{before}_to_{after}"


def _name_layout(image: Image) -> str:
    if image.block_stride == 0:
        return "nhwc"
    return "nchw" if image.block == 1 else f"nchw{image.block}c"


def name_window(conv: Conv) -> str:
    """3x3, then strides, dilations and groups where there are any: 3x3s2, 3x3s2x1d2g32."""
    parts = [f"{conv.kernel[0]}x{conv.kernel[1]}"]
    parts += [f"{letter}{_name_pair(pair)}" for letter, pair in (("s", conv.strides), ("d", conv.dilations)) if pair != (1, 1)]
    grouped = 1 < conv.groups < conv.x.channels
    return "".join((*parts, f"g{conv.groups}" if grouped else ""))


def _name_pair(pair: tuple[int, int]) -> str:
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}x{pair[1]}"


def name_expression(expression: Expression) -> Iterator[str]:
    """The operations of an expression, in order."""
    return (step.op for step in expression.steps)


def name_epilogue(epilogue: Epilogue[Any]) -> Iterator[str]:
    """bias, then its operations."""
    if epilogue.bias:
        yield "bias"
    yield from name_expression(epilogue.expression)


def name_order(view: View) -> str:
    """Whether a matrix lies by rows, by columns, or neither."""
    rows, columns = view.strides[-2:]
    return "rows" if columns == 1 else "columns" if rows == 1 else "strided"
