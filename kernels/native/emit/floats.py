"""Vectors of float32, or of bytes that are converted to it when they are read."""

from __future__ import annotations

from kernels.expression import FLOAT
from kernels.native.emit.builder import Function, Operand, Value
from kernels.native.emit.expression import memory_type
from kernels.native.emit.types import F32
from kernels.spec import DType


class Floats:
    """Reads vectors of elements as float32.

    Args: dtype: of the elements: float32, or int8 or uint8. zero: of bytes, the value that is read as 0; None reads them as
          they are.
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

    def everywhere(self, value: Operand) -> Value:
        """Return the address of a vector of elements that all have that value."""
        room = self.k.room(self.vector)
        element = self.k.convert("trunc", value, self.element) if isinstance(value, Value) else value
        self.k.store(self.k.splat(element, self.vector), room)
        return room

    def _as_float(self, raw: Value) -> Value:
        if self.dtype == FLOAT:
            return raw
        number = self.k.convert("sitofp" if self.dtype.kind == "i" else "uitofp", raw, self.k.f32)
        return number if self._zero is None else number - self._zero
