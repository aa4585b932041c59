"""Products and convolutions of quantised values as sums of 8-bit integers, and ops that move elements on the integers themselves.

Quantised networks compute Conv, MatMul and Gemm of what DequantizeLinear makes of integers. The sum of the products of these
integers less their zero points is exact, and one multiplication by both scales makes the same of it, but for what sums of floats
round.

The passes come behind `expand_quantised`, and before constants are folded, which would make floats of the weights. Nodes that
nobody reads any more are left to `remove_dead`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from graph.ir import Graph, Node
from graph.native.facts import optional_input
from graph.native.rules.table import MAX_RANK
from graph.passes.constants import computed
from graph.passes.editor import Editor, origins
from graph.passes.expansions import CHAINED, Step, put_steps
from kernels.expression import FLOAT
from kernels.native.emit.words import WORD_BYTES
from kernels.quantisation import LEAST_SCALE, WHOLE
from kernels.record import record
from kernels.registry import find
from kernels.spec import BYTES, ELEMENT_CODES, Array, DType

_MOST_SCALE = 2.0**100  # and LEAST_SCALE: between them, no integer of 16 bits times the scale overflows or underflows
_LARGEST = 255  # of the difference of two bytes
_MOVERS = frozenset(  # they move elements of input 0, of any type
    ("DepthToSpace", "Expand", "Flatten", "Gather", "Reshape", "Slice", "SpaceToDepth", "Squeeze", "Tile", "Transpose",
     "Unsqueeze")
)  # fmt: skip
_ON_INTEGERS = _MOVERS | {"Concat", "MaxPool", "Relu"}
_PRODUCTS: Mapping[str, Sequence[int]] = {"Conv": (3, 4), "MatMul": range(2, MAX_RANK + 1), "Gemm": (2,)}  # ranks of input 0
_OF_CONSTANTS = _MOVERS | {"QuantizeLinear", "DequantizeLinear", "Identity"}  # computed here, before constants are folded
_MAX_DEPTH = 8  # of such ops behind one another


@record
class _Point:
    """How integers stand for real numbers: (integer - zero) · scale.

    axis: along which each index has its own scale and zero; None where one serves all. dtype: of the integers.
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


class _Quantised:
    """What integers stand for in a graph under change. dtypes: of integer values that the pass has added."""

    def __init__(self, editor: Editor) -> None:
        self.editor = editor
        self.dtypes: dict[str, DType] = {}

    def dtype(self, value: str) -> DType | None:
        """Return the type of a value; None where it is not known."""
        spec = self.editor.spec(value)
        return self.dtypes.get(value) if spec is None else spec.dtype

    def writer(self, value: str, op: str) -> Node | None:
        """Return the node that writes a value, with current names, where it is that op and nothing is fused behind it."""
        node = self.editor.producer(value)
        return None if node is None or node.op != op or node.epilogue else self.editor.settle(node.name)

    def point(self, node: Node) -> _Point | None:
        """Return what the integers that a QuantizeLinear makes, or a DequantizeLinear reads, stand for.

        None where only a run knows, for blocks, other floats than float32, and scales with which products overflow.
        """
        value = node.outputs[0] if node.op == "QuantizeLinear" else node.inputs[0]
        real = node.inputs[0] if node.op == "QuantizeLinear" else node.outputs[0]
        scale, zero = self.editor.constant(node.inputs[1]), np.zeros((), np.int32)
        given = self.editor.constant(node.inputs[2]) if optional_input(node, 2) else zero
        dtype, made = self.dtype(value), self.editor.specs.get(real)
        if scale is None or given is None or dtype not in WHOLE or node.attrs["block_size"] or node.attrs.get("precision"):
            return None
        if (
            scale.dtype != FLOAT
            or (made is not None and made.dtype != FLOAT)
            or node.attrs["output_dtype"] not in (0, ELEMENT_CODES[FLOAT], ELEMENT_CODES[dtype])
        ):
            return None
        if not ((scale >= LEAST_SCALE) & (scale <= _MOST_SCALE)).all():
            return None
        one = scale.size == 1
        zeros = np.broadcast_to(given.astype(np.int32).reshape(() if given.size == 1 else (-1,)), () if one else scale.shape)
        return _Point(scale.reshape(()) if one else scale, zeros, None if one else node.attrs["axis"], dtype)

    def array(self, value: str, depth: int = _MAX_DEPTH) -> Array | None:
        """Return the value of a constant, or of a few ops on constants; None for any other value."""
        if value in self.editor.constants:
            return self.editor.constants[value]
        node = self.editor.producer(value)
        if node is None or node.op not in _OF_CONSTANTS or node.epilogue or not depth:
            return None
        inputs = [self.array(each, depth - 1) if each else None for each in self.editor.settle(node.name).inputs]
        if any(array is None and name for array, name in zip(inputs, node.inputs, strict=True)):
            return None
        made = computed(node, inputs)
        return None if made is None else made[value]


def move_integers(editor: Editor) -> None:
    """Let ops that move or compare elements do so before DequantizeLinear, where a QuantizeLinear or a product follows.

    Then remove each QuantizeLinear of what DequantizeLinear made of integers of the same meaning: it makes these integers again.
    A Relu before a QuantizeLinear to integers of which none is negative is removed. All of it is exact.
    """
    known = _Quantised(editor)
    leading = _leading(editor.graph)
    for name in [node.name for node in editor.graph.nodes if node.op in _ON_INTEGERS and node.outputs[0] in leading]:
        node = editor.settle(name)
        if not node.epilogue and editor.single_output(node):
            _move(known, node)
    for name in [node.name for node in editor.graph.nodes if node.op == "QuantizeLinear" and not node.epilogue]:
        _quantise_once(known, editor.settle(name))


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


def _move(known: _Quantised, node: Node) -> None:
    """Turn an op on dequantised values into DequantizeLinear of the op on their integers, where that is the same."""
    editor = known.editor
    found = [known.writer(value, "DequantizeLinear") for value in _data(node)]
    readers = [reader for reader in found if reader is not None]
    if len(readers) < len(found) or not readers:
        return
    points = [known.point(reader) for reader in readers]
    first, axis = points[0], _axis_behind(node, points[0])
    if first is None or axis is None or not all(first.is_same(point) for point in points):
        return
    if node.op == "MaxPool" and (first.dtype not in BYTES or max(node.attrs["dilations"] or (1,)) > 1):
        return  # a dilated window may hold nothing, of which the maximum is -infinity
    if node.op == "Relu" and first.is_lowest:
        editor.bypass(node, node.inputs[0])
        return
    source, integers = readers[0], editor.fresh(f"{node.name}/integers")
    inputs = (*(reader.inputs[0] for reader in readers), *node.inputs[len(readers) :])
    editor.drop(node)
    if node.op == "Relu":
        least = editor.add_constant(f"{node.name}/zero", first.zero.astype(first.dtype))
        editor.put(Node(node.name, "Max", (*inputs, least), (integers,), find("Max").bind({}), origins=origins(node)))
    else:
        editor.put(replace(node, inputs=inputs, outputs=(integers,)))
    known.dtypes[integers] = first.dtype
    name = editor.fresh(f"{node.name}/DequantizeLinear")
    attrs = {**source.attrs, "axis": axis}
    editor.put(Node(name, source.op, (integers, *source.inputs[1:]), node.outputs[:1], attrs, origins=origins(source)))


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


def _quantise_once(known: _Quantised, node: Node) -> None:
    """Remove a QuantizeLinear of dequantised integers of the same meaning, or a Relu before it that changes nothing."""
    editor = known.editor
    wanted = known.point(node)
    if wanted is None:
        return
    relu = known.writer(node.inputs[0], "Relu")
    if relu is not None and wanted.is_lowest:
        node = replace(node, inputs=(relu.inputs[0], *node.inputs[1:]), origins=origins(node, relu))
        editor.put(node)
    source = known.writer(node.inputs[0], "DequantizeLinear")
    if source is not None and wanted.is_same(known.point(source)):
        editor.bypass(node, source.inputs[0])


def make_integers(editor: Editor) -> None:
    """Turn Conv, MatMul and Gemm of a dequantised tensor and dequantised constant weights into ConvInteger or MatMulInteger.

    Cast to float32, a multiplication by the scales and the addition of a bias follow. The tensor has 8 bits and one scale, the
    weights have 8 bits and one scale, or one for each output channel or column; they become int8 without a zero point. A product
    stays where they do not fit, where its sums could exceed 32 bits, and where its groups have no whole words of channels.
    """
    known = _Quantised(editor)
    for name in [node.name for node in editor.graph.nodes if node.op in _PRODUCTS and not node.epilogue]:
        node = editor.nodes[name]
        x, w = (known.writer(value, "DequantizeLinear") for value in node.inputs[:2])
        if x is not None and w is not None:
            _make(known, node, x, w)


@record
class _Weights:
    """Weights of int8 as ConvInteger (m, c, …) or MatMulInteger (k, n) reads them. scale: one, or one for each m or n."""

    integers: Array
    scale: Array


def _weights_of(known: _Quantised, node: Node, reader: Node) -> _Weights | None:
    """Return the constant weights of a product; None where it has to stay for their sake, as `make_integers` says."""
    integers, point = known.array(reader.inputs[0]), known.point(reader)
    if integers is None or point is None or point.dtype not in BYTES or not integers.size:
        return None
    along = 0 if node.op == "Conv" or node.attrs.get("transB") else integers.ndim - 1
    if (point.axis is not None and point.axis % integers.ndim != along) or (node.op != "Conv" and integers.ndim != 2):
        return None
    if node.op == "Conv" and not _has_words(node, integers):
        return None
    spread = [-1 if axis == along else 1 for axis in range(integers.ndim)]
    zero = point.zero.astype(np.int16)
    centred = integers.astype(np.int16) - (zero if point.axis is None else zero.reshape(spread))
    others = tuple(axis for axis in range(integers.ndim) if axis != along)
    if _LARGEST * int(np.abs(centred).sum(others, dtype=np.int64).max()) >= 1 << 31:
        return None
    if centred.min() < -128 or centred.max() > 127:
        return None
    held = centred.astype(np.int8) if point.zero.any() else integers.view(np.int8)
    return _Weights(np.ascontiguousarray(held.T) if node.attrs.get("transB") else held, point.scale)


def _has_words(node: Node, weights: Array) -> bool:
    """Whether each group of a convolution has one channel, or whole words of them, as native kernels multiply bytes."""
    groups: int = node.attrs["group"]
    outputs, inputs = weights.shape[:2]
    return groups == 1 or (inputs == 1 and groups == outputs) or inputs % WORD_BYTES == 0


def _make(known: _Quantised, node: Node, x: Node, w: Node) -> None:
    """Put the integer op, the conversion of its sums and the addition of a bias in the place of a product, where that fits.

    x, w: the nodes that dequantise the tensor and the weights.
    """
    editor = known.editor
    point, given = known.point(x), editor.spec(node.inputs[0])
    if point is None or point.axis is not None or point.dtype not in BYTES or node.attrs.get("transA"):
        return
    if given is None or given.rank not in _PRODUCTS[node.op] or x.inputs[0] in editor.constants:
        return
    behind = [1] * (given.rank - 2 if node.op == "Conv" else 0)  # the axes of a result behind that of channels or columns
    weights, bias = _weights_of(known, node, w), _bias_of(known, node, behind)
    if weights is None or bias is None:
        return
    factor = np.float32(node.attrs.get("alpha", 1.0)) * point.scale * weights.scale
    scale = factor if factor.ndim == 0 else factor.reshape(-1, *behind)
    inputs = [x.inputs[0], editor.add_constant(f"{node.name}/weights", weights.integers)]
    if point.zero.any():
        inputs.append(editor.add_constant(f"{node.name}/x_zero_point", point.zero.astype(point.dtype)))
    steps = [
        Step("ConvInteger" if node.op == "Conv" else "MatMulInteger", tuple(inputs), node.attrs if node.op == "Conv" else {}),
        Step("Cast", (CHAINED,), {"to": ELEMENT_CODES[FLOAT]}),
        Step("Mul", (CHAINED, editor.add_constant(f"{node.name}/scale", np.asarray(scale, FLOAT))), {}),
    ]
    put_steps(editor, node, [*steps, Step("Add", (CHAINED, bias), {})] if bias else steps)


def _bias_of(known: _Quantised, node: Node, behind: Sequence[int]) -> str | None:
    """Return the value to add to a product, as it broadcasts to it; "" where there is none, None where it cannot be added."""
    value = "" if node.op == "MatMul" else optional_input(node, 2)
    if not value:
        return ""
    array, beta = known.array(value), float(node.attrs.get("beta", 1.0))
    if array is None:
        return value if node.op == "Gemm" and beta == 1 else None
    if node.op == "Conv":
        array = array.reshape(-1, *behind)
    return known.editor.add_constant(f"{node.name}/bias", np.asarray(array * FLOAT.type(beta), FLOAT))
