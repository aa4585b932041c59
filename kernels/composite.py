"""Operators that are written as others: what ONNX Runtime's and Olive's tools fuse, taken apart again.

`composite` makes an op of a function that writes its parts:

    def write(parts: Parts, x: Value, bias: Value, *, epsilon: float = 1e-5) -> Value | tuple[Value, ...]:
        return parts("Relu", parts("Add", x, bias))

Shapes, costs and the numpy kernel follow from the parts. A rewrite pass (`graph.passes.expansions`) puts the parts in the place
of a node, so that other passes and native kernels see them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kernels.cost import Cost
from kernels.errors import DataDependentError, EdgewiseError
from kernels.record import record
from kernels.registry import Case, Kernel, Op, evaluate, find
from kernels.scratch import FIXED_BYTES
from kernels.size import is_symbolic
from kernels.spec import FLOATS, Array, DType, Spec, size_array


@record
class Value:
    """A value between the parts: its name among them, and its spec."""

    name: str
    spec: Spec

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.spec.shape

    @property
    def dtype(self) -> DType:
        """Its element type."""
        return self.spec.dtype


@record
class Part:
    """One node: an op with names of values, "" where one is absent, and bound attributes."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any]


class Parts:
    """The parts of one node, as they are written. inputs: of the node, None where one is absent.

    parts: in order. constants, specs: of values by name.
    """

    def __init__(self, inputs: Sequence[Spec | None]) -> None:
        self.parts: list[Part] = []
        self.constants: dict[str, Array] = {}
        self.specs: dict[str, Spec] = {}
        self.inputs = [None if spec is None else self._value(f"input{i}", spec) for i, spec in enumerate(inputs)]

    def __call__(self, op: str, *inputs: Value | None, **attrs: Any) -> Value:
        """Write a part and return its output 0."""
        return self.several(1, op, *inputs, **attrs)[0]

    def several(self, count: int, op: str, *inputs: Value | None, **attrs: Any) -> tuple[Value, ...]:
        """Write a part and return its first outputs. A size among its attributes gets the value that it has now."""
        while inputs and inputs[-1] is None:
            inputs = inputs[:-1]
        found = find(op)
        bound = found.bind({name: int(value) if is_symbolic(value) else value for name, value in attrs.items()})
        specs = found.infer_specs([None if value is None else value.spec for value in inputs], bound)
        made = tuple(self._value(f"part{len(self.parts)}.{i}", spec) for i, spec in enumerate(specs[:count]))
        names = tuple("" if value is None else value.name for value in inputs)
        self.parts.append(Part(op, names, tuple(value.name for value in made), bound))
        return made

    def numbers(self, *sizes: int) -> Value:
        """Return sizes, axes or positions, which may depend on symbols, as a constant vector of int64."""
        return self.constant(size_array(list(sizes)))

    def constant(self, array: Array) -> Value:
        """Return an array as a value."""
        name = f"constant{len(self.constants)}"
        self.constants[name] = array
        return self._value(name, Spec.of(array))

    def number(self, value: float, like: Value) -> Value:
        """Return one number in the type of another value."""
        return self.constant(np.asarray(value, like.dtype))

    def _value(self, name: str, spec: Spec) -> Value:
        self.specs[name] = spec
        return Value(name, spec)


Write = Callable[..., Value | tuple[Value, ...]]


def written(name: str, write: Write, inputs: Sequence[Spec | None], attrs: Mapping[str, Any]) -> tuple[Parts, tuple[Value, ...]]:
    """Return the parts of a node and its outputs. Raises the errors of the parts, with the name of the op in front."""
    parts = Parts(inputs)
    try:
        made = write(parts, *parts.inputs, **attrs)
    except DataDependentError:
        raise
    except EdgewiseError as error:
        text = str(error)
        raise error if text.startswith(f"{name}:") else type(error)(f"{name}: {text}") from None
    return parts, made if isinstance(made, tuple) else (made,)


def composite(name: str, write: Write, cases: tuple[Case, ...], tolerance_eps: float = 32) -> Op:
    """Return the op of that name whose parts a function writes: `write(parts, *inputs, **attrs)`, annotated as in `infer`."""
    label = name.rpartition(".")[2]

    def infer(*inputs: Spec | None, **attrs: Any) -> tuple[Spec, ...]:
        return tuple(value.spec.with_value(None) for value in written(label, write, inputs, attrs)[1])

    def cost(out: tuple[Spec, ...], *inputs: Spec | None, **attrs: Any) -> Cost:
        """The sum of its parts that make floats. Arithmetic of positions and masks is not counted."""
        parts, _ = written(label, write, inputs, attrs)
        total = Cost()
        for part in parts.parts:
            op, specs = find(part.op), [parts.specs[value] if value else None for value in part.inputs]
            made = op.infer_specs(specs, part.attrs)
            counted = op.count(specs, made, part.attrs) if made[0].dtype in FLOATS else None
            total = total if counted is None else total + counted
        return total

    def scratch_bytes(out: tuple[Spec, ...], *inputs: Spec | None, **attrs: Any) -> int:
        """All values between the parts, and the most that one part takes."""
        parts, _ = written(label, write, inputs, attrs)
        most = 0
        for part in parts.parts:
            op, specs = find(part.op), [parts.specs[value] if value else None for value in part.inputs]
            kernel = op.choose(specs, part.attrs)
            most = max(most, kernel.temporary_bytes(op.infer_specs(specs, part.attrs), specs, part.attrs))
        return FIXED_BYTES + sum(spec.nbytes for spec in parts.specs.values()) + most

    def run(out: tuple[Array | None, ...], *inputs: Array | None, **attrs: Any) -> None:
        """Part by part."""
        parts, results = written(label, write, [None if array is None else Spec.of(array) for array in inputs], attrs)
        arrays = parts.constants | {f"input{i}": array for i, array in enumerate(inputs) if array is not None}
        for part in parts.parts:
            made = evaluate(find(part.op), [arrays[value] if value else None for value in part.inputs], part.attrs)
            arrays.update(zip(part.outputs, made, strict=False))
        for target, value in zip(out, results, strict=False):
            if target is not None:
                np.copyto(target, arrays[value.name])

    infer.__doc__, infer.__signature__ = write.__doc__, _signature(write)  # type: ignore[attr-defined]
    kernel = Kernel("parts", run, scratch_bytes=scratch_bytes)
    return Op(
        name, infer, cost, (kernel,), parts=functools.partial(written, label, write), tolerance_eps=tolerance_eps, cases=cases
    )


def _signature(write: Write) -> inspect.Signature:
    """Return the signature of `infer`: that of `write` without the parts, with specs in place of values."""
    signature = inspect.signature(write)
    _, *others = signature.parameters.values()
    return signature.replace(parameters=[p.replace(annotation=str(p.annotation).replace("Value", "Spec")) for p in others])
