"""Check that a rewrite of a graph computes the same, keeps the names of inputs and outputs, and leaves correct specs."""

from functools import partial

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from graph.formats.registry import read
from graph.ir import Graph, Specs
from graph.passes.constants import fold_constants
from graph.passes.editor import Editor, Pass
from graph.passes.optimise import Optimised, optimise
from graph.shapes import bind, propagate
from tests.graph.interpreter import interpret

folding = partial(fold_constants, limit_bytes=1 << 30)


def const(name: str, value, dtype=np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, dtype), name)


def random(name: str, *shape: int, low: float | None = None) -> onnx.TensorProto:
    rng = np.random.default_rng(sum(map(ord, name)))
    values = rng.standard_normal(shape) if low is None else rng.uniform(low, low + 1, shape)
    return numpy_helper.from_array(values.astype(np.float32), name)


def build(nodes, initializers=(), inputs=None, outputs=("y",), opset=21) -> Graph:
    """Return a graph. inputs: name -> shape, all float32; default x f32[2,4]."""
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in (inputs or {"x": (2, 4)}).items()]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    named = []
    for index, node in enumerate(nodes):
        node.name = node.name or f"n{index}"
        named.append(node)
    proto = helper.make_graph(named, "g", ports, results, list(initializers))
    return read(helper.make_model(proto, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)).graph


def agree(before: Graph, after: Graph, seed: int = 0) -> None:
    """Assert that two graphs have the same names, compute the same from random inputs, and that specs match the results."""
    inputs = bind(before)
    rng = np.random.default_rng(seed)
    feeds = {name: rng.standard_normal(spec.shape).astype(spec.dtype) for name, spec in inputs.items()}
    assert [port.name for port in before.inputs] == [port.name for port in after.inputs]
    wanted, got = interpret(before, feeds), interpret(after, feeds)
    assert list(wanted) == list(got)
    specs = propagate(after, inputs)
    for name, array in wanted.items():
        largest = np.abs(array, dtype=np.float64).max(initial=1e-30)
        np.testing.assert_allclose(got[name], array, rtol=0, atol=1e-5 * largest)
        assert got[name].dtype == array.dtype
        assert specs[name] is None or specs[name].shape == array.shape


def applied(graph: Graph, rewrite: Pass, specs: Specs | None = None) -> Graph:
    """Apply a rewrite to a graph, whose specs are inferred where none are given."""
    editor = Editor(graph, propagate(graph, bind(graph)) if specs is None else specs)
    rewrite(editor)
    return editor.finish()


def rewritten(graph: Graph, rewrite) -> Graph:
    """Apply a rewrite, check that the result is equivalent, and return it."""
    after = applied(graph, rewrite)
    agree(graph, after)
    return after


def optimised(graph: Graph) -> Optimised:
    made = optimise(graph, bind(graph))
    agree(graph, made.graph)
    return made


def ops(graph: Graph) -> list[str]:
    """Return each node's op with those of its epilogue, such as "Conv+Relu"."""
    return ["+".join([node.op, *(fused.op for fused in node.epilogue)]) for node in graph.nodes]


node = helper.make_node
