"""A record behaves as a frozen data class with slots that `dataclasses.dataclass` makes."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict, astuple, dataclass, field, fields, replace
from typing import Any, Generic, TypeVar, get_type_hints

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.record import record

T = TypeVar("T")


def definitions(make: Callable[[type[Any]], type[Any]]) -> dict[str, Any]:
    """Define the same classes with one decorator."""

    @make
    class Plain:
        """A class with documentation."""

        a: int
        b: tuple[int, ...] = (1, 2)
        c: list[int] = field(default_factory=list, hash=False)
        d: str = field(default="hidden", compare=False, repr=False)

        @property
        def total(self) -> int:
            """A property."""
            return self.a + sum(self.b)

    @make
    class One:
        only: Any

    @make
    class Nothing:
        pass

    @make
    class Checked:
        least: int
        most: int
        _seen: list[int] = field(default_factory=list, init=False, repr=False, compare=False)

        def __post_init__(self) -> None:
            if self.least > self.most:
                raise ValueError("least is above most")

    @make
    class Own:
        a: int

        def __repr__(self) -> str:
            return "own"

        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 7

    @make
    class Box(Generic[T]):
        held: T

    return {each.__name__: each for each in (Plain, One, Nothing, Checked, Own, Box)}


OURS, THEIRS = definitions(record), definitions(dataclass(frozen=True, slots=True))
CALLS = [
    ("Plain", (1,), {}),
    ("Plain", (1, (3,), [4]), {"d": "x"}),
    ("Plain", (), {"a": 2, "c": [1]}),
    ("One", (None,), {}),
    ("Nothing", (), {}),
    ("Checked", (1, 2), {}),
    ("Own", (1,), {}),
    ("Box", ("held",), {}),
]


@record
class Kept:
    """Pickled by its name, so it is defined at the top."""

    a: int
    b: list[int] = field(default_factory=list)


@pytest.mark.parametrize(("name", "given", "named"), CALLS, ids=str)
def test_objects_look_and_compare_alike(name: str, given: tuple[Any, ...], named: dict[str, Any]) -> None:
    ours, theirs = OURS[name](*given, **named), THEIRS[name](*given, **named)
    assert repr(ours) == repr(theirs)
    assert (asdict(ours), astuple(ours)) == (asdict(theirs), astuple(theirs))
    assert hash(ours) == hash(theirs)
    assert ours == OURS[name](*given, **named)
    assert name == "Own" or ours not in (theirs, 1)
    assert [each.name for each in fields(ours)] == [each.name for each in fields(theirs)]
    assert ours.__match_args__ == theirs.__match_args__
    assert not hasattr(ours, "__dict__")


def test_documentation_stays() -> None:
    assert OURS["Plain"].__doc__ == "A class with documentation."


@pytest.mark.parametrize("name", OURS)
def test_signatures_are_the_same(name: str) -> None:
    ours, theirs = inspect.signature(OURS[name]), inspect.signature(THEIRS[name])
    assert str(ours).replace("<object object", "<factory").split("<factory")[0] == str(theirs).split("<factory")[0]
    assert [p.annotation for p in ours.parameters.values()] == [p.annotation for p in theirs.parameters.values()]


@pytest.mark.parametrize(("given", "named"), [((), {}), ((1, 2, 3, 4, 5), {}), ((1,), {"z": 1}), ((1,), {"a": 1})], ids=str)
def test_wrong_arguments_raise_the_same_error(given: tuple[Any, ...], named: dict[str, Any]) -> None:
    said = []
    for classes in (OURS, THEIRS):
        with pytest.raises(TypeError) as caught:
            classes["Plain"](*given, **named)
        said.append(str(caught.value))
    assert said[0] == said[1]


@given(st.lists(st.tuples(st.integers(0, 2), st.tuples(st.integers(0, 1)), st.text("ab", max_size=1)), min_size=2, max_size=2))
def test_equality_and_hashes_agree(values: list[tuple[int, tuple[int], str]]) -> None:
    ours, theirs = ([classes["Plain"](a, b, d=d) for a, b, d in values] for classes in (OURS, THEIRS))
    assert (ours[0] == ours[1]) is (theirs[0] == theirs[1])
    assert (hash(ours[0]) == hash(ours[1])) is (hash(theirs[0]) == hash(theirs[1]))


def test_attributes_cannot_be_set_or_deleted() -> None:
    made = OURS["Plain"](1)
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'a'"):
        made.a = 2
    with pytest.raises(FrozenInstanceError, match="cannot delete field 'a'"):
        del made.a
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'new'"):
        made.new = 2


def test_every_object_gets_a_list_of_its_own_from_a_factory() -> None:
    assert OURS["Plain"](1).c is not OURS["Plain"](1).c
    assert OURS["Checked"](1, 2)._seen == []


def test_what_a_constructor_checks_is_checked_when_a_field_is_replaced() -> None:
    made = OURS["Checked"](1, 2)
    assert replace(made, most=3) == OURS["Checked"](1, 3)
    with pytest.raises(ValueError, match="least is above most"):
        replace(made, most=0)


def test_an_array_in_a_lone_field_equals_itself() -> None:
    made = OURS["One"](np.arange(3))
    assert made == OURS["One"](made.only)


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_copies_are_equal(again: Callable[[Kept], Kept]) -> None:
    made = Kept(1, [2])
    found = again(made)
    assert (found, type(found)) == (made, Kept)
    assert found is not made


def test_annotations_are_found_from_the_constructor() -> None:
    assert get_type_hints(Kept.__init__) == {"a": int, "b": list[int], "return": type(None)}


def test_fields_match_by_position() -> None:
    match Kept(1, [2]):
        case Kept(a, [b]):
            assert (a, b) == (1, 2)
        case _:
            raise AssertionError


def test_a_field_without_a_default_cannot_follow_one_with_a_default() -> None:
    with pytest.raises(SyntaxError):

        @record
        class Wrong:
            a: int = 1
            b: int
