"""Max and average pools over windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from graph.ir import Node
from graph.native.epilogue_operands import image_operand, make_epilogue
from graph.native.expressions import BoundExpression, express_epilogue
from graph.native.facts import Facts
from graph.native.lowering import Lowering
from graph.native.rule import all_values, one_algorithm
from graph.native.rules.direct import depth_of
from kernels.expression import FLOAT, Apply, Expression
from kernels.native.emit.geometry import Conv
from kernels.native.emit.words import INT8, UINT8, Words
from kernels.native.families.pool import Pooling, emit_pooling
from kernels.native.memory.image import Image
from kernels.ops.pool import geometry

BYTES = (INT8, UINT8)
# Maxima of bytes are computed in float32, which holds them exactly, and converted back.
AS_BYTES = {dtype: BoundExpression(("",), Expression((FLOAT,), (Apply("cast", (0,), (), dtype),))) for dtype in BYTES}


def refuses(node: Node, facts: Facts) -> str | None:
    """Return why a pool has no native form, or None."""
    if reason := facts.not_image(node.inputs[0]):
        return reason
    if in_bytes := node.op == "MaxPool" and facts.spec(node.inputs[0]).dtype in BYTES:
        reason = "its epilogue computes with bytes" if node.epilogue else None
    if reason or (not in_bytes and (reason := facts.not_f32(node.inputs[0]))):
        return reason
    if any(node.outputs[1:]):
        return "the output of indices of the maxima is used"
    return None if in_bytes else facts.refuses_epilogue(node)


def lower(b: Lowering, node: Node) -> None:
    """Append the call of a pool."""
    append_pool(b, node, lambda x, y: _pooling(b, node, x, y))


def append_pool(b: Lowering, node: Node, pooling: Callable[[Image, Image], Pooling]) -> None:
    """Append a call that pools an image in blocks. pooling: returns the pool between the layouts of the input and the result."""
    y_shape = b.spec(node.outputs[0]).shape
    x = b.values.blocked(node.inputs[0])
    dtype = b.spec(node.outputs[0]).dtype
    bound = AS_BYTES[dtype] if dtype in BYTES else express_epilogue(node, b.sources)
    epilogue, operands = make_epilogue(b, bound, image_operand, y_shape, bias=False)
    y = b.values.new_image(node.outputs[0])
    pool = pooling(x.image, y.image)
    pool = replace(pool, window=replace(pool.window, words=Words(x.storage.dtype)))
    b.calls.append(emit_pooling(pool, epilogue, b.isa), {"x": x, "y": y, **operands})


def _pooling(b: Lowering, node: Node, x: Image, y: Image) -> Pooling:
    """Return the pool of a node between two images."""
    slide = geometry(node.op, b.spec(node.inputs[0]), dict(node.attrs))
    pooling = Pooling(Conv(x, y, *slide.plane, x.channels, depth_of(slide)), "max")
    if node.op == "MaxPool":
        return pooling
    end = slide.end if pooling.window.depth is not None else (0, *slide.end)[-2:]
    return replace(pooling, kind="average", counted=end if node.attrs["count_include_pad"] else None)


_RULE = one_algorithm("windows", refuses, lower, kind="pool", wants="blocks", holds=all_values)
RULES = dict.fromkeys(("MaxPool", "AveragePool"), _RULE)
