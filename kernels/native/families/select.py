"""The largest or smallest elements along an axis, in order, with their indices: TopK.

    for each chunk = some rows:    for each row:
        for each element:    if its key is larger than the least in the heap, it takes that one's place
        sort the heap, and write the elements that its keys name, and their indices

A key is an element's place in the order and its index, as one integer: of equal elements the first has the larger key. NaN is
larger than every number, and the zeros are equal, as in numpy's sort. The heap has its least key at the root.

The code is decided by the type and whether the largest or the smallest are wanted; sizes and strides are numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

from kernels.expression import FLOAT
from kernels.native.emit.builder import Function, Value
from kernels.native.emit.expression import memory_type
from kernels.native.emit.kernel import SCRATCH, Bounds, NativeKernel, emitted, kernel_name
from kernels.native.emit.names import name_dtype
from kernels.native.emit.types import I1, I32, I64
from kernels.native.errors import EmitError
from kernels.native.memory.view import View
from kernels.native.target.isa import Isa
from kernels.record import record
from kernels.size import hint
from kernels.spec import INTS, DType

CHUNK_ELEMENTS = 4096  # read by one, about 5 µs
INDEX_BITS = 31  # of a key; the others are for the element
LAST_INDEX = (1 << INDEX_BITS) - 1
LEAST = -(1 << 63)  # less than every key


@record
class Select:
    """x: (outer, size, inner). Along its second axis `count` elements and their indices are written, to dense memory."""

    x: View
    count: int
    largest: bool = True
    dtype: DType = FLOAT


def emit_select(what: Select, isa: Isa) -> NativeKernel:
    """Emit the kernel, with the arguments "x", "values", "indices" (int64) and "scratch".

    Raises EmitError where an axis has fewer elements than are wanted or more than an index of a key can name, and for other types
    than float32 and integers of up to 32 bits.
    """
    (outer, size, inner), dtype = what.x.shape, what.dtype
    if not (dtype == FLOAT or (dtype in INTS and dtype.itemsize <= 4)):
        raise EmitError(f"select: elements are {dtype.name}, need float32 or integers of up to 32 bits")
    if what.count > size or size > LAST_INDEX:
        raise EmitError(f"select: {what.count} of {size} are wanted, need at most as many, and an axis of at most {LAST_INDEX}")
    rows = outer * inner
    piece = max(CHUNK_ELEMENTS // max(hint(size), 1), 1)
    numbers = {
        "rows": rows, "piece": piece, "inner": inner, "size": size, "count": what.count, "x_offset": what.x.offset,
        "x_outer": what.x.strides[0], "x_step": what.x.strides[1], "x_inner": what.x.strides[2],
        "y_outer": what.count * inner, "y_step": inner,
    }  # fmt: skip

    def body(k: Function, pointers: Mapping[str, Value], sizes: Mapping[str, Value], chunks: Bounds) -> None:
        _SelectEmitter(k, dtype, sizes, pointers, largest=what.largest).emit(*chunks)

    stem, word = f"{name_dtype(dtype)}_select", "largest" if what.largest else "smallest"
    return emitted(
        isa,
        kernel_name(stem, (dtype, what.largest), isa, (word,)),
        ("x", "values", "indices", SCRATCH),
        -(-rows // piece) if what.count else 0,
        body,
        numbers,
        scratch_bytes=8 * what.count,
    )


class _SelectEmitter:
    """Emits the code; the methods are the loops of the module docstring, outermost first."""

    def __init__(
        self, k: Function, dtype: DType, n: Mapping[str, Value], pointers: Mapping[str, Value], *, largest: bool
    ) -> None:
        self.k, self.dtype, self.n, self.pointers, self.largest = k, dtype, n, pointers, largest
        self.kind, self.heap = memory_type(dtype), pointers[SCRATCH]
        self.root = k.const(I64, 0)

    def emit(self, begin: Value, end: Value) -> None:
        """Emit the loop over the rows of a call."""
        k, n = self.k, self.n
        with k.loop("row", begin * n["piece"], k.least(end * n["piece"], n["rows"])) as row:
            o, i = row // n["inner"], row % n["inner"]
            x = k.offset(self.pointers["x"], n["x_offset"] + o * n["x_outer"] + i * n["x_inner"], self.kind)
            self._keep(x)
            self._sort()
            self._write(x, o * n["y_outer"] + i)

    def _keep(self, x: Value) -> None:
        """Emit the heap of the largest keys of a row."""
        k, n = self.k, self.n
        with k.loop("empty", 0, n["count"]) as at:
            k.store(k.const(I64, LEAST), self.heap, at)
        with k.loop("element", 0, n["size"]) as at:
            key = self._key(k.load(self.kind, x, at * n["x_step"]), at)
            with k.when(key > k.load(I64, self.heap), "larger"):
                self._sift(key, n["count"])

    def _key(self, value: Value, index: Value) -> Value:
        """Return the key of an element."""
        k = self.k
        if self.dtype == FLOAT:
            bits = k.convert("bitcast", value + 0.0, I32)  # of both zeros it makes +0
            turned = k.select(bits < 0, bits ^ k.const(I32, LAST_INDEX), bits)
            order = k.select(k.compare("ne", value, value), k.const(I32, LAST_INDEX), turned)
        else:
            order = value
        wide = k.convert("zext" if self.dtype.kind == "u" else "sext", order, I64)
        wide = wide if self.largest else k.const(I64, -1) - wide
        return k.shift("shl", wide, INDEX_BITS) | (k.const(I64, LAST_INDEX) - index)

    def _sift(self, key: Value, size: Value) -> None:
        """Put a key in place of the root of a heap of that size, and let it sink to where no key below it is smaller.

        It passes as many levels as there are: where it has come to rest it is written again.
        """
        k = self.k
        levels = k.const(I64, 64) - k.intrinsic("ctlz", I64, size, k.const(I1, 0))
        k.store(key, self.heap)
        with k.fold("level", 0, levels, 1, [self.root]) as fold:
            at, last = fold.values[0], size - 1
            left = at * 2 + 1
            first, second = (k.select(child <= last, child, at) for child in (left, left + 1))  # itself where it has none
            one, other = k.load(I64, self.heap, first), k.load(I64, self.heap, second)
            smaller = k.select(other < one, second, first)
            below = k.least(one, other)
            sinks = below < key
            k.store(k.select(sinks, below, key), self.heap, at)
            fold.values = [k.select(sinks, smaller, at)]
            k.store(key, self.heap, fold.values[0])

    def _sort(self) -> None:
        """Take the least key from the heap again and again, and put it behind: what is left is sorted, the largest first."""
        k, n = self.k, self.n
        with k.loop("taken", 1, n["count"]) as taken:
            size = n["count"] - taken
            least, key = k.load(I64, self.heap), k.load(I64, self.heap, size)
            self._sift(key, size)
            k.store(least, self.heap, size)

    def _write(self, x: Value, first: Value) -> None:
        """Write the elements that the keys name, and their indices. first: where those of this row begin."""
        k, n = self.k, self.n
        with k.loop("selected", 0, n["count"]) as at:
            index = k.const(I64, LAST_INDEX) - (k.load(I64, self.heap, at) & k.const(I64, LAST_INDEX))
            place = first + at * n["y_step"]
            k.store(k.load(self.kind, x, index * n["x_step"]), self.pointers["values"], place)
            k.store(index, self.pointers["indices"], place)
