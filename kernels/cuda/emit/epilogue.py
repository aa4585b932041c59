"""Bias and expression on a thread's results in registers, and their way to and from memory.

A thread holds runs of consecutive columns. Where every row starts at a multiple of 16 bytes and the columns are a multiple of a
run, runs go to memory whole; elsewhere element by element.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kernels.cuda.emit.builder import both, load_half, load_words, store_half, store_words
from kernels.native.emit.builder import Function, Value
from kernels.native.emit.types import F32, I16, I32, I64, Type


@dataclass(frozen=True, slots=True)
class RunMemory:
    """How runs of elements lie in memory. kind: of an element there; in registers all are float32. run: columns of a run.

    whole: whether runs go to memory whole.
    """

    kind: Type
    run: int
    whole: bool

    @property
    def _item_bytes(self) -> int:
        return self.kind.bits // 8

    def load(self, k: Function, base: Value, offset: Value, valid: Callable[[int], Value]) -> Value:
        """Load a run as float32. offset: of its first element.  valid: from a lane to whether it exists; others are 0."""
        at = self._at(k, base, offset)
        if not self.whole:
            value = k.zero(F32.by(self.run))
            for lane in range(self.run):
                value = k.insert(value, self._load_one(k, at + self._item_bytes * lane, valid(lane)), lane)
            return value
        words: list[Value] = []
        for first in range(0, self._words, 4):
            count = min(4, self._words - first)
            words += load_words(k, at + 4 * first, count, valid(0))
        bits = k.poison(I32.by(self._words))
        for n, word in enumerate(words):
            bits = k.insert(bits, word, n)
        return k.convert("fpext", k.convert("bitcast", bits, self.kind.by(self.run)), F32.by(self.run))

    def store(self, k: Function, base: Value, offset: Value, value: Value, valid: Callable[[int], Value]) -> None:
        """Store a run of float32, rounded to the type in memory, where its lanes exist."""
        at = self._at(k, base, offset)
        rounded = k.convert("fptrunc", value, self.kind.by(self.run))
        if not self.whole:
            for lane in range(self.run):
                self._store_one(k, at + self._item_bytes * lane, k.extract(rounded, lane), valid(lane))
            return
        bits = k.convert("bitcast", rounded, I32.by(self._words))
        words = [k.extract(bits, n) for n in range(self._words)]
        for first in range(0, self._words, 4):
            store_words(k, at + 4 * first, words[first : first + 4], valid(0))

    @property
    def _words(self) -> int:
        return self.run * self._item_bytes // 4

    def _at(self, k: Function, base: Value, offset: Value) -> Value:
        return base + k.convert("zext", offset, I64) * self._item_bytes

    def _load_one(self, k: Function, at: Value, valid: Value) -> Value:
        raw = load_half(k, at, valid) if self._item_bytes == 2 else load_words(k, at, 1, valid)[0]
        return k.convert("fpext", k.convert("bitcast", raw, self.kind), F32)

    def _store_one(self, k: Function, at: Value, value: Value, valid: Value) -> None:
        if self._item_bytes == 2:
            store_half(k, at, k.convert("bitcast", value, I16), valid)
        else:
            store_words(k, at, [k.convert("bitcast", value, I32)], valid)


def lanes_below(k: Function, column: Value, columns: Value, row_valid: Value) -> Callable[[int], Value]:
    """Return what tells of each lane of a run whether it exists. column: of lane 0."""

    def valid(lane: int) -> Value:
        inside = k.op(f"icmp ult {column + lane}, {columns.ref}", row_valid.type, "inside")
        return both(k, inside, row_valid)

    return valid
