"""Every row of the table of numerics, run in ONNX Runtime and in ONNX's reference."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator

from docs.numerics import AGREES, DIFFERENCES, Difference
from kernels.registry import evaluate, find
from kernels.spec import Array
from tests.kernels.ops.cases import arrays, assert_close
from tests.kernels.ops.models import array_of, one_node_model
from tests.kernels.ops.test_onnxruntime import OPSET, session

Runner = Callable[[onnx.ModelProto, dict[str, Array]], Sequence[Array]]


@pytest.mark.parametrize("row", DIFFERENCES, ids=lambda row: f"{row.op}-{row.case}")
def test_row_says_who_agrees(row: Difference) -> None:
    assert _agrees(row, _in_onnxruntime) == (row.onnxruntime == AGREES)
    if row.reference is not None:
        assert _agrees(row, _in_reference) == (row.reference == AGREES)


def _agrees(row: Difference, run: Runner) -> bool:
    op = find(row.op)
    case = next(case for case in op.cases if case.id == row.case)
    inputs = arrays(op, case)
    model = one_node_model(op.name, inputs, case.outputs, case.attrs, opset=OPSET)
    ours = evaluate(op, inputs, case.attrs)[: case.outputs]
    try:
        for y, theirs in zip(ours, run(model, {f"x{i}": a for i, a in enumerate(inputs) if a is not None}), strict=True):
            assert_close(y, array_of(theirs), 2 * op.tolerance_eps)
    except (AssertionError, ort.capi.onnxruntime_pybind11_state.RuntimeException):
        return False
    return True


def _in_onnxruntime(model: onnx.ModelProto, feeds: dict[str, Array]) -> Sequence[Array]:
    results: Sequence[Array] = session(model).run(None, feeds)
    return results


def _in_reference(model: onnx.ModelProto, feeds: dict[str, Array]) -> Sequence[Array]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # the reference overflows aloud
        return list(ReferenceEvaluator(model).run(None, feeds))
