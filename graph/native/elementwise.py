"""Elementwise ops that nothing absorbed, with what is fused behind them: one loop that reads each operand once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graph.ir import Node
from graph.native.epilogues import BINARY, NATIVE_STEPS, Merged, find_steps, step_of, steps_of
from graph.native.lowering import Lowering, overwritable
from graph.native.place import Imaged, Place, Viewed
from graph.native.rule import Facts, Rule, is_f32, only, plain
from kernels.native.errors import EmitError
from kernels.native.expression import Apply
from kernels.native.functions import Activation
from kernels.native.layout import Image
from kernels.native.view import View
from kernels.spec import Array


def refuses(node: Node, facts: Facts) -> str | None:
    """Why an elementwise op has no native form, or None."""
    read = [facts.spec(name) for name in node.reads() if name not in facts.constants]
    if not is_f32(*read, facts.spec(node.outputs[0])):
        return "it is not fp32"
    if _tape(node, facts.constants) is None:
        return "it, or what is fused behind it, has no native form"
    return None


def lower(b: Lowering, node: Node) -> None:
    """One map: over blocks where an operand lies in blocks, over strides otherwise."""
    found = _tape(node, b.constants)
    if found is None:  # such a node is refused before
        raise EmitError(f"node {node.name!r}: {node.op} or what is fused behind it has no native form")
    operands, steps = found
    value = node.outputs[0]
    shape = b.spec(value).shape
    if _in_blocks(b, operands, shape):
        pairs = [b.image_operand(name, shape) for name in operands]
        y = b.new_image(value, overwritable([place for place, _ in pairs]))
        b.map((y, y.blocks), [(place, _blocks(place, image, y)) for place, image in pairs], steps)
        return
    places = [b.strided(name) for name in operands]
    made = b.new(value, overwritable(places))
    b.map((made, made.view), [(place, place.view.broadcast(shape)) for place in places], steps)


def _tape(node: Node, constants: Mapping[str, Array]) -> tuple[list[str], tuple[Apply, ...]] | None:
    """The values that a node and its epilogue read, and what is computed of them; None without a native form."""
    first = node.inputs[0]
    follow = find_steps(node, constants)
    own: Sequence[Activation | Merged] | None
    if node.op == "Sum" or (len(node.inputs) > 2 and node.op in ("Max", "Min")):
        own = [Merged("add" if node.op == "Sum" else node.op.lower(), name) for name in node.inputs[1:]]
    elif node.op in BINARY and node.inputs[0] == node.inputs[-1]:
        own = [Merged(BINARY[node.op], first)]
    else:
        step = step_of(node.op, node.inputs, node.attrs, first, constants)
        own = None if step is None else [step]
    if own is None or follow is None:
        return None
    return _applied([first], (*own, *follow))


def tape_behind(b: Lowering, node: Node) -> tuple[list[Viewed], tuple[Apply, ...]]:
    """What is fused behind a node that copies: where its operands lie, and the steps on a value before them."""
    operands, steps = _applied([""], steps_of(node, b.constants))
    return [b.strided(name) for name in operands[1:]], steps


def _applied(operands: list[str], applied: Sequence[Activation | Merged]) -> tuple[list[str], tuple[Apply, ...]]:
    """The values that steps on the first of them read, and the steps as a tape."""
    operands = list(operands)
    tape: list[tuple[str, str | None, tuple[float, ...], bool]] = []
    for step in applied:
        if isinstance(step, Merged):
            operands.append(step.value)
            tape.append((step.op, step.value, (), step.swapped))
        else:
            tape.append((step.name, None, step.parameters, False))
    steps, at, taken = [], 0, 0
    for op, merged, parameters, swapped in tape:
        if merged is None:
            args: tuple[int, ...] = (at,)
        else:
            taken += 1
            args = (taken, at) if swapped else (at, taken)
        steps.append(Apply(op, args, parameters))
        at = len(operands) + len(steps) - 1
    return operands, tuple(steps)


def _in_blocks(b: Lowering, operands: Sequence[str], shape: tuple[int, ...]) -> bool:
    """Whether an operand of the result's shape lies in blocks only."""
    return any(isinstance(p := b.place(name), Imaged) and p.strided is None and b.spec(name).shape == shape for name in operands)


def _blocks(place: Place, image: Image, y: Imaged) -> View:
    """An operand of an image in blocks as a view of the blocks' rank."""
    if image.block == 1 and image.block_stride == 0:
        steps = (image.n_stride, 0, image.y_stride, image.x_stride, 0)
    else:
        steps = (image.n_stride, image.block_stride, image.y_stride, image.x_stride, 1)
    offset = place.view.offset if isinstance(place, Viewed) else place.offset
    return View(y.blocks.shape, steps, offset)


RULES = dict.fromkeys((*NATIVE_STEPS, "Sum"), Rule(refuses, lower, only("map"), plain("map")))
