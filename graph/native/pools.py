"""Max and average pools, global ones included."""

from __future__ import annotations

from dataclasses import replace

from graph.ir import Node
from graph.native.epilogues import steps_of
from graph.native.lowering import Lowering
from graph.native.place import is_image
from graph.native.rule import Facts, Rule, is_f32, only, plain
from kernels.native.geometry import Conv
from kernels.native.layout import Image
from kernels.native.pooling import Pooling, emit_pooling
from kernels.ops.pool import geometry


def refuses(node: Node, facts: Facts) -> str | None:
    """Why a pool has no native form, or None."""
    x, y = facts.spec(node.inputs[0]), facts.spec(node.outputs[0])
    if not is_f32(x, y):
        return "it is not fp32"
    if not is_image(x.shape):
        return f"x is {x}, need rank 3 or 4"
    if len(node.outputs) > 1 and node.outputs[1]:
        return "the indices of the maxima are asked for"
    return facts.refuses_epilogue(node)


def lower(b: Lowering, node: Node) -> None:
    """A pool as a call."""
    y_shape = b.spec(node.outputs[0]).shape
    x = b.blocked(node.inputs[0])
    epilogue, operands = b.finish(steps_of(node, b.constants), lambda name: b.image_operand(name, y_shape), bias=False)
    y = b.new_image(node.outputs[0])
    b.call(emit_pooling(_pooling(b, node, x.image, y.image), epilogue, b.isa), {"x": x, "y": y, **operands})


def _pooling(b: Lowering, node: Node, x: Image, y: Image) -> Pooling:
    """The pool of a node between two images."""
    if node.op.startswith("Global"):
        kind = "max" if node.op == "GlobalMaxPool" else "average"
        return Pooling(Conv(x, y, (x.height, x.width), groups=x.channels), kind)  # type: ignore[arg-type]
    slide = geometry(node.op, b.spec(node.inputs[0]), dict(node.attrs))
    kernel, strides, dilations, begin, end = (
        (missing, v[0]) if len(v) == 1 else (v[0], v[1])
        for v, missing in ((slide.kernel, 1), (slide.strides, 1), (slide.dilations, 1), (slide.begin, 0), (slide.end, 0))
    )
    pooling = Pooling(Conv(x, y, kernel, strides, dilations, *begin, x.channels), "max")
    if node.op == "MaxPool":
        return pooling
    return replace(pooling, kind="average", counted=end if node.attrs["count_include_pad"] else None)


RULES = dict.fromkeys(
    ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"),
    Rule(refuses, lower, only("windows"), plain("pool", wants="blocks")),
)
