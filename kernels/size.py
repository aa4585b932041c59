"""Sizes as symbols: whole numbers whose value is decided later, so that what is computed from shapes is computed once for all.

A `Scope` has symbols, each with a hint: the value that it was first met with. Arithmetic on a symbol makes a `Size`, an
expression, which behaves like the whole number that it is at the hints. Whatever asks more of it than arithmetic is noted as a
guard: that a comparison came out as it did, or, where a plain number is taken from it, that it has that very value. All that was
computed in a scope is true for other values of the symbols too, as long as every guard holds; `Scope.compile` makes the function
that checks the guards and evaluates expressions.

A size stands wherever an int is expected, so annotations say `int`. Symbols are at least `LEAST`: sizes of 0 and 1 decide what a
computation is (nothing, a broadcast), and are given as plain numbers.

    sum, product, difference         expressions, kept as polynomials; equal ones are one object
    a // b, a % b, least, most       expressions, simplified where the result is exact
    comparisons, bool, in, hash      decided at the hints; a guard, unless it holds for all symbols
    int, index, range, float, text   the value at the hints; a guard that it is that
"""

from __future__ import annotations

import functools
import operator
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

import numpy as np

from kernels.errors import EdgewiseError
from kernels.log import PLAN, debug_level

LEAST = 2  # value of any symbol
MOST = 2**40  # value of any symbol; no axis is longer

_Monomial = tuple[int, ...]  # numbers of atoms, ascending, each as often as its power
_Terms = tuple[tuple[_Monomial, int], ...]  # of a polynomial: monomials in descending order, and their coefficients
_Range = tuple[int, int]  # least and most value, for all symbols


class GuardError(EdgewiseError):
    """Values of symbols do not meet what was assumed of them."""


class Size:
    """A whole number that depends on symbols. Made by `Scope.symbol` and by arithmetic; see the module docstring."""

    __slots__ = ("_hash", "hint", "number", "range", "scope", "terms")
    __array_ufunc__ = None  # numpy's scalars leave arithmetic with a size to it

    def __init__(self, scope: Scope, number: int, terms: _Terms, hint: int) -> None:
        self.scope, self.terms, self.hint = scope, terms, hint
        self.range = scope.range_of(terms)
        self.number = number
        self._hash = hash((id(scope), number))

    # Arithmetic

    def __add__(self, other: Any) -> Any:
        return self.scope.combine(self, other, 1)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        return self.scope.combine(self, other, -1)

    def __rsub__(self, other: Any) -> Any:
        return (-self).__add__(other)

    def __neg__(self) -> Any:
        return self * -1

    def __pos__(self) -> Any:
        return self

    def __mul__(self, other: Any) -> Any:
        return self.scope.product(self, other)

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:
        return self.scope.quotient(self, other)

    def __rfloordiv__(self, other: Any) -> Any:
        return self.scope.quotient(other, self)

    def __mod__(self, other: Any) -> Any:
        return self.scope.remainder(self, other)

    def __rmod__(self, other: Any) -> Any:
        return self.scope.remainder(other, self)

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self

    def __lshift__(self, other: int) -> Any:
        return self * (1 << other)

    def __rshift__(self, other: int) -> Any:
        return self // (1 << other)

    def __abs__(self) -> Any:
        return self if self >= 0 else -self

    # What is asked of it

    def __eq__(self, other: object) -> Any:
        return self._asked(other, operator.eq)

    def __ne__(self, other: object) -> Any:
        return self._asked(other, operator.ne)

    def __lt__(self, other: object) -> Any:
        return self._asked(other, operator.lt)

    def __le__(self, other: object) -> Any:
        return self._asked(other, operator.le)

    def __gt__(self, other: object) -> Any:
        return self._asked(other, operator.gt)

    def __ge__(self, other: object) -> Any:
        return self._asked(other, operator.ge)

    def __bool__(self) -> bool:
        return bool(self._asked(0, operator.ne))

    def _asked(self, other: object, relation: Callable[[int, int], bool]) -> Any:
        if self is other:
            return relation(0, 0)
        if not isinstance(other, Size):
            if isinstance(other, np.ndarray):
                return NotImplemented
            if not isinstance(other, int | np.integer):
                return relation(self.fixed(), cast("Any", other)) if isinstance(other, float) else NotImplemented
        return self.scope.ask(self - other, relation)

    def __hash__(self) -> int:
        return self._hash

    def __index__(self) -> int:
        return self.fixed()

    __int__ = __index__
    __trunc__ = __index__

    def __float__(self) -> float:
        return float(self.fixed())

    def __truediv__(self, other: Any) -> Any:
        return self.fixed() / other

    def __rtruediv__(self, other: Any) -> Any:
        return other / self.fixed()

    def __pow__(self, other: int) -> Any:
        return self.fixed() ** other

    def __rpow__(self, other: Any) -> Any:
        return other ** self.fixed()

    def __and__(self, other: Any) -> Any:
        return self.fixed() & other

    def __or__(self, other: Any) -> Any:
        return self.fixed() | other

    __rand__, __ror__ = __and__, __or__

    def __str__(self) -> str:
        return str(self.fixed())

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return format(self.fixed(), spec)

    def fixed(self) -> int:
        """Return the value at the hints, and guard that it has no other."""
        self.scope.ask(self - self.hint, operator.eq)
        return self.hint

    @property
    def text(self) -> str:
        """The expression, for messages: unlike `str`, it assumes nothing."""
        return self.scope.text(self.terms)


class Scope:
    """Symbols, and what has been assumed of them. Not thread-safe while guards are added.

    With EDGEWISE_DEBUG it notes the line of code that made each guard, for messages.

    names: of the symbols, in the order in which `compile`'s function takes their values.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.hints: list[int] = []
        self._guards: dict[tuple[int, str], tuple[Size, bool]] = {}  # by an expression's number and its relation to 0
        self._places: dict[tuple[int, str], str] | None = {} if debug_level() >= PLAN else None
        self._atoms: list[tuple[str, Any, Any]] = []  # a symbol's name, or an operation on two sizes or ints
        self._atom_numbers: dict[tuple[Any, ...], int] = {}
        self._atom_hints: list[int] = []
        self._atom_ranges: list[_Range] = []
        self._sizes: dict[_Terms, Size] = {}

    def symbol(self, name: str, hint: int) -> int:
        """Return a symbol; a plain number where the hint is less than LEAST. name: for messages."""
        if not LEAST <= hint <= MOST:
            return hint
        self.names.append(name)
        self.hints.append(hint)
        atom = self._atom(("symbol", len(self.names) - 1, None), hint, (LEAST, MOST))
        return cast("int", self._size({(atom,): 1}, hint))

    # Arithmetic of polynomials

    def _atom(self, what: tuple[str, Any, Any], hint: int, among: _Range) -> int:
        key = (what[0], *(_key(operand) for operand in what[1:]))
        if key not in self._atom_numbers:
            self._atom_numbers[key] = len(self._atoms)
            self._atoms.append(what)
            self._atom_hints.append(hint)
            self._atom_ranges.append(among)
        return self._atom_numbers[key]

    def _size(self, terms: Mapping[_Monomial, int], hint: int) -> Any:
        """Return the size of these terms; an int where no symbol is among them."""
        kept = {monomial: factor for monomial, factor in terms.items() if factor}
        if not kept:
            return 0
        if len(kept) == 1 and () in kept:
            return kept[()]
        ordered = tuple(sorted(kept.items(), key=_order))
        if (found := self._sizes.get(ordered)) is None:
            found = self._sizes[ordered] = Size(self, len(self._sizes), ordered, hint)
        return found

    def range_of(self, terms: _Terms) -> _Range:
        """Return the least and the most value of a polynomial, as far as the ranges of its atoms tell."""
        low = high = 0
        for monomial, factor in terms:
            least_value = most_value = 1
            for number in monomial:
                ends = [a * b for a in (least_value, most_value) for b in self._atom_ranges[number]]
                least_value, most_value = min(ends), max(ends)
            ends = [factor * least_value, factor * most_value]
            low, high = low + min(ends), high + max(ends)
        return low, high

    def combine(self, a: Size, b: Any, sign: int) -> Any:
        """Return a + sign·b."""
        terms = dict(a.terms)
        if isinstance(b, Size):
            _require_same(self, b)
            for monomial, factor in b.terms:
                terms[monomial] = terms.get(monomial, 0) + sign * factor
            return self._size(terms, a.hint + sign * b.hint)
        if not isinstance(b, int | np.integer):
            return _foreign(a, b, operator.add if sign > 0 else operator.sub)
        terms[()] = terms.get((), 0) + sign * int(b)
        return self._size(terms, a.hint + sign * int(b))

    def product(self, a: Size, b: Any) -> Any:
        """Return a·b."""
        if isinstance(b, Size):
            _require_same(self, b)
            terms: dict[_Monomial, int] = {}
            for first, factor in a.terms:
                for second, other in b.terms:
                    monomial = tuple(sorted(first + second))
                    terms[monomial] = terms.get(monomial, 0) + factor * other
            return self._size(terms, a.hint * b.hint)
        if not isinstance(b, int | np.integer):
            return _foreign(a, b, operator.mul)
        return self._size({monomial: factor * int(b) for monomial, factor in a.terms}, a.hint * int(b))

    def quotient(self, a: Any, b: Any) -> Any:
        """Return a // b: exactly, or what is exact of it and an atom for the rest."""
        if isinstance(a, float) or isinstance(b, float) or isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
            return _foreign(a, b, operator.floordiv)
        if isinstance(b, Size):
            exact = self._divided(a, b) if isinstance(a, Size) else None
            return exact if exact is not None else self._operation("//", a, b)
        b = int(b)
        if b <= 0:
            return self.quotient(-a, -b) if b else a.fixed() // b
        whole = {monomial: factor // b for monomial, factor in a.terms if factor % b == 0}
        rest = {monomial: factor for monomial, factor in a.terms if factor % b}
        left = self._size(rest, sum(self._hint_of(monomial) * factor for monomial, factor in rest.items()))
        ended = left // b if isinstance(left, int) else self._operation("//", left, b)
        return self._size(whole, sum(self._hint_of(m) * factor for m, factor in whole.items())) + ended

    def remainder(self, a: Any, b: Any) -> Any:
        """Return a % b."""
        if isinstance(b, Size):
            if isinstance(a, Size) and self._divided(a, b) is not None:
                return 0
            return self._operation("%", a, b)
        if not isinstance(b, int | np.integer) or b <= 0:
            return a.fixed() % b
        rest = {monomial: factor % int(b) for monomial, factor in a.terms}
        left = self._size(rest, sum(self._hint_of(monomial) * factor for monomial, factor in rest.items()))
        return left % int(b) if isinstance(left, int) else self._operation("%", left, int(b))

    def _divided(self, a: Size, b: Size) -> Any:
        """Return the polynomial q with a = q·b, or None where there is none."""
        _require_same(self, b)
        rest, found = dict(a.terms), {}
        lead, lead_factor = b.terms[0]
        while rest:
            monomial, factor = min(rest.items(), key=_order)
            missing = _without(monomial, lead)
            if missing is None or factor % lead_factor:
                return None
            share = factor // lead_factor
            found[missing] = share
            for other, other_factor in b.terms:
                made = tuple(sorted(missing + other))
                rest[made] = rest.get(made, 0) - share * other_factor
                if not rest[made]:
                    del rest[made]
        return self._size(found, a.hint // b.hint)

    def _operation(self, name: str, a: Any, b: Any) -> Any:
        """Return a size that is an operation on two others, which arithmetic on polynomials cannot express."""
        hint = _OPERATIONS[name](_hint(a), _hint(b))
        (low, high), (b_low, b_high) = _range(a), _range(b)
        among = (-(2**80), 2**80)
        if name == "//" and b_low > 0:
            ends = [low // b_low, low // b_high, high // b_low, high // b_high]
            among = (min(ends), max(ends))
        elif name == "%" and b_low > 0:
            among = (0, min(b_high - 1, high) if low >= 0 else b_high - 1)
        elif name == "min":
            among = (min(low, b_low), min(high, b_high))
        elif name == "max":
            among = (max(low, b_low), max(high, b_high))
        return self._size({(self._atom((name, a, b), hint, among),): 1}, hint)

    def _hint_of(self, monomial: _Monomial) -> int:
        made = 1
        for atom in monomial:
            made *= self._atom_hints[atom]
        return made

    def extreme(self, name: str, a: Any, b: Any) -> Any:
        """Return the smaller ("min") or the larger ("max") of two sizes."""
        difference = a - b
        low, high = _range(difference)
        if low >= 0 or high <= 0:
            return a if (low >= 0) == (name == "max") else b
        return self._operation(name, a, b)

    # Guards

    @property
    def guards(self) -> list[tuple[Size, str, bool]]:
        """What was assumed: an expression, its relation to 0, and whether that holds."""
        return [(difference, relation, answer) for (_, relation), (difference, answer) in self._guards.items()]

    def ask(self, difference: Any, relation: Callable[[int, int], bool]) -> bool:
        """Return how an expression relates to 0 at the hints; noted as a guard, unless it does so for all symbols."""
        if not isinstance(difference, Size):
            return relation(difference, 0)
        low, high = difference.range
        if relation in (operator.eq, operator.ne):
            if low > 0 or high < 0:
                return relation is operator.ne
        elif relation(low, 0) == relation(high, 0):
            return relation(low, 0)
        answer = relation(difference.hint, 0)
        key = difference.number, _RELATIONS[relation]
        self._guards[key] = difference, answer
        if self._places is not None and key not in self._places:
            self._places[key] = _asking_line()
        return answer

    def guard_text(self, difference: Size, relation: str, *, answer: bool) -> str:
        """Return a guard as text, with the line of code that made it where that was noted."""
        place = "" if self._places is None else f" ({self._places[difference.number, relation]})"
        return f"{difference.text} {relation} 0 is not {answer}{place}"

    # Other values

    def compile(self, sizes: Iterable[Any]) -> Callable[[Sequence[int]], list[int]]:
        """Return a function from values of the symbols, in order, to the values of these sizes.

        It raises GuardError where the values do not meet the guards that there are now, or are no values of symbols.
        """
        writer = _Writer(self._atoms)
        checks: list[str] = []
        guards = self.guards
        for number, (difference, relation, answer) in enumerate(guards):
            checks.append(f"if ({writer.write(difference)} {relation} 0) is not {answer}: refuse({number})")
        check_lines = [*writer.lines, *checks]
        writer.lines = []
        values = ", ".join(writer.write(size) for size in sizes)
        arguments = "".join(f"s{number}, " for number in range(len(self.names)))
        unpack = [f"({arguments}) = values"] if self.names else []
        lines = [*unpack, *check_lines, *writer.lines, f"return [{values}]"]
        source = "def evaluate(values):\n" + "\n".join(f"    {line}" for line in lines)

        def refuse(number: int) -> None:
            difference, relation, answer = guards[number]
            raise GuardError(f"sizes: {self.guard_text(difference, relation, answer=answer)}")

        space: dict[str, Any] = {"refuse": refuse, "min": min, "max": max, "__builtins__": {}}
        exec(source, space)  # noqa: S102  the text is made of numbers and operators here, names of symbols are not in it
        evaluate = space["evaluate"]

        def checked(values: Sequence[int]) -> list[int]:
            if len(values) != len(self.names) or any(not LEAST <= value <= MOST for value in values):
                raise GuardError(f"sizes: {list(values)} are no values of {self.names}, each is {LEAST} at least")
            try:
                made: list[int] = evaluate(values)
            except ZeroDivisionError:
                raise GuardError(f"sizes: a divisor is 0 for {dict(zip(self.names, values, strict=True))}") from None
            return made

        return checked

    def text(self, terms: _Terms) -> str:
        """Return a polynomial as text."""
        parts = []
        for monomial, factor in terms:
            names = [self._atom_text(atom) for atom in monomial]
            parts.append("*".join([*([str(factor)] if factor != 1 or not names else []), *names]))
        return " + ".join(parts)

    def _atom_text(self, number: int) -> str:
        name, a, b = self._atoms[number]
        if name == "symbol":
            return str(self.names[a])
        return f"({size_text(a)} {name} {size_text(b)})" if name in ("//", "%") else f"{name}({size_text(a)}, {size_text(b)})"


class _Writer:
    """Writes expressions as Python; each atom that is an operation gets a variable of its own, written once."""

    def __init__(self, atoms: Sequence[tuple[str, Any, Any]]) -> None:
        self._atoms = atoms
        self._written: dict[int, str] = {}
        self.lines: list[str] = []

    def write(self, size: Any) -> str:
        """Return the text of a size; what it needs before is added to `lines`."""
        if not isinstance(size, Size):
            return str(int(size))
        terms = []
        for monomial, factor in size.terms:
            names = [self._name(atom) for atom in monomial]
            terms.append("*".join([*([str(factor)] if factor != 1 or not names else []), *names]))
        return f"({' + '.join(terms)})"

    def _name(self, number: int) -> str:
        if number not in self._written:
            name, a, b = self._atoms[number]
            if name == "symbol":
                self._written[number] = f"s{a}"
            else:
                first, second = self.write(a), self.write(b)
                text = f"{first} {name} {second}" if name in ("//", "%") else f"{name}({first}, {second})"
                self._written[number] = f"t{number}"
                self.lines.append(f"t{number} = {text}")
        return self._written[number]


_OPERATIONS: Mapping[str, Callable[[int, int], int]] = {"//": operator.floordiv, "%": operator.mod, "min": min, "max": max}
_RELATIONS: Mapping[Callable[[int, int], bool], str] = {
    operator.eq: "==", operator.ne: "!=", operator.lt: "<", operator.le: "<=", operator.gt: ">", operator.ge: ">=",
}  # fmt: skip


def _asking_line() -> str:
    """Return the file and line outside of this module that asked something of a size."""
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename in (__file__, "<string>"):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _order(term: tuple[_Monomial, int]) -> tuple[int, _Monomial]:
    """Order monomials so that products keep the order: higher powers first."""
    return -len(term[0]), term[0]


def _without(monomial: _Monomial, factor: _Monomial) -> _Monomial | None:
    """Return a monomial divided by another; None where it is no multiple of it."""
    left = list(monomial)
    for atom in factor:
        if atom not in left:
            return None
        left.remove(atom)
    return tuple(left)


def _key(operand: Any) -> Any:
    return operand.terms if isinstance(operand, Size) else operand


def _hint(size: Any) -> int:
    return size.hint if isinstance(size, Size) else int(size)


def _range(size: Any) -> _Range:
    return size.range if isinstance(size, Size) else (size, size)


def _require_same(scope: Scope, size: Size) -> None:
    if size.scope is not scope:
        raise ValueError(f"sizes: {size.text} is of another scope")


def _foreign(a: Any, b: Any, operation: Callable[[Any, Any], Any]) -> Any:
    """Compute with something that is no whole number: arrays element by element, floats with the value at the hints."""
    if isinstance(b, np.ndarray):
        return operation(np.array(a, object), b.astype(object))
    if isinstance(a, np.ndarray):
        return operation(a.astype(object), np.array(b, object))
    if isinstance(b, float | np.floating):
        return operation(a.fixed(), b)
    if isinstance(a, float | np.floating):
        return operation(a, b.fixed())
    return NotImplemented


def is_symbolic(size: object) -> bool:
    """Whether a size depends on symbols."""
    return isinstance(size, Size)


def hint(size: Any) -> int:
    """Return the whole number to decide by where every choice is right and one is fastest: of tiles, chunks, thresholds."""
    return size.hint if isinstance(size, Size) else cast("int", size)


def surely_equal(some: Sequence[int], other: Sequence[int]) -> bool:
    """Whether sizes are equal for all values of the symbols. It assumes nothing: for what only saves work where it is so."""
    return len(some) == len(other) and all(map(_same, some, other))


def _same(a: Any, b: Any) -> bool:
    return a is b if isinstance(a, Size) or isinstance(b, Size) else bool(a == b)


_T = TypeVar("_T")


def hinted(value: _T) -> _T:
    """Return a value with the hint of each size in it: in tuples, lists, and the fields of dataclasses.

    Where it has no size, it is returned itself, but a list is copied.
    """
    kind: Any = type(value)
    if kind is int or kind is str:
        return value
    if isinstance(value, Size):
        return cast("_T", value.hint)
    if isinstance(value, tuple) and kind is tuple:
        made = tuple(map(hinted, value))
        return cast("_T", made) if any(map(operator.is_not, made, value)) else value
    if isinstance(value, list):
        return cast("_T", list(map(hinted, value)))
    changed = {name: plain for name in _fields_of(kind) if (plain := hinted(each := getattr(value, name))) is not each}
    return cast("_T", replace(cast("Any", value), **changed)) if changed else value


@functools.cache
def _fields_of(kind: type) -> tuple[str, ...]:
    """Return the names of a dataclass's fields that it is made with; none for other types."""
    return tuple(each.name for each in fields(kind) if each.init) if is_dataclass(kind) else ()


def least(*sizes: int) -> int:
    """Return the smallest of several sizes."""
    return _extreme("min", sizes)


def most(*sizes: int) -> int:
    """Return the largest of several sizes."""
    return _extreme("max", sizes)


def _extreme(name: str, sizes: Sequence[Any]) -> int:
    found, *others = sizes
    for other in others:
        scope = next((size.scope for size in (found, other) if isinstance(size, Size)), None)
        found = _OPERATIONS[name](found, other) if scope is None else scope.extreme(name, found, other)
    return cast("int", found)


def sizes_in(value: Any, found: dict[Any, None]) -> None:
    """Add each size in a value that depends on symbols to `found`: in sequences, mappings, arrays, and fields of dataclasses."""
    if isinstance(value, Size):
        found[value] = None
    elif isinstance(value, tuple | list | frozenset):
        for each in value:
            sizes_in(each, found)
    elif isinstance(value, Mapping):
        for each in value.values():
            sizes_in(each, found)
    elif isinstance(value, np.ndarray):
        if value.dtype == object:
            sizes_in(list(value.flat), found)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            sizes_in(getattr(value, field.name), found)


class Sizes:
    """The values that sizes have once symbols have values. Plain numbers have their own."""

    def __init__(self, values: Mapping[Any, int], roomy: Callable[[], Sizes] | None = None) -> None:
        self._values = values
        self._roomy = roomy

    @property
    def are_plain(self) -> bool:
        """Whether no size depends on symbols."""
        return not self._values

    def roomy(self) -> Sizes:
        """Return the values for symbols that are about a quarter larger, for memory that is to serve growing sizes too."""
        return self if self._roomy is None else self._roomy()

    def of(self, size: int) -> int:
        """Return the value of a size. Raises KeyError for one that was not evaluated."""
        return size if type(size) is int else self._values[size]

    def all(self, sizes: Iterable[Any]) -> tuple[int, ...]:
        """Return the values of several sizes."""
        values = self._values
        return tuple([size if type(size) is int else values[size] for size in sizes])


PLAIN = Sizes({})


class SizeVector:
    """Several sizes, most of them plain numbers, which are evaluated together.

    plain: the numbers (int64), 0 in place of sizes that depend on symbols.
    """

    def __init__(self, sizes: Sequence[Any]) -> None:
        symbolic = [(at, size) for at, size in enumerate(sizes) if isinstance(size, Size)]
        self.plain = np.array([0 if isinstance(size, Size) else size for size in sizes], np.int64)
        self._at = np.array([at for at, _ in symbolic], np.int64)
        self._sizes = [size for _, size in symbolic]

    def __len__(self) -> int:
        return len(self.plain)

    @property
    def is_plain(self) -> bool:
        """Whether no size depends on symbols."""
        return not self._sizes

    def at(self, sizes: Sizes) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the values (int64); not a copy where all are plain."""
        if not self._sizes:
            return self.plain
        values = self.plain.copy()
        values[self._at] = sizes.all(self._sizes)
        return values


class Evaluation:
    """What computes the values of sizes from those of the symbols. Made when nothing more is assumed in the scope."""

    def __init__(self, scope: Scope, sizes: Iterable[Any]) -> None:
        self._sizes = list(sizes)
        self._compute = scope.compile(self._sizes)

    def at(self, values: Sequence[int]) -> Sizes:
        """Return the values of all sizes. Raises GuardError where what was assumed does not hold."""
        return Sizes(self._values(values), lambda: self._larger(values))

    def _values(self, values: Sequence[int]) -> dict[Any, int]:
        return dict(zip(self._sizes, self._compute(values), strict=True))

    def _larger(self, values: Sequence[int]) -> Sizes:
        larger = [value + value // 4 + 1 for value in values]
        try:
            return Sizes(self._values(larger))
        except GuardError:  # what was assumed ends before
            return Sizes(self._values(values))


def size_text(size: object) -> str:
    """Return a size as text for messages, without assuming anything of it."""
    return size.text if isinstance(size, Size) else str(size)
