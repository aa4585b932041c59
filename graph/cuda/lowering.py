"""The builder that rules lower nodes with: where values lie on the GPU, packed constants, and the list of launches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import ml_dtypes
import numpy as np

from graph.choice import Choice
from graph.cuda.constants import DeviceConstants
from graph.cuda.facts import F32, Facts
from graph.cuda.layouts import Layout, array_of, in_order_of, is_aligned, matrix_of, new_view, repeats, storage_of
from graph.ir import Node
from graph.native.dataflow import Dataflow
from graph.native.place import Storage, Viewed
from kernels.cuda.driver import Device
from kernels.cuda.emit.epilogue import Storage as Memory
from kernels.cuda.families.elementwise import Map
from kernels.cuda.families.product_work import Precision
from kernels.cuda.families.rearrange import copy
from kernels.cuda.program import Launch
from kernels.expression import Expression
from kernels.native.memory.view import View
from kernels.record import record
from kernels.spec import Array, DType, Spec

STORED: Mapping[Precision, DType] = {
    "fp32": F32,
    "tf32": F32,
    "fp16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
}  # the type of float32 values between kernels


# Weights of so many bytes are fetched into L2 by the launch before: fewer are there at once, more would drive out what it reads.
FETCHED_BYTES = range(1 << 19, 1 << 24)


def rounded(array: Array, dtype: DType) -> Array:
    """Return an array of another type, contiguous; what is too large for it is infinite, as where a GPU rounds."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype)


def round_to_tf32(array: Array) -> Array:
    """Return float32 rounded to the 11 bits of tf32, to even: tensor cores may cut the others off."""
    bits = np.ascontiguousarray(array, F32).view(np.uint32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & np.uint32(0xFFFFE000)).view(F32)


@record
class Option:
    """A way to compute a call. params: what tells it from others.  estimated_ns: unmeasured."""

    launch: Launch
    params: tuple[tuple[str, str], ...] = ()
    estimated_ns: float = 0.0


@record
class Call:
    """A launch of a segment. node: position of its node.  algorithm: what it is in a choice.  options: the likely best first."""

    node: int
    algorithm: str
    options: tuple[Option, ...]

    def fetching(self, name: str, n_bytes: int) -> Call:
        """Return this call, whose launches also fetch weights that a later one will read."""
        options = tuple(replace(option, launch=option.launch.fetching(name, n_bytes)) for option in self.options)
        return replace(self, options=options)

    def option(self, choice: Choice | None) -> Option:
        """Return the option that a choice names; the first where it names none of these."""
        if choice is not None and choice.algorithm == self.algorithm:
            return next((option for option in self.options if option.params == choice.params), self.options[0])
        return self.options[0]


@record
class Watch:
    """A word that a gather writes an index out of range to. node: position.  size: of the axis.  indices: the value's name."""

    node: int
    size: int
    indices: str
    place: Viewed


class Lowering:
    """The lowering of one segment under construction.

    Args:    nodes: of the segment, in order. facts: of the whole graph. inputs, results: values that it reads from outside, and
             that are read outside. precision: of products, and of every float32 value that is stored between kernels.
             constants: the packed constants on the GPU.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        facts: Facts,
        inputs: Sequence[str],
        results: Sequence[str],
        precision: Precision,
        device: Device,
        constants: DeviceConstants,
    ) -> None:
        self.nodes, self.facts, self.constants = nodes, facts, facts.constants
        self.precision, self.device = precision, device
        self.dtype = STORED[precision]
        self.dataflow = Dataflow(nodes, results)
        self.node = 0  # the position of the node that is being lowered
        self.calls: list[Call] = []
        self.watches: list[Watch] = []
        self.done: set[str] = set()  # names of nodes that an earlier one has lowered together with itself
        self.where: dict[str, tuple[Storage, int]] = {}  # name of an address in launches -> storage, and bytes from its beginning
        self.kept: dict[Storage, None] = {}  # memory outside of the arena, 0 at first
        self._packed = constants
        self._numbers: dict[Storage, int] = {}
        self._places: dict[str, list[Viewed]] = {}
        self._reserved: dict[str, Viewed] = {}
        self._constant_places: dict[tuple[int, str], Viewed] = {}
        for name in inputs:
            self._places[name] = [Viewed.new(name, self.spec(name).shape, self.spec(name).dtype)]

    @property
    def storage(self) -> Memory:
        """How float32 values are stored between kernels, as these name it."""
        return storage_of(self.dtype)

    def spec(self, value: str) -> Spec:
        """Return the shape and dtype of a value."""
        return self.facts.spec(value)

    def stored(self, value: str) -> DType:
        """Return the type in which a value lies on the GPU: float32 in the precision of the segment, others as they are."""
        return self.dtype if self.spec(value).dtype == F32 else self.spec(value).dtype

    # Values

    def place(self, value: str) -> Viewed:
        """Return where a value lies, in the type in which it is stored."""
        found = next((place for place in self._all(value) if place.storage.dtype == self.stored(value)), None)
        return found or self._converted(value, self._all(value)[0].view)

    def raw(self, value: str) -> Viewed:
        """Return where a value was put first, in whichever type."""
        return self._all(value)[0]

    def dense(self, value: str) -> Viewed:
        """Return a value row-major and without gaps, copied where it lies in another way."""
        return self._fitting(value, lambda view: view.reshaped((view.size,)), View.dense(self.spec(value).shape)).under(
            View.dense(self.spec(value).shape)
        )

    def matrix(self, value: str, layout: Layout) -> Viewed:
        """Return a value as rows of columns, or pixels of channels, side by side; copied where it lies in another way."""
        shape = self.spec(value).shape
        return self._fitting(value, lambda view: matrix_of(view, layout), new_view(shape, layout))

    def under(self, value: str, seen: Callable[[View], View | None], made: Callable[[View], View]) -> Viewed:
        """Return a value as `seen` sees one of its places; copied, row-major, and seen by `made`, where it sees none."""
        return self._fitting(value, seen, View.dense(self.spec(value).shape), made)

    def _all(self, value: str) -> list[Viewed]:
        if value not in self._places:
            self._places[value] = [self.constant(self.constants[value])]
        return self._places[value]

    def _fitting(
        self, value: str, seen: Callable[[View], View | None], new: View, made: Callable[[View], View] | None = None
    ) -> Viewed:
        for place in self._all(value):
            able = place.storage.dtype == self.stored(value) and is_aligned(place) and not repeats(place.view)
            if able and (view := seen(place.view)) is not None:
                return place.under(view)
        copied = self._converted(value, new)
        view = made(copied.view) if made else seen(copied.view)
        assert view is not None, f"{value}: a new copy {new} must be what was asked for"  # noqa: S101
        return copied.under(view)

    def _converted(self, value: str, view: View) -> Viewed:
        """Copy a value into new memory with the strides of a view's dimensions in order, in the type in which it is stored."""
        made = Viewed(Storage(value, view.size, self.stored(value)), in_order_of(view))
        self.copy(self._all(value)[0], made)
        self._places[value].append(made)
        return made

    def define(self, value: str, place: Viewed) -> None:
        """Say where a value lies."""
        self._places[value] = [place]

    def new(self, value: str, layout: Layout) -> Viewed:
        """Return memory for a value: what is reserved for it, or new memory in that layout."""
        return self._new(value, new_view(self.spec(value).shape, layout))

    def new_like(self, value: str, view: View) -> Viewed:
        """Return memory for a value: what is reserved for it, or new memory with its dimensions in the order of a view's."""
        return self._new(value, in_order_of(view))

    def _new(self, value: str, view: View) -> Viewed:
        made = self._reserved.get(value) or Viewed(Storage(value, view.size, self.stored(value)), view)
        self.define(value, made)
        return made

    def reserve(self, value: str, place: Viewed) -> None:
        """Reserve memory for a value that is not computed yet."""
        self._reserved[value] = place

    def reserved(self, value: str) -> Viewed | None:
        """Return the memory that is reserved for a value."""
        return self._reserved.get(value)

    def scratch(self, name: str, n_bytes: int) -> Viewed:
        """Return memory that one call works in."""
        return Viewed.new(name, (n_bytes,), np.dtype(np.uint8))

    def cleared(self, name: str, shape: Sequence[int], dtype: DType) -> Viewed:
        """Return memory of its own, 0 before the first run."""
        made = Viewed.new(name, shape, dtype)
        self.kept[made.storage] = None
        return made

    # Constants

    def constant(self, array: Array, dtype: DType | None = None) -> Viewed:
        """Return a constant row-major on the GPU; one of float32 in the precision of the segment, or as another type."""
        kind = dtype or (self.dtype if array.dtype == F32 else array.dtype)
        key = id(array), kind.name
        if key not in self._constant_places:
            made = self._packed.storage(array, ("plain", kind.name), kind, lambda: rounded(array, kind))
            self._constant_places[key] = Viewed(made, View.dense(array.shape))
        return self._constant_places[key]

    def packed(self, source: Array, key: object, pack: Callable[[], Array], *, for_tensor_cores: bool = True) -> Viewed:
        """Return weights as a kernel reads them, in the precision of the segment.

        key: what tells this form of the source from others. pack: makes it, in any precision. for_tensor_cores: they may multiply
        it in tf32.
        """
        kind = self.dtype
        if self.precision == "tf32" and for_tensor_cores:
            made = self._packed.storage(source, (key, "tf32"), kind, lambda: round_to_tf32(pack()))
        else:
            made = self._packed.storage(source, (key, kind.name), kind, lambda: rounded(pack(), kind))
        return Viewed(made, View((1,), (1,)))

    # Launches

    def address(self, place: Viewed) -> str:
        """Return the name that launches call an address by."""
        number = self._numbers.setdefault(place.storage, len(self._numbers))
        name = f"{number}+{place.first_byte}"
        self.where[name] = place.storage, place.first_byte
        return name

    def launch(self, algorithm: str, *options: Option, weights: tuple[str, int] | None = None) -> None:
        """Append a launch of the node that is being lowered. options: ways to compute it, the likely best first.

        weights: the name of a constant that it reads, and its bytes.
        """
        if weights is not None and weights[1] in FETCHED_BYTES and self.calls:
            self.calls[-1] = self.calls[-1].fetching(*weights)
        self.calls.append(Call(self.node, algorithm, options))

    def map(self, y: Viewed, operands: Sequence[Viewed], expression: Expression) -> None:
        """Append an elementwise computation; operands are broadcast to the shape of y."""
        shape = y.view.shape
        made = Map(expression, shape, array_of(y, shape), tuple(array_of(place, shape) for place in operands))
        names = {f"r{n}": self.address(place) for n, place in enumerate(operands)}
        self.launch("map", Option(made.launch(y=self.address(y), **names)))

    def copy(self, source: Viewed, target: Viewed) -> None:
        """Append a copy, which may change the precision; the source is broadcast to the shape of the target."""
        if not source.storage.dtype.name.startswith(("float", "bfloat")):
            self.map(target, [source], Expression((source.storage.dtype,)))
            return
        shape = target.view.shape
        made = copy(shape, array_of(source, shape), array_of(target, shape), x=self.address(source), y=self.address(target))
        self.launch("copy", Option(made))

    def watch(self, indices: str, size: int) -> Viewed:
        """Return a word for an index out of range of the node that is being lowered."""
        place = self.cleared(f"{indices} watch", (1,), np.dtype(np.int32))
        self.watches.append(Watch(self.node, size, indices, place))
        return place

    def leave(self, value: str) -> Viewed:
        """Return a result of the segment as it leaves: row-major and without gaps, in its own type."""
        spec = self.spec(value)
        for place in self._all(value):
            if place.storage.dtype == spec.dtype and View(place.view.shape, place.view.strides).is_dense:
                return place
        made = Viewed.new(value, spec.shape, spec.dtype)
        self.copy(self._all(value)[0], made)
        return made
