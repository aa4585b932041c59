"""Where the values of a segment lie: their places, conversions between them, and memory for new values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from graph.ir import Node
from graph.native.calls import CallList
from graph.native.constants import ConstantStorages
from graph.native.dataflow import Dataflow
from graph.native.facts import Facts, Kept
from graph.native.place import Imaged, Place, Storage, Viewed, as_image, image_shape, rows_of
from kernels.native.errors import EmitError
from kernels.native.families.elementwise import emit_map
from kernels.native.families.rearrange import convert_image
from kernels.native.memory.buffers import aligned
from kernels.native.memory.image import Image
from kernels.native.memory.view import View
from kernels.spec import Array, DType, SizeArray

_P = TypeVar("_P", Viewed, Imaged)


class Values:
    """The values of one segment under construction. A value may lie in several places, once in each layout that was asked for."""

    def __init__(self, facts: Facts, dataflow: Dataflow, packed: ConstantStorages, calls: CallList) -> None:
        self._facts, self._dataflow, self._packed, self._calls = facts, dataflow, packed, calls
        self._places: dict[str, list[Place]] = {}
        self._laid: dict[tuple[str, Image, DType], Imaged] = {}  # copies in layouts that single kernels ask for
        self._reserved: dict[str, Place] = {}
        self._reserved_storages: set[Storage] = set()
        self.deferred: dict[str, Node] = {}  # values that nobody has made yet, by the elementwise nodes that would
        self._lower_late: dict[str, Callable[[], None]] = {}
        self._needed_until: dict[Storage, int] = {}  # the last node that reads a value in it

    # Values that are read

    def places(self, value: str) -> list[Place]:
        """Return all the places where a value lies, its producer's first."""
        if value in self._lower_late:
            del self.deferred[value]
            self._lower_late.pop(value)()
        if value not in self._places:
            array = self._facts.constants[value]
            if isinstance(array, SizeArray):
                self._put(value, Viewed(Storage.of_sizes(value, _listed, array.ravel().tolist()), View.dense(array.shape)))
                return self._places[value]
            storage = self._packed.storage(array, "dense", lambda: _flat(array), array.dtype)
            self._put(value, Viewed(storage, View.dense(array.shape)))
        return self._places[value]

    def lies(self, value: str) -> bool:
        """Whether a computed value lies anywhere: one between nodes that are lowered together, or that nobody reads, may not."""
        return value in self._places

    def place(self, value: str) -> Place:
        """Return where a value lies, as its producer left it."""
        return self.places(value)[0]

    def strided(self, value: str) -> Viewed:
        """Return a value by strides; copied where it lies in blocks."""
        for place in self.places(value):
            if (found := place.strided) is not None:
                return self._shaped(found, value)
        return self._copied(value)

    def image(self, value: str) -> Place:
        """Return an image in any layout, as its producer left it where that is one."""
        place = self.place(value)
        return place if isinstance(place, Imaged) else self.strided_image(value)

    def strided_image(self, value: str) -> Viewed:
        """Return an image by strides; copied where it lies in blocks, or no stride leads from row to row of a volume."""
        place = self.strided(value)
        return place if rows_of(place.view) is not None else self.dense(value)

    def dense(self, value: str) -> Viewed:
        """Return a value row-major; copied where it is not."""
        for place in self.places(value):
            if (found := place.strided) is not None and found.view.is_dense:
                return self._shaped(found, value)
        return self._copied(value)

    def matrix(self, value: str, columns: int) -> Viewed:
        """Return a value as a matrix (rows, columns) with contiguous columns, rows any number of elements apart."""
        rows = self._facts.spec(value).elements // columns
        for place in self.places(value):
            matrix = None if (found := place.strided) is None else found.view.reshaped((rows, columns))
            if matrix is not None and _has_rows(matrix):
                return Viewed(place.storage, _with_row_step(matrix))
        return self.dense(value).under(View.dense((rows, columns)))

    def blocked(self, value: str) -> Imaged:
        """Return an image in blocks of one vector of channels; converted where it is not."""
        lanes = self._facts.isa.lanes
        for place in self.places(value):
            if isinstance(place, Imaged) and place.image.block == lanes:
                return place
        spec = self._facts.spec(value)
        if value in self._facts.constants:
            made = self.blocked_constant(value, image_shape(spec.shape))
        else:
            made = Imaged.new(value, self._facts.image_in_blocks(value), self._facts.memory_dtype(value))
            self.convert(self.strided_image(value), made)
        self._add(value, made)
        return made

    def blocked_constant(self, value: str, shape: tuple[int, int, int, int]) -> Imaged:
        """Return a constant as an image of shape (n, c, h, w) in blocks."""
        array, image = self._facts.constants[value], Image.blocked(*shape, self._facts.isa.lanes)

        def made() -> Array:
            memory = aligned(array.itemsize * image.elements).view(array.dtype)
            image.store(array.reshape(shape), memory)
            return memory

        return Imaged(self._packed.storage(array, ("blocked", image), made, array.dtype), image)

    def laid(self, value: str, image: Image, dtype: DType, *, fill: bool = False) -> Imaged:
        """Return an image laid out like that, of elements of that type; copied where it is not.

        fill: lanes after the last channel have to be 0, which only copies have for sure.
        """
        if not fill:
            for place in self.places(value):
                if isinstance(place, Imaged) and (place.image, place.storage.dtype) == (image, dtype):
                    return place
        key = (value, image, dtype)
        if (made := self._laid.get(key)) is None:
            made = self._laid[key] = Imaged.new(value, image, dtype)
            self.convert(self.image(value), made, fill=fill)
        self._keep(made.storage, self._dataflow.last_read(value))
        return made

    def convert(self, source: Place, target: Place, *, fill: bool = False) -> None:
        """Copy an image into another layout. fill: lanes after the last channel become 0."""
        for each in convert_image(as_image(source), as_image(target), target.storage.dtype, source.storage.dtype, fill=fill):
            sources = {f"x{n}": source for n in range(len(each.operands))}
            self._calls.append(emit_map(each, self._facts.isa), {**sources, "y": target})

    def _shaped(self, place: Viewed, value: str) -> Viewed:
        """Return the place under the value's own shape; images of rank 3 and 5 are stored as those of rank 4."""
        shape = self._facts.spec(value).shape
        return place if place.view.shape == shape else place.under(_unfolded(shape, place.view))

    def _copied(self, value: str) -> Viewed:
        """Copy a value to be row-major."""
        spec = self._facts.spec(value)
        made = Viewed.new(value, spec.shape, self._facts.memory_dtype(value))
        self._copy(self.place(value), made)
        self._add(value, made)
        return made

    def _copy(self, source: Place, target: Viewed) -> None:
        if (found := source.strided) is not None:
            view = found.view if found.view.shape == target.view.shape else _unfolded(target.view.shape, found.view)
            self._calls.map((target, target.view), [(source, view)])
        else:
            self.convert(source, target)

    # Values that enter and leave the segment

    def enter(self, value: str) -> None:
        """Let a value be an input of the segment, row-major in memory that the caller gives."""
        self._put(value, self._port(value))

    def enter_kept(self, value: str, kept: Kept) -> None:
        """Let a value be an input of the segment that lies in memory with room for more of it behind."""
        spec = self._facts.spec(value)
        view = kept.view(spec.shape)
        self._put(value, Viewed(Storage(value, view.span, spec.dtype, port=value), view))

    def leave(self, value: str) -> None:
        """Copy a value to where it leaves the segment, row-major in memory that the caller gives, unless it is there already."""
        source = self.place(value)
        found = source.strided
        if found is None or found.storage.port != value or not found.view.is_dense:
            self._copy(source, self._port(value))

    def _port(self, value: str) -> Viewed:
        spec = self._facts.spec(value)
        return Viewed.new(value, spec.shape, spec.dtype, port=value)

    # Values that are made

    def define(self, value: str, place: Place) -> None:
        """Let a value be a view of memory that exists already."""
        self._put(value, place)

    def defer(self, node: Node, lower: Callable[[], None]) -> None:
        """Leave the value that an elementwise node makes to those that read it: kernels may compute it of what it is made of.

        lower: called at last where another one asks for the value's place.
        """
        value = node.outputs[0]
        self.deferred[value], self._lower_late[value] = node, lower
        for name in node.reads():
            for place in self._places.get(name, ()):
                self._keep(place.storage, self._dataflow.last_read(value))

    def reserve(self, value: str, place: Place) -> None:
        """Say where the producer of a value shall make it."""
        self._reserved[value] = place
        self._reserved_storages.add(place.storage)

    def reserved(self, value: str) -> Place | None:
        """Return where a value shall be made, or None where no place is reserved for it."""
        return self._reserved.get(value)

    def new_image(self, value: str, over: Sequence[Place] = ()) -> Imaged:
        """Return memory for a new image in blocks. over: operands that it may overwrite, if laid out alike and not read later."""
        reserved = self._reserved.get(value)
        if isinstance(reserved, Imaged):
            return self._made(value, reserved)
        image = self._facts.image_in_blocks(value)
        for place in over:
            if isinstance(place, Imaged) and place.image == image and self._takes(value, place.storage):
                return self._made(value, Imaged(place.storage, image, place.offset))
        return self.new_as(value, image)

    def new_as(self, value: str, image: Image) -> Imaged:
        """Return memory for a new image, laid out as asked."""
        return self._made(value, Imaged.new(value, image, self._facts.memory_dtype(value)))

    def new(self, value: str, over: Sequence[Place] = ()) -> Viewed:
        """Return memory for a new value: where it is reserved, row-major, or so that its only reader, a Transpose, is row-major.

        over: operands that it may overwrite, if they are laid out alike and no later node reads them.
        """
        reserved = self._reserved.get(value)
        if isinstance(reserved, Viewed):
            return self._made(value, reserved)
        view = self._wanted(value)
        for place in over:
            if isinstance(place, Viewed) and place.view.surely_equals(view) and self._takes(value, place.storage):
                return self._made(value, place)
        return self._made(value, Viewed(self._storage(value, view), view))

    def new_dense(self, value: str) -> Viewed:
        """Return memory for a new value, row-major however it is read."""
        view = View.dense(self._facts.spec(value).shape)
        return self._made(value, Viewed(self._storage(value, view), view))

    def _storage(self, value: str, view: View) -> Storage:
        port = value if value in self._dataflow.results and view.is_dense else ""
        return Storage(value, view.span, self._facts.memory_dtype(value), port=port)

    def _made(self, value: str, place: _P) -> _P:
        self._put(value, place)
        return place

    def _put(self, value: str, place: Place) -> None:
        """Note the place where a value lies."""
        self._places[value] = []
        self._add(value, place)

    def _add(self, value: str, place: Place) -> None:
        """Note one more place where a value lies."""
        self._places[value].append(place)
        self._keep(place.storage, self._dataflow.last_read(value))

    def _keep(self, storage: Storage, until: int) -> None:
        """Note that a storage is needed up to the node at that position."""
        self._needed_until[storage] = max(until, self._needed_until.get(storage, until))

    def _wanted(self, value: str) -> View:
        shape = self._facts.spec(value).shape
        reader = self._dataflow.only_reader(value)
        if reader is None or reader.op != "Transpose" or reader.epilogue:
            return View.dense(shape)
        axes = reader.attrs["perm"] or tuple(range(len(shape)))[::-1]
        back = sorted(range(len(axes)), key=lambda position: axes[position])
        return View.dense([shape[axis] for axis in axes]).transposed(back)

    def _takes(self, value: str, storage: Storage) -> bool:
        """Whether a value may be made there: a storage of its type, the segment's own, that no later node reads."""
        if storage.dtype != self._facts.memory_dtype(value):
            return False
        if not storage.is_own or storage in self._reserved_storages:
            return False
        return self._needed_until.get(storage, -1) <= self._calls.node


def overwritable(operands: Sequence[Place], others: Sequence[Place] = ()) -> list[Place]:
    """Return the operands that a result may replace, element by element: no other operand shares their memory."""
    shared = {other.storage for other in others}
    first: dict[Storage, Place] = {}
    shared.update(place.storage for place in operands if first.setdefault(place.storage, place) != place)
    return [place for place in operands if place.storage not in shared]


def _has_rows(matrix: View) -> bool:
    rows, columns = matrix.shape
    return (columns == 1 or matrix.strides[1] == 1) and (rows == 1 or matrix.strides[0] >= columns)


def _with_row_step(matrix: View) -> View:
    """Give a matrix of one row a row stride that is valid for kernels."""
    rows, columns = matrix.shape
    return View(matrix.shape, (matrix.strides[0] if rows > 1 else columns, 1), matrix.offset)


def _unfolded(shape: Sequence[int], view: View) -> View:
    """Return the view (n, c, rows, w) of an image of rank 3 or 5 under its own shape."""
    if len(view.shape) != 4 or image_shape(shape) != view.shape:
        raise EmitError(f"view of shape {list(view.shape)}: need an image of shape {list(shape)}")
    n, c, y, x = view.strides
    return View(tuple(shape), (n, c, x) if len(shape) == 3 else (n, c, shape[3] * y, y, x), view.offset)


def _listed(*sizes: int) -> Sequence[int]:
    return sizes


def _flat(array: Array) -> Array:
    memory = aligned(array.nbytes).view(array.dtype)
    memory[:] = array.ravel()
    return memory
