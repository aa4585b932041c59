"""Max and average pools over windows."""

from __future__ import annotations

from graph.cuda.facts import Facts
from graph.cuda.finishing import finish, finishing, matrix_written
from graph.cuda.lowering import Lowering, Option
from graph.cuda.rule import Rule
from graph.cuda.rules.conv import finishing_names
from graph.ir import Node
from kernels.cuda.families.problem import Window
from kernels.cuda.families.sliding import WindowOp, Windows
from kernels.ops.pool import geometry
from kernels.windows import Window as Slide

_OPS: dict[str, WindowOp] = {"MaxPool": "max_pool", "AveragePool": "average_pool"}


def refuses(node: Node, facts: Facts) -> str | None:
    """Return why a pool cannot run on a GPU, or None."""
    if reason := facts.not_f32(node.inputs[0], node.outputs[0]):
        return reason
    if facts.spec(node.inputs[0]).rank not in (3, 4):
        return f"x is {facts.spec(node.inputs[0])}, need rank 3 or 4"
    if any(node.outputs[1:]):
        return "the output of indices of the maxima is used"
    return facts.refuses_epilogue(node)


def lower(b: Lowering, node: Node) -> None:
    """Append a pool."""
    spec = b.spec(node.inputs[0])
    slide = geometry(node.op, spec, dict(node.attrs))
    done = finishing(b, node, "pixels", takes_bias=False)
    x = b.matrix(node.inputs[0], "pixels")
    y, written = matrix_written(b, node.outputs[0], "pixels")
    counted = bool(node.attrs.get("count_include_pad", 0))
    windows = Windows(_window(spec.shape, slide), x.view.strides[0], written.view.strides[0], done.strides, counted)
    form = windows.form(_OPS[node.op], b.storage, expression=done.expression)
    names = {"x": b.address(x), "y": b.address(written), **finishing_names(b, done)}
    b.launch("windows", Option(windows.launch(form, **names)))
    finish(b, node, y, done)


def _window(shape: tuple[int, ...], slide: Slide) -> Window:
    """Return the windows over images; the padding behind them is as much as the last window reaches, as ceil_mode rounds up."""
    kernel, strides, dilations, top, left = slide.plane
    n, channels, *plane = shape
    height, width = (1, *plane)[-2:]
    out = (1, *slide.out)[-2:]
    sizes = ((height, top), (width, left))
    each = zip(out, sizes, kernel, strides, dilations, strict=True)
    bottom, right = (
        (count - 1) * stride + dilation * (taps - 1) + 1 - size - begin for count, (size, begin), taps, stride, dilation in each
    )
    return Window(n, height, width, channels, kernel, strides, (top, left, bottom, right), dilations)


RULES = dict.fromkeys(_OPS, Rule(refuses, lower))
