"""Random attributes, sizes and shapes of ops that have many of them, against ONNX Runtime.

What is left out of the draws is where ONNX Runtime is not followed, as `docs/numerics.md` says.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kernels.errors import EdgewiseError
from kernels.spec import Array
from tests.kernels.ops.cases import assert_close
from tests.kernels.ops.models import evaluate_node, one_node_model
from tests.kernels.ops.test_onnxruntime import session

Draw = tuple[str, list[Array | None], dict[str, Any], int]  # operator, inputs, attributes, number of outputs
DRAWS = 200
OPSET = 22
EPS = 256  # ONNX Runtime computes coordinates and weights in fp32
MEANINGLESS = "wider than the input|need less than the kernel"  # pools that are refused here, and not always there


def resize(rng: np.random.Generator) -> Draw:
    """Any mode, coordinates, rounding and policy; no axis keeps its size."""
    mode = str(rng.choice(["nearest", "linear", "cubic"]))
    places = ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize"]
    attrs: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": str(rng.choice(places))}
    if mode == "nearest":
        attrs["nearest_mode"] = str(rng.choice(["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]))
    else:
        attrs["antialias"] = int(rng.integers(2))
    if mode == "cubic":
        attrs |= {"exclude_outside": int(rng.integers(2)), "cubic_coeff_a": float(rng.choice([-0.75, -0.5]))}
    roi = None
    if attrs["coordinate_transformation_mode"] == "tf_crop_and_resize":
        attrs["extrapolation_value"] = 9.0
        roi = np.array([0, 0, *rng.choice([0, 0.1, 0.3], 2), 1, 1, *rng.choice([0.7, 1, 1.2], 2)], np.float32)
    sides = rng.integers(2, 16, 2)
    x, sizes, scales = rng.standard_normal((1, 2, *sides)).astype(np.float32), None, None
    if rng.integers(2):
        scales = np.array([1, 1, *np.round(rng.uniform(0.5, 2.7, 2), int(rng.integers(3)))], np.float32)
        new = np.floor(sides.astype(np.float32) * scales[2:])
    else:
        new = rng.integers(1, 30, 2)
        sizes = np.array([1, 2, *new])
        policy = str(rng.choice(["stretch", "not_larger", "not_smaller"]))
        if policy != "stretch":
            attrs |= {"keep_aspect_ratio_policy": policy, "axes": (2, 3)}
            sizes, roi = sizes[2:], None if roi is None else roi[[2, 3, 6, 7]]
            factor = np.float32({"not_larger": min, "not_smaller": max}[policy](new / sides))
            new = np.floor(sides.astype(np.float32) * factor + 0.5)
    if (new == sides).any() or 0 in new:
        return resize(rng)
    return "Resize", [x, roi, None, sizes] if scales is None else [x, roi, scales], attrs, 1


def grid_sample(rng: np.random.Generator) -> Draw:
    """Any mode and padding, of images and volumes; no position lies in the middle of two pixels."""
    rank = int(rng.integers(2, 4))
    mode = str(rng.choice(["linear", "nearest", "cubic"] if rank == 2 else ["linear", "nearest"]))
    padding = str(rng.choice(["zeros", "border", "reflection"]))
    x = rng.standard_normal((2, 3, *rng.integers(1, 6, rank))).astype(np.float32)
    grid = rng.uniform(-2.5, 2.5, (2, *rng.integers(1, 5, rank), rank)).astype(np.float32)
    return "GridSample", [x, grid], {"mode": mode, "padding_mode": padding, "align_corners": int(rng.integers(2))}, 1


def pool(rng: np.random.Generator) -> Draw:
    """Any pool of which every window holds an element; SAME pads windows neither dilated nor narrower than their stride."""
    name = str(rng.choice(["MaxPool", "AveragePool", "LpPool"]))
    rank = int(rng.integers(1, 4))
    x = rng.standard_normal((1, 2, *rng.integers(2, 9, rank))).astype(np.float32)
    kernel = rng.integers(1, 5, rank)
    attrs: dict[str, Any] = {"kernel_shape": kernel.tolist(), "ceil_mode": int(rng.integers(2))}
    auto_pad = str(rng.choice(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    attrs["strides"] = np.minimum(rng.integers(1, 4, rank), kernel).tolist()
    if auto_pad == "NOTSET":
        attrs |= {
            "dilations": rng.integers(1, 3, rank).tolist(),
            "pads": (rng.integers(0, 4, 2 * rank) % np.tile(kernel, 2)).tolist(),
        }
    else:
        attrs["auto_pad"] = auto_pad
    if name == "AveragePool":
        attrs["count_include_pad"] = int(rng.integers(2))
    if name == "LpPool":
        attrs["p"] = int(rng.integers(1, 4))
    if name == "MaxPool":
        attrs["storage_order"] = int(rng.integers(2))
    return name, [x], attrs, 1 + (name == "MaxPool")


@pytest.mark.parametrize("draw", [resize, grid_sample, pool], ids=lambda draw: draw.__name__)
def test_random_attributes_agree_with_onnxruntime(draw: Callable[[np.random.Generator], Draw]) -> None:
    rng = np.random.default_rng(11)
    compared = 0
    for _ in range(DRAWS):
        name, inputs, attrs, outputs = draw(rng)
        model = one_node_model(name, inputs, outputs, attrs, opset=OPSET)
        try:
            ours = evaluate_node(model.graph.node[0], OPSET, inputs)
        except EdgewiseError as error:
            if re.search(MEANINGLESS, str(error)) is None:
                raise
            continue
        theirs = session(model).run(None, {f"x{i}": a for i, a in enumerate(inputs) if a is not None})
        for y, expected in zip(ours, theirs, strict=True):
            try:
                assert_close(y, expected, EPS)
            except AssertionError as error:
                error.add_note(f"{name} of {[None if a is None else a.shape for a in inputs]}, {inputs[2:]}, {attrs}")
                raise
        compared += 1
    assert compared > DRAWS / 2
