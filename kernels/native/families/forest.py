"""Forests of decision trees: each row walks through all trees, and what its leaves give each target is added up in float64.

    for each chunk = (some rows, a block of trees):
        for each TOGETHER trees, for each row:
            walk through all of them at once, a node of each in turn
            part[block, row, :] = part[block, row, :] + what the leaves give
    for each chunk = some rows:    y = (part[0] + part[1] + …) / divisor + base

A walk waits for memory at each node, so several are on their way at once. No branch depends on data, since such a branch is
mispredicted half of the time: a walk that is in a leaf already reads the first node again, and stays. Blocks of trees follow from
the forest alone, so that a row's result is the same in every batch and with any number of threads.

The code is decided by the types, by how leaves lie, by how they are combined, and by whether NaN ever takes a first branch. Sizes
are numbers, nodes and leaves are data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np

from kernels.expression import DOUBLE, FLOAT
from kernels.forest import Forest
from kernels.native.emit.builder import Fold, Function, Value
from kernels.native.emit.expression import memory_type
from kernels.native.emit.kernel import Bounds, NativeKernel, emitted, kernel_name
from kernels.native.emit.names import name_dtype
from kernels.native.emit.types import F64, I1, I8, I32, I64, Type
from kernels.native.memory.buffers import aligned
from kernels.native.target.isa import Isa
from kernels.record import record
from kernels.size import hint, least, most
from kernels.spec import Array, DType

TOGETHER = 8  # trees that a row walks through at once
BLOCK_GROUPS = 16  # that are a block: 128 trees, 1 to 2 µs for a row; more where there would be more than MOST_BLOCKS
MOST_BLOCKS = 16
CHUNK_ROWS = 32  # a chunk of 128 trees of depth 6 takes about 20 µs
TOTAL_ELEMENTS = 1024  # of parts, of a chunk of the second kernel: 1 to 2 µs
MOST_BYTES = 2**31 - 1  # that an offset in a node reaches
LEAST_NORMAL = float(np.finfo(np.float32).tiny)
_NAN_FIRST = -(2**31)  # bit of a feature's offset: NaN takes the first branch

Layout = Literal["number", "entry", "row"]
Combine = Literal["add", "minnum", "maxnum"]


def leaf_layout(forest: Forest, targets: int) -> Layout:
    """Return how the leaves of a forest are packed.

    One "number", where there is one target; an "entry" with a target of its own; or a "row" with a weight for each target.
    """
    if int(np.diff(forest.leaves).max(initial=0)) > 1:
        return "row"
    return "number" if targets == 1 else "entry"


def packed_bytes(forest: Forest, dtype: DType, targets: int) -> int:
    """Return the bytes of the larger of packed nodes and leaves."""
    width = targets if leaf_layout(forest, targets) == "row" else 1
    return max(len(forest.features) * _node_bytes(dtype), len(forest.leaves) * width * DOUBLE.itemsize)


@record
class Trees:
    """A forest for kernels, over rows of a type. An array is packed when it is asked for, which what decides the code never does.

    outputs: targets. `packed_bytes` must be below MOST_BYTES.
    """

    forest: Forest
    dtype: DType
    outputs: int
    combine: Combine

    @property
    def layout(self) -> Layout:
        """How leaves lie: see `leaf_layout`."""
        return leaf_layout(self.forest, self.outputs)

    @property
    def groups(self) -> int:
        """How many groups of TOGETHER trees there are; the last one is filled up with empty trees."""
        return -(-len(self.forest.roots) // TOGETHER)

    @property
    def weight_dtype(self) -> DType:
        """The type of the weights."""
        return DOUBLE if self.forest.weights.dtype == DOUBLE else FLOAT

    @property
    def nans(self) -> bool:
        """Whether NaN takes the first branch somewhere."""
        return bool(self.forest.nans.any())

    def nodes(self) -> Array:
        """Return one record a node: the split, then in int32 the byte offset of its feature in a row, and two branches.

        A branch is the byte offset of a node, or ~ that of a leaf.
        """
        forest, size = self.forest, _node_bytes(self.dtype)
        count, first_word = len(forest.features), self.dtype.itemsize // 4
        nodes = aligned(max(count, 1) * size)
        words = nodes.view(np.int32).reshape(-1, size // 4)
        nodes.view(self.dtype).reshape(-1, size // self.dtype.itemsize)[:count, 0] = _rounded_down(forest.splits, self.dtype)
        offsets = forest.features * self.dtype.itemsize
        words[:count, first_word] = offsets | np.where(forest.nans, _NAN_FIRST, 0).astype(np.int32)
        words[:count, first_word + 1 : first_word + 3] = self._refs(forest.branches)
        return nodes

    def roots(self) -> Array:
        """Return the branch that leads to each tree, of whole groups."""
        padding = self.groups * TOGETHER - len(self.forest.roots)
        return _aligned(
            np.concatenate([self._refs(self.forest.roots), np.full(padding, ~(self._leaves * self._width), np.int32)])
        )

    def weights(self) -> Array:
        """Return the weights of each leaf, and of one that gives nothing."""
        leaf, layout = self._leaf_of_entry(), self.layout
        weights = np.full((self._leaves + 1, self._width), 0.0 if self.combine == "add" else np.nan, self.weight_dtype)
        column = self.forest.targets if layout == "row" else np.zeros_like(self.forest.targets)
        _combined(self.combine).at(weights, (leaf, column), self.forest.weights)
        return _aligned(weights.reshape(-1))

    def targets(self) -> Array:
        """Return the target of each leaf that has one entry."""
        of_leaf = np.zeros(self._leaves + 1, np.int32)
        of_leaf[self._leaf_of_entry()] = self.forest.targets
        return _aligned(of_leaf)

    @property
    def _leaves(self) -> int:
        return len(self.forest.leaves) - 1

    @property
    def _width(self) -> int:
        return self.outputs if self.layout == "row" else 1

    def _leaf_of_entry(self) -> Array:
        return np.repeat(np.arange(self._leaves), np.diff(self.forest.leaves))

    def _refs(self, branches: Array) -> Array:
        wide = branches.astype(np.int64)
        return np.where(wide >= 0, wide * _node_bytes(self.dtype), ~(~wide * self._width)).astype(np.int32)


def _node_bytes(dtype: DType) -> int:
    return 2 * dtype.itemsize + 8


def _combined(combine: Combine) -> np.ufunc:
    return {"add": np.add, "minnum": np.fmin, "maxnum": np.fmax}[combine]


def _aligned(array: Array) -> Array:
    memory = aligned(max(array.nbytes, array.itemsize)).view(array.dtype)
    memory[: array.size] = array
    return memory


def _rounded_down(splits: Array, dtype: DType) -> Array:
    """Return the largest numbers of a type up to each split: what is at most the split is at most these.

    Kernels read numbers below the normal ones as 0. A split among these that lies below 0 must leave 0 out.
    """
    with np.errstate(over="ignore"):  # of a finite split that is beyond the type, whose largest number then is meant
        made = splits.astype(dtype)
    made = np.where(made > splits, np.nextafter(made, dtype.type(-np.inf)), made)
    tiny = np.finfo(dtype).tiny
    return np.where((made < 0) & (made > -tiny), -tiny, made)


@record
class Walk:
    """The first kernel. rows: of x, features elements each, dense. groups: of TOGETHER trees."""

    rows: int
    features: int
    targets: int
    groups: int
    dtype: DType
    weight_dtype: DType
    layout: Layout
    combine: Combine = "add"
    nans: bool = False

    @property
    def block_groups(self) -> int:
        """How many groups of trees a block has."""
        return max(BLOCK_GROUPS, -(-self.groups // MOST_BLOCKS))

    @property
    def blocks(self) -> int:
        """How many blocks of trees there are."""
        return max(-(-self.groups // self.block_groups), 1)


@record
class _Code:
    """All that decides the code of a walk."""

    dtype: DType
    weight_dtype: DType
    layout: Layout
    combine: Combine
    nans: bool


def emit_walk(what: Walk, isa: Isa) -> NativeKernel:
    """Emit the kernel, with the arguments "x", "nodes", "roots", "weights", "targets" and "y".

    y: (blocks, rows, targets) float64.
    """
    code = _Code(what.dtype, what.weight_dtype, what.layout, what.combine, what.nans)
    piece = least(most(what.rows, 1), CHUNK_ROWS)
    numbers = {
        "rows": what.rows, "piece": piece, "blocks": what.blocks, "groups": what.groups, "block_groups": what.block_groups,
        "row_bytes": what.features * what.dtype.itemsize, "row_targets": what.targets, "block_targets": what.rows * what.targets,
    }  # fmt: skip

    def body(k: Function, pointers: Mapping[str, Value], sizes: Mapping[str, Value], chunks: Bounds) -> None:
        _WalkEmitter(k, code, sizes, pointers).emit(*chunks)

    words = (
        what.layout,
        name_dtype(what.weight_dtype),
        *((what.combine,) if what.combine != "add" else ()),
        *(("nan",) * what.nans),
    )
    name = kernel_name(f"{name_dtype(what.dtype)}_forest_{TOGETHER}", code, isa, words)
    return emitted(
        isa, name, ("x", "nodes", "roots", "weights", "targets", "y"), -(-what.rows // piece) * what.blocks, body, numbers
    )


class _WalkEmitter:
    """Emits the code; the methods are the loops of the module docstring, from the outside in."""

    def __init__(self, k: Function, code: _Code, n: Mapping[str, Value], pointers: Mapping[str, Value]) -> None:
        self.k, self.code, self.n, self.pointers = k, code, n, pointers
        self.element, self.weight = memory_type(code.dtype), memory_type(code.weight_dtype)

    def emit(self, begin: Value, end: Value) -> None:
        """Emit the loop over the chunks of a call."""
        k, n = self.k, self.n
        with k.loop("chunk", begin, end) as chunk:
            block, start = chunk % n["blocks"], chunk // n["blocks"] * n["piece"]
            stop = k.least(start + n["piece"], n["rows"])
            part = k.offset(self.pointers["y"], block * n["block_targets"], F64)
            neutral = k.const(F64, 0.0 if self.code.combine == "add" else float("nan"))
            with k.loop("clear", start * n["row_targets"], stop * n["row_targets"]) as at:
                k.store(neutral, part, at)
            first = block * n["block_groups"]
            with k.loop("group", first, k.least(first + n["block_groups"], n["groups"])) as group:
                roots = [
                    k.convert("sext", k.load(I32, self.pointers["roots"], group * TOGETHER + tree), I64)
                    for tree in range(TOGETHER)
                ]
                with k.loop("row", start, stop) as row:
                    leaves = self._walk(k.offset(self.pointers["x"], row * n["row_bytes"], I8), roots)
                    self._combine(k.offset(part, row * n["row_targets"], F64), leaves)

    def _walk(self, x: Value, roots: Sequence[Value]) -> list[Value]:
        """Return the leaf at the end of each tree."""
        k = self.k
        with _while_some_at_nodes(k, roots) as fold:
            fold.values = [self._step(x, at) for at in fold.values]
        return [at ^ -1 for at in fold.values]

    def _step(self, x: Value, at: Value) -> Value:
        """Return where a walk is after a node; in a leaf it stays."""
        k, code = self.k, self.code
        node = k.offset(self.pointers["nodes"], k.most(at, 0), I8)
        split = k.load(self.element, node)
        branches = k.offset(node, code.dtype.itemsize + 4, I8)
        feature = k.load(I32, node, code.dtype.itemsize // 4)
        offset = feature & (2**31 - 1) if code.nans else feature
        value = k.load(self.element, k.offset(x, k.convert("zext", offset, I64), I8))
        second = k.op(f"fcmp {'o' if code.nans else 'u'}gt {value}, {split.ref}", I1, "second")
        if code.nans:
            second = second | (k.op(f"fcmp uno {value}, {value.ref}", I1, "nan") & (feature >= 0))
        taken = k.load(I32, k.offset(branches, k.convert("zext", second, I64), I32))
        return k.select(at < 0, at, k.convert("sext", taken, I64))

    def _combine(self, part: Value, leaves: Sequence[Value]) -> None:
        """Combine what the leaves give with the part of a row."""
        k = self.k
        if self.code.layout == "row":
            lanes = max(k.isa.vector_bits // F64.bits, 1)
            whole = self.n["row_targets"] // lanes * lanes
            for kind, start, stop in ((F64.by(lanes), k.const(I64, 0), whole), (F64, whole, self.n["row_targets"])):
                with k.loop("target", start, stop, kind.lanes) as target:
                    self._add(kind, part, target, [self._weight(kind, leaf + target) for leaf in leaves])
        elif self.code.layout == "number":
            self._add(F64, part, k.const(I64, 0), [self._weight(F64, leaf) for leaf in leaves])
        else:
            for leaf in leaves:
                target = k.convert("sext", k.load(I32, self.pointers["targets"], leaf), I64)
                self._add(F64, part, target, [self._weight(F64, leaf)])

    def _weight(self, kind: Type, at: Value) -> Value:
        taken = self.k.load(self.weight.by(kind.lanes), self.pointers["weights"], at)
        return self.k.convert("fpext", taken, kind)

    def _add(self, kind: Type, part: Value, at: Value, values: list[Value]) -> None:
        """Combine values in pairs, then with an element of the part."""
        k = self.k
        while len(values) > 1:
            values = [combined(k, self.code.combine, a, b) for a, b in zip(values[::2], values[1::2], strict=True)]
        k.store(combined(k, self.code.combine, k.load(kind, part, at), values[0]), part, at)


def combined(k: Function, combine: Combine, a: Value, b: Value) -> Value:
    """Return the sum of two numbers, or the lesser or greater one, of which NaN is none."""
    return a + b if combine == "add" else k.intrinsic(combine, a.type, a, b)


@contextmanager
def _while_some_at_nodes(k: Function, values: Sequence[Value]) -> Iterator[Fold]:
    """Emit a loop that carries values and runs while one of them is not negative; `fold.values` are the last ones after it."""
    head, body, end = (k.fresh(name) for name in ("walk", "walk.step", "walk.end"))
    before = k.block
    k.emit(f"br label %{head}")
    k.label(head)
    carried = [Value(k, I64, f"%{head}.v{number}") for number in range(len(values))]
    patch = len(k.lines)
    k.lines += [""] * len(values)
    every = carried[0]
    for value in carried[1:]:
        every = every & value
    k.emit(f"br {every < 0}, label %{end}, label %{body}")
    k.label(body)
    fold = Fold(every, list(carried))
    yield fold
    latch = k.block
    k.emit(f"br label %{head}")
    for number, (value, first, following) in enumerate(zip(carried, values, fold.values, strict=True)):
        k.lines[patch + number] = f"  {value.ref} = phi i64 [ {first.ref}, %{before} ], [ {following.ref}, %{latch} ]"
    k.label(end)
    fold.values = carried


@record
class Total:
    """The second kernel. x: (blocks, rows, targets) float64, base: a divisor and a number for each target, y: (rows, targets)."""

    rows: int
    targets: int
    blocks: int
    dtype: DType
    combine: Combine = "add"


def emit_total(what: Total, isa: Isa) -> NativeKernel:
    """Emit the kernel, with the arguments "x", "base" and "y"."""
    piece = max(TOTAL_ELEMENTS // max(hint(what.targets) * what.blocks, 1), 1)
    numbers = {
        "rows": what.rows,
        "piece": piece,
        "blocks": what.blocks,
        "targets": what.targets,
        "block": what.rows * what.targets,
    }
    kind = memory_type(what.dtype)

    def body(k: Function, pointers: Mapping[str, Value], n: Mapping[str, Value], chunks: Bounds) -> None:
        divisor = k.load(F64, pointers["base"])
        with (
            k.loop("row", chunks[0] * n["piece"], k.least(chunks[1] * n["piece"], n["rows"])) as row,
            k.loop("target", 0, n["targets"]) as target,
        ):
            at = row * n["targets"] + target
            with k.fold("block", 1, n["blocks"], 1, [k.load(F64, pointers["x"], at)]) as fold:
                fold.values = [
                    combined(k, what.combine, fold.values[0], k.load(F64, pointers["x"], fold.index * n["block"] + at))
                ]
            total = fold.values[0] / divisor
            if what.combine != "add":
                total = k.select(k.compare("ne", total, total), 0.0, total)  # no leaf gave the target anything
            made = total + k.load(F64, pointers["base"], target + 1)
            k.store(made if kind == F64 else k.convert("fptrunc", made, kind), pointers["y"], at)

    name = kernel_name(f"{name_dtype(what.dtype)}_forest_total", (what.dtype, what.combine), isa, (what.combine,))
    return emitted(isa, name, ("x", "base", "y"), -(-what.rows // piece), body, numbers)
