"""Resizing of images along rows and columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graph.choice import Choice
from graph.ir import Node
from graph.native.epilogue_operands import image_operand, make_epilogue
from graph.native.expressions import express_epilogue
from graph.native.facts import Facts
from graph.native.lowering import Lowering
from graph.native.rule import Rule, parse_tile, streamed
from graph.native.values import overwritable
from kernels.errors import UnsupportedError
from kernels.native.families.resize import (
    MOST_TAPS,
    ResizeTile,
    Resizing,
    Side,
    emit_resize,
    make_resize_tile,
    resize_tiles,
)
from kernels.native.memory.image import Image
from kernels.native.target.isa import Isa
from kernels.ops.resize import resize_plans, upsample_attributes
from kernels.record import record
from kernels.resampling import Axis, Pass, leaves_alone, resize_axis, tap_count
from kernels.spec import Spec

_ATTRIBUTES = ("mode", "coordinate_transformation_mode", "nearest_mode", "cubic_coeff_a", "antialias", "exclude_outside")


def refuses(node: Node, facts: Facts) -> str | None:
    """Return why a resizing has no native form, or None."""
    if reason := facts.not_f32(node.inputs[0], node.outputs[0]) or facts.not_image(node.inputs[0], (3, 4)):
        return reason
    attrs = _attributes(node)
    outer = (plan for plan in resize_plans(*_inputs(node, facts), **attrs) if plan.axis < 2)
    if not all(leaves_alone(resize_axis(plan, **attrs), plan.size_in) for plan in outer):
        return "it resizes the batch or channels, only rows and columns have a native form"
    return facts.refuses_epilogue(node)


def lower(b: Lowering, node: Node) -> None:
    """Append the call of a resizing."""
    y_shape = b.spec(node.outputs[0]).shape
    x = b.values.blocked(node.inputs[0])
    epilogue, operands = make_epilogue(b, express_epilogue(node, b.sources), image_operand, y_shape, bias=False)
    y = b.values.new_image(node.outputs[0], overwritable(list(operands.values()), [x]))
    resizing = resizing_of(node, b.facts, x.image, y.image)
    kernel = emit_resize(resizing, tile_of(resizing, b.choice(node), b.isa), epilogue, b.isa)
    b.calls.append(kernel, {"x": x, "y": y, **operands})


def candidates(node: Node, facts: Facts) -> Sequence[Choice]:
    """Return the forms and tiles of a resizing, the best by the port model first."""
    x, y = facts.image_in_blocks(node.inputs[0]), facts.image_in_blocks(node.outputs[0])
    tiles = resize_tiles(resizing_of(node, facts, x, y), facts.isa)
    return [Choice("native", "separable" if tile.separable else "direct", (("tile", str(tile)),)) for tile in tiles]


def tile_of(resizing: Resizing, choice: Choice, isa: Isa) -> ResizeTile:
    """Return the tile of a choice, or the best of its form. Raises UnsupportedError where the resizing has no such tile."""
    separable = choice.algorithm == "separable"
    if not separable and resizing.rows.taps > MOST_TAPS:
        raise UnsupportedError(f"resize: a row has {resizing.rows.taps} taps, {MOST_TAPS} at most go directly")
    if (text := choice.param("tile")) is not None:
        return make_resize_tile(resizing, isa, *parse_tile(text), separable=separable)
    return next(tile for tile in resize_tiles(resizing, isa) if tile.separable == separable)


def resizing_of(node: Node, facts: Facts, x: Image, y: Image) -> Resizing:
    """Return the resizing of an image in these layouts. An axis that is not resized is copied; a 1-D image has one row."""
    attrs = _attributes(node)
    plans = {plan.axis: plan for plan in resize_plans(*_inputs(node, facts), **attrs)}
    axes = (2, 3) if facts.spec(node.inputs[0]).rank == 4 else (-1, 2)
    rows, columns = (_side(plans.get(axis), size, attrs) for axis, size in zip(axes, x.plane, strict=True))
    crops = attrs["coordinate_transformation_mode"] == "tf_crop_and_resize"
    return Resizing(x, y, rows, columns, float(attrs["extrapolation_value"]) if crops else None)


def _attributes(node: Node) -> dict[str, Any]:
    return dict(node.attrs) if node.op == "Resize" else upsample_attributes(**node.attrs)


def _inputs(node: Node, facts: Facts) -> tuple[Spec, *tuple[Spec | None, ...]]:
    """Return the specs of the inputs. Scales or sizes are known, because the shape of the result is."""
    return facts.spec(node.inputs[0]), *(facts.spec(name) if name else None for name in node.inputs[1:])


@record
class _Resampled:
    """A pure function of an axis' sizes and scale that returns its pass. attrs: of Resize, those that decide about an axis."""

    attrs: tuple[tuple[str, Any], ...]
    roi: tuple[float, float]

    def __call__(self, size_in: int, size_out: int, *ratio: int) -> Pass:
        return resize_axis(Axis(0, size_in, size_out, (ratio[0], ratio[1]), self.roi), **dict(self.attrs))


def _copied(size: int) -> Pass:
    """Return the pass of an axis that is not resized."""
    return Pass(0, np.arange(size)[:, None], None, np.zeros(size, bool))


def _side(plan: Axis | None, size: int, attrs: Mapping[str, Any]) -> Side:
    """Return one side of a resizing. Coordinates are monotonic, so positions outside the image are at the ends."""
    if plan is None:
        return Side(1, False, _copied, (size,))
    weighted = attrs["mode"] != "nearest"
    taps = tap_count(plan, attrs["mode"], attrs["antialias"]) if weighted else 1
    make = _Resampled(tuple((name, attrs[name]) for name in _ATTRIBUTES), plan.roi)
    return Side(taps, weighted, make, (plan.size_in, plan.size_out, *plan.ratio))


RULES = dict.fromkeys(("Resize", "Upsample"), Rule(refuses, lower, candidates, streamed("resize", wants="blocks")))
