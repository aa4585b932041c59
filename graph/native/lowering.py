"""What the rules build with: where values lie, storages for new ones, packed constants, and the calls of kernels in order."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from graph.choice import Choice
from graph.ir import Node, Specs
from graph.mapped import identity, release
from graph.native.epilogues import Merged
from graph.native.place import Entry, Imaged, Place, Storage, Viewed, as_image, image_shape
from graph.native.rule import F32, known
from kernels.native.emit.expression import Apply
from kernels.native.emit.functions import Activation
from kernels.native.emit.kernel import Epilogue, Merge, NativeKernel
from kernels.native.errors import EmitError
from kernels.native.families.elementwise import Map, Strided, emit_map
from kernels.native.families.rearrange import convert_image
from kernels.native.memory.buffers import aligned
from kernels.native.memory.image import Image
from kernels.native.memory.view import View
from kernels.native.target.isa import Isa
from kernels.spec import Array, DType, Spec

_P = TypeVar("_P", Viewed, Imaged)


@dataclass(frozen=True, slots=True)
class Call:
    """One kernel call. node: position of the node it belongs to. arguments: storage and bytes into it, of each that is used."""

    node: int
    kernel: NativeKernel
    arguments: Mapping[str, tuple[Storage, int]]
    writes: tuple[str, ...] = ("y",)


@dataclass(slots=True)
class Packed:
    """Constants as kernels read them, by what they are made of: segments for other shapes of one model share them.

    Each is kept as long as a segment uses it. A mapped source is read for packing, and let go of.
    dry: none is made; for lowerings that are looked at and never run. workers: who makes them, None = whoever asks, at once.
    """

    dry: bool = False
    workers: Executor | None = None
    _entries: weakref.WeakValueDictionary[Hashable, Entry] = field(default_factory=weakref.WeakValueDictionary)

    def by(self, workers: Executor) -> Packed:
        """The same constants; what is missing is made by others meanwhile."""
        return replace(self, workers=workers)

    def get(self, source: Array | None, key: Hashable, make: Callable[[], Array]) -> Entry:
        """What is made of `source` in the way that `key` names; None: the key says all."""
        if self.dry:
            return Entry(source, Future())
        full = (None if source is None else identity(source) or id(source), key)
        entry = self._entries.get(full)
        if entry is not None:
            return entry

        def packed() -> Array:
            array = make()
            if source is not None:
                release(source)
            return array

        entry = self._entries[full] = Entry(source, self.workers.submit(packed) if self.workers else Entry.of(packed()).made)
        return entry


@dataclass(frozen=True, slots=True)
class Watch:
    """A word of 8 bytes in which a kernel leaves an index that lies outside an axis of that size; 0 until then."""

    node: Node
    axis_size: int
    word: Array


class Lowering:
    """The calls of one segment under construction.

    Args:    nodes: of the segment, in order. constants, specs: of the whole graph. results: values that others want from it.
             choices: how to compute each node, by its name.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        specs: Specs,
        constants: Mapping[str, Array],
        results: Sequence[str],
        isa: Isa,
        packed: Packed,
        choices: Mapping[str, Choice],
    ) -> None:
        self.constants, self.isa = constants, isa
        self.calls: list[Call] = []
        self.watches: list[Watch] = []
        self.done: set[str] = set()  # nodes that one before them has done with its own
        self.at = 0  # the node at hand
        self.readers: dict[str, list[Node]] = {}
        for node in nodes:
            for name in set(node.reads()):
                self.readers.setdefault(name, []).append(node)
        self.results = frozenset(results)
        self._specs = specs
        self._last_read = {name: at for at, node in enumerate(nodes) for name in node.reads()}
        self._last_read.update(dict.fromkeys(results, len(nodes)))
        self._places: dict[str, list[Place]] = {}
        self._reserved: dict[str, Place] = {}
        self._packed = packed
        self._choices = choices
        self._constants: dict[int, Storage] = {}

    # Where values lie

    def spec(self, value: str) -> Spec:
        """What a value is."""
        return known(self._specs, value)

    def choice(self, node: Node) -> Choice:
        """How a node shall be computed."""
        return self._choices[node.name]

    def only_reader(self, value: str) -> Node | None:
        """The node of the segment that alone reads a value, if nobody else wants it."""
        readers = self.readers.get(value, [])
        return readers[0] if len(readers) == 1 and value not in self.results else None

    def everywhere(self, value: str) -> list[Place]:
        """All the places where a value lies, its producer's first."""
        if value not in self._places:
            array = self.constants[value]
            storage = self.constant(array, "dense", lambda: _flat(array), array.dtype)
            self._places[value] = [Viewed(storage, View.dense(array.shape))]
        return self._places[value]

    def place(self, value: str) -> Place:
        """Where a value lies, as its producer left it."""
        return self.everywhere(value)[0]

    def strided(self, value: str) -> Viewed:
        """A value by strides; copied where it lies in blocks."""
        for place in self.everywhere(value):
            if (found := place.strided) is not None:
                return self._shaped(found, value)
        return self._copied(value)

    def dense(self, value: str) -> Viewed:
        """A value row-major; copied where it is not."""
        for place in self.everywhere(value):
            if (found := place.strided) is not None and found.view.is_dense:
                return self._shaped(found, value)
        return self._copied(value)

    def rows(self, value: str, columns: int) -> Viewed:
        """A value as a matrix (rows, columns) with contiguous columns, rows any number of elements apart."""
        rows = self.spec(value).elements // columns
        for place in self.everywhere(value):
            matrix = None if (found := place.strided) is None else found.view.reshaped((rows, columns))
            if matrix is not None and _has_rows(matrix):
                return Viewed(place.storage, _with_row_step(matrix))
        return self.dense(value).under(View.dense((rows, columns)))

    def blocked(self, value: str) -> Imaged:
        """An image in blocks of one vector of channels; converted where it is not."""
        for place in self.everywhere(value):
            if isinstance(place, Imaged) and place.image.block == self.isa.lanes:
                return place
        shape = image_shape(self.spec(value).shape)
        if value in self.constants:
            made = self._blocked_constant(value, shape)
        else:
            made = self._imaged(value, Image.blocked(*shape, self.isa.lanes))
            self._convert(self.strided(value), made)
        self._places[value].append(made)
        return made

    def _shaped(self, place: Viewed, value: str) -> Viewed:
        """Under the value's own shape: an image says its as rank 4 always."""
        shape = self.spec(value).shape
        if place.view.shape == shape:
            return place
        view = place.view
        return place.under(View(shape, (*view.strides[:2], view.strides[3]), view.offset))

    def _copied(self, value: str) -> Viewed:
        """Copy a value to be row-major."""
        spec = self.spec(value)
        made = Viewed(Storage(value, spec.elements, spec.dtype), View.dense(spec.shape))
        self._copy(self.place(value), made)
        self._places[value].append(made)
        return made

    def _copy(self, source: Place, target: Viewed) -> None:
        if (found := source.strided) is not None:
            view = found.view if found.view.shape == target.view.shape else _lifted(target.view.shape, found.view)
            self.map((target, target.view), [(source, view)])
        else:
            self._convert(source, target)

    def _convert(self, source: Place, target: Place) -> None:
        """Copy an image to where it lies otherwise."""
        for each in convert_image(as_image(source), as_image(target), target.storage.dtype):
            self.call(emit_map(each, self.isa), {"x0": source, "y": target})

    # Values that are made

    def enter(self, value: str) -> None:
        """A value that somebody else makes, row-major."""
        spec = self.spec(value)
        self._places[value] = [Viewed(Storage(value, spec.elements, spec.dtype, port=value), View.dense(spec.shape))]

    def leave(self, value: str) -> None:
        """A value that others want, row-major, in memory that they give."""
        spec = self.spec(value)
        source = self.place(value)
        found = source.strided
        if found is None or found.storage.port != value or not found.view.is_dense:
            self._copy(source, Viewed(Storage(value, spec.elements, spec.dtype, port=value), View.dense(spec.shape)))

    def define(self, value: str, place: Place) -> None:
        """A value lies there: another name for memory that is there already."""
        self._places[value] = [place]

    def reserve(self, value: str, place: Place) -> None:
        """Whoever makes this value shall make it there."""
        self._reserved[value] = place

    def reserved(self, value: str) -> Place | None:
        """Where a value shall be made, if that was said."""
        return self._reserved.get(value)

    def new_image(self, value: str, over: Sequence[Place] = ()) -> Imaged:
        """Memory for a new image, in blocks. over: operands that it may overwrite, if they lie as it does and die here."""
        reserved = self._reserved.get(value)
        if isinstance(reserved, Imaged):
            return self._made(value, reserved)
        image = Image.blocked(*image_shape(self.spec(value).shape), self.isa.lanes)
        for place in over:
            if isinstance(place, Imaged) and place.image == image and self._takes(value, place.storage):
                return self._made(value, Imaged(place.storage, image, place.offset))
        return self._made(value, self._imaged(value, image))

    def new_as(self, value: str, image: Image) -> Imaged:
        """Memory for a new image, laid out as asked."""
        return self._made(value, self._imaged(value, image))

    def new(self, value: str, over: Sequence[Place] = ()) -> Viewed:
        """Memory for a new value: where it was reserved, or row-major, or so that the transpose that alone reads it is.

        over: operands that it may overwrite, if they lie as it does and die here.
        """
        reserved = self._reserved.get(value)
        if isinstance(reserved, Viewed):
            return self._made(value, reserved)
        view = self._wanted(value)
        for place in over:
            if isinstance(place, Viewed) and place.view == view and self._takes(value, place.storage):
                return self._made(value, place)
        return self._made(value, Viewed(self._storage(value, view), view))

    def new_dense(self, value: str) -> Viewed:
        """Memory for a new value, row-major whoever reads it."""
        view = View.dense(self.spec(value).shape)
        return self._made(value, Viewed(self._storage(value, view), view))

    def _storage(self, value: str, view: View) -> Storage:
        port = value if value in self.results and view.is_dense else ""
        return Storage(value, view.span, self.spec(value).dtype, port=port)

    def _imaged(self, value: str, image: Image) -> Imaged:
        return Imaged(Storage(value, image.elements, self.spec(value).dtype), image)

    def _made(self, value: str, place: _P) -> _P:
        self._places[value] = [place]
        return place

    def _wanted(self, value: str) -> View:
        shape = self.spec(value).shape
        reader = self.only_reader(value)
        if reader is None or reader.op != "Transpose" or reader.epilogue:
            return View.dense(shape)
        axes = reader.attrs["perm"] or tuple(range(len(shape)))[::-1]
        back = sorted(range(len(axes)), key=lambda position: axes[position])
        return View.dense([shape[axis] for axis in axes]).transposed(back)

    def _takes(self, value: str, storage: Storage) -> bool:
        """Whether a value may be made there: a storage of its type, the segment's own, that nobody reads behind this node."""
        if storage.dtype != self.spec(value).dtype:
            return False
        if storage.constant is not None or storage.port or any(place.storage is storage for place in self._reserved.values()):
            return False
        held = (name for name, places in self._places.items() if any(place.storage is storage for place in places))
        return all(self._last_read.get(name, -1) <= self.at for name in held)

    # Constants

    def constant(self, source: Array | None, key: Hashable, make: Callable[[], Array], dtype: DType = F32) -> Storage:
        """Storage of a packed constant of that type; the same source packed the same way is one storage."""
        entry = self._packed.get(source, key, make)
        if id(entry) not in self._constants:
            self._constants[id(entry)] = Storage("constant", 0, dtype, entry)
        return self._constants[id(entry)]

    def _blocked_constant(self, value: str, shape: tuple[int, int, int, int]) -> Imaged:
        array, image = self.constants[value], Image.blocked(*shape, self.isa.lanes)

        def made() -> Array:
            memory = aligned(array.itemsize * image.elements).view(array.dtype)
            image.store(array.reshape(shape), memory)
            return memory

        return Imaged(self.constant(array, ("blocked", image), made, array.dtype), image)

    def watch(self, node: Node, axis_size: int) -> Storage:
        """Storage for the word in which a kernel tells of an index outside; whoever runs the segment looks at it."""
        word = np.zeros(1, np.int64)
        self.watches.append(Watch(node, axis_size, word))
        return Storage("watch", 0, word.dtype, Entry.of(word))

    # Calls

    def call(self, kernel: NativeKernel, places: Mapping[str, Place | Storage], writes: Sequence[str] = ("y",)) -> None:
        """Append a call. Each argument is where its first element lies."""
        arguments = {
            name: (place, 0) if isinstance(place, Storage) else (place.storage, place.first_byte)
            for name, place in places.items()
        }
        self.calls.append(Call(self.at, kernel, arguments, tuple(writes)))

    def map(self, y: tuple[Place, View], operands: Sequence[tuple[Place, View]], steps: Sequence[Apply] = ()) -> None:
        """Append a call of an elementwise kernel, or a copy. Views say all about where in the storages of the places."""
        tensors = [Strided(view, place.storage.dtype) for place, view in (y, *operands)]
        what = Map(tensors[0], tuple(tensors[1:]), tuple(steps))
        named = {f"x{n}": (place.storage, 0) for n, (place, _) in enumerate(operands)}
        self.calls.append(Call(self.at, emit_map(what, self.isa), {**named, "y": (y[0].storage, 0)}))

    # Epilogues

    def finish(
        self, steps: Sequence[Activation | Merged], operand: Callable[[str], tuple[Place, Image]], *, bias: bool
    ) -> tuple[Epilogue, dict[str, Place]]:
        """The epilogue of a kernel, and where its operands lie. operand: one of those below, bound to the output."""
        made: list[Activation | Merge] = []
        places: dict[str, Place] = {}
        for step in steps:
            if isinstance(step, Merged):
                place, image = operand(step.value)
                places[f"r{len(places)}"] = place
                made.append(Merge(step.op, image, step.swapped))
            else:
                made.append(step)
        return Epilogue(bias, tuple(made)), places

    def image_operand(self, value: str, shape: Sequence[int]) -> tuple[Place, Image]:
        """A value as an operand of an epilogue that writes an image of that shape in blocks: what it lacks is broadcast.

        Channels and the plane are whole or one element; what repeats along one side of the plane alone is written out first.
        """
        given = self.spec(value).shape
        own, wanted = image_shape((1,) * (len(shape) - len(given)) + given), image_shape(shape)
        place: Place
        if own[2:] not in ((1, 1), wanted[2:]) or (len(given) < len(shape) and own[1] > 1 and value not in self.constants):
            place = self._spread(value, own, wanted)
        elif own[1] == 1:
            place = self.dense(value).under(View.dense(own))
        elif len(given) == len(shape):
            place = self.blocked(value)
        else:
            place = self._blocked_constant(value, own)
        image = place.image if isinstance(place, Imaged) else Image.nchw(*image_shape(place.view.shape))
        block_stride = image.block_stride if own[1] > 1 else 0
        sizes = (image.batch, image.height, image.width)
        strides = (image.n_stride, image.y_stride, image.x_stride)
        n, y, x = (0 if size == 1 else stride for size, stride in zip(sizes, strides, strict=True))
        return place, Image(*wanted, image.block, n, block_stride, y, x)

    def _spread(self, value: str, own: tuple[int, int, int, int], wanted: tuple[int, int, int, int]) -> Place:
        """A value with its whole plane written out, in blocks where it has channels."""
        full = (*own[:2], *wanted[2:])
        source = self.dense(value)
        seen = source.under(View.dense(own).broadcast(full))
        if own[1] == 1:
            made = Viewed(Storage(value, math.prod(full), source.storage.dtype), View.dense(full))
            self.map((made, made.view), [(seen, seen.view)])
            return made
        blocks = self._imaged(value, Image.blocked(*full, self.isa.lanes))
        self._convert(seen, blocks)
        return blocks

    def row_operand(self, value: str, shape: Sequence[int]) -> tuple[Place, Image]:
        """A value as an operand of an epilogue that writes the rows of a tensor of that shape; else it is written out first."""
        given = self.spec(value).shape
        rows, columns = math.prod(shape[:-1]), shape[-1]
        whole = (1,) * (len(shape) - len(given)) + given
        if math.prod(given) == 1:
            return self.dense(value), Image(1, columns, 1, rows, 1, 0, 0, 0, 0)
        if math.prod(given) == whole[-1]:
            return self.dense(value), Image(1, columns, 1, rows, columns, 0, 0, 0, 0)
        if whole == (*shape[:-1], 1):
            return self.dense(value), Image(1, columns, 1, rows, 1, 0, 0, rows, 1)
        if whole == tuple(shape):
            place = self.rows(value, columns)
        else:
            source = self.strided(value)
            made = Viewed(Storage(value, math.prod(shape), source.storage.dtype), View.dense(shape))
            self.map((made, made.view), [(source, source.view.broadcast(shape))])
            place = made.under(View.dense((rows, columns)))
        step = place.view.strides[0]
        return place, Image(1, columns, 1, rows, columns, 0, 0, rows * step, step)


def overwritable(operands: Sequence[Place], others: Sequence[Place] = ()) -> list[Place]:
    """The operands that a result may take the place of, element by element: nothing else that is read shares their memory."""
    return [
        place
        for place in operands
        if all(other.storage is not place.storage for other in others)
        and all(other.storage is not place.storage or other == place for other in operands)
    ]


def _has_rows(matrix: View) -> bool:
    rows, columns = matrix.shape
    return (columns == 1 or matrix.strides[1] == 1) and (rows == 1 or matrix.strides[0] >= columns)


def _with_row_step(matrix: View) -> View:
    """A single row has no step of its own; say one that kernels can trust."""
    rows, columns = matrix.shape
    return View(matrix.shape, (matrix.strides[0] if rows > 1 else columns, 1), matrix.offset)


def _lifted(shape: Sequence[int], view: View) -> View:
    """An image of height 1 without its height."""
    if len(shape) != 3 or len(view.shape) != 4:
        raise EmitError(f"view of shape {list(view.shape)}: it is none of shape {list(shape)}")
    return View(tuple(shape), (*view.strides[:2], view.strides[3]), view.offset)


def _flat(array: Array) -> Array:
    memory = aligned(array.nbytes).view(array.dtype)
    memory[:] = array.ravel()
    return memory
