"""Epilogues: the bias and the elementwise expression that a kernel applies to its results in registers, before it stores them.

An `Epilogue` is the same for every layout. How its operands are read for a vector of results is up to what finishes the results:
`kernels.native.emit.results` those of images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Generic, TypeVar

from kernels.expression import FLOAT, INT32, Expression
from kernels.native.emit.expression import value_types
from kernels.native.errors import EmitError
from kernels.record import record
from kernels.spec import DType

UNCHANGED = Expression((FLOAT,))

Layout = TypeVar("Layout")


@record
class Epilogue(Generic[Layout]):
    """An elementwise computation on each result of a kernel: a bias is added, then the expression is computed.

    expression: of the result, its operand 0, and of further operands. Results are float32 before it, or int32 where products of
    integers are added up; what it makes of them is stored.
    operands: how each further operand lies: an `Image` or a `View`, with the stride 0 along what it is broadcast over.
    Raises EmitError where there are not as many layouts as operands, or the expression has other types.
    """

    bias: bool = False
    expression: Expression = UNCHANGED
    operands: tuple[Layout, ...] = ()

    def __post_init__(self) -> None:
        types = value_types(self.expression)
        if len(self.expression.operands) != 1 + len(self.operands):
            raise EmitError(f"epilogue: {len(self.operands)} layouts, need {len(self.expression.operands) - 1}, one an operand")
        if types[0] not in (FLOAT, INT32):
            raise EmitError(f"epilogue: results are {types[0].name}, need float32 or int32")

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names of the pointers that a kernel takes for this epilogue, one for each operand, after its own and before "y"."""
        return tuple(f"r{n}" for n in range(len(self.operands)))

    @property
    def dtypes(self) -> tuple[DType, ...]:
        """The element types of the operands."""
        return self.expression.operands[1:]

    @property
    def result(self) -> DType:
        """The element type of what is stored."""
        return value_types(self.expression)[-1]

    def require(self, kernel: str, sums: DType, *, keeps: bool = False) -> None:
        """Raise EmitError unless results are of type `sums` before it and, where the kernel can only keep it, after it."""
        given = self.expression.operands[0]
        if given != sums or (keeps and self.result != sums):
            found = f"its epilogue makes {self.result.name} of {given.name}"
            raise EmitError(f"{kernel}: {found}, need {sums.name if keeps else 'any type'} of {sums.name}")

    def laid(self, change: Callable[[Layout], Layout]) -> Epilogue[Layout]:
        """Return this epilogue with `change` applied to the layout of each operand."""
        return replace(self, operands=tuple(map(change, self.operands)))


PLAIN: Epilogue[Any] = Epilogue()  # that changes nothing
