"""Vectors of float32, or of bytes or bfloat16 that are converted to it when they are read."""

from __future__ import annotations

import numpy as np

from kernels.expression import FLOAT
from kernels.native.emit.builder import Function, Operand, Value
from kernels.native.emit.expression import memory_type
from kernels.native.emit.halves import widen
from kernels.native.emit.types import F32
from kernels.spec import BFLOAT16, DType


class Floats:
    """Reads vectors of elements as float32.

    Args: dtype: of the elements: float32, bfloat16, int8 or uint8. zero: of bytes, the value that is read as 0; None reads
          them as they are.
    """

    def __init__(self, k: Function, dtype: DType, zero: Value | None = None) -> None:
        self.k, self.dtype, self.element = k, dtype, memory_type(dtype)
        self.vector = self.element.by(k.isa.lanes)
        self._zero = None if zero is None else k.splat(k.convert("sitofp", zero, F32), k.f32)

    def offset(self, base: Value, elements: Operand) -> Value:
        """Return the address so many elements after another one."""
        return self.k.offset(base, elements, self.element)

    def load(self, address: Value) -> Value:
        """Read a whole vector."""
        return self._as_float(self.k.load(self.vector, address))

    def load_first(self, address: Value, count: Value) -> Value:
        """Read the first `count` lanes, and nothing behind them; the others hold any number."""
        return self._as_float(self.k.load_first(self.vector, address, count))

    def outside(self, value: float | Value) -> float | Value:
        """Return what `Border` reads outside of an image: that value, in these elements."""
        if self.dtype == FLOAT:
            return value
        if not isinstance(value, Value):
            value = int(np.array(value, self.dtype).view(f"i{self.dtype.itemsize}"))
        room = self.k.room(self.vector)
        element = self.k.convert("trunc", value, self.element) if isinstance(value, Value) else value
        self.k.store(self.k.splat(element, self.vector), room)
        return room

    def _as_float(self, raw: Value) -> Value:
        if self.dtype == FLOAT:
            return raw
        if self.dtype == BFLOAT16:
            return widen(self.k, raw, BFLOAT16)
        number = self.k.convert("sitofp" if self.dtype.kind == "i" else "uitofp", raw, self.k.f32)
        return number if self._zero is None else number - self._zero
