"""Runs of elements on their way between registers and memory; bias and expression on a thread's results in registers.

A thread holds runs of consecutive columns. Where every row starts at a multiple of a run's bytes (16 at most) and the columns are
a multiple of a run, runs go to memory whole; elsewhere element by element.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, get_args

from kernels.cuda.emit.builder import both, load_element, load_words, store_element, store_words
from kernels.cuda.emit.descriptor import OPERANDS, OTHERS, Fields
from kernels.expression import FLOAT, Expression
from kernels.native.emit.builder import Function, Value
from kernels.native.emit.expression import evaluate, value_types
from kernels.native.emit.types import BF16, F16, F32, I32, I64, Type
from kernels.native.errors import EmitError
from kernels.record import record

Storage = Literal["fp32", "fp16", "bf16"]
STORAGES: dict[Storage, Type] = {"fp32": F32, "fp16": F16, "bf16": BF16}
UNCHANGED = Expression((FLOAT,))


@record
class RunMemory:
    """How runs of elements lie in memory. kind: of an element there.  run: columns of a run.  whole: whether they move whole.

    In registers fp16 and bf16 are float32, and other elements are what they are in memory.
    """

    kind: Type
    run: int
    whole: bool

    @staticmethod
    def of(storage: Storage, run: int) -> RunMemory:
        """Return how runs that move whole lie in memory; a run of 1 is an element by itself."""
        return RunMemory(STORAGES[storage], run, run > 1)

    @property
    def register(self) -> Type:
        """The type of an element in registers."""
        return F32 if self.kind.is_float and self.kind.bits < 32 else self.kind

    @property
    def _item_bytes(self) -> int:
        return self.kind.bits // 8

    def load(self, k: Function, base: Value, offset: Value, valid: Callable[[int], Value]) -> Value:
        """Load a run. offset: of its first element.  valid: from a lane to whether it exists; others are 0."""
        at = self.at(k, base, offset)
        if not self.whole:
            lanes = [self._widened(k, load_element(k, at + self._item_bytes * n, self.kind, valid(n))) for n in range(self.run)]
            return joined(k, lanes)
        words: list[Value] = []
        for first in range(0, self._words, 4):
            words += load_words(k, at + 4 * first, min(4, self._words - first), valid(0))
        return self._widened(k, k.convert("bitcast", joined(k, words), self.kind.by(self.run)))

    def store(self, k: Function, base: Value, offset: Value, value: Value, valid: Callable[[int], Value]) -> None:
        """Store a run, rounded to the type in memory, where its lanes exist."""
        at = self.at(k, base, offset)
        rounded = value if value.type.element == self.kind else k.convert("fptrunc", value, self.kind.by(self.run))
        if not self.whole:
            for lane in range(self.run):
                store_element(k, at + self._item_bytes * lane, lane_of(k, rounded, lane), valid(lane))
            return
        bits = k.convert("bitcast", rounded, I32.by(self._words))
        words = [lane_of(k, bits, n) for n in range(self._words)]
        for first in range(0, self._words, 4):
            store_words(k, at + 4 * first, words[first : first + 4], valid(0))

    def at(self, k: Function, base: Value, offset: Value) -> Value:
        """Return the address of an element."""
        return base + k.convert("zext", offset, I64) * self._item_bytes

    @property
    def _words(self) -> int:
        return self.run * self._item_bytes // 4

    def _widened(self, k: Function, value: Value) -> Value:
        return k.convert("fpext", value, F32.by(value.type.lanes)) if self.register != self.kind else value


def joined(k: Function, lanes: list[Value]) -> Value:
    """Return scalars as the lanes of one vector, or a single one as it is."""
    if len(lanes) == 1:
        return lanes[0]
    value = k.poison(lanes[0].type.by(len(lanes)))
    for n, lane in enumerate(lanes):
        value = k.insert(value, lane, n)
    return value


def lane_of(k: Function, value: Value, lane: int) -> Value:
    """Return a lane of a vector, or a scalar as it is."""
    return k.extract(value, lane) if value.type.lanes > 1 else value


def check_expression(subject: str, expression: Expression, operands: int = OPERANDS) -> None:
    """Raise EmitError for an expression of other types than float32, or of more than its result and so many operands."""
    types = value_types(expression)
    if set(expression.operands) != {FLOAT} or types[-1] != FLOAT or len(expression.operands) > 1 + operands:
        raise EmitError(f"{subject}: an expression of {types[:-1]}, need float32 of float32, and {1 + operands} at most")


@record
class Finish:
    """Bias, expression and storing of results. storage: of y and of what the expression reads beside the result, r0 and r1.

    run: consecutive columns that move at once, 1 for single elements.  bias: whether a float32 is added for each column.
    Raises EmitError for an expression that is not float32 of float32, for too many operands, or a run that no instruction moves.
    """

    storage: Storage
    run: int
    bias: bool = False
    expression: Expression = UNCHANGED

    def __post_init__(self) -> None:
        check_expression("epilogue", self.expression)
        if self.storage not in STORAGES:
            raise EmitError(f"epilogue: elements of {self.storage}, need one of {', '.join(get_args(Storage))}")
        if self.run not in (1, 2, 4, 8) or self.run * STORAGES[self.storage].bits // 8 > 16:
            raise EmitError(f"epilogue: runs of {self.run} elements of {self.storage}, need a power of two of 16 bytes at most")

    def load(self, fields: Fields, row: Value, column: Value, valid: Value) -> list[Value]:
        """Emit the loads of what bias and expression read for a run of results: long before the results are there, at best."""
        k, memory, exists = fields.k, RunMemory.of(self.storage, self.run), all_lanes(valid)
        found = [RunMemory.of("fp32", self.run).load(k, fields.address("bias"), column, exists)] if self.bias else []
        for name in OTHERS[: len(self.expression.operands) - 1]:
            found.append(memory.load(k, fields.address(name), row * fields.number(f"{name}_stride") + column, exists))
        return found

    def store(self, fields: Fields, value: Value, row: Value, column: Value, valid: Value, loaded: Sequence[Value]) -> None:
        """Emit bias and expression on a run of results, and its storing where it is valid. loaded: by `load`."""
        k, memory = fields.k, RunMemory.of(self.storage, self.run)
        operands = list(loaded)
        if self.bias:
            value = value + operands.pop(0)
        result = evaluate(k, self.expression, [partial(_same, each) for each in (value, *operands)], self.run)
        memory.store(k, fields.address("y"), row * fields.number("y_stride") + column, result, all_lanes(valid))

    def emit(self, fields: Fields, value: Value, row: Value, column: Value, valid: Value) -> None:
        """Emit bias and expression on a run of results, and its storing where it is valid."""
        self.store(fields, value, row, column, valid, self.load(fields, row, column, valid))


def _same(value: Value) -> Value:
    return value


def all_lanes(valid: Value) -> Callable[[int], Value]:
    """Return what tells of every lane of a run the same."""
    return lambda _: valid


def lanes_below(k: Function, column: Value, columns: Value, row_valid: Value) -> Callable[[int], Value]:
    """Return what tells of each lane of a run whether it exists. column: of lane 0."""

    def valid(lane: int) -> Value:
        inside = k.op(f"icmp ult {column + lane}, {columns.ref}", row_valid.type, "inside")
        return both(k, inside, row_valid)

    return valid
