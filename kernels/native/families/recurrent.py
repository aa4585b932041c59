"""LSTM, GRU and RNN over whole sequences: what the inputs add to the gates is known, the state is multiplied step by step.

    for each chunk = (direction, P sequences of the batch):
        h, c = initial states
        for each step, from the first or from the last:
            for each product of the cell, for each tile of V vectors of its gates' columns:
                acc[P][V] = what the inputs of the step add to the gates
                for each hidden unit k:   acc[p][v] += h[p][k] · w[k][vector v]        w is read from end to end
                sums[p] = acc
            for each sequence, for each vector of hidden units:    c, h = the cell of its sums; y = h
        the last states = h, c

The code is decided by the cell and the tile; sizes and strides are numbers. Columns of gates are whole vectors of hidden units,
and those of a product are filled up to whole tiles, all with zeros. The last chunk of a batch may have fewer sequences than a
tile: its last sequence is computed several times, with the same results. Sequences with lengths of their own are tiles of one.

Packed weights: [direction][tile of columns][hidden unit][V·lanes], the tiles of a cell's products one after another.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np

from kernels.expression import Expression
from kernels.native.emit.builder import Function, Value
from kernels.native.emit.expression import evaluate
from kernels.native.emit.geometry import aligned_copy
from kernels.native.emit.kernel import SCRATCH, Bounds, NativeKernel, emitted, kernel_name
from kernels.native.emit.types import I32, I64
from kernels.native.memory.view import View
from kernels.native.target.isa import Isa
from kernels.record import record
from kernels.size import hint
from kernels.spec import Array

MANY_REGISTERS = 32
# Vectors of a tile by its sequences: with one, as many sums as hide the latency of one; with more, as the registers hold
_VECTORS: Mapping[int, int] = {1: 8, 2: 8, 4: 4}
_VECTORS_OF_16: Mapping[int, int] = {1: 8, 2: 4, 4: 2}  # registers; without FMA at most 4, since products take registers too
_PRODUCTS: Mapping[str, tuple[int, ...]] = {"lstm": (4,), "gru": (2, 1), "rnn": (1,)}  # the gates of each product with the state


@record
class Cell:
    """What makes the next state of the last one.

    activations: in ONNX's order, each an expression of one operand. peepholes: whether the gates of an LSTM read c. coupled:
    whether its f is 1 - i. linear: whether a GRU multiplies before it resets, and adds a bias to that product. lengths: whether
    sequences have their own.
    """

    kind: Literal["lstm", "gru", "rnn"]
    activations: tuple[Expression, ...]
    peepholes: bool = False
    coupled: bool = False
    linear: bool = False
    lengths: bool = False

    @property
    def has_c(self) -> bool:
        """Whether there is a second state."""
        return self.kind == "lstm"


@record
class RecurrentTile:
    """The sizes of a register tile. rows: sequences. vectors: of columns."""

    rows: int
    vectors: int


@record
class Recurrent:
    """One layer.

    projected: (steps, directions, batch, columns), what inputs and biases add to the columns of `Columns`. y: (steps, directions,
    batch, hidden). h, last_h, c, last_c: (directions, batch, hidden), the initial states and the last ones; those of c are None
    where there is no c. The last dimensions of all of them lie side by side; others may have a stride of 0.
    backwards_from: the first direction that reads sequences from their end.
    """

    cell: Cell
    projected: View
    y: View
    h: View
    last_h: View
    c: View | None = None
    last_c: View | None = None
    backwards_from: int = 1

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names of the kernel's arguments; see `emit_recurrent`."""
        states = ("h", "c", "last_h", "last_c") if self.cell.has_c else ("h", "last_h")
        cell = self.cell
        extra = ("p",) * cell.peepholes + ("inner",) * cell.linear + ("lengths", "fault") * cell.lengths
        return ("projected", "w", *states, *extra, "y", SCRATCH)


@record
class Columns:
    """Where the gates of a cell lie among the columns of one direction. lanes: of a vector."""

    cell: Cell
    hidden: int
    tile: RecurrentTile
    lanes: int

    @property
    def width(self) -> int:
        """Columns of a gate."""
        return -(-self.hidden // self.lanes) * self.lanes

    @property
    def tiles(self) -> tuple[int, ...]:
        """Tiles of each product."""
        size = self.tile.vectors * self.lanes
        return tuple(-(-gates * self.width // size) for gates in _PRODUCTS[self.cell.kind])

    @property
    def second(self) -> int:
        """Where the columns of a second product begin."""
        return self.tiles[0] * self.tile.vectors * self.lanes

    @property
    def count(self) -> int:
        """Columns of one direction."""
        return sum(self.tiles) * self.tile.vectors * self.lanes

    def spread(self, rows: Array) -> Array:
        """Return rows of all gates (gates · hidden, …) at their columns (count, …), with zeros between them."""
        made = np.zeros((self.count, *rows.shape[1:]), np.float32)
        first = _PRODUCTS[self.cell.kind][0]
        for gate, at in enumerate(range(0, len(rows), self.hidden)):
            start = gate * self.width if gate < first else self.second
            made[start : start + self.hidden] = rows[at : at + self.hidden]
        return made


def recurrent_tile(cell: Cell, batch: int, hidden: int, isa: Isa) -> RecurrentTile:
    """Return the tile for a batch of that many sequences and that many hidden units."""
    rows = 1 if cell.lengths else next((rows for rows in (1, 2) if hint(batch) <= rows), 4)
    vectors = (_VECTORS if isa.vector_registers >= MANY_REGISTERS else _VECTORS_OF_16)[rows]
    vectors = vectors if isa.fma else min(vectors, 4)
    columns = min(_PRODUCTS[cell.kind]) * -(-hint(hidden) // isa.lanes)
    while vectors > 1 and vectors > columns:
        vectors //= 2
    return RecurrentTile(rows, vectors)


def project_weights(columns: Columns, w: Array) -> Array:
    """Return the weights of the inputs (directions, gates · hidden, inputs) as rows of columns (directions · count, inputs)."""
    return np.concatenate([columns.spread(each) for each in w])


def project_bias(columns: Columns, b: Array) -> Array:
    """Return biases (directions, 2 · gates · hidden), of the inputs and then of the state, as what is added to each column.

    That of a linear GRU's candidate is of the inputs alone; `inner_bias` is the other one.
    """
    inputs, state = np.split(b, 2, axis=1)
    total = inputs + state
    if columns.cell.linear:
        total[:, -columns.hidden :] = inputs[:, -columns.hidden :]
    return np.concatenate([columns.spread(each) for each in total])


def inner_bias(columns: Columns, b: Array) -> Array:
    """Pack the biases of the products that a linear GRU resets: (directions · columns of a second product,)."""
    state = np.split(b, 2, axis=1)[1]
    return aligned_copy(np.concatenate([columns.spread(each)[columns.second :] for each in state]))


def pack_recurrent(columns: Columns, r: Array) -> Array:
    """Pack the weights of the state (directions, gates · hidden, hidden) in the order in which the kernel reads them."""
    size = columns.tile.vectors * columns.lanes
    rows = np.stack([columns.spread(each).reshape(-1, size, columns.hidden) for each in r])
    return aligned_copy(rows.transpose(0, 1, 3, 2).ravel())


def emit_recurrent(what: Recurrent, tile: RecurrentTile, isa: Isa) -> NativeKernel:
    """Emit the kernel.

    Its arguments are "projected", "w" (`pack_recurrent`), "h", "last_h", "y", and where the cell has them "c", "last_c", "p"
    (directions, 3 · hidden), "inner" (`inner_bias`) and "lengths" (batch,) of int32 with "fault". fault: address of an int64,
    which is set to a length that is not one of 0 to the number of steps, and left unchanged where there is none; such a length
    counts as the nearest that is.
    """
    steps, directions, batch, hidden = what.y.shape
    columns = Columns(what.cell, hidden, tile, isa.lanes)
    row_tiles = -(-batch // tile.rows)
    numbers = {
        "steps": steps, "batch": batch, "hidden": hidden, "width": columns.width, "row_tiles": row_tiles,
        "backwards_from": what.backwards_from, "columns": columns.count, "second": columns.second,
        "inner_direction": columns.count - columns.second, "w_direction": columns.count * hidden,
        "w_tile": tile.vectors * isa.lanes * hidden,
        **{f"tiles{n}": count for n, count in enumerate(columns.tiles)},
    }  # fmt: skip
    sequences = {"projected": what.projected, "y": what.y}
    states = {"h": what.h, "last_h": what.last_h, "c": what.c, "last_c": what.last_c}
    for name, view in sequences.items():
        numbers |= dict(zip((f"{name}_step", f"{name}_direction", f"{name}_row"), view.strides[:3], strict=True))
    for name, state in states.items():
        if state is not None:
            numbers |= dict(zip((f"{name}_direction", f"{name}_row"), state.strides[:2], strict=True))

    def body(k: Function, pointers: Mapping[str, Value], sizes: Mapping[str, Value], chunks: Bounds) -> None:
        _RecurrentEmitter(k, what.cell, tile, sizes, pointers).emit(*chunks)

    return emitted(
        isa,
        kernel_name(f"f32_{what.cell.kind}_{tile.rows}x{tile.vectors * isa.lanes}", (what.cell, tile), isa),
        what.arguments,
        directions * row_tiles,
        body,
        numbers,
        scratch_bytes=4 * tile.rows * (2 * columns.width + columns.count),
    )


@record
class _Chunk:
    """What is known of a chunk. first: of its sequences. rows: the number of each sequence of the tile. backwards: read so."""

    direction: Value
    first: Value
    rows: list[Value]
    backwards: Value


class _RecurrentEmitter:
    """Emits the code; the methods are the loops of the module docstring, from the outside in.

    The scratch memory holds, for each sequence of the tile, h, then c (of a GRU what r leaves of h), then the sums of the gates.
    """

    def __init__(
        self, k: Function, cell: Cell, tile: RecurrentTile, n: Mapping[str, Value], pointers: Mapping[str, Value]
    ) -> None:
        self.k, self.cell, self.tile, self.n, self.pointers, self.lanes = k, cell, tile, n, pointers, k.isa.lanes
        self.h = pointers[SCRATCH]
        self.c = k.offset(self.h, n["width"] * tile.rows)
        self.sums = k.offset(self.c, n["width"] * tile.rows)

    def emit(self, begin: Value, end: Value) -> None:
        """Emit the loop over the chunks of a call."""
        k, n, rows = self.k, self.n, self.tile.rows
        with k.loop("chunk", begin, end) as chunk:
            direction, first = chunk // n["row_tiles"], chunk % n["row_tiles"] * rows
            at = _Chunk(direction, first, [self._row(first, p) for p in range(rows)], direction >= n["backwards_from"])
            self._states(at, {"h": self.h, "c": self.c}, load=True)
            length = self._length(at) if self.cell.lengths else n["steps"]
            with k.loop("step", 0, length) as step:
                self._step(at, k.select(at.backwards, length - step - 1, step))
            if self.cell.lengths:
                self._clear(at, length)
            self._states(at, {"last_h": self.h, "last_c": self.c}, load=False)

    def _row(self, first: Value, p: Value | int) -> Value:
        """Return the number of a sequence of the tile, the last one of the batch for those behind it."""
        return self.k.least(first + p, self.n["batch"] - 1)

    def _length(self, at: _Chunk) -> Value:
        """Return the steps of the only sequence of a tile, and report a number of them that cannot be."""
        k, steps = self.k, self.n["steps"]
        given = k.convert("sext", k.load(I32, self.pointers["lengths"], at.rows[0]), I64)
        length = k.most(k.least(given, steps), k.const(I64, 0))
        with k.when(k.compare("ne", given, length), "fault"):
            k.store(given, self.pointers["fault"])
        return length

    def _states(self, at: _Chunk, places: Mapping[str, Value], *, load: bool) -> None:
        """Load the states from the arguments of these names, or store them there."""
        k, n = self.k, self.n
        for name, memory in places.items():
            if name not in self.pointers:
                continue
            base = k.offset(self.pointers[name], at.direction * n[f"{name}_direction"])
            with self._vectors("state") as (p, unit, some):
                there = k.offset(base, self._row(at.first, p) * n[f"{name}_row"] + unit)
                here = k.offset(memory, p * n["width"] + unit)
                if load:
                    k.store(k.load_first(k.f32, there, some), here)
                else:
                    k.store_first(k.load(k.f32, here), there, some)

    @contextmanager
    def _vectors(self, name: str) -> Iterator[tuple[Value, Value, Value]]:
        """Loop over the sequences of a tile and the vectors of hidden units: the sequence, the first unit, and how many units."""
        k, hidden = self.k, self.n["hidden"]
        with k.loop(f"{name}.row", 0, self.tile.rows) as p, k.loop(name, 0, hidden, self.lanes) as unit:
            yield p, unit, k.least(hidden - unit, k.const(I64, self.lanes))

    def _step(self, at: _Chunk, time: Value) -> None:
        """Emit one step: the products of the cell, with what each of them reads, and the cell itself."""
        k, n = self.k, self.n
        projected = k.offset(self.pointers["projected"], time * n["projected_step"] + at.direction * n["projected_direction"])
        y = k.offset(self.pointers["y"], time * n["y_step"] + at.direction * n["y_direction"])
        begins = [k.offset(projected, row * n["projected_row"]) for row in at.rows]
        self._multiply(at, begins, self.h, k.const(I64, 0), n["tiles0"])
        if self.cell.kind == "gru":
            self._multiply_candidate(at, begins)
        with self._vectors("cell") as (p, unit, some):
            h = self._next(at, projected, p, unit, some)
            k.store(h, self.h, p * n["width"] + unit)
            k.store_first(h, k.offset(y, self._row(at.first, p) * n["y_row"] + unit), some)

    def _clear(self, at: _Chunk, length: Value) -> None:
        """Emit zeros for the results behind the end of a sequence."""
        k, n = self.k, self.n
        y = k.offset(self.pointers["y"], at.direction * n["y_direction"] + at.rows[0] * n["y_row"])
        with k.loop("behind", length, n["steps"]) as step, self._vectors("clear") as (_, unit, some):
            k.store_first(k.zero(k.f32), k.offset(y, step * n["y_step"] + unit), some)

    def _multiply_candidate(self, at: _Chunk, begins: Sequence[Value]) -> None:
        """Emit the second product of a GRU: of the state that r has reset, or of the whole one, to be reset behind it."""
        k, n = self.k, self.n
        last = n["tiles0"] + n["tiles1"]
        if self.cell.linear:
            inner = k.offset(self.pointers["inner"], at.direction * n["inner_direction"] - n["second"])
            self._multiply(at, [inner] * self.tile.rows, self.h, n["tiles0"], last)
            return
        with self._vectors("reset") as (p, unit, _):
            r = self._activated(0, self._sum(p, unit, 1))
            k.store(r * self._load(self.h, p, unit), self.c, p * n["width"] + unit)
        self._multiply(at, begins, self.c, n["tiles0"], last)

    def _multiply(self, at: _Chunk, begins: Sequence[Value], state: Value, first: Value, last: Value) -> None:
        """Emit the sums of some tiles of columns: the product of a state and the weights, added to what is known before.

        begins: for each sequence of the tile, the address of what is known for column 0. first, last: of the tiles, and behind.
        """
        k, n, tile, lanes = self.k, self.n, self.tile, self.lanes
        size = tile.vectors * lanes
        weights = k.offset(self.pointers["w"], at.direction * n["w_direction"])
        with k.loop("tile", first, last) as number:
            starts = [k.load(k.f32, begin, number * size + v * lanes) for begin in begins for v in range(tile.vectors)]
            with k.fold("unit", 0, n["hidden"], 1, [*starts, k.offset(weights, number * n["w_tile"])], runs=True) as fold:
                *sums, w = fold.values
                vectors = [k.load(k.f32, w, v * lanes) for v in range(tile.vectors)]
                for p in range(tile.rows):
                    one = k.broadcast(k.f32, k.offset(state, n["width"] * p), fold.index)
                    for v, vector in enumerate(vectors):
                        sums[p * tile.vectors + v] = k.fma(one, vector, sums[p * tile.vectors + v])
                fold.values = [*sums, k.offset(w, size)]
            places = itertools.product(range(tile.rows), range(tile.vectors))
            for (p, v), total in zip(places, fold.values[:-1], strict=True):
                k.store(total, k.offset(self.sums, n["columns"] * p + number * size), v * lanes)

    # The cell

    def _load(self, memory: Value, p: Value, unit: Value) -> Value:
        return self.k.load(self.k.f32, memory, p * self.n["width"] + unit)

    def _sum(self, p: Value, unit: Value, gate: int) -> Value:
        """Return a vector of a gate of the first product."""
        return self.k.load(self.k.f32, self.sums, p * self.n["columns"] + self.n["width"] * gate + unit)

    def _activated(self, number: int, x: Value) -> Value:
        return evaluate(self.k, self.cell.activations[number], [lambda: x], self.lanes)

    def _next(self, at: _Chunk, projected: Value, p: Value, unit: Value, some: Value) -> Value:
        """Emit the next h of a vector of hidden units; an LSTM stores its next c."""
        if self.cell.kind == "lstm":
            return self._next_lstm(at, p, unit, some)
        if self.cell.kind == "rnn":
            return self._activated(0, self._sum(p, unit, 0))
        k, n = self.k, self.n
        z, h = self._activated(0, self._sum(p, unit, 0)), self._load(self.h, p, unit)
        proposed = k.load(k.f32, self.sums, p * n["columns"] + n["second"] + unit)
        if self.cell.linear:
            given = k.load(k.f32, projected, self._row(at.first, p) * n["projected_row"] + n["second"] + unit)
            proposed = k.fma(self._activated(0, self._sum(p, unit, 1)), proposed, given)
        return k.fma(z, h, (1.0 - z) * self._activated(1, proposed))

    def _next_lstm(self, at: _Chunk, p: Value, unit: Value, some: Value) -> Value:
        k = self.k
        i, o, f, g = (self._sum(p, unit, gate) for gate in range(4))
        c = self._load(self.c, p, unit)
        if self.cell.peepholes:
            i, f = self._peep(at, 0, unit, some, c, i), self._peep(at, 2, unit, some, c, f)
        i = self._activated(0, i)
        kept = 1.0 - i if self.cell.coupled else self._activated(0, f)
        c = k.fma(kept, c, i * self._activated(1, g))
        k.store(c, self.c, p * self.n["width"] + unit)
        if self.cell.peepholes:
            o = self._peep(at, 1, unit, some, c, o)
        return self._activated(0, o) * self._activated(2, c)

    def _peep(self, at: _Chunk, number: int, unit: Value, some: Value, c: Value, gate: Value) -> Value:
        """Return a gate and what it reads of c."""
        k, hidden = self.k, self.n["hidden"]
        place = k.offset(self.pointers["p"], (at.direction * 3 + number) * hidden + unit)
        return k.fma(k.load_first(k.f32, place, some), c, gate)
