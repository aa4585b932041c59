"""Matrix products: with a constant second factor packed once, or of two tensors in any strides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from graph.choice import Choice
from graph.ir import Node
from graph.native.epilogue_operands import make_epilogue, row_operand
from graph.native.expressions import express_epilogue
from graph.native.facts import Facts, optional_input
from graph.native.lowering import Lowering
from graph.native.rule import Rule, all_values
from graph.native.rules.direct import (
    bias_argument,
    fold_bias,
    in_rows,
    pack_as_words,
    precisions_of,
    rows_image,
    rows_in_words,
    tile_of,
    tiles_of,
    work_in_words,
)
from graph.native.rules.normalize import aligned_view, view_epilogue
from graph.native.values import overwritable
from graph.native.work import Work, streamed_work
from kernels.errors import UnsupportedError
from kernels.native.emit.epilogue import Epilogue
from kernels.native.emit.geometry import Conv
from kernels.native.emit.words import words_of
from kernels.native.families.conv import emit_conv
from kernels.native.families.matmul import MatMul, emit_matmul, matmul_tiles
from kernels.native.memory.view import View
from kernels.spec import Array


def refuses(node: Node, facts: Facts) -> str | None:
    """Return why a product has no native form, or None."""
    if reason := facts.not_f32(*node.inputs, node.outputs[0]):
        return reason
    if min(facts.spec(name).rank for name in node.inputs[:2]) < 2:
        return "one of its factors is a vector"
    if not all(facts.spec(name).elements for name in node.inputs[:2]):
        return "one of its factors is empty"
    if _addend(node) and not _takes_addend(node, facts):
        return "its addend is scaled and not a constant"
    return facts.refuses_epilogue(node)


def _is_packed(node: Node, constants: Mapping[str, Array]) -> bool:
    """Whether the second factor is a constant matrix, and the first is not transposed."""
    return node.inputs[1] in constants and constants[node.inputs[1]].ndim == 2 and not node.attrs.get("transA", 0)


def _takes_addend(node: Node, facts: Facts) -> bool:
    c, y = facts.spec(node.inputs[2]), facts.spec(node.outputs[0])
    is_bias = node.inputs[2] in facts.constants and c.elements == y.shape[1] and c.shape[-1:] == y.shape[1:]
    return (is_bias and _is_packed(node, facts.constants)) or node.attrs["beta"] == 1


def lower(b: Lowering, node: Node) -> None:
    """Append a product: with packed weights where these are constant, else of two tensors in their strides."""
    if _is_packed(node, b.constants):
        _packed(b, node)
    else:
        _product(b, node)


def _addend(node: Node) -> str:
    """Return the third input of a Gemm, which is added; "" where there is none."""
    return optional_input(node, 2) if node.op == "Gemm" else ""


def _product(b: Lowering, node: Node) -> None:
    """Append a product of two tensors in any strides, batch by batch."""
    value = node.outputs[0]
    shape = b.spec(value).shape
    alpha = 1.0
    factors = [aligned_view(b.values.strided(name), len(shape)) for name in node.inputs[:2]]
    if node.op == "Gemm":
        alpha = float(node.attrs["alpha"])
        turned = (node.attrs["transA"], node.attrs["transB"])
        factors = [f.under(f.view.transposed((1, 0))) if turn else f for f, turn in zip(factors, turned, strict=True)]
    bound = express_epilogue(node, b.sources, _addend(node))
    epilogue, operands = view_epilogue(b, bound, shape, shape)
    y = b.values.new(value)
    if not _writes(y.view, epilogue):
        y = b.values.new_dense(value)
    matmul = MatMul(factors[0].view, factors[1].view, y.view, alpha, epilogue)
    tiles = {str(tile): tile for tile in matmul_tiles(matmul, b.isa)}
    wanted = b.choice(node).param("tile") or next(iter(tiles))
    if wanted not in tiles:
        raise UnsupportedError(f"matmul: tile is {wanted!r:.60}, need one of {', '.join(tiles)}")
    places = {"a": factors[0], "b": factors[1], **operands, "y": y}
    b.calls.append(emit_matmul(matmul, tiles[wanted], b.isa), {name: place.storage for name, place in places.items()})


def _writes(y: View, epilogue: Epilogue[View]) -> bool:
    """Whether the kernel can write a result that lies so: along its rows, or along its columns as all operands lie too."""
    if y.shape[-1] > 1 and y.strides[-1] == 1:
        return True
    return y.strides[-2] == 1 and all(view.shape[-2] == 1 or view.strides[-2] == 1 for view in epilogue.operands)


def _packed(b: Lowering, node: Node) -> None:
    """Append a product as a convolution with a 1x1 kernel: rows are pixels, columns are channels."""
    value, weights = node.outputs[0], b.constants[node.inputs[1]]
    shape = b.spec(value).shape
    transposed, alpha = False, 1.0
    if node.op == "Gemm":
        transposed, alpha = bool(node.attrs["transB"]), float(node.attrs["alpha"])
    bound = express_epilogue(node, b.sources, _addend(node))
    rest, bias = fold_bias(bound, None, b.constants, shape[-1], shape, axis=-1)
    if node.op == "Gemm" and node.attrs["beta"] != 1:
        bias = np.ascontiguousarray(bias * np.float32(node.attrs["beta"]))
    inner, columns = weights.shape[::-1] if transposed else weights.shape
    rows, words = b.spec(value).elements // columns, words_of(b.choice(node).precision)
    x, step = rows_in_words(b, node.inputs[0], rows, inner, words)
    epilogue, operands = make_epilogue(b, rest, row_operand, shape, bias=True)
    y = b.values.new(value, overwritable(list(operands.values()), [x]))
    matrix = y.view.reshaped((rows, columns))
    if matrix is None or (columns > 1 and matrix.strides[1] != 1):
        y = b.values.new_dense(value)
        matrix = View.dense((rows, columns))
    conv = Conv(rows_image(rows, inner, step), rows_image(rows, columns, max(matrix.strides[0], columns))).counted(words)
    tile = tile_of(b.choice(node), conv, b.isa)

    def pack() -> Array:
        outputs = weights if transposed else weights.T
        scaled = outputs if alpha == 1 else outputs * np.float32(alpha)
        return pack_as_words(conv, tile, b.isa, scaled[:, :, None, None])

    packed = b.packed.storage(weights, ("matrix", tile.vectors, transposed, alpha, words), pack)
    places = {"x": x, "w": packed, "y": y, **bias_argument(b, conv, bias, tile.vectors), **operands}
    b.calls.append(emit_conv(conv, tile, epilogue, b.isa), places)


def candidates(node: Node, facts: Facts) -> Sequence[Choice]:
    """Return the tiles of a product with packed weights, the best by the port model first.

    A product of two tensors has one candidate: its tile depends on their strides, which are known when it is lowered.
    """
    if not _is_packed(node, facts.constants):
        return [Choice("native", "matmul")]
    conv = in_rows(node, facts)
    return [c for precision in precisions_of(node, facts) for c in tiles_of("product", conv, node, facts, precision)]


def work(node: Node, facts: Facts, choice: Choice) -> Work:
    """Return the work of a candidate, by the port model where the second factor is packed."""
    if not _is_packed(node, facts.constants):
        return streamed_work("matmul", node, facts, wants="rows")
    return work_in_words("product", in_rows(node, facts), node, facts, choice)


def _holds(node: Node, choice: Choice) -> Sequence[str]:
    """Return the values that a product takes as bfloat16: all with packed weights of that type."""
    return all_values(node, choice) if choice.precision == "bf16" else ()


RULES = dict.fromkeys(("MatMul", "Gemm"), Rule(refuses, lower, candidates, work, holds=_holds))
