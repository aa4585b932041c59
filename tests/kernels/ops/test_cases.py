"""Every case of every registered operator: what holds for all of them."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from kernels.containers import as_lists
from kernels.errors import DataDependentError, DTypeError
from kernels.registry import Case, Kernel, Op, evaluate, operators
from kernels.spec import Spec
from tests.kernels.ops.cases import (
    arrays,
    assert_close,
    deterministic,
    for_each_op,
    in_float64,
    kernel_cases,
    outputs_for,
    refused_cases,
    run,
    specs_of,
    strided_forms,
    valid_cases,
)

KERNELS = for_each_op(kernel_cases())
DETERMINISTIC = for_each_op(kernel_cases(deterministic))
COST_OF_OTHER_INPUTS = {"ScatterElements", "Scatter", "ScatterND"}  # one per update, however large what is updated
VALID = for_each_op(valid_cases())


@pytest.mark.parametrize("op", operators().values(), ids=lambda op: op.name)
def test_op_has_cases_and_ids_differ(op: Op) -> None:
    ids = [case.id for case in op.cases]
    assert ids
    assert len(set(ids)) == len(ids)


@KERNELS
def test_kernel_fills_every_element(op: Op, case: Case, kernel: Kernel) -> None:
    """Two runs into differently poisoned memory agree; a random op is only asked to leave no poison."""
    inputs = arrays(op, case)
    first, second = outputs_for(op, case, inputs, 0xFF), outputs_for(op, case, inputs, 0xA4)
    run(op, case, kernel, first, inputs)
    if not op.deterministic:
        assert not any(np.isnan(y).any() if y.dtype.kind == "f" else (y == -1).any() for y in first)
        return
    run(op, case, kernel, second, inputs)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_equal(as_lists(a), as_lists(b))


@DETERMINISTIC
def test_kernel_leaves_out_the_last_outputs(op: Op, case: Case, kernel: Kernel) -> None:
    """Outputs that nobody reads may be missing at the end; the others are the same."""
    inputs = arrays(op, case)
    whole = outputs_for(op, case, inputs, 0xFF)
    run(op, case, kernel, whole, inputs)
    for count in range(1, len(whole)):
        some = outputs_for(op, case, inputs, 0xFF)[:count]
        run(op, case, kernel, some, inputs)
        for a, b in zip(some, whole, strict=False):
            np.testing.assert_array_equal(a, b)


@DETERMINISTIC
def test_kernel_agrees_with_float64(op: Op, case: Case, kernel: Kernel) -> None:
    inputs = arrays(op, case)
    actual = outputs_for(op, case, inputs, 0xFF)
    run(op, case, kernel, actual, inputs)
    try:
        reference = evaluate(op, in_float64(inputs), case.attrs)
    except DTypeError as error:
        pytest.skip(f"not defined on float64: {error}")
    for y, expected in zip(actual, reference, strict=True):
        assert_close(y, expected, op.tolerance_eps)


@DETERMINISTIC
def test_kernel_takes_strided_inputs(op: Op, case: Case, kernel: Kernel) -> None:
    inputs = arrays(op, case)
    expected = outputs_for(op, case, inputs, 0xFF)
    run(op, case, kernel, expected, inputs)
    for form in itertools.zip_longest(*map(strided_forms, inputs)):
        strided = tuple(given if other is None else other for given, other in zip(inputs, form, strict=True))
        actual = outputs_for(op, case, inputs, 0xFF)
        run(op, case, kernel, actual, strided)
        for y, wanted in zip(actual, expected, strict=True):
            assert_close(y, wanted, op.tolerance_eps)


@KERNELS
def test_kernel_leaves_unread_outputs(op: Op, case: Case, kernel: Kernel) -> None:
    """out[i] may be None; the others are what they were."""
    inputs = arrays(op, case)
    everything = outputs_for(op, case, inputs, 0xFF)
    if len(everything) == 1 or not op.deterministic:
        return
    run(op, case, kernel, everything, inputs)
    for unread in range(1, len(everything)):
        out = [None if i == unread else y for i, y in enumerate(outputs_for(op, case, inputs, 0xFF))]
        run(op, case, kernel, out, inputs)
        for y, expected in zip(out, everything, strict=True):
            if y is not None:
                np.testing.assert_array_equal(y, expected)


@for_each_op(kernel_cases(lambda op: op.elementwise))
def test_elementwise_kernel_runs_in_place(op: Op, case: Case, kernel: Kernel) -> None:
    """Over the memory of any input that has the output's shape and dtype."""
    inputs = arrays(op, case)
    (expected, *_) = everything = outputs_for(op, case, inputs, 0xFF)
    run(op, case, kernel, everything, inputs)
    for i, given in enumerate(inputs):
        if given is not None and given.shape == expected.shape and given.dtype == expected.dtype:
            place = given.copy()
            out = (place, *outputs_for(op, case, inputs, 0xFF)[1:])
            run(op, case, kernel, out, [place if i == k else other for k, other in enumerate(inputs)])
            np.testing.assert_array_equal(place, expected)


@VALID
def test_infer_without_values_agrees_or_says_it_needs_them(op: Op, case: Case) -> None:
    """Before the run values are unknown: shapes and dtypes are the same, or DataDependentError."""
    inputs, attrs = arrays(op, case), op.bind(case.attrs)
    try:
        unknown = op.infer_specs([None if a is None else Spec(a.shape, a.dtype) for a in inputs], attrs)
    except DataDependentError:
        return
    assert unknown == op.infer_specs(specs_of(inputs), attrs)


@for_each_op(valid_cases(lambda op: op.elementwise))
def test_elementwise_output_has_broadcast_shape(op: Op, case: Case) -> None:
    inputs = arrays(op, case)
    shape = np.broadcast_shapes(*(a.shape for a in inputs if a is not None))
    assert op.infer_specs(specs_of(inputs), op.bind(case.attrs))[0].shape == shape


@for_each_op(valid_cases(lambda op: bool(op.view)))
def test_view_keeps_elements_in_order(op: Op, case: Case) -> None:
    inputs = arrays(op, case)
    np.testing.assert_array_equal(evaluate(op, inputs, case.attrs)[0].ravel(), inputs[0].ravel())


@VALID
def test_inferred_value_is_what_the_kernel_computes(op: Op, case: Case) -> None:
    inputs = arrays(op, case)
    specs = op.infer_specs([None if a is None else Spec(a.shape, a.dtype, a) for a in inputs], op.bind(case.attrs))
    for spec, y in zip(specs, evaluate(op, inputs, case.attrs) if op.deterministic else (), strict=op.deterministic):
        if spec.value is not None:
            np.testing.assert_array_equal(spec.value, y)


@for_each_op([each for each in valid_cases() if each.values[1].cost is not None])
def test_cost_is_as_counted_by_hand(op: Op, case: Case) -> None:
    specs, attrs = specs_of(arrays(op, case)), op.bind(case.attrs)
    assert op.count(specs, op.infer_specs(specs, attrs), attrs) == case.cost


@VALID
def test_cost_doubles_with_the_batch(op: Op, case: Case) -> None:
    """Where twice the rows in input 0 make twice the rows of every output, they make twice the cost."""
    first, *rest = specs_of(arrays(op, case)) or (None,)
    if op.cost is None or first is None or first.rank == 0 or op.name in COST_OF_OTHER_INPUTS:
        return
    attrs = op.bind(case.attrs)
    once = op.infer_specs((first, *rest), attrs)
    value = None if first.value is None else np.concatenate([first.value, first.value])
    double = Spec((2 * first.shape[0], *first.shape[1:]), first.dtype, value)
    try:
        twice = op.infer_specs((double, *rest), attrs)
    except Exception:  # noqa: BLE001  the other inputs fix the batch: nothing to say
        return
    if all(a.rank and b.shape == (2 * a.shape[0], *a.shape[1:]) for a, b in zip(once, twice, strict=True)):
        single, both = op.count((first, *rest), once, attrs), op.count((double, *rest), twice, attrs)
        assert single is not None
        assert both == single + single


@for_each_op(refused_cases())
def test_refusal_has_class_and_names_a_value(op: Op, case: Case) -> None:
    """The message starts with the op (or its family) and holds something of the input: a number, a dtype or an attribute."""
    assert case.raises is not None
    with pytest.raises(case.raises) as caught:
        op.infer_specs(specs_of(arrays(op, case)), op.bind(case.attrs))
    assert type(caught.value) is case.raises
    message = str(caught.value)
    assert re.split(r"[: ]", message)[0] in op.name
    shown = [str(a.dtype) for a in arrays(op, case) if a is not None] + [str(v) for v in case.attrs.values()]
    assert any(character.isdigit() for character in message) or any(text in message for text in shown)
