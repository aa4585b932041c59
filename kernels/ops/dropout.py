"""Dropout at inference: the input unchanged, and a mask that drops nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.batch_axis import Application, only_first_input_has_rows
from kernels.cost import Cost, moves
from kernels.errors import DTypeError, UnsupportedError
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.scratch import fixed
from kernels.spec import BOOL, FLOATS, Array, Spec


def infer(x: Spec, ratio: Spec | None = None, training_mode: Spec | None = None, *, seed: int | None = None) -> tuple[Spec, Spec]:
    """x again, and a bool mask of its shape. Refuses training."""
    require_dtype("Dropout: x", x, FLOATS)
    if training_mode is not None:
        require_dtype("Dropout: training_mode", training_mode, frozenset({BOOL}))
        if training_mode.value is not None:
            _refuse_training(training_mode.value)
    return Spec(x.shape, x.dtype), Spec(x.shape, BOOL)


def _refuse_training(training_mode: Array) -> None:
    if training_mode.any():
        raise UnsupportedError(f"Dropout: training_mode is {training_mode.ravel()[0]}, only inference is supported: 0")


def run(
    out: tuple[Array | None, ...],
    x: Array,
    ratio: Array | None = None,
    training_mode: Array | None = None,
    *,
    seed: int | None = None,
) -> None:
    """A copy, and ones."""
    if training_mode is not None:
        _refuse_training(training_mode)
    if out[0] is not None:
        np.copyto(out[0], x)
    if len(out) > 1 and out[1] is not None:
        out[1].fill(True)


def upgrade(opset: int, attrs: dict[str, Any], outputs: int) -> tuple[dict[str, Any], dict[int, Array]]:
    """Before opset 12 the ratio was an attribute; inference has no use for it."""
    return ({name: value for name, value in attrs.items() if name != "ratio"} if opset < 12 else attrs), {}


def mixes_rows(call: Application) -> str:
    """Training draws a mask for the whole batch."""
    return "it may be training" if any(call.inputs[2:]) else only_first_input_has_rows(call)


_HALF, _YES, _NO = np.array(0.5, np.float32), np.array(True), np.array(False)
CASES = (
    Case("plain", inputs=((2, 3),), cost=Cost()),
    Case("mask", inputs=((2, 3), _HALF, _NO), outputs=2),
    Case("empty", inputs=((0, 3),), outputs=2),
    Case("training", inputs=((2, 3), _HALF, _YES), raises=UnsupportedError),
    Case("training_number", inputs=((2, 3), _HALF, np.array(0, np.int64)), raises=DTypeError),
    Case("ints", inputs=(np.ones(2, np.int32),), raises=DTypeError),
)

DROPOUT = Op(
    "Dropout", infer, moves, (Kernel("copy", run, scratch_bytes=fixed),), upgrade=upgrade, mixes_rows=mixes_rows, cases=CASES
)
