"""Small models of every kind of layer on a GPU, against ONNX Runtime."""

import numpy as np
import pytest

from graph.cuda.contest import tune
from graph.cuda.engine import Cuda
from graph.cuda.segment import LoweredSegment
from graph.formats.registry import read
from graph.passes.optimise import optimise
from graph.run.executor import Executor
from graph.shapes import bind
from kernels.cuda.errors import NoDriverError
from kernels.errors import IndexRangeError
from tests.graph.cuda.small import MODELS
from tests.graph.oracle import assert_agrees, expected

pytestmark = pytest.mark.gpu
LIMITS = {"fp32": 3e-5, "tf32": 5e-3, "fp16": 1e-2, "bf16": 6e-2}


def backend(precision):
    try:
        return Cuda.of(precision)
    except NoDriverError as error:
        pytest.skip(str(error))


def build(name, precision):
    cuda = backend(precision)
    proto, feeds = MODELS[name]()
    graph = read(proto).graph
    ready = optimise(graph, bind(graph, {}))
    return Executor(ready.graph, ready.specs, threads=1, backend=cuda), feeds, expected(proto, feeds), cuda


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("name", MODELS)
def test_small_models_agree_with_onnx_runtime(name, precision):
    executor, feeds, wanted, _ = build(name, precision)
    for _ in range(2):
        assert_agrees(executor.run(feeds), wanted, LIMITS[precision])


@pytest.mark.parametrize("name", ["residual", "attended"])
def test_every_option_computes_the_same(name):
    _, feeds, wanted, cuda = build(name, "tf32")
    proto, _ = MODELS[name]()
    graph = read(proto).graph
    ready = optimise(graph, bind(graph, {}))
    _, parts = cuda.parts(ready.graph, ready.specs, {})
    (part,) = parts.values()
    nodes = {node.name: node for node in part.nodes}
    choices = [(name, choice) for name, node in nodes.items() for choice in cuda.candidates(node, ready.graph, ready.specs, 1)]
    assert len(choices) > len(nodes)
    for name, choice in choices:
        executor = Executor(ready.graph, ready.specs, {name: choice}, threads=1, backend=cuda)
        assert_agrees(executor.run(feeds), wanted, LIMITS["tf32"])


def test_contest_keeps_results():
    _, feeds, wanted, cuda = build("residual", "bf16")
    proto, _ = MODELS["residual"]()
    graph = read(proto).graph
    ready = optimise(graph, bind(graph, {}))
    _, parts = cuda.parts(ready.graph, ready.specs, {})
    (part,) = parts.values()
    lowered = LoweredSegment(part, cuda.facts(ready.graph, ready.specs), {}, "bf16", cuda.gpu.device, cuda.constants)
    tune(lowered, cuda.gpu)
    executor = Executor(ready.graph, ready.specs, lowered.choices, threads=1, backend=cuda)
    assert_agrees(executor.run(feeds), wanted, LIMITS["bf16"])


def test_an_index_out_of_range_is_an_error_and_the_next_run_is_right():
    executor, feeds, wanted, _ = build("embedded", "fp32")
    with pytest.raises(IndexRangeError, match=r"Gather: element 2 of 'ids' is an index out of range, need -20 to 19"):
        executor.run({"ids": np.array([[0, 1, 20, 3, 4], [0] * 5])})
    assert_agrees(executor.run(feeds), wanted, LIMITS["fp32"])


def test_times_of_steps_add_up_to_the_segment():
    executor, feeds, wanted, _ = build("residual", "fp32")
    timed = executor.run_timed(feeds)
    assert_agrees(timed.outputs, wanted, LIMITS["fp32"])
    assert 0 < sum(timed.step_ns) <= timed.wall_ns
