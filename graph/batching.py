"""Whether requests may share a run: a proof that row i of every output depends on row i of every input, and on no other row.

Shapes are propagated for two batch sizes; what grows with the batch, and along axis 0 only, is a value of rows. Then every node
that reads one must keep rows apart by a rule below. A node without a rule ends the proof: what is not shown is not assumed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto

import numpy as np

from graph.ir import CONTROL_FLOW, Graph, Node, Port, Specs
from graph.shapes import bind, propagate
from kernels.errors import EdgewiseError
from kernels.registry import find
from kernels.spec import Array, Spec

_SIZES = (5, 7)  # two batch sizes that no model fixes by chance in both places


class _Kind(Enum):
    FREE = auto()  # the same whatever the batch holds and however large it is
    SIZE = auto()  # follows from the batch's size alone: shape arithmetic
    ROWS = auto()  # axis 0 is the batch, and row i comes from row i of the inputs


@dataclass(frozen=True, slots=True)
class _Proof:
    """What is known so far. small, large: the specs at both batch sizes."""

    small: Specs
    large: Specs
    kinds: dict[str, _Kind]

    def kind(self, value: str) -> _Kind:
        return self.kinds[value]

    def shape(self, value: str) -> tuple[int, ...]:
        spec = self.small[value]
        return () if spec is None else spec.shape

    def constant(self, value: str) -> list[int] | None:
        """The integers of a value that is known and the same at both sizes."""
        spec = self.small[value]
        if spec is None or spec.value is None or self.kinds[value] is not _Kind.FREE:
            return None
        return [int(item) for item in spec.value.ravel()]

    def leads(self, value: str) -> bool:
        """Whether axis 0 is the batch, at both sizes, and no other axis depends on it."""
        small, large = self.small[value], self.large[value]
        if small is None or large is None or not small.shape or not large.shape:
            return False
        return (small.shape[0], large.shape[0]) == _SIZES and small.shape[1:] == large.shape[1:]


def mixes_rows(graph: Graph, row_shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Why rows of a batch might influence one another, or why there is no batch; "" where it is proven that they do not.

    row_shapes: input name -> its shape without axis 0.
    """
    if reason := _declared(graph):
        return reason
    try:
        small, large = (
            propagate(graph, bind(graph, {name: (size, *shape) for name, shape in row_shapes.items()})) for size in _SIZES
        )
    except EdgewiseError as error:
        return f"batch size cannot vary, {error}"
    proof = _Proof(small, large, dict.fromkeys(graph.constants, _Kind.FREE))
    proof.kinds.update((port.name, _Kind.ROWS) for port in graph.inputs)
    for node in graph.nodes:
        if reason := _step(node, proof):
            return f"{reason} (node {node.name!r}, {node.op})"
    for port in graph.outputs:
        if proof.kinds[port.name] is not _Kind.ROWS or not proof.leads(port.name):
            return f"output {port.name!r}: axis 0 is not the batch's"
    return ""


def _declared(graph: Graph) -> str:
    """Why the declared inputs and outputs are no batches."""
    if not graph.inputs:
        return "it has no inputs"
    for port in (*graph.inputs, *graph.outputs):
        if not port.dims or isinstance(port.dims[0], int):
            return f"{port}: axis 0 is not open"
    names = {dim for dim in map(_lead, graph.inputs) if isinstance(dim, str)}
    return f"inputs lead with different dimensions, {', '.join(sorted(names))}" if len(names) > 1 else ""


def _lead(port: Port) -> int | str | None:
    return port.dims[0] if port.dims else None


def _step(node: Node, proof: _Proof) -> str:
    """Give every output of a node its kind, or say why that cannot be done."""
    outputs = list(node.writes())
    kinds = [_of_known(proof.small[value], proof.large[value]) for value in outputs]
    if None in kinds:
        found, reason = _by_rule(node, proof)
        if reason:
            return reason
        kinds = [found if kind is None else kind for kind in kinds]
    for value, kind in zip(outputs, kinds, strict=True):
        if kind is not None:
            proof.kinds[value] = kind
        if kind is _Kind.ROWS and not proof.leads(value):
            return f"{value!r} is {proof.small[value]} for {_SIZES[0]} rows and {proof.large[value]} for {_SIZES[1]}"
    return ""


def _of_known(small: Spec | None, large: Spec | None) -> _Kind | None:
    """The kind of a value that shape propagation knows whole, so that no input's content is in it."""
    if small is None or large is None or small.value is None or large.value is None:
        return None
    if _equal(small.value, large.value):
        return _Kind.FREE
    rows = [value for value, size in zip((small.value, large.value), _SIZES, strict=True) if value.shape[:1] == (size,)]
    if len(rows) == len(_SIZES) and all(_equal(row, rows[0][0]) for value in rows for row in value):
        return _Kind.ROWS
    return _Kind.SIZE


def _equal(a: Array, b: Array) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(np.all(a == b))


def _by_rule(node: Node, proof: _Proof) -> tuple[_Kind, str]:
    """The kind of a node's outputs by what it reads, and why that is not known."""
    read = {proof.kind(value) for value in node.reads()}
    if node.op not in CONTROL_FLOW and not find(node.op).deterministic:
        return _Kind.ROWS, "its result is random"
    if read <= {_Kind.FREE}:
        return _Kind.FREE, ""
    rule = _RULES.get(node.op)
    if rule is None:
        elementwise = node.op not in CONTROL_FLOW and find(node.op).elementwise
        rule = _elementwise if elementwise else None
    if rule is None:
        return _Kind.ROWS, "nothing is known of how it treats rows"
    return _Kind.ROWS, rule(node, proof)


def _is(node: Node, position: int, kind: _Kind, proof: _Proof) -> bool:
    return position < len(node.inputs) and node.inputs[position] != "" and proof.kind(node.inputs[position]) is kind


def _first_only(node: Node, proof: _Proof, start: int = 1) -> str:
    """Only its first input holds rows, and only output 0 is read: those of pools and normalizations count across the batch."""
    if not _is(node, 0, _Kind.ROWS, proof):
        return "its input 0 holds no rows"
    if any(node.outputs[1:]):
        return "its further outputs may tell of the whole batch"
    late = [value for value in node.inputs[start:] if value and proof.kind(value) is not _Kind.FREE]
    return f"{late[0]!r} depends on the batch" if late else ""


def _elementwise(node: Node, proof: _Proof) -> str:
    """Broadcast against one another, rows must meet rows and what is free must meet all of them alike."""
    rank = len(proof.shape(node.outputs[0]))
    for value in filter(None, node.inputs):
        kind, shape = proof.kind(value), proof.shape(value)
        if kind is _Kind.SIZE:
            return f"{value!r} depends on the batch's size"
        if kind is _Kind.ROWS and len(shape) != rank:
            return f"{value!r} is broadcast across axis 0"
        if kind is _Kind.FREE and len(shape) == rank and shape[0] != 1:
            return f"{value!r} differs from row to row"
    return ""


def _along(name: str = "axis") -> Callable[[Node, _Proof], str]:
    """Ops that work along one axis, given as an attribute."""

    def rule(node: Node, proof: _Proof) -> str:
        rank = len(proof.shape(node.inputs[0]))
        if not _is(node, 0, _Kind.ROWS, proof) or any(proof.kind(v) is not _Kind.FREE for v in node.inputs[1:] if v):
            return "another input than the first depends on the batch"
        return "it works along axis 0" if node.attrs[name] % rank == 0 else ""

    return rule


def _axes(node: Node, proof: _Proof, position: int) -> list[int] | None:
    """The axes that an input names, not negative; None where they are not known."""
    if position >= len(node.inputs) or not node.inputs[position]:
        return []
    rank = len(proof.shape(node.inputs[0]))
    found = proof.constant(node.inputs[position])
    return None if found is None else [axis % rank for axis in found]


def _reduce(node: Node, proof: _Proof) -> str:
    axes = _axes(node, proof, 1)
    if axes == [] and node.attrs["noop_with_empty_axes"]:
        return _first_only(node, proof)
    return _first_only(node, proof) or ("it reduces axis 0" if not axes or 0 in axes else "")


def _cumulate(node: Node, proof: _Proof) -> str:
    axes = _axes(node, proof, 1)
    return _first_only(node, proof) or ("it adds up along axis 0" if not axes or 0 in axes else "")


def _transpose(node: Node, proof: _Proof) -> str:
    return "" if _is(node, 0, _Kind.ROWS, proof) and tuple(node.attrs["perm"][:1]) == (0,) else "it moves axis 0"


def _reshape(node: Node, proof: _Proof) -> str:
    """In row-major order row i stays row i wherever the number of rows stays; `_step` checks that."""
    return "" if _is(node, 0, _Kind.ROWS, proof) else "its input 0 holds no rows"


def _concat(node: Node, proof: _Proof) -> str:
    if node.attrs["axis"] % len(proof.shape(node.inputs[0])) == 0:
        return "it joins along axis 0"
    return "" if all(proof.kind(value) is _Kind.ROWS for value in node.inputs) else "one of its inputs holds no rows"


def _slice(node: Node, proof: _Proof) -> str:
    starts, axes = (proof.constant(node.inputs[1]), _axes(node, proof, 3))
    if axes == [] and starts is not None:
        axes = list(range(len(starts)))
    return _first_only(node, proof) or ("it cuts axis 0" if axes is None or 0 in axes else "")


def _gather(node: Node, proof: _Proof) -> str:
    data, indices = (proof.kind(value) for value in node.inputs)
    axis = node.attrs["axis"] % max(len(proof.shape(node.inputs[0])), 1)
    if data is _Kind.ROWS and indices is _Kind.FREE:
        return "it gathers along axis 0" if axis == 0 else ""
    if data is _Kind.FREE and indices is _Kind.ROWS:
        return "" if axis == 0 else "its rows land behind axis 0"
    return "its data and indices both depend on the batch"


def _gather_elements(node: Node, proof: _Proof) -> str:
    if any(proof.kind(value) is not _Kind.ROWS for value in node.inputs):
        return "one of its inputs holds no rows"
    return "it gathers along axis 0" if node.attrs["axis"] % len(proof.shape(node.inputs[0])) == 0 else ""


def _expand(node: Node, proof: _Proof) -> str:
    value = node.inputs[0]
    kind, shape, rank = proof.kind(value), proof.shape(value), len(proof.shape(node.outputs[0]))
    if kind is _Kind.ROWS:
        return "" if len(shape) == rank else "its rows are broadcast across axis 0"
    return "" if kind is _Kind.FREE and (len(shape) < rank or shape[0] == 1) else "its rows would differ by their place"


def _pad(node: Node, proof: _Proof) -> str:
    pads, axes = proof.constant(node.inputs[1]), _axes(node, proof, 3)
    if pads is None or axes is None:
        return "its pads are not known"
    axes = axes or list(range(len(proof.shape(node.inputs[0]))))
    padded = [axis for axis, low, high in zip(axes, pads, pads[len(axes) :], strict=False) if low or high]
    return _first_only(node, proof) or ("it pads axis 0" if 0 in padded else "")


def _tile(node: Node, proof: _Proof) -> str:
    repeats = proof.constant(node.inputs[1])
    return "" if repeats and repeats[0] == 1 and _is(node, 0, _Kind.ROWS, proof) else "it repeats axis 0"


def _resize(node: Node, proof: _Proof) -> str:
    """At an unchanged length every mode reads just the row itself, but for crops."""
    if node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return "it crops"
    return "" if _is(node, 0, _Kind.ROWS, proof) else "its input 0 holds no rows"


def _gemm(node: Node, proof: _Proof) -> str:
    if not _is(node, 0, _Kind.ROWS, proof) or node.attrs["transA"] or not _is(node, 1, _Kind.FREE, proof):
        return "rows are multiplied with one another"
    if len(node.inputs) < 3 or not node.inputs[2]:
        return ""
    kind, shape = proof.kind(node.inputs[2]), proof.shape(node.inputs[2])
    aligned = len(shape) == 2 if kind is _Kind.ROWS else kind is _Kind.FREE and (len(shape) < 2 or shape[0] == 1)
    return "" if aligned else "its third input differs from row to row"


def _matmul(node: Node, proof: _Proof) -> str:
    (a, b), (left, right) = (map(proof.kind, node.inputs[:2])), (map(proof.shape, node.inputs[:2]))
    if _Kind.SIZE in (a, b) or any(proof.kind(value) is not _Kind.FREE for value in node.inputs[2:] if value):
        return "an input depends on the batch's size"
    rank = max(len(left), len(right))
    rows_left = a is _Kind.ROWS and len(left) == rank >= 2
    rows_right = b is _Kind.ROWS and len(right) == rank >= 3
    free_left = a is _Kind.FREE and (len(left) < rank or math.prod(left[:1]) == 1)
    free_right = b is _Kind.FREE and (rank == 2 or len(right) < rank or math.prod(right[:1]) == 1)
    return "" if (rows_left or free_left) and (rows_right or free_right) else "rows are multiplied with one another"


def _quantize(node: Node, proof: _Proof) -> str:
    scalar = proof.shape(node.inputs[1]) == ()
    rank = len(proof.shape(node.inputs[0]))
    if not scalar and (node.attrs["block_size"] or node.attrs["axis"] % rank == 0):
        return "its scales differ from row to row"
    return _first_only(node, proof)


def _batch_norm(node: Node, proof: _Proof) -> str:
    return "it is training" if node.attrs["training_mode"] else _first_only(node, proof)


def _dropout(node: Node, proof: _Proof) -> str:
    return "it may be training" if any(node.inputs[2:]) else _first_only(node, proof)


def _cast_like(node: Node, proof: _Proof) -> str:
    return "" if _is(node, 0, _Kind.ROWS, proof) else "its input 0 holds no rows"


_CHANNELS = "Conv ConvInteger ConvTranspose AveragePool MaxPool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool LRN"
_NORMS = "InstanceNormalization GroupNormalization DepthToSpace SpaceToDepth"
_RULES: Mapping[str, Callable[[Node, _Proof], str]] = {
    **dict.fromkeys(f"{_CHANNELS} {_NORMS}".split(), _first_only),
    **dict.fromkeys(["Softmax", "LogSoftmax", "Hardmax", "LpNormalization", "LayerNormalization", "RMSNormalization"], _along()),
    **dict.fromkeys(["ArgMax", "ArgMin", "TopK", "Split"], _along()),
    **{
        f"Reduce{name}": _reduce for name in ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]
    },
    **dict.fromkeys(("CumSum", "CumProd"), _cumulate),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _quantize),
    "BatchNormalization": _batch_norm,
    "CastLike": _cast_like,
    "Concat": _concat,
    "Dropout": _dropout,
    "Expand": _expand,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Pad": _pad,
    "Slice": _slice,
    "Tile": _tile,
    "Transpose": _transpose,
}
