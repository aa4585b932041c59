"""Inferring the number of trainable parameters of the source model from its export.

An export does not say which tensors were trained, and exporters change them. So the number is inferred by these rules, and the
rules that applied are part of the result (`Params.note`):

- Float initializers that some node reads as a weight count with all their elements. Running statistics of a BatchNormalization,
  clip bounds, pads, resize scales and quantization scales and zero points do not; integer initializers count where they are
  quantized weights. A constant that the file stores as a Constant node counts only in the weight slot of an op that has one, and
  a scalar initializer only there or when PyTorch wrote the file (which stores scalars that were not trained as Constant nodes).
- PyTorch's exporter stores equal initializers once and reads them again through Identity: such an Identity was a parameter of
  its own and counts again. Tied weights look the same and are counted as often as they are read.
- PyTorch's exporter folds a BatchNormalization into the convolution before it and names the new weight and bias
  `onnx::Conv_<n>`. Such a bias of k elements stands for k scales and k shifts: 2·k parameters. If the convolution had a bias of
  its own as well, those k parameters left no trace and are missing here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from graph.ir import Graph, Model, Node
from kernels.record import record
from kernels.spec import FLOATS, Array

Slot = tuple[str, int]  # op name and input position

WEIGHT_SLOTS: frozenset[Slot] = frozenset(
    (op, position)
    for op, positions in {
        "Conv": (1, 2),
        "ConvTranspose": (1, 2),
        "DeformConv": (1, 3),
        "Gemm": (1, 2),
        "MatMul": (0, 1),
        "Gather": (0,),
        "BatchNormalization": (1, 2),
        "LayerNormalization": (1, 2),
        "RMSNormalization": (1,),
        "GroupNormalization": (1, 2),
        "InstanceNormalization": (1, 2),
        "PRelu": (1,),
        "LSTM": (1, 2, 3, 7),
        "GRU": (1, 2, 3),
        "RNN": (1, 2, 3),
        "ai.onnx.ml.LinearClassifier": (1, 2),
        "ai.onnx.ml.LinearRegressor": (1, 2),
        "ai.onnx.ml.SVMClassifier": (1, 2, 3, 4, 5),
        "ai.onnx.ml.SVMRegressor": (1, 2, 3),
    }.items()
    for position in positions
)
QUANTIZED_SLOTS: frozenset[Slot] = frozenset(
    {
        ("DequantizeLinear", 0),
        ("QLinearConv", 3),
        ("QLinearConv", 8),
        ("QLinearMatMul", 3),
        ("ConvInteger", 1),
        ("MatMulInteger", 1),
    }
)
NOT_WEIGHTS: frozenset[Slot] = frozenset(
    (op, position)
    for op, positions in {
        "BatchNormalization": (3, 4),
        "Clip": (1, 2),
        "QuantizeLinear": (1, 2),
        "DequantizeLinear": (1, 2),
        "QLinearConv": (1, 2, 4, 5, 6, 7),
        "QLinearMatMul": (1, 2, 4, 5, 6, 7),
        "ConvInteger": (2, 3),
        "MatMulInteger": (2, 3),
        "Resize": (1, 2, 3),
        "Upsample": (1,),
        "Pad": (1, 2, 3),
        "Dropout": (1, 2),
        "OneHot": (1, 2),
        "Range": (0, 1, 2),
        "Pow": (1,),
        "NonMaxSuppression": (2, 3, 4),
        "Identity": (0,),
    }.items()
    for position in positions
)

_FOLDED = re.compile(r"onnx::Conv_\d+")


@record
class Params:
    """The parameters of a model.

    total: trainable parameters of the source model. initializer_elements: elements of all initializers of the file.
    by_value: value name -> number of parameters it stands for. folded: convolutions that hold a folded BatchNormalization.
    note: how `total` was inferred.
    """

    total: int
    initializer_elements: int
    by_value: Mapping[str, int]
    folded: frozenset[str]
    note: str


def count_params(model: Model) -> Params:
    """Infer the trainable parameters of the model behind an export; the rules are in the module's docstring."""
    graphs = tuple(_walk(model.graph))
    constants = {name: array for graph in graphs for name, array in graph.constants.items()}
    nodes = [node for graph in graphs for node in graph.nodes]
    copies = copied_constants(nodes, constants)
    arrays = {**constants, **{copy: constants[origin] for copy, origin in copies.items()}}
    folded = frozenset(node.name for node in nodes if _is_folded(node, arrays))

    by_value: dict[str, int] = {}
    for node in nodes:
        for position, name in enumerate(node.inputs):
            if name in arrays and name not in by_value and _is_weight(model, node.op, position, name, arrays, copies):
                by_value[name] = arrays[name].size
    for node in nodes:
        if node.name in folded:
            by_value[node.inputs[2]] = 2 * arrays[node.inputs[2]].size

    return Params(
        total=sum(by_value.values()),
        initializer_elements=sum(array.size for name, array in constants.items() if name in model.initializers),
        by_value=by_value,
        folded=folded,
        note=_note(sum(name in copies for name in by_value), len(folded)),
    )


def copied_constants(nodes: list[Node], constants: Mapping[str, Array]) -> dict[str, str]:
    """Return the copies that Identity nodes make of constants, also of other copies: output name -> constant name."""
    copies: dict[str, str] = {}
    for node in nodes:
        if node.op == "Identity":
            origin = copies.get(node.inputs[0], node.inputs[0])
            if origin in constants:
                copies[node.outputs[0]] = origin
    return copies


def _is_weight(model: Model, op: str, position: int, name: str, arrays: Mapping[str, Array], copies: Mapping[str, str]) -> bool:
    slot, array = (op, position), arrays[name]
    if slot in QUANTIZED_SLOTS:
        return True
    if slot in NOT_WEIGHTS or array.dtype not in FLOATS:
        return False
    if slot in WEIGHT_SLOTS:
        return op != "Gather" or array.ndim >= 2
    stored = copies.get(name, name) in model.initializers
    return stored and (array.ndim > 0 or model.producer.startswith("pytorch"))


def _is_folded(node: Node, arrays: Mapping[str, Array]) -> bool:
    """Say whether a convolution's weight and bias both have generated names, because the exporter computed them."""
    if node.op != "Conv" or len(node.inputs) < 3:
        return False
    _, weight, bias = node.inputs[:3]
    return bias in arrays and bool(_FOLDED.fullmatch(weight) and _FOLDED.fullmatch(bias))


def _walk(graph: Graph) -> Iterator[Graph]:
    yield graph
    for node in graph.nodes:
        for body in node.subgraphs():
            yield from _walk(body)


def _note(copies: int, folded: int) -> str:
    parts = ["inferred from the export: float initializers read as weights, quantized weights"]
    if copies:
        parts.append(f"{copies} Identity copies of equal initializers, each a parameter of its own (tied weights look the same)")
    if folded:
        parts.append(
            f"{folded} convolutions with a folded BatchNormalization, their bias counted as its scale and shift (a bias that "
            "such a convolution had before cannot be told)"
        )
    return "; ".join(parts)
