"""Every case of every operator with a spoiled input or attribute gives a typed error or a result, and never a crash."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from kernels.errors import EdgewiseError
from kernels.registry import Case, Op, evaluate, operators
from kernels.spec import Array, Spec
from tests.kernels.ops.cases import arrays, for_each_op, specs_of

MAX_BYTES = 2**26  # larger outputs are legitimate, and the memory limit refuses them

ATTRIBUTES: tuple[Any, ...] = (
    *(-1, 0, 1, 2, -7, 2**40, -(2**63), 2**63 - 1),
    *(0.0, -1.5, float("nan"), float("inf"), 1e30),
    *((), (1,), (0, 0), (-1, 5, 7), (2**40, 2**40), (1, 2, 3, 4, 5, 6, 7, 8), (0.5,)),
    *("", "x", "NONE", ("a", "b"), np.ones(2, np.float32)),
)
INPUTS: tuple[Array | None, ...] = (
    None,
    np.ones(()),
    np.ones(0, np.float32),
    np.ones((2, 3), np.int64),
    np.array([-1, 0, 5, 2**40], np.int64),
    np.array([2**63 - 1], np.int64),
    np.array([-(2**63)], np.int64),
    np.array(["a", "b"], object),
    np.array([True, False]),
    np.array([np.nan, np.inf], np.float32),
    np.ones((1, 1, 1, 1, 1, 1), np.float16),
    np.array([1, 2], np.complex64),
)


def _spoiled(given: Array | None) -> Iterator[Array | None]:
    """Yield values to put in an input's place: first of other types and shapes, then of its own type or shape."""
    yield from INPUTS
    if given is None:
        return
    yield given[None]
    yield given.reshape(-1)[:1]
    yield given.reshape(-1)[:0]
    yield np.full(given.shape, "q", object)
    if given.dtype.kind in "iu":
        yield given.astype(np.int64) * -7
        yield given.astype(np.int64) + 10**6
        yield given.astype(np.int32)


def _attempt(op: Op, inputs: Sequence[Array | None], attrs: dict[str, Any]) -> None:
    try:
        bound = op.bind(attrs)
        specs = specs_of(inputs)
        outputs = op.infer_specs(specs, bound)
        assert all(type(size) is int and size >= 0 for spec in outputs for size in spec.shape)
        if sum(spec.nbytes for spec in outputs) > MAX_BYTES:
            return
        op.count(specs, outputs, bound)
        evaluate(op, inputs, attrs)
        op.infer_specs([None if spec is None else Spec(spec.shape, spec.dtype) for spec in specs], bound)
    except EdgewiseError:
        pass


def _cases() -> list[Any]:
    return [pytest.param(op, case, id=f"{op.name}-{case.id}") for op in operators().values() for case in op.cases]


@for_each_op(_cases())
def test_spoiled_inputs_crash_nothing(op: Op, case: Case) -> None:
    inputs = list(arrays(op, case))
    for i, given in enumerate(inputs):
        for value in _spoiled(given):
            _attempt(op, [*inputs[:i], value, *inputs[i + 1 :]], dict(case.attrs))
        _attempt(op, inputs[:i], dict(case.attrs))
    _attempt(op, [*inputs, np.ones(1, np.float32)], dict(case.attrs))


@for_each_op(_cases())
def test_spoiled_attributes_crash_nothing(op: Op, case: Case) -> None:
    inputs = arrays(op, case)
    for name in op.defaults:
        for value in ATTRIBUTES:
            _attempt(op, inputs, {**case.attrs, name: value})


@pytest.mark.parametrize("op", [op for op in operators().values() if op.upgrade is not None], ids=lambda op: op.name)
def test_spoiled_older_nodes_crash_nothing(op: Op) -> None:
    """`upgrade` reads attributes before anything has checked them."""
    assert op.upgrade is not None
    older = {"axes", "axis", "ends", "k", "keepdims", "max", "min", "mode", "pads", "ratio", "scales", "split", "starts", "value"}
    names = older | {name for name, default in op.defaults.items() if default is not inspect.Parameter.empty}
    for opset in (7, 9, 10, 11, 13, 17):
        for name in sorted(names):
            for value in ATTRIBUTES:
                with contextlib.suppress(EdgewiseError):
                    op.upgrade(opset, {name: value}, 2)
