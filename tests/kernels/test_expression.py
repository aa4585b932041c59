"""Tests of drafts, which build expressions."""

import numpy as np
import pytest

from kernels.expression import DOUBLE, FLOAT, Apply, Draft, Expression, applied, folded
from kernels.spec import BOOL


def test_operands_are_numbered_as_they_are_read() -> None:
    draft = Draft()
    a, b = draft.operand("a", FLOAT), draft.operand("b", FLOAT)
    assert draft.operand("a", FLOAT) is a
    names, expression = draft.finish(draft("sub", draft("exp", b), a))
    assert names == ("b", "a")
    assert expression == Expression((FLOAT, FLOAT), (Apply("exp", (0,)), Apply("sub", (2, 1))))


def test_operands_that_come_first_do_so_unread_too() -> None:
    draft = Draft()
    result, other = draft.operand("", FLOAT), draft.operand("other", DOUBLE)
    assert draft.finish(draft("sub", other, result), ("",)) == (
        ("", "other"),
        Expression((FLOAT, DOUBLE), (Apply("sub", (1, 0)),)),
    )
    assert draft.finish(other, ("",)) == (("", "other"), Expression((FLOAT, DOUBLE)))


def test_what_the_result_does_not_need_is_left_out() -> None:
    draft = Draft()
    a, b = draft.operand("a", FLOAT), draft.operand("b", FLOAT)
    draft("add", a, b)
    assert draft.finish(draft("neg", b)) == (("b",), Expression((FLOAT,), (Apply("neg", (0,)),)))


def test_an_operand_alone_is_an_expression() -> None:
    draft = Draft()
    assert draft.finish(draft.operand("a", BOOL)) == (("a",), Expression((BOOL,)))


def test_terms_know_their_types() -> None:
    draft, i64 = Draft(), np.dtype(np.int64)
    a, b = draft.operand("a", DOUBLE), draft.operand("b", DOUBLE)
    less = draft("lt", a, b)
    assert less.dtype == BOOL
    assert draft("where", less, a, b).dtype == DOUBLE
    assert draft("cast", a, dtype=i64).dtype == i64
    assert draft.constant(1, i64).dtype == i64
    assert draft("exp", a).dtype == DOUBLE


@pytest.mark.parametrize(
    ("express", "attrs", "steps"),
    [
        (applied("elu", "alpha"), {"alpha": 2, "other": 3}, (Apply("elu", (0, 1, 2), (2.0,)),)),
        (folded("max"), {}, (Apply("max", (0, 1)), Apply("max", (3, 2)))),
    ],
    ids=["applied", "folded"],
)
def test_helpers_take_all_inputs(express, attrs, steps) -> None:
    draft = Draft()
    _, expression = draft.finish(express(draft, *(draft.operand(name, FLOAT) for name in "abc"), **attrs))
    assert expression.steps == steps
