"""Elementwise ops of a graph as expressions over its values: what a node computes of each element, and what is fused behind it.

Which operations an op consists of, the op itself says (`Op.expression`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace

import numpy as np

from graph.ir import INTEGER_PRODUCTS, Fused, Node
from kernels.expression import FLOAT, INT32, Apply, Draft, Expression, Term, in_order
from kernels.native.emit.expression import SMALL, value_types
from kernels.native.errors import EmitError
from kernels.record import record
from kernels.registry import find
from kernels.spec import Array, DType, SizeArray, Spec

LARGEST = 1e38  # of numbers that no rounding takes to infinity
MAX_OPERANDS = 128  # of one kernel: compiling a kernel takes time squared, with 800 operands most of a minute

SpecOf = Callable[[str], Spec]


@record
class Sources:
    """What the operands of expressions are.

    spec, constants: of the values of the graph. deferred: by value, the elementwise nodes that are computed where it is read.
    held: the types in which float32 values lie in memory, where these are others.
    """

    spec: SpecOf
    constants: Mapping[str, Array]
    deferred: Mapping[str, Node] = field(default_factory=dict)
    held: Mapping[str, DType] = field(default_factory=dict)


@record
class BoundExpression:
    """An expression, and for each of its operands the value of the graph; "" is the result that a kernel made before."""

    operands: tuple[str, ...]
    expression: Expression

    @property
    def addend(self) -> str | None:
        """The value that the first step adds to the result, operand 0; None where the first step is another one."""
        steps = self.expression.steps
        if not steps or steps[0].op != "add" or min(steps[0].args) != 0 or any(0 in step.args for step in steps[1:]):
            return None
        other = max(steps[0].args)
        return self.operands[other] if 0 < other < len(self.operands) else None

    def without_addend(self) -> BoundExpression:
        """Return the rest of the expression, for a result to which `addend` has been added already."""
        first, *rest = self.expression.steps
        count, added = len(self.operands), max(first.args)
        read = {arg for step in rest for arg in step.args}
        kept = [n for n in range(count) if n != added or n in read]
        number = {old: new for new, old in enumerate(kept)} | {count: 0}
        number |= {count + n: len(kept) + n - 1 for n in range(1, len(rest))}
        steps = tuple(replace(step, args=in_order(step.op, [number[arg] for arg in step.args])) for step in rest)
        types = tuple(self.expression.operands[n] for n in kept)
        return BoundExpression(tuple(self.operands[n] for n in kept), Expression(types, steps))


def express(node: Node, sources: Sources) -> BoundExpression:
    """Return what an elementwise node and its epilogue compute. Raises EmitError where there is no expression for the node."""
    draft = _GraphDraft(sources)
    made = draft.append(node, None)
    for fused in node.epilogue:
        made = draft.append(fused, made)
    return _bound(draft, draft.held(node.outputs[0], made), ())


def express_epilogue(node: Node, sources: Sources, addend: str = "") -> BoundExpression:
    """Return what is fused behind a node, operand 0 being the node's own result.

    addend: a value that is added before. Raises EmitError where there is no expression for it.
    """
    value = node.outputs[0]
    dtype = INT32 if node.op in INTEGER_PRODUCTS else sources.spec(value).dtype
    return _behind(node.epilogue, dtype, _GraphDraft(sources), addend, value)


def express_fused(fused: Fused, dtype: DType, sources: Sources) -> BoundExpression:
    """Return what one op computes of a result of that type, operand 0. Raises EmitError where there is no expression for it."""
    return _behind((fused,), dtype, _GraphDraft(sources))


def refuses_behind(node: Node, sources: Sources) -> str | None:
    """Return why an elementwise kernel cannot compute what is fused behind a node, or None."""
    try:
        express_epilogue(node, sources)
    except EmitError as error:
        return str(error)
    return None


def _behind(fused: tuple[Fused, ...], dtype: DType, draft: _GraphDraft, addend: str = "", value: str = "") -> BoundExpression:
    made = draft.operand("", dtype)
    if addend:
        made = draft("add", made, draft.value(addend))
    for each in fused:
        made = draft.append(each, made)
    return _bound(draft, draft.held(value, made), ("",))


def _bound(draft: _GraphDraft, made: Term, first: tuple[str, ...]) -> BoundExpression:
    operands, expression = draft.finish(made, first)
    if len(operands) > MAX_OPERANDS:
        raise EmitError(f"it reads {len(operands)} operands, a kernel takes at most {MAX_OPERANDS}")
    value_types(expression)
    if any(_is_cast_to_small(step) for step in expression.steps):
        expression = without_nan(expression, draft.largest(operands))
    return BoundExpression(operands, expression)


def _is_cast_to_small(step: Apply) -> bool:
    return step.op == "cast" and step.dtype in SMALL


def without_nan(expression: Expression, largest: Sequence[float]) -> Expression:
    """Return the expression with "fit" in place of each "cast" to a small integer whose argument cannot be NaN.

    largest: magnitude of each operand. Sums and products of numbers that are so bounded are no NaN while none overflows.
    """
    bounds, steps, types = list(largest), [], value_types(expression)
    for step in expression.steps:
        args = [bounds[arg] for arg in step.args]
        known = all(map(math.isfinite, args))
        if step.op == "constant":
            bound = abs(step.parameters[0])
        else:
            bound = _BOUNDS[step.op](args) if step.op in _BOUNDS and known else math.inf
        if _is_cast_to_small(step):
            bound = min(bound, _largest(step.dtype))
        bounds.append(bound if bound <= LARGEST else math.inf)
        fits = _is_cast_to_small(step) and known and types[step.args[0]] == FLOAT
        steps.append(replace(step, op="fit") if fits else step)
    return Expression(expression.operands, tuple(steps))


def _largest(dtype: DType | None) -> float:
    """Return the largest magnitude of a number of that type; infinity for floats."""
    if dtype is None or dtype.kind not in "iu":
        return math.inf
    return float(max(-int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)))


# The largest magnitude of a result, by the largest ones of the arguments
_BOUNDS: Mapping[str, Callable[[Sequence[float]], float]] = {
    "add": sum, "sub": sum, "mul": math.prod, "cast": max, "fit": max, "round": lambda args: args[0] + 1, "relu": max,
    "max": max, "min": max, "neg": max, "abs": max,
}  # fmt: skip


class _GraphDraft(Draft):
    """A draft whose operands are values of a graph."""

    def __init__(self, sources: Sources) -> None:
        super().__init__()
        self._sources = sources
        self._made: dict[str, Term] = {}

    def value(self, name: str) -> Term:
        """A value of the graph."""
        if name not in self._made:
            self._made[name] = self._value(name)
        return self._made[name]

    def _value(self, name: str) -> Term:
        if (node := self._sources.deferred.get(name)) is not None:
            return self.shaped(self.append(node, None), self._sources.spec(name).shape)
        known = self._sources.constants.get(name)
        if isinstance(known, SizeArray):
            known = None
        spec = self._sources.spec(name) if known is None else Spec.of(known)
        if (dtype := self._sources.held.get(name)) is not None:
            return self("cast", self.operand(name, dtype, None, spec.shape), dtype=FLOAT)
        return self.operand(name, spec.dtype, known, spec.shape)

    def largest(self, operands: Sequence[str]) -> list[float]:
        """Return the largest magnitude that each operand may have; infinity where only a run knows. "" is a result before."""
        found = []
        for name in operands:
            known, dtype = self._sources.constants.get(name), self._operands[name].dtype
            if known is not None and not isinstance(known, SizeArray) and known.dtype.kind in "fiu" and known.size:
                largest = float(np.abs(known.astype(np.float64)).max())
                found.append(largest if math.isfinite(largest) else math.inf)
            else:
                found.append(_largest(dtype))
        return found

    def held(self, name: str, made: Term) -> Term:
        """Return a float32 result as it lies in memory under the name of a value."""
        dtype = self._sources.held.get(name)
        return made if dtype is None else self("hold", made, dtype=dtype)

    def append(self, node: Node | Fused, made: Term | None) -> Term:
        """Append an op. made: what "" stands for among the inputs of one that is fused; None: for an absent input."""
        args = [self.value(name) if name else made for name in node.inputs]
        expression = find(node.op).expression
        result = None if expression is None else expression(self, *args, **node.attrs)
        if result is None:
            given = ", ".join(arg.dtype.name if arg else "none" for arg in args)
            raise EmitError(f"{node.op}: it has no expression for inputs of {given}")
        return result
