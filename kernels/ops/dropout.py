"""Dropout: at inference the input unchanged; in training each element is 0 with a probability, and the others grow to make up."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.batch_axis import Application, only_first_input_has_rows
from kernels.cost import Cost
from kernels.errors import AttributeValueError, DTypeError, ShapeError
from kernels.half import in_single
from kernels.operands import NUMBERS
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.scratch import for_each
from kernels.spec import BOOL, FLOATS, Array, Spec

_RATIO = 0.5  # where none is given
_TRAINING_FLOPS = 3


def infer(x: Spec, ratio: Spec | None = None, training_mode: Spec | None = None, *, seed: int | None = None) -> tuple[Spec, Spec]:
    """x again, and a bool mask of its shape."""
    require_dtype("Dropout: x", x, FLOATS)
    if seed is not None and not 0 <= seed < 1 << 32:
        raise AttributeValueError(f"Dropout: seed is {seed}, need one in [0, 2³²)")
    for name, spec, allowed in (("ratio", ratio, NUMBERS), ("training_mode", training_mode, frozenset({BOOL}))):
        if spec is None:
            continue
        require_dtype(f"Dropout: {name}", spec, allowed)
        if spec.elements != 1:
            raise ShapeError(f"Dropout: {name} is {spec}, need one element")
    return Spec(x.shape, x.dtype), Spec(x.shape, BOOL)


def cost(out: tuple[Spec, ...], x: Spec, ratio: Spec | None = None, training_mode: Spec | None = None, **attrs: Any) -> Cost:
    """0 at inference; in training 3 per element: draw, compare, multiply. Where only a run knows the mode, it is training."""
    if training_mode is None or (training_mode.value is not None and not training_mode.value.any()):
        return Cost()
    return Cost(other_flops=_TRAINING_FLOPS * x.elements)


@in_single
def run(
    out: tuple[Array | None, ...],
    x: Array,
    ratio: Array | None = None,
    training_mode: Array | None = None,
    *,
    seed: int | None = None,
) -> None:
    """Draw as ONNX's reference: a seed gives numpy's numbers of RandomState. Raises AttributeValueError for a bad ratio."""
    y, mask = (*out, None)[:2]
    share = 0.0
    if training_mode is not None and training_mode.any():
        share = _RATIO if ratio is None else float(ratio.reshape(()))
        if not 0 <= share < 1:
            raise AttributeValueError(f"Dropout: ratio is {share}, need one in [0, 1)")
    kept = np.ones(x.shape, np.bool_) if not share else np.random.RandomState(seed).uniform(size=x.shape) >= share
    if y is not None:
        np.copyto(y, x if not share else np.where(kept, x, 0) * x.dtype.type(1 / (1 - share)))
    if mask is not None:
        np.copyto(mask, kept)


def upgrade(opset: int, attrs: dict[str, Any], outputs: int) -> tuple[dict[str, Any], dict[int, Array]]:
    """Before opset 12 the ratio was an attribute; inference has no use for it."""
    return ({name: value for name, value in attrs.items() if name != "ratio"} if opset < 12 else attrs), {}


def mixes_rows(call: Application) -> str:
    """Training draws a mask for the whole batch."""
    return "it may be training" if any(call.inputs[2:]) else only_first_input_has_rows(call)


_HALF, _YES, _NO = np.array(0.5, np.float32), np.array(True), np.array(False)
CASES = (
    Case("plain", inputs=((2, 3),), cost=Cost()),
    Case("mask", inputs=((2, 3), _HALF, _NO), outputs=2, cost=Cost()),
    Case("empty", inputs=((0, 3),), outputs=2),
    Case("training", inputs=((2, 3), _HALF, _YES), attrs={"seed": 3}, outputs=2, cost=Cost(other_flops=18)),
    Case("training_keeps_all", inputs=((2, 3), np.array(0.0), _YES), outputs=2),
    Case("training_half", inputs=(np.ones((4, 3), np.float16), None, _YES), attrs={"seed": 1}, outputs=2),
    Case("training_number", inputs=((2, 3), _HALF, np.array(0, np.int64)), raises=DTypeError),
    Case("two_modes", inputs=((2, 3), _HALF, np.array([True, False])), raises=ShapeError),
    Case("seed", inputs=((2, 3),), attrs={"seed": -1}, raises=AttributeValueError),
    Case("ints", inputs=(np.ones(2, np.int32),), raises=DTypeError),
)

DROPOUT = Op(
    "Dropout",
    infer,
    cost,
    (Kernel("draw", run, scratch_bytes=for_each(24)),),
    deterministic=False,
    upgrade=upgrade,
    mixes_rows=mixes_rows,
    cases=CASES,
)
