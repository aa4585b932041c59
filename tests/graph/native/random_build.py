"""A random graph as it grows: what is drawn for it, and its nodes, constants and inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from kernels.registry import find
from kernels.spec import Array, Spec
from tests.graph.oracle import constant, node

Shape = tuple[int, ...]
SIDES = (1, 1, 1, 2, 2, 3, 3, 5, 8, 8, 21, 40)  # of an image


@dataclass(frozen=True, slots=True)
class RandomGraph:
    """A model, the arrays to feed it, and what it consists of, for messages."""

    proto: onnx.ModelProto
    feeds: Mapping[str, Array]

    def __str__(self) -> str:
        graph = self.proto.graph
        shapes = {each.name: tuple(each.dims) for each in graph.initializer} | {name: a.shape for name, a in self.feeds.items()}
        lines = [f"{each.op_type}({', '.join(f'{i}{list(shapes[i]) if i in shapes else str()}' for i in each.input)}) -> "
                 f"{', '.join(each.output)} {_attributes(each)}" for each in graph.node]  # fmt: skip
        return "\n".join([*lines, f"outputs: {[output.name for output in graph.output]}"])


def _attributes(each: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in each.attribute}


class Build:
    """A graph as it grows: nodes, constants, feeds, and the spec of every value so far."""

    def __init__(self, seed: int, lanes: int) -> None:
        self.rng, self.lanes = np.random.default_rng(seed), lanes
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.feeds: dict[str, Array] = {}
        self.specs: dict[str, Spec] = {}

    # What is drawn

    def one_of(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def chance(self, of: int) -> bool:
        """True once in `of` draws."""
        return int(self.rng.integers(of)) == 0

    def channels(self) -> int:
        n = self.lanes
        return int(self.one_of(1, 1, 2, 3, n - 1, n, n, n + 1, 2 * n, 2 * n + 3, 5 * n + 1))

    def side(self) -> int:
        return int(self.one_of(*SIDES))

    def image(self) -> Shape:
        """The shape of an image; one in six is 1-D."""
        plane = [self.side()] if self.chance(6) else [self.side(), self.side()]
        return (self.one_of(1, 1, 2, 3), self.channels(), *plane)

    def matrix(self) -> Shape:
        """The shape of one matrix or several, or of a single row."""
        batch = self.one_of((), (2,), (1, 3), (2, 3))
        return (*batch, self.one_of(1, 2, 3, 7, 30), self.channels())

    def normal(self, *shape: int) -> Array:
        return self.rng.standard_normal(shape).astype(np.float32)

    # What is added

    def shape(self, value: str) -> Shape:
        return self.specs[value].shape

    def scalar(self, value: float) -> str:
        """Add a constant without dimensions."""
        return self.keep(np.array(value, np.float32))

    def keep(self, array: Array) -> str:
        """Add a constant."""
        name = f"c{len(self.constants)}"
        self.constants.append(constant(name, array, array.dtype))
        self.specs[name] = Spec.of(array)
        return name

    def ints(self, *values: int) -> str:
        return self.keep(np.array(values, np.int64))

    def weights(self, *shape: int) -> str:
        return self.keep(self.normal(*shape) / np.float32(math.sqrt(max(1, math.prod(shape[1:])))))

    def feed(self, array: Array) -> str:
        """Add an input of the graph."""
        name = f"x{len(self.feeds)}"
        self.feeds[name], self.specs[name] = array, Spec(array.shape, array.dtype)
        return name

    def give(self, array: Array) -> str:
        """Add an operand: a constant or an input."""
        return self.keep(array) if self.chance(2) else self.feed(array)

    def add(self, op: str, *inputs: str, outputs: int = 1, **attrs: Any) -> str:
        """Append a node. Returns the first of its outputs."""
        definition = find(op)
        typed = {key: tuple(value) if isinstance(value, list) else value for key, value in attrs.items()}
        specs = [self.specs[name] if name else None for name in inputs]
        made = definition.infer_specs(specs, definition.bind(typed))[:outputs]
        names = [f"v{len(self.nodes)}" + f"_{n}" * (n > 0) for n in range(outputs)]
        self.nodes.append(node(op, list(inputs), names, f"n{len(self.nodes)}", **attrs))
        self.specs.update((name, Spec(spec.shape, spec.dtype)) for name, spec in zip(names, made, strict=True))
        return names[0]
