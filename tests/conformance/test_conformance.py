"""ONNX's own test cases pass, but for those that `tests.conformance.exceptions` lists with a reason, and each of these fails."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import pytest

from graph.formats.registry import read
from graph.run.feeds import check_feeds
from profiler.counting.counts import NO_FORMULA, profile
from scheduler.strategy import WantedBackend
from tests.conformance.cases import Conformance, failure, model_cases, network_cases, node_cases
from tests.conformance.exceptions import FAILING

NATIVE_SHARE = 30  # one of this many cases also runs natively here; `make conformance` runs them all
LEAST_PASSING = 1865  # node cases


def _by_op(cases: Mapping[str, Conformance]) -> Mapping[str, list[Conformance]]:
    found: dict[str, list[Conformance]] = defaultdict(list)
    for case in cases.values():
        found[case.op].append(case)
    return found


def _require(cases: list[Conformance], backend: WantedBackend) -> None:
    """Fail with every case that does not do what the table says."""
    wrong = []
    for case in cases:
        reason = failure(case, backend)
        if bool(reason) != (case.name in FAILING):
            wrong.append(f"{case.name}: {reason or 'it passes, and is listed as failing: ' + FAILING[case.name]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("op", _by_op(node_cases()))
def test_node_cases(op: str) -> None:
    _require(_by_op(node_cases())[op], "numpy")


@pytest.mark.parametrize("name", list(node_cases())[::NATIVE_SHARE])
def test_node_case_natively(name: str) -> None:
    _require([node_cases()[name]], "auto")


@pytest.mark.parametrize("op", _by_op(node_cases()))
def test_every_op_of_a_case_has_a_formula(op: str) -> None:
    """What stays uncounted depends on values that only a run knows."""
    for case in _by_op(node_cases())[op]:
        if case.name not in FAILING:
            model = read(case.model)
            arrays = check_feeds(model.graph.inputs, case.feeds(case.data_sets[0][0]))
            counts = profile(model, shapes={name: array.shape for name, array in arrays.items()})
            assert not [op for op in counts.uncounted if NO_FORMULA in op.reason], case.name


@pytest.mark.parametrize("name", model_cases())
def test_model_case(name: str) -> None:
    _require([model_cases()[name]], "numpy")


@pytest.mark.parametrize("name", network_cases())
def test_network(name: str) -> None:
    _require([network_cases()[name]], "auto")


def test_exceptions_are_cases() -> None:
    assert set(FAILING) <= {*node_cases(), *model_cases(), *network_cases()}


def test_enough_cases_pass() -> None:
    assert len(set(node_cases()) - set(FAILING)) >= LEAST_PASSING
