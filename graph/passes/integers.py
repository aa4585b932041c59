"""Products and convolutions of quantised values as sums of 8-bit integers, and ops that move elements on the integers themselves.

Quantised networks compute Conv, MatMul and Gemm of what DequantizeLinear makes of integers. The sum of the products of the integers,
less their zero points, is exact; one multiplication by both scales then makes the same of it, but for the rounding of sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


import numpy as np

from graph.ir import Graph, Node, Specs
from graph.passes.editor import Editor, origins
from graph.passes.expansions import CHAINED, Step, put_steps
from kernels.expression import FLOAT
from kernels.ops.quantize import LEAST_SCALE, WHOLE
from kernels.registry import evaluate, find
from kernels.spec import ELEMENT_TYPES, Array, DType

_CODES: Mapping[DType, int] = {dtype: code for code, dtype in ELEMENT_TYPES.items()}
_BYTES = frozenset(map(np.dtype, ("int8", "uint8")))
_MOST_SCALE = 2.0**100  # and LEAST_SCALE: between them, no integer of 16 bits times the scale overflows or underflows
_LARGEST = 255  # of the difference of two bytes
_MOVERS = frozenset(
    (
        "Reshape",
        "Transpose",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Slice",
        "Gather",
        "DepthToSpace",
        "SpaceToDepth",
        "Expand",
        "Tile",
    )
)  # they move elements of input 0, of any type
_ON_INTEGERS = _MOVERS | {"Concat", "MaxPool", "Relu"}
_PRODUCTS = frozenset(("Conv", "MatMul", "Gemm"))
_OF_CONSTANTS = _MOVERS | {"QuantizeLinear", "DequantizeLinear", "Identity"}  # computed here, before constants are folded
_MAX_DEPTH = 8  # of such ops behind one another


@dataclass(frozen=True, slots=True)
class _Point:
    """How integers stand for real numbers: (integer - zero) · scale. axis: where there is one for each index; None where one serves all.

    dtype: of the integers.
    """

    scale: Array
    zero: Array
    axis: int | None
    dtype: DType

    def is_same(self, other: _Point | None) -> bool:
        """Whether the other means the same by the same integers."""
        return (
            other is not None
            and (self.axis, self.dtype) == (other.axis, other.dtype)
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero, other.zero)
        )

    @property
    def is_lowest(self) -> bool:
        """Whether no integer stands for a negative number."""
        return bool((self.zero == WHOLE[self.dtype][0]).all())


class _Quantised(Editor):
    """An editor that knows what integers stand for. dtypes: of integer values that the pass has added."""

    def __init__(self, graph: Graph, specs: Specs) -> None:
        super().__init__(graph, specs)
        self.dtypes: dict[str, DType] = {}

    def dtype(self, value: str) -> DType | None:
        """Return the type of a value; None where it is not known."""
        spec = self.spec(value)
        return self.dtypes.get(value) if spec is None else spec.dtype

    def writer(self, value: str, op: str) -> Node | None:
        """Return the node that writes a value, with current names, where it is that op and nothing is fused behind it."""
        node = self.producer(value)
        return None if node is None or node.op != op or node.epilogue else self.settle(node.name)

    def point(self, node: Node) -> _Point | None:
        """Return what the integers that a QuantizeLinear makes, or a DequantizeLinear reads, stand for. None where a run decides."""
        value = node.outputs[0] if node.op == "QuantizeLinear" else node.inputs[0]
        real = node.inputs[0] if node.op == "QuantizeLinear" else node.outputs[0]
        scale, zero = self.constant(node.inputs[1]), np.zeros((), np.int32)
        given = self.constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else zero
        dtype, made = self.dtype(value), self.specs.get(real)
        if scale is None or given is None or dtype not in WHOLE or node.attrs["block_size"] or node.attrs.get("precision"):
            return None
        if (
            scale.dtype != FLOAT
            or (made is not None and made.dtype != FLOAT)
            or node.attrs["output_dtype"] not in (0, 1, _CODES[dtype])
        ):
            return None
        if not ((scale >= LEAST_SCALE) & (scale <= _MOST_SCALE)).all():
            return None
        one = scale.size == 1
        zeros = np.broadcast_to(given.astype(np.int32).reshape(() if given.size == 1 else (-1,)), () if one else scale.shape)
        return _Point(scale.reshape(()) if one else scale, zeros, None if one else node.attrs["axis"], dtype)

    def drop_unread(self, *nodes: Node) -> None:
        """Remove those of several nodes whose results nobody reads any more."""
        for node in nodes:
            if node.name in self.nodes and not any(map(self.is_read, node.writes())):
                self.drop(self.nodes[node.name])

    def computed(self, value: str, depth: int = _MAX_DEPTH) -> Array | None:
        """Return the value of a constant, or of a few ops on constants; None for any other value."""
        if value in self.constants:
            return self.constants[value]
        node = self.producer(value)
        if node is None or node.op not in _OF_CONSTANTS or node.epilogue or not depth:
            return None
        inputs = [self.computed(each, depth - 1) if each else None for each in self.settle(node.name).inputs]
        if any(array is None and name for array, name in zip(inputs, node.inputs, strict=True)):
            return None
        return evaluate(find(node.op), inputs, node.attrs)[node.outputs.index(value)]


def move_integers(graph: Graph, specs: Specs) -> Graph:
    """Let ops that move or compare elements do so before DequantizeLinear, where a QuantizeLinear or a product follows.

    Between them are other such ops only. Then remove each QuantizeLinear of what DequantizeLinear made of the same integers: it makes
    these integers again. A Relu before a QuantizeLinear to whose integers nothing is negative is removed. All of it is exact.
    """
    editor = _Quantised(graph, specs)
    leading = _leading(graph)
    for name in [node.name for node in graph.nodes if node.op in _ON_INTEGERS and node.outputs[0] in leading]:
        node = editor.nodes[name]
        if not node.epilogue and editor.single_output(node):
            _move(editor, node)
    for name in [node.name for node in graph.nodes if node.op == "QuantizeLinear" and not node.epilogue]:
        _quantise_once(editor, editor.settle(name))
    return editor.finish()


def _data(node: Node) -> tuple[str, ...]:
    """Return the inputs whose elements an op moves or compares."""
    return node.inputs if node.op == "Concat" else node.inputs[:1]


def _leading(graph: Graph) -> set[str]:
    """Return the values of which a QuantizeLinear or a product is made, with nothing between but ops that integers may do."""
    found: set[str] = set()
    for node in reversed(graph.nodes):
        if node.op == "QuantizeLinear":
            found.add(node.inputs[0])
        elif node.op in _PRODUCTS:
            found.update(node.inputs[:2])
        elif node.op in _ON_INTEGERS and node.outputs[0] in found:
            found.update(_data(node))
    return found


def _move(editor: _Quantised, node: Node) -> None:
    """Turn an op on dequantised values into DequantizeLinear of the op on their integers, where that is the same."""
    found = [editor.writer(value, "DequantizeLinear") for value in _data(node)]
    readers = [reader for reader in found if reader is not None]
    if len(readers) < len(found) or not readers:
        return
    points = [editor.point(reader) for reader in readers]
    first, axis = points[0], _axis_behind(node, points[0])
    if first is None or axis is None or not all(first.is_same(point) for point in points):
        return
    if node.op == "MaxPool" and first.dtype not in _BYTES:
        return
    source, integers = readers[0], editor.fresh(f"{node.name}/integers")
    inputs = (*(reader.inputs[0] for reader in readers), *node.inputs[len(readers) :])
    editor.drop(node)
    if node.op == "Relu":
        least = editor.add_constant(f"{node.name}/zero", first.zero.astype(first.dtype))
        editor.put(Node(node.name, "Max", (*inputs, least), (integers,), find("Max").bind({}), origins=origins(node)))
    else:
        editor.put(replace(node, inputs=inputs, outputs=(integers,)))
    editor.dtypes[integers] = first.dtype
    name = editor.fresh(f"{node.name}/DequantizeLinear")
    attrs = {**source.attrs, "axis": axis}
    editor.put(Node(name, source.op, (integers, *source.inputs[1:]), node.outputs[:1], attrs, origins=origins(source)))
    editor.drop_unread(*readers)


def _axis_behind(node: Node, point: _Point | None) -> int | None:
    """Return the axis of the scales behind an op; any where one scale serves all. None where the op mixes what they belong to."""
    if point is None:
        return None
    if point.axis is None:
        return 1
    if node.op != "Transpose" or not node.attrs["perm"]:
        return None
    perm = tuple(node.attrs["perm"])
    return perm.index(point.axis % len(perm))


def _quantise_once(editor: _Quantised, node: Node) -> None:
    """Remove a QuantizeLinear of dequantised integers of the same meaning, or a Relu before it that changes nothing."""
    wanted = editor.point(node)
    if wanted is None:
        return
    relu = editor.writer(node.inputs[0], "Relu")
    if relu is not None and wanted.is_lowest:
        node = replace(node, inputs=(relu.inputs[0], *node.inputs[1:]), origins=origins(node, relu))
        editor.put(node)
        editor.drop_unread(relu)
    source = editor.writer(node.inputs[0], "DequantizeLinear")
    if source is not None and wanted.is_same(editor.point(source)) and editor.bypass(node, source.inputs[0]):
        editor.drop_unread(source)


def make_integers(graph: Graph, specs: Specs) -> Graph:
    """Turn Conv, MatMul and Gemm of a dequantised tensor and dequantised constant weights into ConvInteger or MatMulInteger.

    Cast to float32, a multiplication by the scales and the addition of a bias follow. The tensor has 8 bits and one scale, the
    weights have 8 bits and one scale, or one for each output channel or column; they become int8 without a zero point where all of
    them fit. What could exceed the sums of 32 bits stays.
    """
    editor = _Quantised(graph, specs)
    for name in [node.name for node in graph.nodes if node.op in _PRODUCTS and not node.epilogue]:
        node = editor.nodes[name]
        x, w = (editor.writer(value, "DequantizeLinear") for value in node.inputs[:2])
        if x is not None and w is not None and (found := _weights_of(editor, node, w)) is not None:
            _make(editor, node, x, w, found)
    return editor.finish()


@dataclass(frozen=True, slots=True)
class _Weights:
    """Weights as ConvInteger (m, c, …) or MatMulInteger (k, n) reads them. scale, zero: one, or one for each m or n; no zero if None."""

    integers: Array
    scale: Array
    zero: Array | None


def _weights_of(editor: _Quantised, node: Node, reader: Node) -> _Weights | None:
    """Return the constant weights of a product. None where their scales are not by output, or sums may exceed 32 bits."""
    integers, point = editor.computed(reader.inputs[0]), editor.point(reader)
    if integers is None or point is None or point.dtype not in _BYTES or not integers.size:
        return None
    along = 0 if node.op == "Conv" or node.attrs.get("transB") else integers.ndim - 1
    if (point.axis is not None and point.axis % integers.ndim != along) or (node.op != "Conv" and integers.ndim != 2):
        return None
    spread = [-1 if axis == along else 1 for axis in range(integers.ndim)]
    centred = integers.astype(np.int32) - (point.zero if point.axis is None else point.zero.reshape(spread))
    others = tuple(axis for axis in range(integers.ndim) if axis != along)
    if _LARGEST * int(np.abs(centred).sum(others, dtype=np.int64).max()) >= 1 << 31:
        return None
    fits = centred.min() >= -128 and centred.max() <= 127
    held, zero = (centred.astype(np.int8), None) if fits else (integers, point.zero.astype(integers.dtype))
    return _Weights(np.ascontiguousarray(held.T) if node.attrs.get("transB") else held, point.scale, zero)


def _make(editor: _Quantised, node: Node, x: Node, w: Node, weights: _Weights) -> None:
    """Put the integer op, the conversion of its sums and the addition of a bias in the place of a product."""
    point, given = editor.point(x), editor.spec(node.inputs[0])
    bias, has_bias = _bias_of(editor, node)
    if point is None or point.axis is not None or point.dtype not in _BYTES or node.attrs.get("transA") or given is None:
        return
    if (has_bias and not bias) or given.rank < 2 or x.inputs[0] in editor.constants:
        return
    behind = given.rank - 2 if node.op == "Conv" else 0
    factor = np.float32(node.attrs.get("alpha", 1.0)) * point.scale * weights.scale
    scale = factor if factor.ndim == 0 else factor.reshape(-1, *[1] * behind)
    inputs = [x.inputs[0], editor.add_constant(f"{node.name}/weights", weights.integers)]
    if point.zero.any() or weights.zero is not None:
        inputs.append(editor.add_constant(f"{node.name}/x_zero_point", point.zero.astype(point.dtype)))
    if weights.zero is not None:
        inputs.append(editor.add_constant(f"{node.name}/w_zero_point", weights.zero))
    steps = [
        Step("ConvInteger" if node.op == "Conv" else "MatMulInteger", tuple(inputs), node.attrs if node.op == "Conv" else {}),
        Step("Cast", (CHAINED,), {"to": _CODES[FLOAT]}),
        Step("Mul", (CHAINED, editor.add_constant(f"{node.name}/scale", np.asarray(scale, FLOAT))), {}),
    ]
    put_steps(editor, node, [*steps, Step("Add", (CHAINED, bias), {})] if bias else steps)
    editor.drop_unread(x, w)


def _bias_of(editor: _Quantised, node: Node) -> tuple[str, bool]:
    """Return the value to add to the product, as it broadcasts to it, and whether there is one: "" and True where it has none."""
    value = (*node.inputs, "")[2] if node.op != "MatMul" else ""
    if not value:
        return "", False
    array, beta = editor.computed(value), float(node.attrs.get("beta", 1.0))
    if array is None:
        return value if node.op == "Gemm" and beta == 1 else "", True
    if node.op == "Conv":
        spec = editor.spec(node.inputs[0])
        array = array.reshape(-1, *[1] * (0 if spec is None else spec.rank - 2))
    return editor.add_constant(f"{node.name}/bias", np.asarray(array * FLOAT.type(beta), FLOAT)), True
