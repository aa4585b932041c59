"""Replacement of (x - mean) / sqrt(mean((x - mean)²) + ε) · γ + β, written as several nodes, by LayerNormalization."""

from __future__ import annotations

from graph.ir import Node
from graph.passes.editor import Editor, origins, scalar
from kernels.record import record
from kernels.registry import find
from kernels.spec import FLOATS, Spec


@record
class _Found:
    """A match: x, the first normalised axis, ε, and the nodes of the quotient, which nothing else reads."""

    x: str
    axis: int
    epsilon: float
    nodes: tuple[Node, ...]


def find_layer_norms(editor: Editor) -> None:
    """Replace the quotient, its product with a constant scale, and the addition of a constant shift where there is one."""
    for name in [node.name for node in editor.graph.nodes if node.op == "Div"]:
        divide = editor.nodes.get(name)
        found = None if divide is None else _normalised(editor, divide)
        scale = None if divide is None else editor.only_reader(divide.outputs[0])
        if found is None or divide is None or scale is None or scale.op != "Mul" or scale.epilogue:
            continue
        spec = editor.spec(found.x)
        gamma = _other(scale, divide.outputs[0])
        if spec is None or not _fits(editor, gamma, spec, found.axis) or editor.specs.get(scale.outputs[0]) != spec:
            continue
        _replace(editor, found, spec, (divide, scale), gamma)


def _replace(editor: Editor, found: _Found, spec: Spec, tail: tuple[Node, Node], gamma: str) -> None:
    divide, last = tail
    inputs, absorbed = [found.x, gamma], [*found.nodes, divide]
    shift = editor.only_reader(last.outputs[0])
    if shift is not None and shift.op == "Add" and not shift.epilogue:
        beta = _other(shift, last.outputs[0])
        if _fits(editor, beta, spec, found.axis) and editor.specs.get(shift.outputs[0]) == spec:
            absorbed.append(last)
            inputs.append(beta)
            last = shift
    attrs = find("LayerNormalization").bind({"axis": found.axis, "epsilon": found.epsilon})
    editor.merge(Node(last.name, "LayerNormalization", tuple(inputs), last.outputs, attrs, origins=origins(last)), *absorbed)


def _normalised(editor: Editor, divide: Node) -> _Found | None:
    """Match the quotient. The square reads its numerator too; all other values have one reader."""
    centre = editor.producer(divide.inputs[0])
    root = editor.sole_writer(divide.inputs[1], divide)
    if centre is None or centre.op != "Sub" or centre.epilogue or root is None or root.op != "Sqrt" or divide.epilogue:
        return None
    spread = editor.sole_writer(root.inputs[0], root)
    if spread is None or spread.op != "Add":
        return None
    for one, two in ((0, 1), (1, 0)):
        variance = editor.sole_writer(spread.inputs[one], spread)
        epsilon = scalar(editor.constant(spread.inputs[two]))
        if variance is None or variance.op != "ReduceMean" or epsilon is None:
            continue
        square = editor.sole_writer(variance.inputs[0], variance)
        mean = editor.sole_writer(centre.inputs[1], centre)
        if square is None or mean is None or mean.op != "ReduceMean" or mean.inputs[0] != centre.inputs[0]:
            continue
        axis = _first_axis(editor, mean)
        if not _is_square(editor, square, centre.outputs[0]) or axis is None or _first_axis(editor, variance) != axis:
            continue
        readers = {node.name for node in editor.readers(centre.outputs[0])}
        if readers == {square.name, divide.name} and not _fixed(editor, centre.outputs[0]):
            return _Found(centre.inputs[0], axis, epsilon, (root, spread, variance, square, centre, mean))
    return None


def _fixed(editor: Editor, value: str) -> bool:
    return value in editor.outputs or value in editor.captured


def _is_square(editor: Editor, node: Node, value: str) -> bool:
    if node.op == "Mul":
        return node.inputs == (value, value)
    return node.op == "Pow" and node.inputs[0] == value and scalar(editor.constant(node.inputs[1])) == 2


def _first_axis(editor: Editor, mean: Node) -> int | None:
    """Return the first reduced axis, where the reduced axes are the last ones and stay with size 1; else None."""
    spec = editor.spec(mean.inputs[0])
    axes = editor.constant(mean.inputs[1]) if len(mean.inputs) > 1 else None
    if spec is None or axes is None or not mean.attrs["keepdims"] or spec.dtype not in FLOATS or not axes.size:
        return None
    reduced = sorted(int(axis) % spec.rank for axis in axes.reshape(-1))
    return reduced[0] if reduced == list(range(reduced[0], spec.rank)) else None


def _other(node: Node, value: str) -> str:
    return node.inputs[1] if node.inputs[0] == value else node.inputs[0]


def _fits(editor: Editor, value: str, spec: Spec, axis: int) -> bool:
    """Whether a constant has the shape of the normalised axes, as LayerNormalization requires."""
    array = editor.constant(value)
    return array is not None and array.shape == spec.shape[axis:] and array.dtype == spec.dtype
