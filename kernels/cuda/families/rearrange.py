"""Copies between arrays whose innermost dimensions differ, such as images with channels first and last, through shared memory.

A block moves tiles of 64×64 elements: it reads runs along the input's innermost dimension and writes runs along the output's.
Elements may change between fp32, fp16 and bf16 on the way.
"""

from __future__ import annotations

from functools import reduce
from math import gcd, prod
from operator import add

from kernels.cuda.emit.builder import below, both, load_shared, meet, shared_base, special, store_shared
from kernels.cuda.emit.descriptor import Descriptor, Fields, listed
from kernels.cuda.emit.epilogue import STORAGES, UNCHANGED, RunMemory, Storage, all_lanes, joined, lane_of
from kernels.cuda.emit.kernel import emit_kernel, share_among_blocks
from kernels.cuda.errors import CudaError
from kernels.cuda.families.elementwise import Array, Map, merged
from kernels.cuda.program import Launch
from kernels.native.emit.builder import Value
from kernels.native.emit.types import F32
from kernels.native.errors import EmitError
from kernels.record import record

TILE, PITCH, THREADS = 64, 65, 256  # a row's pitch is odd, so that a column lies in different banks
OUTER = 3  # dimensions beside the two that are exchanged
LEAST = 12  # elements of a dimension that a tile is worth it for: below, a map is not slower


class TransposeDescriptor(Descriptor):
    """What a transposition is told.

    across, down: sizes of the innermost dimensions of x and of y.  x_down, y_across: strides of x along `down` and of y along
    `across`; the other two are 1.  x_0, y_0, …: strides of the outer dimensions.  chunks: tiles.
    """

    _fields_ = listed(
        ("x", "y"),
        ("chunks", "across", "down", "x_down", "y_across", *(f"{name}_{d}" for name in "xy" for d in range(OUTER))),
        ("tiles_across", "tiles_down", *(f"size{d}" for d in range(1, OUTER))),
    )


@record
class TransposeForm:
    """What a transposition's code depends on. x_run, y_run: elements that move at once.  outer: outer dimensions, at least 1.

    Raises EmitError for runs that no instruction moves, or more outer dimensions than a kernel can have.
    """

    x: Storage
    y: Storage
    x_run: int
    y_run: int
    outer: int = 1

    def __post_init__(self) -> None:
        for storage, run in ((self.x, self.x_run), (self.y, self.y_run)):
            if run not in (1, 2, 4, 8) or run * STORAGES[storage].bits > 128:
                raise EmitError(f"transpose: runs of {run} elements of {storage}, need a power of two of 16 bytes at most")
        if not 1 <= self.outer <= OUTER:
            raise EmitError(f"transpose: {self.outer} outer dimensions, need 1 to {OUTER}")

    @property
    def name(self) -> str:
        """The kernel's name."""
        return f"{self.y}_transpose_{TILE}x{TILE}_of_{self.x}_runs{self.x_run}to{self.y_run}_outer{self.outer}"

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return THREADS

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block: a tile, 4 bytes an element."""
        return 4 * TILE * PITCH

    def emit(self) -> str:
        """Return the IR of the kernel. Any number of blocks shares the tiles."""

        def body(fields: Fields) -> None:
            with share_among_blocks(fields.k, fields.number("chunks")) as chunk:
                _emit_tile(fields, self, chunk)

        return emit_kernel(self, TransposeDescriptor, body)


def _emit_tile(fields: Fields, form: TransposeForm, chunk: Value) -> None:
    k, thread, base = fields.k, special(fields.k, "tid.x"), shared_base(fields.k)
    chunk, tile_across = fields.divide(chunk, "tiles_across")
    chunk, tile_down = fields.divide(chunk, "tiles_down")
    x_start, y_start = _outer_offsets(fields, form, chunk)
    across, down = tile_across * TILE, tile_down * TILE
    width, height = fields.number("across"), fields.number("down")

    def places(run: int) -> list[tuple[Value, Value]]:
        """Return the thread's places of a tile read by runs: the line, and the run's first element in it."""
        per_line = TILE // run
        line, first = thread // per_line, (thread % per_line) * run
        return [(line + n, first) for n in range(0, TILE, THREADS // per_line)]

    reads = RunMemory.of(form.x, form.x_run)
    loaded = []
    for line, first in places(form.x_run):
        row, column = down + line, across + first
        valid = both(k, below(k, row, height), below(k, column, width))
        loaded.append(reads.load(k, fields.address("x"), x_start + row * fields.number("x_down") + column, all_lanes(valid)))
    for (line, first), value in zip(places(form.x_run), loaded, strict=True):
        for lane in range(form.x_run):
            store_shared(k, base + (line * PITCH + first + lane) * 4, lane_of(k, value, lane))
    meet(k)
    writes = RunMemory.of(form.y, form.y_run)
    for line, first in places(form.y_run):
        row, column = across + line, down + first
        lanes = [load_shared(k, base + ((first + lane) * PITCH + line) * 4) for lane in range(form.y_run)]
        value = joined(k, [k.convert("bitcast", lane, F32) for lane in lanes])
        valid = both(k, below(k, row, width), below(k, column, height))
        writes.store(k, fields.address("y"), y_start + row * fields.number("y_across") + column, value, all_lanes(valid))
    meet(k)


def _outer_offsets(fields: Fields, form: TransposeForm, number: Value) -> tuple[Value, Value]:
    places: list[Value] = []
    for d in range(form.outer - 1, 0, -1):
        number, place = fields.divide(number, f"size{d}")
        places.insert(0, place)
    places = [number, *places]
    x, y = ([place * fields.number(f"{name}_{d}") for d, place in enumerate(places)] for name in "xy")
    return reduce(add, x), reduce(add, y)


def copy(shape: tuple[int, ...], x: Array, y: Array, /, **names: str) -> Launch:
    """Return the launch that copies an array: a transposition where each side has an innermost dimension of its own.

    names: of the values at x and y. Raises CudaError as `Map` does.
    """
    plain = Map(UNCHANGED, shape, y, (x,))
    if set(names) != {"x", "y"}:
        raise CudaError(f"copy: names for {sorted(names)}, need them for ['x', 'y']")
    sizes, (y_strides, x_strides) = merged(shape, (y.strides, x.strides))
    inner = [d for d, stride in enumerate(x_strides) if stride == 1]
    exchanged = len(sizes) > 1 and y_strides[-1] == 1 and x_strides[-1] > 1 and len(inner) == 1
    if exchanged and len(sizes) <= OUTER + 2 and sizes[-1] >= LEAST and sizes[inner[0]] >= LEAST:
        return _transposition(sizes, x, x_strides, y, y_strides, inner[0], names)
    return plain.launch(y=names["y"], r0=names["x"])


def _transposition(
    sizes: list[int], x: Array, x_strides: list[int], y: Array, y_strides: list[int], across: int, names: dict[str, str]
) -> Launch:
    down = len(sizes) - 1
    outer = [d for d in range(down) if d != across]
    x_run = _run(x, sizes[across], [x_strides[d] for d in (*outer, down)])
    y_run = _run(y, sizes[down], [y_strides[d] for d in (*outer, across)])
    form = TransposeForm(x.storage, y.storage, x_run, y_run, max(1, len(outer)))
    told = TransposeDescriptor(across=sizes[across], down=sizes[down], x_down=x_strides[down], y_across=y_strides[across])
    tiles = -(-sizes[across] // TILE), -(-sizes[down] // TILE)
    told.chunks = tiles[0] * tiles[1] * prod(sizes[d] for d in outer)
    told.set_divisor("tiles_across", tiles[0])
    told.set_divisor("tiles_down", tiles[1])
    for n, d in enumerate(outer):
        setattr(told, f"x_{n}", x_strides[d])
        setattr(told, f"y_{n}", y_strides[d])
        if n:
            told.set_divisor(f"size{n}", sizes[d])
    return Launch.of(form, told, told.chunks, ("x", "y"), names)


def _run(array: Array, size: int, strides: list[int]) -> int:
    """Return the most elements, up to 16 bytes, that can move at once."""
    return gcd(8 * array.aligned // STORAGES[array.storage].bits, size, *strides)
