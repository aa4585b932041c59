"""Every registered operator passes ONNX's own backend node tests. The `onnx` package generates their models and data."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

from kernels.registry import find, operators
from kernels.spec import Array
from tests.kernels.ops.models import array_of, evaluate_node

# Tests left out, each with its reason. A name may end in "*".
SKIPPED: dict[str, str] = {
    "test_batchnorm_example_training_mode": "training is refused, Edgewise runs inference",
    "test_batchnorm_epsilon_training_mode": "training is refused, Edgewise runs inference",
    "test_resize_downsample_scales_linear_align_corners": "its positions span the size before rounding, PyTorch's the size",
    "test_resize_downsample_scales_cubic_align_corners": "its positions span the size before rounding, PyTorch's the size",
    "test_maxunpool_export_with_output_shape": "does not count indices through output_shape, ONNX Runtime does",
    "test_training_dropout*": "training is refused",
}


@functools.cache
def node_tests() -> dict[str, Any]:
    """Return ONNX's test cases by name: those of one-node models whose operator is registered."""
    from onnx.backend.test.case.node import collect_testcases

    np.random.seed(7)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        collected = collect_testcases(None)
    found = {}
    for test in collected:
        nodes = test.model.graph.node
        if len(nodes) == 1 and _op_name(nodes[0]) in operators():
            found[test.name] = test
    return found


def _op_name(node: onnx.NodeProto) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def _reason(name: str) -> str | None:
    for pattern, reason in SKIPPED.items():
        if name == pattern or (pattern.endswith("*") and name.startswith(pattern[:-1])):
            return reason
    return None


@pytest.mark.parametrize("name", node_tests())
def test_node_agrees_with_onnx(name: str) -> None:
    if reason := _reason(name):
        pytest.skip(reason)
    test = node_tests()[name]
    (node,) = test.model.graph.node
    opset = next(entry.version for entry in test.model.opset_import if entry.domain == node.domain)
    for given, expected in test.data_sets:
        feeds = dict(zip((port.name for port in test.model.graph.input), given, strict=True))
        actual = evaluate_node(node, opset, [array_of(feeds[i]) if i else None for i in node.input])
        made = dict(zip(node.output, actual, strict=False))
        for port, wanted in zip(test.model.graph.output, expected, strict=True):
            _assert_agrees(made[port.name], array_of(wanted), test, find(_op_name(node)).deterministic)


def _assert_agrees(actual: Array, expected: Array, test: Any, deterministic: bool) -> None:
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    if not deterministic:
        return
    if actual.dtype.kind == "f" or actual.dtype.name.startswith(("bfloat", "float")):
        # the published tolerance, and never less than four steps of the type itself
        rtol = max(test.rtol or 0, 4 * float(ml_dtypes.finfo(actual.dtype).eps))
        np.testing.assert_allclose(actual.astype(np.float64), expected.astype(np.float64), rtol=rtol, atol=test.atol or 0)
    else:
        np.testing.assert_array_equal(actual, expected)


def test_skipped_tests_exist() -> None:
    for pattern in SKIPPED:
        prefix = pattern.removesuffix("*")
        assert any(name.startswith(prefix) if pattern.endswith("*") else name == pattern for name in node_tests()), pattern
