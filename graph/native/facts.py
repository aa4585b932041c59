"""The facts that decide whether a node has a native form, and which of its forms is best."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field, replace

import numpy as np

from graph.ir import Node, Specs
from graph.native.expressions import Sources, express_epilogue
from graph.native.place import image_shape, is_image
from kernels.native.errors import EmitError
from kernels.native.memory.image import Image
from kernels.native.memory.view import View
from kernels.native.target.isa import Isa
from kernels.precision import Precision
from kernels.record import record
from kernels.size import hinted
from kernels.spec import BOOL, INTS, Array, DType, Spec, hinted_array

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)
VALUES: frozenset[DType] = INTS | {BOOL, F32, F64}  # what a segment holds


@record
class Kept:
    """A value that grows: a graph input behind which a graph output appends, both in memory that has room along that axis.

    input: the value before. axis: along which it grows. room: how much of that axis there is memory for.
    """

    input: str
    axis: int
    room: int

    def view(self, shape: Sequence[int]) -> View:
        """Return the view of a value of that shape, before or after, in the memory."""
        whole = View.dense([self.room if axis == self.axis else size for axis, size in enumerate(shape)])
        return View(tuple(shape), whole.strides)


@record
class Facts:
    """The facts that decide whether a node has a native form, and which is best. Its neighbours in the graph are not among them.

    specs, constants: of the whole graph. threads: how many will share the work. kept: values that grow in place, by the name of
    the output. precisions: in which products may be computed, the one to use unmeasured first. held: the types in which float32
    values of a segment that is being lowered lie in memory, where these are others.
    """

    specs: Specs
    constants: Mapping[str, Array]
    isa: Isa
    threads: int = 1
    kept: Mapping[str, Kept] = field(default_factory=dict)
    precisions: Sequence[Precision] = ("fp32",)
    held: Mapping[str, DType] = field(default_factory=dict)

    @property
    def sources(self) -> Sources:
        """What the operands of expressions over these values are."""
        return Sources(self.spec, self.constants, held=self.held)

    @property
    def hinted(self) -> Facts:
        """These facts with plain numbers in place of sizes that depend on symbols: for choices, of which any is right."""
        return replace(self, specs=HintedSpecs(self.specs))

    def spec(self, value: str) -> Spec:
        """Return the shape and dtype of a value. Raises EmitError where only a run decides them."""
        return known(self.specs, value)

    def memory_dtype(self, value: str) -> DType:
        """Return the type in which a value lies in memory."""
        return self.held.get(value) or self.spec(value).dtype

    def not_f32(self, *values: str) -> str | None:
        """Return which of the values is not fp32, as a reason, or None. Absent values ("") are skipped."""
        found = next((value for value in values if value and self.spec(value).dtype != F32), None)
        return None if found is None else f"{found!r} is {self.spec(found)}, need fp32"

    def not_image(self, value: str, ranks: Sequence[int] = (3, 4, 5)) -> str | None:
        """Return why a value cannot lie as an image of one of these ranks, or None."""
        spec = self.spec(value)
        return None if is_image(spec.shape) and spec.rank in ranks else f"x is {spec}, need rank {' or '.join(map(str, ranks))}"

    def computed(self, values: Iterable[str]) -> bool:
        """Whether one of the values is not a constant. Absent values ("") are skipped."""
        return any(value and value not in self.constants for value in values)

    def image_in_blocks(self, value: str) -> Image:
        """Return the layout of an image in blocks of one vector of channels."""
        return Image.blocked(*image_shape(self.spec(value).shape), self.isa.lanes)

    def refuses_epilogue(self, node: Node) -> str | None:
        """Return why a kernel cannot compute the epilogue of a node, or None."""
        try:
            bound = express_epilogue(node, self.sources)
        except EmitError as error:
            ops = "+".join(fused.op for fused in node.epilogue)
            return f"its epilogue {ops} has an op without a native form: {error}"
        reason = self.not_f32(*bound.operands)
        return None if reason is None else f"its epilogue reads what is not fp32: {reason}"


class HintedSpecs(Mapping[str, Spec | None]):
    """Specs with the hint of every size that depends on symbols."""

    def __init__(self, specs: Specs) -> None:
        self._specs = specs
        self._plain: dict[str, Spec | None] = {}

    def __getitem__(self, value: str) -> Spec | None:
        if value not in self._plain:
            spec = self._specs[value]
            self._plain[value] = None if spec is None else Spec(hinted(spec.shape), spec.dtype, hinted_array(spec.value))
        return self._plain[value]

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)


def optional_input(node: Node, position: int) -> str:
    """Return the name of an input, "" where it is absent."""
    return node.inputs[position] if len(node.inputs) > position else ""


def known(specs: Specs, value: str) -> Spec:
    """Return the spec of a value. Raises EmitError where only a run decides it: nodes that use such a value are refused."""
    spec = specs.get(value)
    if spec is None:
        raise EmitError(f"value {value!r}: its shape is only known at run time")
    return spec
