"""A model with open dimensions as it grows: nodes, constants, inputs, and the shape arithmetic that exporters write."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from kernels.spec import Array
from tests.graph.oracle import FLOAT, INT64, constant, make, node, port

OPSET = 18


@dataclass(frozen=True, slots=True)
class DynamicModel:
    """A random model and the sizes that its dimensions may have.

    dims: of each input, names and fixed sizes. sizes: for each set of feeds, a size for every name.
    """

    proto: onnx.ModelProto
    dims: Mapping[str, Sequence[str | int]]
    sizes: Sequence[Mapping[str, int]]

    def __str__(self) -> str:
        graph = self.proto.graph
        shapes = {each.name: list(each.dims) for each in graph.initializer} | {
            name: list(dims) for name, dims in self.dims.items()
        }
        lines = [f"{each.op_type}({', '.join(f'{i}{shapes.get(i, str())}' for i in each.input)}) -> {', '.join(each.output)} "
                 f"{_attributes(each)}" for each in graph.node]  # fmt: skip
        return "\n".join([*lines, f"outputs: {[output.name for output in graph.output]}", f"sizes: {list(self.sizes)}"])

    def feeds(self, sizes: Mapping[str, int], rng: np.random.Generator) -> dict[str, Array]:
        """Draw inputs of these sizes: int64 ones are below 16, so that they are indices of any table here."""
        types = {each.name: each.type.tensor_type.elem_type for each in self.proto.graph.input}
        found = {}
        for name, dims in self.dims.items():
            shape = tuple(dim if isinstance(dim, int) else sizes[dim] for dim in dims)
            numbers = rng.integers(0, 16, shape) if types[name] == INT64 else rng.standard_normal(shape).astype(np.float32)
            found[name] = (rng.random(shape) < 0.8).astype(np.int64) if name == "mask" else numbers
        return found


def _attributes(each: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in each.attribute if a.type != onnx.AttributeProto.TENSOR}


class Build:
    """A model as it grows. Values are names; what is known of their shapes is kept by the layers that make them."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.dims: dict[str, Sequence[str | int]] = {}
        self._types: dict[str, int] = {}
        self.outputs: dict[str, int] = {}

    # What is drawn

    def one_of(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def chance(self, of: int) -> bool:
        """True once in `of` draws."""
        return int(self.rng.integers(of)) == 0

    # What is added

    def feed(self, name: str, *dims: str | int, dtype: int = FLOAT) -> str:
        """Add an input of the model."""
        self.dims[name], self._types[name] = dims, dtype
        return name

    def keep(self, value: Any, dtype: Any = np.float32) -> str:
        """Add a constant."""
        name = f"c{len(self.constants)}"
        self.constants.append(constant(name, value, dtype))
        return name

    def ints(self, *values: int) -> str:
        return self.keep(values, np.int64)

    def whole(self, value: int) -> str:
        """Add a whole number without dimensions."""
        return self.keep(value, np.int64)

    def weights(self, *shape: int) -> str:
        return self.keep(self.rng.standard_normal(shape) / math.sqrt(max(1, math.prod(shape[1:]))))

    def scales(self, *shape: int) -> str:
        """Add factors near 1."""
        return self.keep(1 + self.rng.standard_normal(shape) / 8)

    def add(self, op: str, *inputs: str, outputs: int = 1, **attrs: Any) -> Any:
        """Append a node. Returns the name of its output, or of each where there are several."""
        names = [f"v{len(self.nodes)}" + f"_{n}" * (n > 0) for n in range(outputs)]
        self.nodes.append(node(op, list(inputs), names, f"n{len(self.nodes)}", **attrs))
        return names[0] if outputs == 1 else names

    def give(self, value: str, dtype: int = FLOAT) -> None:
        """Make a value an output of the model."""
        self.outputs[value] = dtype

    # Shape arithmetic

    def shape(self, value: str) -> str:
        return str(self.add("Shape", value))

    def size(self, value: str, axis: int) -> str:
        """The size of an axis without dimensions, as one of the ways that exporters read it."""
        if self.chance(3):
            return str(self.add("Squeeze", self.add("Shape", value, start=axis, end=axis + 1), self.ints(0)))
        return str(self.add("Gather", self.shape(value), self.whole(axis), axis=0))

    def listed(self, *sizes: str | int) -> str:
        """A vector of sizes: constants, and computed ones without dimensions."""
        parts = [self.ints(each) if isinstance(each, int) else self.add("Unsqueeze", each, self.ints(0)) for each in sizes]
        return str(self.add("Concat", *parts, axis=0))

    def reshape(self, value: str, *sizes: str | int) -> str:
        target = self.ints(*(int(each) for each in sizes)) if all(isinstance(s, int) for s in sizes) else self.listed(*sizes)
        return str(self.add("Reshape", value, target))

    def slice(self, value: str, axis: int, start: int | str, end: int | str, step: int = 1) -> str:
        bounds = [
            self.ints(each) if isinstance(each, int) else self.add("Unsqueeze", each, self.ints(0)) for each in (start, end)
        ]
        return str(self.add("Slice", value, *bounds, self.ints(axis), self.ints(step)))

    def zeros(self, *sizes: str | int, value: float = 0.0) -> str:
        """A tensor of one number."""
        filled = onnx.helper.make_tensor("value", TensorProto.FLOAT, [1], [value])
        return str(self.add("ConstantOfShape", self.listed(*sizes), value=filled))

    def done(self, sizes: Sequence[Mapping[str, int]]) -> DynamicModel:
        """Return the model."""
        inputs = [port(name, list(dims), self._types[name]) for name, dims in self.dims.items()]
        return DynamicModel(make(self.nodes, self.outputs, self.constants, inputs, OPSET), dict(self.dims), sizes)
