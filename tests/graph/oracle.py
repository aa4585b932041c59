"""Make small models, and compare how Edgewise runs them with ONNX Runtime."""

from collections.abc import Iterable, Set

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from graph.budget import RunBudget
from graph.formats.registry import read
from graph.native.calls import Call
from graph.native.engine import Native, find_native
from graph.native.segment import Segment
from graph.passes.optimise import optimise
from graph.run.executor import Executor
from graph.run.lowered import LoweredGraph
from graph.shapes import bind, propagate
from graph.symbols import SymbolicInputs, differing
from kernels.native.target.isa import Isa
from tests.machines import as_here

FLOAT, INT64, BOOL, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING
X = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)

NATIVE = find_native("auto")

node = helper.make_node


def port(name: str, dims=None, dtype: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, dims)


def constant(name: str, value, dtype=np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(value, dtype), name)


def ints(name: str, *values: int) -> onnx.TensorProto:
    return constant(name, values, np.int64)


def make(nodes, outputs, constants=(), inputs=None, opset: int = 17) -> onnx.ModelProto:
    """Return a model. outputs: names of float32 values, or name -> element type. inputs: ports; default x f32[2,6]."""
    types = outputs if isinstance(outputs, dict) else dict.fromkeys(outputs, FLOAT)
    ports = [port(name, None, code) for name, code in types.items()]
    graph = helper.make_graph(nodes, "g", [port("x", [2, 6])] if inputs is None else inputs, ports, list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def body(nodes, inputs, outputs, constants=()) -> onnx.GraphProto:
    """Return a subgraph, for the body of a control flow node. inputs, outputs: ports."""
    return helper.make_graph(nodes, "body", inputs, outputs, list(constants))


def build(proto: onnx.ModelProto, shapes=None, **options) -> Executor:
    graph = read(proto).graph
    return Executor(graph, propagate(graph, bind(graph, shapes)), **options)


def expected(proto: onnx.ModelProto, feeds) -> dict[str, np.ndarray]:
    """Return the outputs of ONNX Runtime without graph optimisations."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def poison(executor: Executor) -> None:
    """Fill the arena with NaN, so that a step which reads memory before it is written gives NaN."""
    executor._program._arena[:] = 0xFF


def assert_agrees(outputs, wanted, tolerance: float = 1e-5) -> None:
    """Assert that names, shapes and dtypes are equal, and that values differ by at most `tolerance` × the largest."""
    assert list(outputs) == list(wanted)
    for name, array in wanted.items():
        assert (outputs[name].shape, outputs[name].dtype) == (array.shape, array.dtype), name
        if array.dtype.kind == "f":
            scale = np.abs(array[np.isfinite(array)]).max(initial=1e-3)
            np.testing.assert_allclose(outputs[name] / scale, array / scale, rtol=0, atol=tolerance, err_msg=name)
        else:
            np.testing.assert_array_equal(outputs[name], array, err_msg=name)


def check(proto: onnx.ModelProto, feeds) -> Executor:
    """Run a model in numpy and natively, each twice, and compare the outputs with ONNX Runtime.

    Memory is poisoned before each run, and the inputs are read-only. Return the executor that runs in numpy.
    """
    wanted = expected(proto, feeds)
    frozen = {name: array.copy() for name, array in feeds.items()}
    for array in frozen.values():
        array.flags.writeable = False
    shapes = {name: np.shape(array) for name, array in feeds.items()}
    plain, in_native = build(proto, shapes), build(proto, shapes, threads=2, backend=NATIVE)
    for executor in (plain, in_native, plain, in_native):
        poison(executor)
        outputs = executor.run(frozen)
        assert_agrees(outputs, wanted)
        for array in outputs.values():
            assert array.flags.writeable
            assert not np.shares_memory(array, executor._program._arena)
            assert not any(np.shares_memory(array, feed) for feed in frozen.values())
    return plain


def in_numpy(proto: onnx.ModelProto, feeds) -> dict[str, np.ndarray]:
    """Return the outputs of the numpy backend, without any rewrite of the graph."""
    return build(proto, {name: np.shape(array) for name, array in feeds.items()}).run(feeds)


def check_native(
    proto: onnx.ModelProto,
    feeds,
    isa: Isa,
    numpy_ops: Set[str] = frozenset(),
    tolerance: float = 2e-5,
    threads: int = 3,
    oracle=expected,
) -> Executor:
    """Optimise a model, run it natively over poisoned memory, and compare the outputs with those of `oracle`.

    numpy_ops: ops that may run in numpy. tolerance: relative to the largest output. Return the executor.
    """
    wanted, graph = oracle(proto, feeds), read(proto).graph
    ready = optimise(graph, bind(graph, {name: np.shape(array) for name, array in feeds.items()}))
    native = Native(isa, cache=None)
    refused = native.refusals(ready.graph, ready.specs)
    assert {node.op for node in ready.graph.nodes if node.name in refused} <= numpy_ops, refused
    executor = Executor(ready.graph, ready.specs, threads=threads, backend=native)
    for _ in range(2):
        poison(executor)
        assert_agrees(executor.run(feeds), wanted, tolerance)
    timed = executor.run_timed(feeds)
    assert_agrees(timed.outputs, wanted, tolerance)
    assert len(timed.step_ns) == len(executor.steps)
    return executor


def check_all_shapes(proto: onnx.ModelProto, feeds, isa: Isa, tolerance: float = 2e-5) -> None:
    """Lower a model once, and assert that this lowering serves all of some feeds, with the outputs of the numpy backend.

    feeds: one for each set of shapes. The axes that differ between them are symbols, whose hints are the first one's sizes.
    """
    graph, shapes = read(proto).graph, [{name: np.shape(array) for name, array in each.items()} for each in feeds]
    varied = frozenset[tuple[str, int]]().union(*(differing(graph.inputs, shapes[0], other) for other in shapes[1:]))
    inputs = SymbolicInputs.of(graph.inputs, shapes[0], varied)
    ready, budget = optimise(graph, inputs.specs), RunBudget()
    lowered = LoweredGraph(ready.graph, ready.specs, {}, 2, Native(isa, cache=None), budget, inputs.scope)
    for shape, given in zip(shapes, feeds, strict=True):
        executor = Executor.of(lowered, lowered.sizes(inputs.values(shape)), budget)
        poison(executor)
        assert_agrees(executor.run(given), in_numpy(proto, given), tolerance)


def calls_of(executor: Executor) -> list[Call]:
    """Return the calls of all native segments, in order."""
    segments = executor._program._segments.values()
    return [call for segment in segments if isinstance(segment, Segment) for call in segment.calls]


def kernels(calls: Iterable[Call]) -> list[str]:
    """Return the part of each called kernel's name before the instruction set."""
    return [call.kernel.name.partition("__")[0] for call in calls]


def lowered(proto: onnx.ModelProto, feeds, machine: Isa, threads: int = 3) -> list[Call]:
    """Return the calls to which a model is lowered for a described machine, without running them."""
    graph = read(proto).graph
    ready = optimise(graph, bind(graph, {name: np.shape(array) for name, array in feeds.items()}))
    parts = Native(machine, cache=None)._lowered(ready.graph, ready.specs, threads, {})
    return [call for _, lowering in parts for call in lowering.calls]


def check_on(machine: Isa, proto: onnx.ModelProto, feeds, threads: int = 3, check=check_native, **options) -> list[Call]:
    """Return the calls as `lowered` does. If this machine has the instruction set, assert that a checked run makes the same."""
    calls = lowered(proto, feeds, machine, threads)
    if (here := as_here(machine)) is not None:
        assert kernels(calls_of(check(proto, feeds, here, threads=threads, **options))) == kernels(calls)
    return calls
