"""Quantised ops on many random integers, against ONNX Runtime: how many results are one step off, and that none is more.

ONNX Runtime computes most of these ops in tables, or in other orders than DequantizeLinear, the op and QuantizeLinear, as is done
here. A result that lies between two steps may so become either of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kernels.registry import evaluate, find
from kernels.spec import Array
from tests.kernels.ops.models import one_node_model
from tests.kernels.ops.test_onnxruntime import session

DRAWS = 6
OPSET = 21
SHAPE = (2, 12, 19, 23)

# Attributes, how many tensors it takes, and which share of all results may be one step off
OPS: dict[str, tuple[dict[str, Any], int, float]] = {
    "QLinearAdd": ({}, 2, 1e-3),
    "QLinearMul": ({}, 2, 1e-4),
    "QLinearSigmoid": ({}, 1, 0),
    "QLinearLeakyRelu": ({"alpha": 0.1}, 1, 0),
    "QLinearSoftmax": ({"axis": 3, "opset": 13}, 1, 0.03),  # it adds exponentials that it has rounded to integers
    "QLinearAveragePool": ({"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]}, 1, 1e-3),
    "QLinearGlobalAveragePool": ({}, 1, 1e-2),
}


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize("name", OPS)
def test_random_integers_are_computed_as_in_onnxruntime(name: str, kind: str) -> None:
    attrs, tensors, share = OPS[name]
    rng = np.random.default_rng(len(name))
    limits = np.iinfo(kind)
    counted = np.zeros(2, int)
    for _ in range(DRAWS):
        inputs: list[Array | None] = []
        for _ in range(tensors):
            inputs += [rng.integers(limits.min, limits.max, SHAPE, endpoint=True).astype(kind), *_point(rng, kind, 0.05)]
        inputs += _point(rng, kind, 1 / 256 if name in ("QLinearSigmoid", "QLinearSoftmax") else 0.06)
        (ours,) = evaluate(find(f"com.microsoft.{name}"), inputs, attrs)
        model = one_node_model(name, inputs, 1, attrs, domain="com.microsoft", opset=OPSET)
        (theirs,) = session(model).run(None, {f"x{i}": array for i, array in enumerate(inputs)})
        steps = np.abs(ours.astype(int) - theirs.astype(int))
        assert steps.max() <= 1
        counted += steps.sum(), steps.size
    assert counted[0] <= share * counted[1], f"{counted[0]} of {counted[1]} are one step off"


def _point(rng: np.random.Generator, kind: str, scale: float) -> list[Array]:
    """Return a scale near the given one, and a zero point near the middle of the range."""
    zero = np.iinfo(kind).min + int(rng.integers(100, 156))
    return [np.array(scale * rng.uniform(0.8, 1.25), np.float32), np.array(zero, kind)]
