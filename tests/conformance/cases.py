"""The test cases that come with the package `onnx`: one-node models, small models, and networks with their expected outputs."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx

from graph.formats.onnx.schema import op_name
from kernels.record import record
from kernels.registry import find, is_registered
from scheduler.session import Session
from scheduler.strategy import WantedBackend
from tests.kernels.ops.models import plain

SEED = 7  # of the data that cases draw when they are collected
LIGHT_RTOL, LIGHT_ATOL = 1e-3, 1e-7  # those of ONNX's own runner for networks


@record
class Conformance:
    """One test case of ONNX.

    op: the operator that it is about; of a network its name. data_sets: inputs and expected outputs, in the order of the model's.
    """

    name: str
    op: str
    model: onnx.ModelProto
    data_sets: tuple[tuple[Sequence[Any], Sequence[Any]], ...]
    rtol: float
    atol: float

    def feeds(self, given: Sequence[Any]) -> dict[str, Any]:
        """Return the inputs of a data set by name, as sessions take them."""
        held = {tensor.name for tensor in self.model.graph.initializer}
        ports = [port.name for port in self.model.graph.input if port.name not in held]
        return dict(zip(ports, map(plain, given), strict=True))


@functools.cache
def node_cases() -> Mapping[str, Conformance]:
    """Return the cases of single operators, and of the functions that define some of them."""
    from onnx.backend.test.case.node import collect_testcases

    return _collected(collect_testcases, None)


@functools.cache
def model_cases() -> Mapping[str, Conformance]:
    """Return the cases of models of several nodes."""
    from onnx.backend.test.case.model import collect_testcases

    return _collected(collect_testcases)


@functools.cache
def network_cases() -> Mapping[str, Conformance]:
    """Return the networks of the package: well-known architectures with constant weights, each with one expected output."""
    folder = Path(onnx.__file__).parent / "backend/test/data/light"
    found = {}
    for path in sorted(folder.glob("*.onnx")):
        model = onnx.load(path)
        (expected,) = [onnx.load_tensor(str(p)) for p in folder.glob(f"{path.stem}_output_*.pb")]
        held = {tensor.name for tensor in model.graph.initializer}
        (port,) = [value for value in model.graph.input if value.name not in held]
        shape = tuple(dim.dim_value for dim in port.type.tensor_type.shape.dim)
        size = int(np.prod(shape))
        given = (np.arange(size).astype(np.float32) / np.float32(size)).reshape(shape)
        found[path.stem] = Conformance(path.stem, path.stem, model, (([given], [expected]),), LIGHT_RTOL, LIGHT_ATOL)
    return found


def _collected(collect: Any, *arguments: Any) -> dict[str, Conformance]:
    np.random.seed(SEED)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        collected = collect(*arguments)
    models = {test.name: test.model for test in collected if test.model is not None}
    return {
        test.name: Conformance(
            test.name, _op(test.name, models), test.model, tuple(map(tuple, test.data_sets)), test.rtol or 0, test.atol or 0
        )
        for test in collected
        if test.model is not None
    }


def _op(name: str, models: Mapping[str, onnx.ModelProto]) -> str:
    """Return the operator of a case: its first node's; of a function that defines one, that of the case which it expands."""
    node = models.get(name.partition("_expanded")[0], models[name]).graph.node[0]
    return op_name(node)


def failure(case: Conformance, backend: WantedBackend) -> str:
    """Return why a case does not pass, in one line; "" where it does."""
    try:
        session = Session(case.model, 1, backend=backend)
        for given, expected in case.data_sets:
            made = session.run(case.feeds(given))
            for port, wanted in zip(case.model.graph.output, expected, strict=True):
                if _is_deterministic(case):
                    assert_agrees(made[port.name], plain(wanted), case)
                else:
                    assert_same_kind(made[port.name], plain(wanted))
    except Exception as error:  # noqa: BLE001  every one is the case's own failure
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return ""


def _is_deterministic(case: Conformance) -> bool:
    """Whether the expected numbers are the only right ones. Dropout's are: ONNX and Edgewise draw them from numpy alike."""
    ops = [node.op_type for node in case.model.graph.node if node.domain in ("", "ai.onnx") and is_registered(node.op_type)]
    return all(op == "Dropout" or find(op).deterministic for op in ops)


def assert_same_kind(actual: Any, expected: Any) -> None:
    """Check that two arrays have one shape and type, or that two lists agree so item by item."""
    if expected is None or isinstance(expected, list):
        assert type(actual) is type(expected), f"{type(actual).__name__} instead of {type(expected).__name__}"
    if isinstance(expected, list):
        assert len(actual) == len(expected), f"{len(actual)} items instead of {len(expected)}"
        for one, other in zip(actual, expected, strict=True):
            assert_same_kind(one, other)
    elif expected is not None:
        assert actual.shape == expected.shape, f"shape {actual.shape} instead of {expected.shape}"
        assert actual.dtype == expected.dtype, f"{actual.dtype} instead of {expected.dtype}"


def assert_agrees(actual: Any, expected: Any, case: Conformance) -> None:
    """Check that values agree: exactly, or floats within the case's tolerance and never less than four steps of their type."""
    assert_same_kind(actual, expected)
    if isinstance(expected, list):
        for one, other in zip(actual, expected, strict=True):
            assert_agrees(one, other, case)
    elif expected is not None and (expected.dtype.kind == "f" or expected.dtype.name.startswith(("bfloat", "float"))):
        rtol = max(case.rtol, 4 * float(ml_dtypes.finfo(expected.dtype).eps))
        np.testing.assert_allclose(actual.astype(np.float64), expected.astype(np.float64), rtol=rtol, atol=case.atol)
    else:
        np.testing.assert_array_equal(actual, expected)
