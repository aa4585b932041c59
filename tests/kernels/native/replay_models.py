"""Small models, and the calls to which they are lowered for a described instruction set. `ir_replay` hashes these calls."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from graph.formats.onnx.reader import read
from graph.native.calls import Call
from graph.native.constants import ConstantCache
from graph.native.engine import Native
from graph.native.facts import Facts
from graph.native.segment import LoweredSegment, SegmentLayout
from graph.passes.optimise import Optimised, optimise
from graph.shapes import bind
from kernels.native.run.program import KernelCall, Ref
from kernels.native.target.isa import Isa
from kernels.size import PLAIN

THREADS = 2  # threads that the programs are made for

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
node = helper.make_node


def port(name: str, *dims: int, kind: int = FLOAT) -> onnx.ValueInfoProto:
    """Return an input of a model. kind: element type."""
    return helper.make_tensor_value_info(name, kind, dims)


def weights(name: str, *shape: int) -> onnx.TensorProto:
    """Return a constant that is neither all zeros nor all ones, which passes would remove."""
    count = int(np.prod(shape))
    return numpy_helper.from_array(((np.arange(count) % 13 - 6.5) / 16).astype(np.float32).reshape(shape), name)


def ints(name: str, *values: int) -> onnx.TensorProto:
    """Return a constant list of integers."""
    return numpy_helper.from_array(np.array(values, np.int64), name)


def floats(name: str, *values: float) -> onnx.TensorProto:
    """Return a constant list of floats."""
    return numpy_helper.from_array(np.array(values, np.float32), name)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Mapping[str, int],
    constants: Sequence[onnx.TensorProto] = (),
) -> onnx.ModelProto:
    """Return a model. outputs: name -> element type."""
    ports = [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()]
    graph = helper.make_graph(nodes, "g", inputs, ports, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def residual_net() -> onnx.ModelProto:
    """Return a model with convolutions of each kind, a residual, pools, squeeze and excite, and a classifier."""
    same: dict[str, Any] = {"pads": [1, 1, 1, 1]}
    nodes = [
        node("Conv", ["x", "w0", "b0"], ["a"], strides=[2, 2], pads=[1, 1, 1, 1]), node("Relu", ["a"], ["b"]),
        node("MaxPool", ["b"], ["c"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Conv", ["c", "w1"], ["d"], **same), node("Relu", ["d"], ["e"]),
        node("Conv", ["e", "w2", "b2"], ["f"], **same), node("Add", ["f", "c"], ["g"]), node("Relu", ["g"], ["h"]),
        node("Conv", ["h", "w3"], ["i"], group=24, strides=[2, 2], **same), node("HardSwish", ["i"], ["j"]),
        node("GlobalAveragePool", ["j"], ["k"]), node("Conv", ["k", "w4", "b4"], ["l"]), node("Sigmoid", ["l"], ["m"]),
        node("Mul", ["m", "j"], ["n"]), node("Conv", ["n", "w5"], ["o"]), node("AveragePool", ["o"], ["p"], kernel_shape=[3, 3]),
        node("Flatten", ["p"], ["q"]), node("Gemm", ["q", "w6", "b6"], ["r"], transB=1), node("Softmax", ["r"], ["y"]),
    ]  # fmt: skip
    constants = [
        weights("w0", 24, 3, 3, 3), weights("b0", 24), weights("w1", 24, 24, 3, 3), weights("w2", 24, 24, 3, 3),
        weights("b2", 24), weights("w3", 24, 1, 3, 3), weights("w4", 24, 24, 1, 1), weights("b4", 24),
        weights("w5", 40, 24, 1, 1), weights("w6", 10, 40), weights("b6", 10),
    ]  # fmt: skip
    return model(nodes, [port("x", 1, 3, 24, 24)], {"y": FLOAT}, constants)


def transformer_block() -> onnx.ModelProto:
    """Return a model with an embedding, attention with an additive mask, and a perceptron, each with norm and residual."""
    nodes = [
        node("Gather", ["table", "tokens"], ["x"]), node("Add", ["x", "positions"], ["p"]),
        node("LayerNormalization", ["p", "g0", "s0"], ["n"]), node("MatMul", ["n", "wqkv"], ["m"]),
        node("Add", ["bqkv", "m"], ["qkv"]), node("Reshape", ["qkv", "split"], ["five"]),
        node("Transpose", ["five"], ["turned"], perm=[2, 0, 3, 1, 4]),
        *(node("Gather", ["turned", f"i{i}"], [name], axis=0) for i, name in enumerate("qkv")),
        node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]), node("MatMul", ["q", "kt"], ["raw"]),
        node("Mul", ["raw", "scale"], ["scores"]), node("Add", ["scores", "mask"], ["masked"]),
        node("Softmax", ["masked"], ["shares"]), node("MatMul", ["shares", "v"], ["heads"]),
        node("Transpose", ["heads"], ["rows"], perm=[0, 2, 1, 3]), node("Reshape", ["rows", "whole"], ["joined"]),
        node("MatMul", ["joined", "wo"], ["out"]), node("Add", ["out", "bo"], ["biased"]), node("Add", ["biased", "p"], ["r"]),
        node("LayerNormalization", ["r", "g0", "s0"], ["n1"]), node("MatMul", ["n1", "w1"], ["h"]),
        node("Add", ["h", "b1"], ["h1"]), node("Gelu", ["h1"], ["act"]), node("MatMul", ["act", "w2"], ["down"]),
        node("Add", ["down", "r"], ["y"]),
    ]  # fmt: skip
    constants = [
        weights("table", 50, 48), weights("positions", 11, 48), weights("g0", 48), weights("s0", 48), weights("wqkv", 48, 144),
        weights("bqkv", 144), ints("split", 2, 11, 3, 4, 12), floats("scale", 12**-0.5), ints("whole", 2, 11, 48),
        weights("wo", 48, 48), weights("bo", 48), weights("w1", 48, 96), weights("b1", 96), weights("w2", 96, 48),
        *(numpy_helper.from_array(np.array(i, np.int64), f"i{i}") for i in range(3)),
    ]  # fmt: skip
    return model(nodes, [port("tokens", 2, 11, kind=INT64), port("mask", 2, 1, 1, 11)], {"y": FLOAT}, constants)


def masks_and_integers() -> onnx.ModelProto:
    """Return a model of integers and bools, with an op in the middle that has no native form."""
    nodes = [
        node("Less", ["a", "b"], ["lt"]), node("And", ["lt", "m"], ["both"]), node("Not", ["both"], ["neither"]),
        node("Mul", ["a", "b"], ["ab"]), node("Mod", ["ab", "seven"], ["rest"]),
        node("Where", ["neither", "rest", "a"], ["chosen"]),
        node("Trilu", ["chosen"], ["half"]), node("Cast", ["half"], ["real"], to=FLOAT),
        node("Exp", ["real"], ["e"]), node("Cast", ["both"], ["ones"], to=FLOAT), node("Mul", ["e", "ones"], ["y0"]),
        node("Equal", ["half", "b"], ["same"]), node("Xor", ["same", "m"], ["y1"]),
    ]  # fmt: skip
    inputs = [port("a", 3, 37, kind=INT64), port("b", 1, 37, kind=INT64), port("m", 3, 37, kind=BOOL)]
    return model(nodes, inputs, {"y0": FLOAT, "y1": BOOL}, [ints("seven", 7)])


def resize_and_concat() -> onnx.ModelProto:
    """Return an encoder with two ways of upsampling. It joins whole blocks and odd numbers of channels, and pads."""
    up: dict[str, Any] = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    nodes = [
        node("Conv", ["x", "w0"], ["a"], pads=[1, 1, 1, 1]), node("Relu", ["a"], ["b"]),
        node("AveragePool", ["b"], ["c"], kernel_shape=[2, 2], strides=[2, 2]), node("Conv", ["c", "w1"], ["d"]),
        node("Resize", ["d", "", "scales"], ["e"], **up), node("Concat", ["e", "b"], ["f"], axis=1),
        node("ConvTranspose", ["d", "w2"], ["g"], strides=[2, 2]), node("Resize", ["c", "", "scales"], ["n"], mode="nearest"),
        node("Concat", ["f", "g", "n"], ["h"], axis=1), node("Conv", ["h", "w3", "b3"], ["i"]),
        node("Split", ["i", "parts"], ["j", "k"], axis=1), node("Mul", ["j", "k"], ["l"]),
        node("Pad", ["l", "pads"], ["o"], mode="reflect"), node("ReduceMean", ["o", "axes"], ["p"]),
        node("Sub", ["o", "p"], ["y"]),
    ]  # fmt: skip
    constants = [
        weights("w0", 16, 3, 3, 3), weights("w1", 16, 16, 1, 1), floats("scales", 1, 1, 2, 2), weights("w2", 16, 5, 2, 2),
        weights("w3", 12, 53, 1, 1), weights("b3", 12), ints("parts", 6, 6),
        ints("pads", 0, 0, 1, 1, 0, 0, 1, 1), ints("axes", 2, 3),
    ]  # fmt: skip
    return model(nodes, [port("x", 1, 3, 8, 10)], {"y": FLOAT}, constants)


MODELS: Mapping[str, Callable[[], onnx.ModelProto]] = {
    "convolutions, residual and pools": residual_net,
    "transformer block": transformer_block,
    "integers and masks": masks_and_integers,
    "resize and concat": resize_and_concat,
}


@functools.cache
def optimised(name: str) -> Optimised:
    """Return an optimised model, which is the same for every instruction set."""
    graph = read(MODELS[name]()).graph
    return optimise(graph, bind(graph))


@dataclass(frozen=True)
class Laid:
    """A segment that is laid out in memory but not compiled."""

    calls: Sequence[Call]
    steps: Sequence[KernelCall]


def segments(name: str, isa: Isa) -> Iterator[Laid]:
    """Yield the segments of a model, in order. This machine need not have the instruction set."""
    ready, constants = optimised(name), ConstantCache(dry=True)
    native = Native(isa, None, constants)
    _, parts = native.parts(ready.graph, ready.specs, {})
    facts = Facts(ready.specs, ready.graph.constants, isa, THREADS)
    for part in parts.values():
        lowered = LoweredSegment(part, facts, {}, constants)
        layout = lowered.lay_out(lowered.own_bytes.at(PLAIN).tolist())
        yield Laid(lowered.calls, [placed(*each, layout) for each in zip(lowered.steps, layout.barriers, strict=True)])


def placed(step: KernelCall, barrier: bool, layout: SegmentLayout) -> KernelCall:
    """Return a step with its places counted from the beginnings of slots."""
    refs = {
        name: ref if ref.block is None else Ref(ref.slot, ref.offset_bytes + int(layout.offsets[ref.block]))
        for name, ref in step.refs.items()
    }
    return replace(step, refs=refs, barrier=barrier)


def describe(calls: Sequence[Call], body: Callable[[Call], str]) -> Iterator[str]:
    """Yield a line for each call: its node's position, its code, and what each argument is.

    body: returns a name for the code of a call. Storages are numbered in the order in which calls first use them.
    """
    numbers: dict[int, int] = {}
    for call in calls:
        arguments = []
        for name, (storage, offset_bytes) in call.arguments.items():
            number = numbers.setdefault(id(storage), len(numbers))
            kind = "constant" if storage.constant is not None else storage.port or f"{storage.nbytes} bytes"
            arguments.append(f"{name}={number}+{offset_bytes}:{storage.dtype.name}:{kind}")
        yield f"{call.node} {body(call)} {' '.join(arguments)} writes {' '.join(call.writes)}"
