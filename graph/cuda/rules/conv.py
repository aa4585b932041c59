"""Convolutions with constant weights: as products over windows, of all channels or of groups, or channel by channel."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from graph.cuda.facts import Facts
from graph.cuda.finishing import Finishing, finish, finishing, matrix_written
from graph.cuda.layouts import matrix_of, new_view
from graph.cuda.lowering import Lowering, Option
from graph.cuda.rule import Rule
from graph.cuda.rules.product import launch_product
from graph.ir import Node
from graph.native.facts import optional_input
from graph.native.place import Viewed
from kernels.cuda.emit.descriptor import OTHERS
from kernels.cuda.families.candidates import window_candidates
from kernels.cuda.families.problem import Problem, Window
from kernels.cuda.families.sliding import Windows
from kernels.ops.conv import geometry
from kernels.spec import Array

WIDE = 8  # channels of a group, which begin where kernels can copy 16 bytes
FEW_CHANNELS = 4  # of an image whose pixels get more channels, all 0: copies of 2 and 4 bytes are slow


def refuses(node: Node, facts: Facts) -> str | None:
    """Return why a Conv cannot run on a GPU, or None."""
    if reason := facts.not_f32(*node.inputs, node.outputs[0]):
        return reason
    if facts.spec(node.inputs[0]).rank not in (3, 4):
        return f"x is {facts.spec(node.inputs[0])}, need rank 3 or 4"
    if facts.computed(node.inputs[1:]):
        return "its weights are not constants"
    group, (outputs, inputs, *_) = node.attrs["group"], facts.spec(node.inputs[1]).shape
    depthwise = inputs == 1 and outputs == group
    if group > 1 and not depthwise and (inputs % WIDE or outputs // group % WIDE):
        return f"its {group} groups have {inputs} inputs and {outputs // group} outputs, need multiples of {WIDE}"
    return facts.refuses_epilogue(node)


def lower(b: Lowering, node: Node) -> None:
    """Append the launches of a convolution."""
    channels, group = b.spec(node.inputs[0]).shape[1], node.attrs["group"]
    bias = b.constants.get(optional_input(node, 2))
    done = finishing(b, node, "pixels", bias=bias)
    if group == channels == b.spec(node.inputs[1]).shape[0] and channels > 1:
        _depthwise(b, node, done)
    else:
        _grouped(b, node, done)


def window_of(b: Lowering, node: Node, channels: int) -> Window:
    """Return the windows of a convolution over images with so many channels; a row is an image of height 1."""
    x = b.spec(node.inputs[0])
    slide = geometry(x, b.spec(node.inputs[1]), **node.attrs)
    (kernel, strides, dilations, top, left), (*rows, columns) = slide.plane, slide.end
    height, width = (1, *x.shape[2:])[-2:]
    return Window(x.shape[0], height, width, channels, kernel, strides, (top, left, rows[0] if rows else 0, columns), dilations)


def _weights(b: Lowering, node: Node) -> Array:
    """Return the weights as (outputs, rows, columns, channels of a group)."""
    array = b.constants[node.inputs[1]]
    image = array.reshape(*array.shape[:2], -1, array.shape[-1])
    return image.transpose(0, 2, 3, 1)


def _depthwise(b: Lowering, node: Node, done: Finishing) -> None:
    x = b.matrix(node.inputs[0], "pixels")
    y, written = matrix_written(b, node.outputs[0], "pixels")
    window = window_of(b, node, x.view.shape[1])
    windows = Windows(window, x.view.strides[0], written.view.strides[0], done.strides)
    source = b.constants[node.inputs[1]]
    w = b.packed(source, "depthwise", lambda: _weights(b, node)[..., 0].transpose(1, 2, 0), for_tensor_cores=False)
    names = {"x": b.address(x), "w": b.address(w), "y": b.address(written), **finishing_names(b, done)}
    first = windows.form("depthwise", b.storage, bias=done.bias is not None, expression=done.expression)
    forms = [first, *(form for form in window_candidates(first) if form != first)]
    b.launch(
        "depthwise",
        *(
            Option(
                windows.launch(form, **names), (("pixels", str(form.pixels)), ("run", str(form.run)), ("taps", str(form.taps)))
            )
            for form in forms
        ),
    )
    finish(b, node, y, done)


def finishing_names(b: Lowering, done: Finishing) -> dict[str, str]:
    """Return the names of a kernel's bias and of the arrays that its expression reads."""
    names = dict(zip(OTHERS, (b.address(place) for place in done.others), strict=False))
    return names if done.bias is None else names | {"bias": b.address(done.bias)}


def _grouped(b: Lowering, node: Node, done: Finishing) -> None:
    group, (outputs, inputs, *_) = node.attrs["group"], b.spec(node.inputs[1]).shape
    source, each = b.constants[node.inputs[1]], outputs // group
    x = _few_channels(b, node) if inputs < FEW_CHANNELS and group == 1 else b.matrix(node.inputs[0], "pixels")
    channels = max(inputs, FEW_CHANNELS) if group == 1 else inputs
    y, written = matrix_written(b, node.outputs[0], "pixels")
    window = window_of(b, node, channels)

    def pack(part: slice) -> Array:
        made = np.zeros((each, *window.kernel, channels), np.float32)
        made[..., :inputs] = _weights(b, node)[part]
        return made

    for g in range(group):
        part = slice(g * each, (g + 1) * each)
        w = b.packed(source, ("conv", channels, g), lambda part=part: pack(part))  # type: ignore[misc]
        mine = done if group == 1 else _columns_of(b, done, part)
        launch_product(
            b,
            _problem(window, each, x, written, mine),
            x.under(x.view.sliced(1, g * inputs, inputs)) if group > 1 else x,
            w,
            written.under(written.view.sliced(1, part.start, each)),
            mine,
        )
    finish(b, node, y, done)


def _problem(window: Window, outputs: int, x: Viewed, y: Viewed, done: Finishing) -> Problem:
    """Return the product that a convolution is; over the pixels themselves where every window is one of them."""
    x_stride, y_stride = x.view.strides[0], y.view.strides[0]
    if (window.kernel, window.strides, window.padding) == ((1, 1), (1, 1), (0, 0, 0, 0)):
        rows = window.batch * window.height * window.width
        return Problem(rows, outputs, window.channels, None, x_stride, None, y_stride, done.strides)
    return Problem.convolution(window, outputs, x_stride=x_stride, y_stride=y_stride, others=done.strides)


def _columns_of(b: Lowering, done: Finishing, part: slice) -> Finishing:
    """Return what follows the columns of one group."""
    size = part.stop - part.start
    others = tuple(place.under(place.view.sliced(1, part.start, size)) for place in done.others)
    bias = None if done.bias is None else done.bias.under(done.bias.view.sliced(0, part.start, size))
    return replace(done, bias=bias, others=others)


def _few_channels(b: Lowering, node: Node) -> Viewed:
    """Copy an image of few channels to pixels of more, of which the last stay 0."""
    source = b.raw(node.inputs[0])
    n, channels, *plane = source.view.shape
    shape = (n, FEW_CHANNELS, *plane)
    whole = b.cleared(f"{node.inputs[0]} pixels", shape, b.dtype)
    view = new_view(shape, "pixels")
    b.copy(source, whole.under(view.sliced(1, 0, channels)))
    seen = matrix_of(view, "pixels")
    assert seen is not None, f"{node.name}: new pixels {view} must be a matrix"  # noqa: S101
    return whole.under(seen)


RULES = {"Conv": Rule(refuses, lower)}
