"""Small random graphs around one node: how its input lies, its own sizes, the ops fused behind it, and who reads it.

A graph is an input in some layout, a producer (a node of one of the native families), up to three elementwise ops with operands
of every shape that broadcasts to the producer's result, and a reader. Sizes are those at which kernels change their loops: one
pixel, one row, one column, one channel, and a vector of channels give or take one.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from tests.graph.native.random_build import Build, RandomGraph, Shape
from tests.graph.native.random_producers import PRODUCERS, UNARY, laid_out
from tests.graph.oracle import BOOL, FLOAT, INT64, make, port

OPSET, DOUBLE = 23, TensorProto.DOUBLE
BINARY = ("Add", "Add", "Sub", "Mul", "Mul", "Max", "Min", "Div", "PRelu")

# The ops behind the producer, and their operands


def operand_shape(b: Build, shape: Shape) -> Shape:
    """A shape that broadcasts to `shape`: each dimension whole or 1, and leading ones of size 1 left out, or not."""
    kind = b.one_of("any", "any", "scalar", "one", "channel", "plane", "image", "image and channel", "last", "full", "full")
    rank = len(shape)
    whole = {
        "scalar": [], "one": [], "channel": [1], "plane": [*range(2, rank)], "image": [0], "image and channel": [0, 1],
        "last": [rank - 1], "full": [*range(rank)], "any": [n for n in range(rank) if b.chance(2)],
    }[kind]  # fmt: skip
    found = [size if n in whole else 1 for n, size in enumerate(shape)]
    while found and found[0] == 1 and (kind == "scalar" or b.chance(2)):
        found = found[1:]
    return tuple(found)


def operand(b: Build, shape: Shape) -> str:
    """A value to compute with: a constant, an input, or one that another node has left in some layout."""
    if not shape or b.chance(2):
        return b.give(b.normal(*shape))
    if shape[2:] and len(shape) in (3, 4) and set(shape[2:]) == {1} and b.chance(2):
        plane = [b.side() for _ in shape[2:]]
        return b.add("GlobalAveragePool", laid_out(b, (*shape[:2], *plane)))
    return laid_out(b, shape)


def fused(b: Build, value: str) -> str:
    """Append an elementwise op."""
    shape = b.shape(value)
    match b.one_of("unary", "binary", "binary", "binary", "itself", "where", "compare", "double", "clip"):
        case "unary":
            return b.add(b.one_of(*UNARY), value)
        case "itself":
            return b.add("Mul", value, b.add("Sigmoid", value))
        case "clip":
            return b.add("Clip", value, b.scalar(-0.5), b.scalar(0.75) if b.chance(2) else "")
        case "compare":
            above = b.add("Greater", value, b.scalar(0.123))
            return b.add("Where", above, value, operand(b, operand_shape(b, shape)))
        case "double":
            wide = b.add("Mul", b.add("Cast", value, to=DOUBLE), b.keep(np.array(0.7)))
            return b.add("Cast", wide, to=FLOAT)
        case "where":
            mask = b.give(np.array(b.rng.random(operand_shape(b, shape)) > 0.5))
            other = operand(b, operand_shape(b, shape))
            return b.add("Where", mask, *((value, other) if b.chance(2) else (other, value)))
    op, other = b.one_of(*BINARY), operand(b, operand_shape(b, shape))
    if op == "Div":
        other = b.add("Add", b.add("Abs", other), b.scalar(0.5))
    if op in {"Div", "PRelu"} or b.chance(2):
        return b.add(op, value, other)
    return b.add(op, other, value)


def read(b: Build, value: str) -> str:
    """Append a node that reads the result in a layout of its own."""
    shape = b.shape(value)
    if not shape:
        return b.add("Neg", value)
    is_image = len(shape) in (3, 4)
    match b.one_of("conv", "pool", "concat", "transpose", "matmul", "slice", "shuffle"):
        case "conv" if is_image:
            return b.add("Conv", value, b.weights(b.channels(), shape[1], *[1] * len(shape[2:])))
        case "pool" if is_image:
            return b.add("GlobalAveragePool", value)
        case "concat":
            axis = 1 if is_image else len(shape) - 1
            other = laid_out(b, (*shape[:axis], int(b.one_of(1, b.lanes)), *shape[axis + 1 :]))
            return b.add("Concat", *((value, other) if b.chance(2) else (other, value)), axis=axis)
        case "matmul" if len(shape) > 1:
            return b.add("MatMul", value, b.weights(shape[-1], 3))
        case "slice":
            axis = 1 if is_image else len(shape) - 1
            return b.add("Slice", value, b.ints(shape[axis] // 2), b.ints(2**31), b.ints(axis))
        case "shuffle" if is_image and shape[1] % 2 == 0:
            apart = b.add("Reshape", value, b.ints(shape[0], 2, shape[1] // 2, *shape[2:]))
            swapped = b.add("Transpose", apart, perm=[0, 2, 1, *range(3, len(shape) + 1)])
            return b.add("Reshape", swapped, b.ints(*shape))
    return b.add("Transpose", value)


def random_graph(seed: int, lanes: int) -> RandomGraph:
    """Return the graph of a seed for an instruction set with vectors of that many floats."""
    b = Build(seed, lanes)
    value = b.one_of(*PRODUCERS)(b)
    outputs = []
    for _ in range(int(b.one_of(1, 1, 2, 3))):
        if b.chance(8):
            outputs.append(value)  # the caller wants it too
        value = fused(b, value)
    for _ in range(int(b.one_of(0, 1, 1, 2))):
        if b.chance(4):
            outputs.append(value)
        value = read(b, value)
    kinds = {np.dtype(np.float32): FLOAT, np.dtype(bool): BOOL, np.dtype(np.int64): INT64}
    inputs = [port(name, array.shape, kinds[array.dtype]) for name, array in b.feeds.items()]
    return RandomGraph(make(b.nodes, list(dict.fromkeys([*outputs, value])), b.constants, inputs, OPSET), b.feeds)
