"""Elementwise ops of any type as tapes: what a map computes of each element, by a node's own op and by those fused behind it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from graph.ir import Fused, Node
from graph.native.epilogues import BINARY, step_of
from kernels.native.emit.expression import Apply, value_types
from kernels.native.emit.functions import Activation
from kernels.native.errors import EmitError
from kernels.spec import BOOL, ELEMENT_TYPES, Array, DType, Spec

SpecOf = Callable[[str], Spec]
Attrs = Mapping[str, Any]
_Ref = str | int  # an operand by its value, a step by its number


@dataclass(frozen=True, slots=True)
class Tape:
    """operands: values that are read; "" is what a kernel made before. steps: of an expression over them, in that order."""

    operands: tuple[str, ...]
    steps: tuple[Apply, ...]


def tape_of(node: Node, spec: SpecOf, constants: Mapping[str, Array]) -> Tape:
    """An elementwise node and what is fused behind it. Raises EmitError where there is no expression for it."""
    draft = _Draft(spec, constants)
    return _followed(draft, draft.append(node, spec(node.inputs[0]).dtype, None), node)


def tape_behind(node: Node, spec: SpecOf, constants: Mapping[str, Array]) -> Tape:
    """What is fused behind a node. Raises EmitError where there is no expression for it."""
    return _followed(_Draft(spec, constants), "", node)


def refuses_behind(node: Node, spec: SpecOf, constants: Mapping[str, Array]) -> str | None:
    """Why a map cannot do what is fused behind a node, or None."""
    try:
        tape_behind(node, spec, constants)
    except EmitError as error:
        return str(error)
    return None


def is_expression(node: Node, spec: SpecOf, constants: Mapping[str, Array]) -> bool:
    """Whether there is an expression for an elementwise node."""
    try:
        tape_of(node, spec, constants)
    except EmitError:
        return False
    return True


def _followed(draft: _Draft, made: _Ref, node: Node) -> Tape:
    """The draft with the node's epilogue, which keeps the type of its output."""
    output = draft.spec(node.outputs[0]).dtype
    for fused in node.epilogue:
        made = draft.append(fused, output, made)
    return draft.finish(made, output)


class _Draft:
    """A tape whose operands are not counted yet. Calling it appends an operation of an expression."""

    def __init__(self, spec: SpecOf, constants: Mapping[str, Array]) -> None:
        self.spec = spec
        self._constants = constants
        self._steps: list[tuple[str, tuple[_Ref, ...], tuple[float, ...], DType | None]] = []

    def __call__(self, op: str, *args: _Ref, parameters: tuple[float, ...] = (), dtype: DType | None = None) -> int:
        self._steps.append((op, args, parameters, dtype))
        return len(self._steps) - 1

    def constant(self, value: float, dtype: DType) -> int:
        """Append a number."""
        return self("constant", parameters=(value,), dtype=dtype)

    def append(self, node: Node | Fused, dtype: DType, made: _Ref | None) -> _Ref:
        """Append an op on values of that type. made: what "" stands for behind another op; None: for an absent input."""
        args = [name or made for name in node.inputs]
        value = node.inputs[0] if made is None else ""
        step = step_of(node.op, node.inputs, node.attrs, value, self._constants) if dtype.kind == "f" else None
        if isinstance(step, Activation) and args[0] is not None:
            return self(step.name, args[0], parameters=step.parameters)
        if node.op not in FORMS:
            raise EmitError(f"tape: there is no expression for this {node.op} of {dtype.name}")
        return FORMS[node.op](self, args, node.attrs, dtype)

    def finish(self, made: _Ref, output: DType) -> Tape:
        """Number the operands. Raises EmitError for operations that there are not of such types."""
        read = [arg for _, args, _, _ in self._steps for arg in args if isinstance(arg, str)]
        operands = tuple(dict.fromkeys(read if self._steps else [str(made)]))
        number: dict[_Ref, int] = {name: n for n, name in enumerate(operands)}
        number |= {n: len(operands) + n for n in range(len(self._steps))}
        steps = tuple(Apply(op, tuple(number[arg] for arg in args), given, dtype) for op, args, given, dtype in self._steps)
        value_types([self.spec(name).dtype if name else output for name in operands], steps)
        return Tape(operands, steps)


_Form = Callable[[_Draft, Sequence[Any], Attrs, DType], _Ref]


def _plain(name: str) -> _Form:
    """The operation of that name on all inputs."""
    return lambda draft, args, _attrs, _dtype: draft(name, *args)


def _folded(name: str) -> _Form:
    """The operation of that name between all inputs, from the left."""
    return lambda draft, args, _attrs, _dtype: reduce(lambda a, b: draft(name, a, b), args)


def _mean(draft: _Draft, args: Sequence[Any], _attrs: Attrs, dtype: DType) -> _Ref:
    total = reduce(lambda a, b: draft("add", a, b), args)
    return draft("div", total, draft.constant(len(args), dtype))


def _relu(draft: _Draft, args: Sequence[Any], _attrs: Attrs, dtype: DType) -> _Ref:
    return draft("max", args[0], draft.constant(0, dtype))


def _clip(draft: _Draft, args: Sequence[Any], _attrs: Attrs, _dtype: DType) -> _Ref:
    """Bounds that only a run knows, or of integers; one that is absent does not bind."""
    made = args[0]
    for name, bound in zip(("max", "min"), args[1:], strict=False):
        made = made if bound is None else draft(name, made, bound)
    return made if isinstance(made, int) else draft("max", made, made)


def _power(draft: _Draft, args: Sequence[Any], _attrs: Attrs, dtype: DType) -> _Ref:
    """An exponent of each element, which is taken in the base's type."""
    if dtype.kind != "f":
        raise EmitError(f"tape: there is no expression for a Pow of {dtype.name}")
    return draft("pow", args[0], draft("cast", args[1], dtype=dtype))


def _swish(draft: _Draft, args: Sequence[Any], attrs: Attrs, dtype: DType) -> _Ref:
    return draft("mul", args[0], draft("sigmoid", draft("mul", args[0], draft.constant(attrs["alpha"], dtype))))


def _mod(draft: _Draft, args: Sequence[Any], attrs: Attrs, _dtype: DType) -> _Ref:
    return draft("rem" if attrs["fmod"] else "mod", *args)


def _shift(draft: _Draft, args: Sequence[Any], attrs: Attrs, _dtype: DType) -> _Ref:
    return draft("shl" if attrs["direction"] == "LEFT" else "shr", *args)


def _is_infinite(draft: _Draft, args: Sequence[Any], attrs: Attrs, dtype: DType) -> _Ref:
    above, below = attrs["detect_positive"], attrs["detect_negative"]
    if above and below:
        return draft("isinf", *args)
    if not above and not below:
        return draft.constant(0, BOOL)
    return draft("eq", args[0], draft.constant(math.inf if above else -math.inf, dtype))


def _cast(draft: _Draft, args: Sequence[Any], attrs: Attrs, _dtype: DType) -> _Ref:
    return draft("cast", args[0], dtype=ELEMENT_TYPES[attrs["to"]])


def _cast_like(draft: _Draft, args: Sequence[Any], _attrs: Attrs, _dtype: DType) -> _Ref:
    return draft("cast", args[0], dtype=draft.spec(args[1]).dtype)


FORMS: Mapping[str, _Form] = {
    **{op: _plain(name) for op, name in BINARY.items()},
    "Equal": _plain("eq"), "Less": _plain("lt"), "LessOrEqual": _plain("le"), "Greater": _plain("gt"),
    "GreaterOrEqual": _plain("ge"),
    "And": _plain("and"), "Or": _plain("or"), "Xor": _plain("xor"), "Not": _plain("not"),
    "BitwiseAnd": _plain("and"), "BitwiseOr": _plain("or"), "BitwiseXor": _plain("xor"), "BitwiseNot": _plain("not"),
    "Neg": _plain("neg"), "Abs": _plain("abs"), "Sign": _plain("sign"), "Pow": _power, "Swish": _swish,
    "Mod": _mod, "BitShift": _shift,
    "Max": _folded("max"), "Min": _folded("min"), "Sum": _folded("add"), "Mean": _mean, "Relu": _relu, "Clip": _clip,
    "IsNaN": _plain("isnan"), "IsInf": _is_infinite, "Where": _plain("where"), "Cast": _cast, "CastLike": _cast_like,
}  # fmt: skip
