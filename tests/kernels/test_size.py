"""Sizes that depend on symbols: arithmetic, guards, and evaluation for other values."""

import math
import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.size import LEAST, GuardError, Scope, hint, is_symbolic, least, most, size_text, surely_equal
from kernels.spec import SizeArray, Spec, fixed_array, size_array

NUMBERS = st.integers(-40, 40)
VALUES = st.tuples(*[st.integers(LEAST, 90)] * 3)
BINARY = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "//": operator.floordiv, "%": operator.mod,
    "min": least, "max": most,
}  # fmt: skip
COMPARISONS = (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge)
TREES = st.recursive(
    st.integers(0, 2).map(lambda number: ("symbol", number)) | NUMBERS.map(lambda number: ("number", number)),
    lambda inner: st.tuples(st.sampled_from(sorted(BINARY)), inner, inner),
    max_leaves=12,
)


def evaluate(tree, symbols):
    """Compute an expression; a division by what is not above 0 gives its dividend, as shapes are divided by sizes alone."""
    name, *operands = tree
    if name == "symbol":
        return symbols[operands[0]]
    if name == "number":
        return operands[0]
    a, b = (evaluate(operand, symbols) for operand in operands)
    return a if name in ("//", "%") and not b > 0 else BINARY[name](a, b)


def symbols_of(scope, values):
    return [scope.symbol(name, value) for name, value in zip("abc", values, strict=True)]


@given(st.lists(TREES, min_size=1, max_size=4), VALUES, VALUES)
def test_expressions_have_the_values_that_numbers_have(trees, hints, values):
    scope = Scope()
    symbols = symbols_of(scope, hints)
    made = [evaluate(tree, symbols) for tree in trees]
    assert [hint(each) for each in made] == [evaluate(tree, hints) for tree in trees]
    compiled = scope.compile(made)
    assert compiled(hints) == [evaluate(tree, hints) for tree in trees]
    try:
        found = compiled(values)
    except GuardError:
        return
    assert found == [evaluate(tree, values) for tree in trees]


@given(TREES, TREES, st.sampled_from(COMPARISONS), VALUES, VALUES)
def test_guards_hold_where_a_comparison_comes_out_as_at_the_hints(first, second, compare, hints, values):
    scope = Scope()
    symbols = symbols_of(scope, hints)
    a, b = evaluate(first, symbols), evaluate(second, symbols)
    before = scope.guards
    answer = compare(a, b)
    assert answer == compare(evaluate(first, hints), evaluate(second, hints))
    compiled = scope.compile([])
    if scope.guards == before and not before:  # decided for all values
        assert compare(evaluate(first, values), evaluate(second, values)) == answer
        return
    try:
        compiled(values)
    except GuardError:
        return
    assert compare(evaluate(first, values), evaluate(second, values)) == answer


@given(TREES, VALUES)
def test_ranges_hold(tree, values):
    scope = Scope()
    made = evaluate(tree, symbols_of(scope, (3, 50, 7)))
    if is_symbolic(made):
        try:
            (found,) = scope.compile([made])(values)
        except GuardError:
            return
        assert made.range[0] <= found <= made.range[1]


def test_equal_expressions_are_one_object():
    scope = Scope()
    a, b = scope.symbol("a", 5), scope.symbol("b", 9)
    assert (a + b) * (a + b) is a * a + b * b + 2 * a * b
    assert (a + b) // 7 is (b + a) // 7
    assert a - a == 0
    assert not scope.guards


def test_what_divides_exactly_leaves_no_division():
    scope = Scope()
    a, b = scope.symbol("a", 5), scope.symbol("b", 9)
    assert (a * 768) // 768 is a
    assert (a * 768 + 5) // 768 is a
    assert (12 * a * b) // (4 * a) is 3 * b
    assert ((a + b) * b * 64) // (a + b) is 64 * b
    assert -(-(16 * a) // 16) is a
    assert (a * b) % a == 0
    assert (6 * a + 4) % 2 == 0
    assert math.prod((a, 3, b)) is 3 * a * b
    assert not scope.guards


def test_what_is_true_of_all_sizes_needs_no_guard():
    scope = Scope()
    a, b = scope.symbol("a", 5), scope.symbol("b", 9)
    assert a > 0
    assert a != 1
    assert a * b >= 4
    assert -(-a // 8) >= 1
    assert bool(a)
    assert 0 not in (a, b)
    assert a % 8 < 8
    assert least(a, a + 1) is a
    assert most(a, 1) is a
    assert not scope.guards


@pytest.mark.parametrize(
    "use", [int, operator.index, float, str, repr, lambda a: f"{a}", range, lambda a: [0] * a, np.zeros, lambda a: a / 2]
)
def test_a_plain_number_is_guarded(use):
    scope = Scope()
    a = scope.symbol("a", 5)
    use(a)
    evaluate_ = scope.compile([a * 2])
    assert evaluate_([5]) == [10]
    with pytest.raises(GuardError, match=r"a \+ -5 == 0 is not True"):
        evaluate_([6])


def test_sizes_of_0_and_1_are_numbers():
    scope = Scope()
    assert scope.symbol("a", 0) == 0
    assert scope.symbol("a", 1) == 1
    assert scope.names == []
    scope.symbol("a", 2)
    with pytest.raises(GuardError, match="are no values of"):
        scope.compile([])([1])


def test_text_assumes_nothing():
    scope = Scope()
    a = scope.symbol("rows", 5)
    assert size_text(-(-a // 8) * 64 + 1) == "-64*(-1*rows // 8) + 1"
    assert str(Spec((a, 3), np.dtype(np.float32))) == "f32[rows,3]"
    assert not scope.guards


def test_numpy_numbers_mix_with_sizes():
    scope = Scope()
    a = scope.symbol("a", 5)
    assert np.int64(3) * a is 3 * a
    assert (np.array([1, 2]) + a).tolist() == [a + 1, a + 2]


def test_arrays_of_sizes():
    scope = Scope()
    a = scope.symbol("a", 5)
    array = size_array([1, a])
    assert isinstance(array, SizeArray)
    assert Spec.of(array).dtype == np.int64
    assert size_array([1, 2]).dtype == np.int64
    assert not scope.guards
    assert fixed_array(array).tolist() == [1, 5]
    assert scope.guards


def test_sizes_of_two_scopes_do_not_mix():
    with pytest.raises(ValueError, match="another scope"):
        Scope().symbol("a", 5) + Scope().symbol("b", 5)


def test_sizes_that_are_surely_equal_are_so_for_all_values_and_asking_assumes_nothing():
    scope = Scope()
    a, b = scope.symbol("a", 6), scope.symbol("b", 6)
    assert surely_equal((a * b, 3), (b * a, 3))
    assert not surely_equal((a,), (b,))
    assert not surely_equal((a,), (6,))
    assert not surely_equal((a,), (a, 1))
    assert scope.guards == []


@pytest.mark.parametrize(("level", "shown"), [("0", False), ("1", True)])
def test_a_guard_says_the_line_that_made_it_where_debugging_asks(monkeypatch, level, *, shown):
    monkeypatch.setenv("EDGEWISE_DEBUG", level)
    scope = Scope()
    assert scope.symbol("a", 6) * 2 == 12
    with pytest.raises(GuardError, match=r"2\*a \+ -12 == 0 is not True") as refused:
        scope.compile([])([7])
    assert (f"({__file__}:" in str(refused.value)) == shown
