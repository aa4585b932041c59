"""Elementwise expressions of arrays of any strides: broadcasting, casts, copies.

A thread takes a run of consecutive elements of the result at a time. `kernels.cuda.families.rearrange` has copies that no order
of dimensions makes consecutive in both arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Literal

from kernels.cuda.emit.builder import store_element
from kernels.cuda.emit.descriptor import LIMIT, Descriptor, Fields, listed
from kernels.cuda.emit.epilogue import STORAGES, RunMemory, Storage, all_lanes, joined, lane_of
from kernels.cuda.emit.kernel import emit_kernel, kernel_name, share_among_threads
from kernels.cuda.errors import CudaError
from kernels.cuda.program import Launch
from kernels.expression import FLOAT, Expression
from kernels.native.emit.builder import Function, Value
from kernels.native.emit.expression import evaluate, from_memory, memory_type, to_memory, value_types
from kernels.native.emit.names import name_dtype
from kernels.native.emit.types import I1, Type
from kernels.native.errors import EmitError
from kernels.record import record
from kernels.spec import DType

RANK, INPUTS = 6, 6  # dimensions and operands that a kernel can have
THREADS = 256

Access = Literal["run", "same", "strided"]  # of the elements of a run: side by side, one for all, or apart


class MapDescriptor(Descriptor):
    """What a map is told.

    items: runs of the result.  y_0, r0_0, …: strides in elements, of dimension 0, the outermost, and so on.  size1, …: sizes
    of the dimensions but the outermost; the innermost counts runs.
    """

    _fields_ = listed(
        ("y", *(f"r{n}" for n in range(INPUTS))),
        ("items", *(f"{name}_{d}" for name in ("y", *(f"r{n}" for n in range(INPUTS))) for d in range(RANK))),
        [f"size{d}" for d in range(1, RANK)],
    )


@record
class Array:
    """An array that a map reads or writes. storage: of float32 elements.  strides: in elements, 0 where it is broadcast.

    aligned: bytes of which its address is a multiple, 16 at most.
    """

    strides: tuple[int, ...]
    storage: Storage = "fp32"
    aligned: int = 16


@record
class MapForm:
    """What a map's code depends on. storages, accesses: of the result, then of each operand; types that are not float32 have the
    storage "fp32". rank: dimensions.  run: elements of a thread.

    Raises EmitError for more operands or dimensions than a kernel can have, or an expression that there is not.
    """

    expression: Expression
    storages: tuple[Storage, ...]
    accesses: tuple[Access, ...]
    rank: int
    run: int

    def __post_init__(self) -> None:
        count = len(self.expression.operands)
        if not (len(self.storages) == len(self.accesses) == 1 + count <= 1 + INPUTS and 1 <= self.rank <= RANK):
            raise EmitError(f"map: {count} operands of {self.rank} dimensions, need {INPUTS} of {RANK} at most")
        for dtype in (*value_types(self.expression)[-1:], *self.expression.operands):
            memory_type(dtype)

    @property
    def dtypes(self) -> tuple[DType, ...]:
        """The types of the result and of each operand."""
        return value_types(self.expression)[-1], *self.expression.operands

    @property
    def name(self) -> str:
        """The kernel's name."""
        each = zip(self.dtypes, self.storages, self.accesses, strict=True)
        words = [f"{storage if dtype == FLOAT else name_dtype(dtype)}{access}" for dtype, storage, access in each]
        return kernel_name([words[0], "map", f"rank{self.rank}", f"run{self.run}", *words[1:]], self.expression)

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return THREADS

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block: none."""
        return 0

    def emit(self) -> str:
        """Return the IR of the kernel. Any number of blocks shares the runs."""

        def body(fields: Fields) -> None:
            with share_among_threads(fields.k, fields.number("items"), THREADS) as item:
                _emit_run(fields, self, item)

        return emit_kernel(self, MapDescriptor, body)


def _emit_run(fields: Fields, form: MapForm, item: Value) -> None:
    k = fields.k
    places: list[Value] = []
    for d in range(form.rank - 1, 0, -1):
        item, place = fields.divide(item, f"size{d}")
        places.insert(0, place)
    places = [item, *places]
    places[-1] = places[-1] * form.run
    names = ["y", *(f"r{n}" for n in range(len(form.expression.operands)))]
    kinds = [kind_of(dtype, storage) for dtype, storage in zip(form.dtypes, form.storages, strict=True)]

    def start(number: int) -> Value:
        offset: Value = places[0] * fields.number(f"{names[number]}_0")
        for d in range(1, form.rank):
            offset = offset + places[d] * fields.number(f"{names[number]}_{d}")
        return offset

    def load(number: int) -> Value:
        stride = fields.number(f"{names[number]}_{form.rank - 1}")
        access, address = form.accesses[number], fields.address(names[number])
        loaded = _load(k, RunMemory(kinds[number], form.run, form.run > 1), access, address, start(number), stride)
        return from_memory(k, loaded, form.dtypes[number])

    loads = [load(1 + n) for n in range(len(form.expression.operands))]  # all under way before the first is needed
    result = evaluate(k, form.expression, [partial(_same, value) for value in loads], form.run)
    memory = RunMemory(kinds[0], form.run, form.run > 1)
    value = to_memory(k, result, form.dtypes[0])
    if form.accesses[0] == "run":
        memory.store(k, fields.address("y"), start(0), value, all_lanes(k.const(I1, 1)))
        return
    rounded = value if value.type.element == memory.kind else k.convert("fptrunc", value, memory.kind.by(form.run))
    stride = fields.number(f"y_{form.rank - 1}")
    for lane in range(form.run):
        at = memory.at(k, fields.address("y"), start(0) + stride * lane)
        store_element(k, at, lane_of(k, rounded, lane), k.const(I1, 1))


def kind_of(dtype: DType, storage: Storage) -> Type:
    """Return the type of an element in memory."""
    return STORAGES[storage] if dtype == FLOAT else memory_type(dtype)


def _same(value: Value) -> Value:
    return value


def _load(k: Function, memory: RunMemory, access: Access, address: Value, offset: Value, stride: Value) -> Value:
    always = all_lanes(k.const(I1, 1))
    if access == "run":
        return memory.load(k, address, offset, always)
    single = RunMemory(memory.kind, 1, whole=False)
    if access == "same":
        return k.splat(single.load(k, address, offset, always), memory.register.by(memory.run))
    return joined(k, [single.load(k, address, offset + stride * lane, always) for lane in range(memory.run)])


@record
class Map:
    """An expression of arrays of one shape. Raises CudaError where strides do not fit the shape, or sizes are too large."""

    expression: Expression
    shape: tuple[int, ...]
    result: Array
    operands: tuple[Array, ...]

    def __post_init__(self) -> None:
        for number, array in enumerate((self.result, *self.operands)):
            name = f"operand {number - 1}" if number else "the result"
            if len(array.strides) != len(self.shape) or any(stride < 0 for stride in array.strides):
                raise CudaError(f"map: strides {array.strides} of {name}, need one of 0 or more for each size of {self.shape}")
            if not 0 < extent(self.shape, array.strides) < LIMIT:
                raise CudaError(f"map: {name} of shape {self.shape}, strides {array.strides}, need 1 to {LIMIT - 1} elements")
        if not 0 < prod(self.shape) < LIMIT:
            raise CudaError(f"map: shape {self.shape} has {prod(self.shape)} elements, need 1 to {LIMIT - 1}")

    def launch(self, **names: str) -> Launch:
        """Return the launch. names: of the values at y and at r0, r1, … of the operands. y may be an operand of its strides."""
        arrays = (self.result, *self.operands)
        shape, strides = merged(self.shape, [array.strides for array in arrays])
        dtypes = (value_types(self.expression)[-1], *self.expression.operands)
        item_bytes = [kind_of(d, array.storage).bits // 8 for d, array in zip(dtypes, arrays, strict=True)]
        run = _longest_run(shape[-1], strides, item_bytes, [array.aligned for array in arrays])
        storages = tuple(array.storage if d == FLOAT else "fp32" for d, array in zip(dtypes, arrays, strict=True))
        form = MapForm(self.expression, storages, tuple(_access(each[-1]) for each in strides), len(shape), run)
        told = MapDescriptor(items=prod(shape) // run)
        for d, size in enumerate(shape[1:], 1):
            told.set_divisor(f"size{d}", size // run if d == len(shape) - 1 else size)
        needs = ("y", *(f"r{n}" for n in range(len(self.operands))))
        for name, each in zip(needs, strides, strict=True):
            for d, stride in enumerate(each):
                setattr(told, f"{name}_{d}", stride)
        return Launch.of(form, told, -(-told.items // THREADS), needs, names)


def extent(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Return how many elements lie from an array's first to its last."""
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def merged(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """Return the fewest dimensions that say the same, in the order in which the first array lies in memory.

    Neighbours become one dimension where that is one in every array. Raises CudaError where more than RANK are left.
    """
    kept = [d for d, size in enumerate(shape) if size > 1]
    order = sorted(kept, key=lambda d: -strides[0][d])
    sizes: list[int] = []
    made: list[list[int]] = [[] for _ in strides]
    for d in order:
        steps = [each[d] for each in strides]
        if sizes and all(m[-1] == step * shape[d] for m, step in zip(made, steps, strict=True)):
            sizes[-1] *= shape[d]
            for m, step in zip(made, steps, strict=True):
                m[-1] = step
        else:
            sizes.append(shape[d])
            for m, step in zip(made, steps, strict=True):
                m.append(step)
    if len(sizes) > RANK:
        raise CudaError(
            f"map: shape {tuple(shape)} has {len(sizes)} dimensions that do not lie in one another, need {RANK} at most"
        )
    return (sizes, made) if sizes else ([1], [[1] for _ in strides])


def _access(stride: int) -> Access:
    return "run" if stride == 1 else "same" if stride == 0 else "strided"


def _longest_run(size: int, strides: Sequence[Sequence[int]], item_bytes: Sequence[int], aligned: Sequence[int]) -> int:
    """Return the most elements that every array can move at once, up to 16 bytes of the narrowest."""
    run = min(8, 16 // min(item_bytes))
    while run > 1 and not _moves(size, strides, item_bytes, aligned, run):
        run //= 2
    return run


def _moves(size: int, strides: Sequence[Sequence[int]], item_bytes: Sequence[int], aligned: Sequence[int], run: int) -> bool:
    """Return whether every run begins at a multiple of its bytes, 16 at most."""
    if size % run:
        return False
    for each, n_bytes, address in zip(strides, item_bytes, aligned, strict=True):
        if each[-1] == 1:
            need = min(16, run * n_bytes)
            if run * n_bytes < 4 or address % need or any(stride * n_bytes % need for stride in each[:-1]):
                return False
    return strides[0][-1] == 1
