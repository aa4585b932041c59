"""Elementwise computation as data: what is computed of each element, independent of layout and of the code that computes it.

An `Expression` is a tape of typed operations. An op says with a function how to compute it as one (`Op.expression`), and calls a
`Draft` for that, whose values are `Term`s:

    def express_swish(draft: Draft, x: Term, *, alpha: float) -> Term:
        return draft("mul", x, draft("sigmoid", draft("mul", x, draft.constant(alpha, x.dtype))))

Operations are named like the vector functions of the code that computes them; those of native kernels, and on which types each
is defined, are listed in `kernels.native.emit.expression`. These names mean the same everywhere:

    constant    no argument: the number given as its parameter, of type `dtype`
    cast        its argument converted to `dtype`
    fit         its argument, a float32 that is no NaN, as the nearest number of the small integer type `dtype`
    bits        its argument's bits, as an unsigned integer
    hold        its argument, a float32, as the bfloat16 in which kernels hold it between them
    where       of a bool and two values of one type, the second where the bool is true, else the third
    lt le gt ge eq ne, isnan isinf    predicates, which make a bool
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np

from kernels.record import record
from kernels.spec import BOOL, Array, DType

FLOAT, DOUBLE, INT32 = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.int32)
COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
PREDICATES = (*COMPARISONS, "isnan", "isinf")
COMMUTATIVE = ("add", "mul")


@record
class Apply:
    """One step of an expression: an operation on earlier values, given by number.

    parameters: numbers that the operation takes besides, in the order that its function declares. dtype: of the result of
    "constant", "cast", "fit" and "hold", float32 where it is None.
    """

    op: str
    args: tuple[int, ...] = ()
    parameters: tuple[float, ...] = ()
    dtype: DType | None = None


@record
class Expression:
    """Steps on values: value i is operand i, then each step appends one; the last value is the result.

    operands: their types. steps: without any, the expression is its only operand.
    """

    operands: tuple[DType, ...]
    steps: tuple[Apply, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """A value of an expression under construction.

    known: its elements, where it is a constant of the model. shape: of an operand, where that is known; it is broadcast.
    """

    dtype: DType
    known: Array | None = None
    shape: tuple[int, ...] | None = None


@record
class _Step:
    op: str
    args: tuple[Term, ...]
    parameters: tuple[float, ...]
    dtype: DType | None


class Draft:
    """An expression under construction. Calling it appends an operation; operands are numbered when it is finished."""

    def __init__(self) -> None:
        self._operands: dict[str, Term] = {}
        self._steps: dict[Term, _Step] = {}
        self._terms: dict[_Step, Term] = {}

    def operand(self, name: str, dtype: DType, known: Array | None = None, shape: tuple[int, ...] | None = None) -> Term:
        """Return the term of the operand of that name, the same one each time."""
        return self._operands.setdefault(name, Term(dtype, known, shape))

    def __call__(self, op: str, *args: Term, parameters: tuple[float, ...] = (), dtype: DType | None = None) -> Term:
        """Append an operation, unless it is there already, and return its result."""
        step = _Step(op, args, parameters, dtype)
        if step not in self._terms:
            self._terms[step] = made = Term(_result_type(op, args, dtype))
            self._steps[made] = step
        return self._terms[step]

    def constant(self, value: float, dtype: DType) -> Term:
        """Append a number as a value of that type."""
        return self("constant", parameters=(value,), dtype=dtype)

    def shaped(self, term: Term, shape: tuple[int, ...]) -> Term:
        """Return a result as one whose shape is known."""
        if term.shape is not None or term not in self._steps:
            return term
        step = self._steps[term]
        self._terms[step] = made = replace(term, shape=shape)
        self._steps[made] = step
        return made

    def finish(self, result: Term, first: tuple[str, ...] = ()) -> tuple[tuple[str, ...], Expression]:
        """Return the names of the operands in order, and the expression of `result` without the steps that it does not need.

        first: names of the operands that come first, read or not. The others follow in the order in which they are read.
        """
        needed = {result}
        for term, step in reversed(self._steps.items()):
            if term in needed:
                needed.update(step.args)
        steps = {term: step for term, step in self._steps.items() if term in needed}
        names = {term: name for name, term in self._operands.items()}
        read = [arg for step in steps.values() for arg in step.args if arg in names] if steps else [result]
        operands = list(dict.fromkeys([*(self._operands[name] for name in first), *read]))
        number = {term: n for n, term in enumerate([*operands, *steps])}
        tape = [
            Apply(step.op, in_order(step.op, [number[arg] for arg in step.args]), step.parameters, step.dtype)
            for step in steps.values()
        ]
        return tuple(names[term] for term in operands), Expression(tuple(term.dtype for term in operands), tuple(tape))


def in_order(op: str, args: Sequence[int]) -> tuple[int, ...]:
    """Return the arguments of an op in the order in which code for a + b is shared with b + a."""
    return tuple(sorted(args) if op in COMMUTATIVE else args)


def _result_type(op: str, args: tuple[Term, ...], dtype: DType | None) -> DType:
    if op in ("constant", "cast", "fit", "hold"):
        return dtype or FLOAT
    if op == "bits":
        return np.dtype(f"u{args[0].dtype.itemsize}")
    if op in PREDICATES:
        return BOOL
    return args[op == "where"].dtype


Express = Callable[..., Term | None]


def applied(op: str, *parameters: str) -> Callable[..., Term]:
    """Express an op as one operation on all its inputs. parameters: the attributes that are its parameters, in order."""
    return lambda draft, *args, **attrs: draft(op, *args, parameters=tuple(float(attrs[name]) for name in parameters))


def folded(op: str) -> Callable[..., Term]:
    """Express an op as an operation between all its inputs, from the left."""
    return lambda draft, *args, **_: reduce(lambda a, b: draft(op, a, b), args)
