"""Expansion of quantised ops into DequantizeLinear, the op on real numbers and QuantizeLinear, which native kernels compute.

Files hold quantised networks as pairs of QuantizeLinear and DequantizeLinear, as QLinear ops, or as ops of com.microsoft. After
this pass they have one form, the first.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from graph.ir import Node
from graph.passes.constants import SMALL_RESULT_BYTES
from graph.passes.editor import Editor, sizes
from graph.passes.expansions import CHAINED, Expansions, Step, expand, put_steps
from kernels.expression import FLOAT
from kernels.quantisation import FORMS, WHOLE, real_attributes
from kernels.spec import ELEMENT_CODES


def expand_quantised(editor: Editor, limit_bytes: int, *, native: bool = False) -> None:
    """Replace quantised ops by others of the same value, the QLinear ops up to one step where a result lies between two.

    QLinear ops and QGemm become the op between DequantizeLinear and QuantizeLinear; they stay where two scales have to be
    multiplied that are not constants. DynamicQuantizeLinear becomes the arithmetic that defines it, and so do QuantizeLinear and
    DequantizeLinear by scales along another axis than the last. The constant weights of a MatMulNBits are dequantised.

    limit_bytes: of all constants together; a MatMulNBits whose weights would exceed it stays. native: so does one whose weights
    native kernels read as they are.
    """
    weights = partial(_weights, limit_bytes=limit_bytes, native=native)
    expand(editor, {**_EXPANSIONS, "com.microsoft.MatMulNBits": weights})


def _real(editor: Editor, node: Node, x: str, scale: str, zero: str | None, axis: int = 1) -> str:
    """Add a DequantizeLinear and return its result."""
    return editor.put_part(node, "DequantizeLinear", (x, scale, *([zero] if zero else [])), {"axis": axis})


def _quantise(editor: Editor, node: Node, x: str, scale: str, zero: str | None) -> None:
    """Quantise a result to what the node made."""
    made = editor.specs[node.outputs[0]]
    attrs = {} if zero or made is None else {"output_dtype": ELEMENT_CODES[made.dtype]}
    editor.put_last(node, "QuantizeLinear", (x, scale, *([zero] if zero else [])), attrs)


def _qlinear(editor: Editor, node: Node) -> None:
    """One of the ops of kernels/ops/qlinear.py. Channels that come last are moved for the op and back."""
    form = FORMS[node.op]
    triples, (scale, zero) = form.parts(node.inputs)
    rank = editor.known(triples[0][0]).rank
    turned = bool(node.attrs.get("channels_last"))
    editor.drop(node)
    real = [_real(editor, node, *triple) for triple in triples]
    if turned:
        real = [editor.put_part(node, "Transpose", (x,), {"perm": (0, rank - 1, *range(1, rank - 1))}) for x in real]
    made = editor.put_part(node, form.inner, tuple(real), real_attributes(node.attrs))
    if turned:
        made = editor.put_part(node, "Transpose", (made,), {"perm": (0, *range(2, rank), 1)})
    _quantise(editor, node, made, scale, zero)


def _product(editor: Editor, hint: str, *scales: str, factor: float = 1.0) -> str | None:
    """Add the product of constant scales as a constant of float32; None where one is computed."""
    arrays = [editor.constant(scale) for scale in scales]
    product = np.array(factor, FLOAT)
    for array in arrays:
        if array is None:
            return None
        product = np.asarray(product * (array.reshape(()) if array.size == 1 else array), FLOAT)
    return editor.add_constant(hint, product)


def _matched(editor: Editor, node: Node, scale: str, zero: str) -> str | None:
    """Return a zero point of the scale's shape. None where one has to be repeated and is no constant, or would be too large."""
    wanted, own = editor.known(scale), editor.known(zero)
    if wanted.shape == own.shape or {wanted.shape, own.shape} <= {(), (1,)}:
        return zero
    array = editor.constant(zero)
    if array is None or array.size != 1 or wanted.elements > SMALL_RESULT_BYTES:
        return None
    return editor.add_constant(f"{node.name}/zero_point", np.full(wanted.shape, array.reshape(()), array.dtype))


def _are_vectors(editor: Editor, node: Node, *positions: int) -> bool:
    """Whether scales and zero points have shapes that QuantizeLinear and DequantizeLinear take. QLinear ops take [[1]] too."""
    given = (node.inputs[position] for position in positions if position < len(node.inputs))
    return all(editor.known(value).rank < 2 for value in given if value)


def _conv(editor: Editor, node: Node) -> None:
    """QLinearConv: Conv of what x, the weights by output channel, and the bias in steps of both scales stand for."""
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias = (*node.inputs, "")[:9]
    by_channel = _matched(editor, node, w_scale, w_zero)
    step = _product(editor, f"{node.name}/bias_scale", x_scale, w_scale) if bias else ""
    if by_channel is None or step is None or not _are_vectors(editor, node, 1, 2, 4, 5, 6, 7):
        return
    editor.drop(node)
    inputs = [_real(editor, node, x, x_scale, x_zero), _real(editor, node, w, w_scale, by_channel, 0)]
    if bias:
        inputs.append(_real(editor, node, bias, step, None, 0))
    _quantise(editor, node, editor.put_part(node, "Conv", tuple(inputs), node.attrs), y_scale, y_zero)


def _matmul(editor: Editor, node: Node) -> None:
    """QLinearMatMul whose left factor and result have one scale of float32."""
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = node.inputs
    ones = (a_scale, a_zero, y_scale, y_zero)
    by_column = _matched(editor, node, b_scale, b_zero)
    floats = all(spec is not None and spec.dtype == FLOAT for spec in map(editor.spec, (a_scale, b_scale, y_scale)))
    if not floats or by_column is None or any(editor.known(each).elements != 1 for each in ones):
        return
    if not _are_vectors(editor, node, 1, 2, 4, 5, 6, 7):
        return
    editor.drop(node)
    left, right = _real(editor, node, a, a_scale, a_zero), _real(editor, node, b, b_scale, by_column, -1)
    _quantise(editor, node, editor.put_part(node, "MatMul", (left, right)), y_scale, y_zero)


def _gemm(editor: Editor, node: Node) -> None:
    """QGemm: Gemm of what the factors and the addend in steps of their product stand for, quantised where it has a scale."""
    a, a_scale, a_zero, b, b_scale, b_zero, c, y_scale, y_zero = (*node.inputs, "", "", "")[:9]
    by_column = _matched(editor, node, b_scale, b_zero)
    step = _product(editor, f"{node.name}/c_scale", a_scale, b_scale, factor=node.attrs["alpha"]) if c else ""
    if by_column is None or step is None or not _are_vectors(editor, node, 1, 2, 4, 5, 7, 8):
        return
    if c and editor.known(step).shape and editor.known(c).shape[-1:] != editor.known(step).shape:
        return
    editor.drop(node)
    inputs = [
        _real(editor, node, a, a_scale, a_zero),
        _real(editor, node, b, b_scale, by_column, 0 if node.attrs["transB"] else 1),
    ]
    if c:
        inputs.append(_real(editor, node, c, step, None, -1))
    if not y_scale:
        editor.put_last(node, "Gemm", tuple(inputs), node.attrs)
        return
    _quantise(editor, node, editor.put_part(node, "Gemm", tuple(inputs), node.attrs), y_scale, y_zero)


def _same(editor: Editor, node: Node) -> None:
    """com.microsoft's QuantizeLinear and DequantizeLinear are ONNX's."""
    editor.drop(node)
    editor.put_last(node, node.op.rpartition(".")[2], node.inputs, node.attrs)


def _dynamic(editor: Editor, node: Node) -> None:
    """DynamicQuantizeLinear: the range of x and 0 in 255 steps, where 0 is a whole step. An empty range has steps of 1/255."""
    x = node.inputs[0]
    y, scale, zero = (*node.outputs, "", "")[:3]
    number = {name: editor.add_constant(f"{node.name}/{name}", np.array(name, FLOAT)) for name in ("0", "1", "255")}
    editor.drop(node)
    low, high = (
        editor.put_part(node, bound, (editor.put_part(node, f"Reduce{bound}", (x,), {"keepdims": 0}), number["0"]))
        for bound in ("Min", "Max")
    )
    empty, span = editor.put_part(node, "Equal", (high, low)), editor.put_part(node, "Sub", (high, low))
    span = editor.put_part(node, "Where", (empty, number["1"], span))
    scale = editor.put_part(node, "Div", (span, number["255"]), output=scale)
    offset = editor.put_part(node, "Div", (editor.put_part(node, "Neg", (low,)), scale))
    offset = editor.put_part(node, "Round", (editor.put_part(node, "Clip", (offset, number["0"], number["255"])),))
    zero = editor.put_part(node, "Cast", (offset,), {"to": ELEMENT_CODES[np.dtype(np.uint8)]}, zero)
    if y:
        editor.put_last(node, "QuantizeLinear", (x, scale, zero))


def _by_index(editor: Editor, node: Node) -> None:
    """QuantizeLinear and DequantizeLinear by scales along another axis than the last: the arithmetic that they stand for."""
    x, scale, zero = (*node.inputs, "")[:3]
    given, made, own = editor.known(x), editor.specs[node.outputs[0]], editor.known(scale)
    if (
        made is None
        or own.rank != 1
        or own.elements == 1
        or node.attrs["block_size"]
        or x in editor.constants
        or own.dtype != FLOAT
    ):
        return
    axis = node.attrs["axis"] % given.rank
    narrow = made.dtype if node.op == "QuantizeLinear" else given.dtype
    if axis == given.rank - 1 or FLOAT not in (given.dtype, made.dtype) or narrow not in WHOLE or node.attrs.get("precision"):
        return
    scale, zero = (_spread(editor, node, each, given.rank - 1 - axis) if each else "" for each in (scale, zero))
    if zero:
        zero = editor.put_part(node, "Cast", (zero,), {"to": ELEMENT_CODES[FLOAT]})
    if node.op == "DequantizeLinear":
        steps = [Step("Cast", (x,), {"to": ELEMENT_CODES[FLOAT]})]
        steps += [Step("Sub", (CHAINED, zero), {})] if zero else []
        put_steps(editor, node, [*steps, Step("Mul", (CHAINED, scale), {})])
        return
    limits = [editor.add_constant(f"{node.name}/limit", np.array(limit, FLOAT)) for limit in WHOLE[made.dtype]]
    steps = [Step("Div", (x, scale), {}), Step("Round", (CHAINED,), {})]
    steps += [Step("Add", (CHAINED, zero), {})] if zero else []
    steps += [Step("Clip", (CHAINED, *limits), {}), Step("Cast", (CHAINED,), {"to": ELEMENT_CODES[made.dtype]})]
    put_steps(editor, node, steps)


def _spread(editor: Editor, node: Node, value: str, behind: int) -> str:
    """Return a vector with so many axes of size 1 behind its own."""
    shape = editor.add_constant(f"{node.name}/shape", np.array([-1, *[1] * behind]))
    return editor.put_part(node, "Reshape", (value, shape))


def _weights(editor: Editor, node: Node, limit_bytes: int, *, native: bool) -> None:
    """MatMulNBits of float32 with constant weights: MatMul by the weights in float32, and the addition of a bias."""
    a, b, scales, zeros, order, bias = (*node.inputs, "", "", "")[:6]
    packed, steps_of = editor.constant(b), editor.constant(scales)
    made = editor.specs[node.outputs[0]]
    sizes_of = {name: node.attrs[name] for name in ("K", "N", "bits", "block_size")}
    grown_bytes = 4 * sizes_of["K"] * sizes_of["N"]
    if made is None or made.dtype != FLOAT or packed is None or steps_of is None:
        return
    if any(value and value not in editor.constants for value in (zeros, order)):
        return
    if sizes(editor.constants) + grown_bytes > limit_bytes:
        return
    from kernels.ops.weight_blocks import dequantised, is_in_words  # noqa: PLC0415  only where a model has such an op

    if native and is_in_words(node.attrs, ordered=bool(order)) and steps_of.dtype == FLOAT:
        return
    weights = np.ascontiguousarray(dequantised(packed, steps_of, editor.constant(zeros), editor.constant(order), **sizes_of).T)
    steps = [Step("MatMul", (a, editor.add_constant(f"{node.name}/weights", weights)), {})]
    put_steps(editor, node, [*steps, Step("Add", (CHAINED, bias), {})] if bias else steps)


_EXPANSIONS: Expansions = {
    **dict.fromkeys(FORMS, _qlinear),
    "QLinearConv": _conv,
    "QLinearMatMul": _matmul,
    "com.microsoft.QGemm": _gemm,
    "com.microsoft.QuantizeLinear": _same,
    "com.microsoft.DequantizeLinear": _same,
    "DynamicQuantizeLinear": _dynamic,
    "QuantizeLinear": _by_index,
    "DequantizeLinear": _by_index,
}
