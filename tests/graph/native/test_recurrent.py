"""LSTM, GRU and RNN are lowered to a product of all inputs and one kernel that goes through the steps, however long they are."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from graph.formats.registry import read
from graph.native.engine import Native
from graph.shapes import bind, propagate
from kernels.errors import IndexRangeError
from tests.graph.native.nets import normal, weights
from tests.graph.oracle import (
    build,
    calls_of,
    check_all_shapes,
    check_native,
    constant,
    in_numpy,
    kernels,
    lowered,
    make,
    node,
    port,
)

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS, BATCH, INPUTS, HIDDEN = 5, 3, 7, 20
X = (STEPS, BATCH, INPUTS)


def parameters(op: str, directions: int = 1):
    rows = GATES[op] * HIDDEN
    bias = constant("b", normal(directions, 2 * rows))
    return [weights("w", directions, rows, INPUTS), weights("r", directions, rows, HIDDEN), bias]


def layer(op: str, inputs, outputs, **attrs):
    return node(op, ["x", "w", "r", "b", *inputs], outputs, hidden_size=HIDDEN, **attrs)


@pytest.mark.parametrize("op", list(GATES))
def test_a_sequence_of_any_length_is_two_calls(machine, op):
    names = []
    for steps in (1, 40, 3000):
        proto = make([layer(op, [], ["y"])], ["y"], parameters(op), [port("x", [steps, BATCH, INPUTS])])
        names.append(kernels(lowered(proto, {"x": np.zeros((steps, BATCH, INPUTS))}, machine)))
    assert [len(each) for each in names] == [2, 2, 2]
    assert all(each[1].startswith(f"f32_{op.lower()}_") and each[1] == names[0][1] for each in names)


@pytest.mark.parametrize("op", list(GATES))
def test_one_lowering_serves_all_lengths_and_batches(isa, op):
    ports = [port("x", ["steps", "batch", INPUTS]), port("lengths", ["batch"], onnx.TensorProto.INT32)]
    nodes = [layer(op, [], ["a"], direction="bidirectional"), node("Transpose", ["a"], ["t"], perm=[0, 2, 1, 3]),
             node("Reshape", ["t", "shape"], ["j"]),
             node(op, ["j", "w2", "r2", "", "lengths"], ["y", "h"], hidden_size=HIDDEN)]  # fmt: skip
    rows = GATES[op] * HIDDEN
    second = [weights("w2", 1, rows, 2 * HIDDEN), weights("r2", 1, rows, HIDDEN)]
    constants = [*parameters(op, 2), *second, constant("shape", [0, 0, -1], np.int64)]
    feeds = [
        {"x": normal(steps, batch, INPUTS), "lengths": np.arange(batch, dtype=np.int32) % (steps + 1)}
        for steps, batch in ((6, 5), (19, 4), (300, 9), (5, 20))
    ]
    check_all_shapes(make(nodes, ["y", "h"], constants, ports), feeds, isa)


@pytest.mark.parametrize("op", list(GATES))
def test_stacked_layers_in_both_directions_as_exporters_write_them(isa, op):
    """Between the layers the directions are joined: a transpose and a reshape, for which nothing is copied."""
    rows = GATES[op] * HIDDEN
    nodes = [layer(op, [], ["a"], direction="bidirectional"), node("Transpose", ["a"], ["t"], perm=[0, 2, 1, 3]),
             node("Reshape", ["t", "shape"], ["j"]), node(op, ["j", "w2", "r2"], ["y"], hidden_size=HIDDEN)]  # fmt: skip
    second = [weights("w2", 1, rows, 2 * HIDDEN), weights("r2", 1, rows, HIDDEN)]
    constants = [*parameters(op, 2), *second, constant("shape", [0, 0, -1], np.int64)]
    executor = check_native(make(nodes, ["y"], constants, [port("x", X)]), {"x": normal(*X)}, isa)
    assert len(kernels(calls_of(executor))) == 4


@pytest.mark.parametrize("op", list(GATES))
def test_states_that_are_computed_and_read(isa, op):
    states = ["h0", "c0"] if op == "LSTM" else ["h0"]
    last = ["last", "cell"] if op == "LSTM" else ["last"]
    nodes = [node("Neg", ["h"], ["h0"]), node("Abs", ["h"], ["c0"]), layer(op, ["", *states], ["y", *last]),
             *(node("Exp", [name], [f"{name}_read"]) for name in last)]  # fmt: skip
    ports, shape = [port("x", X), port("h", [1, BATCH, HIDDEN])], (1, BATCH, HIDDEN)
    outputs = ["y", *(f"{name}_read" for name in last)]
    check_native(make(nodes, outputs, parameters(op), ports), {"x": normal(*X), "h": normal(*shape)}, isa)


@pytest.mark.parametrize("op", list(GATES))
def test_only_the_last_state_is_wanted(isa, op):
    proto = make([layer(op, [], ["", "y"], direction="bidirectional")], ["y"], parameters(op, 2), [port("x", X)])
    check_native(proto, {"x": normal(*X)}, isa)


@pytest.mark.parametrize("op", list(GATES))
def test_what_is_fused_behind_a_layer_and_a_batch_that_comes_first(isa, op):
    nodes = [layer(op, [], ["a"], layout=1), node("Mul", ["a", "s"], ["y"])]
    proto = make(nodes, ["y"], [*parameters(op), constant("s", normal(HIDDEN))], [port("x", (BATCH, STEPS, INPUTS))])
    check_native(proto, {"x": normal(BATCH, STEPS, INPUTS)}, isa, oracle=in_numpy)


@pytest.mark.parametrize("direction", ["reverse", "bidirectional"])
@pytest.mark.parametrize("op", list(GATES))
def test_lengths_that_only_a_run_knows(isa, op, direction):
    directions = 2 if direction == "bidirectional" else 1
    ports = [port("x", X), port("lengths", [BATCH], onnx.TensorProto.INT32)]
    proto = make([layer(op, ["lengths"], ["y", "h"], direction=direction)], ["y", "h"], parameters(op, directions), ports)
    for lengths in ([5, 1, 3], [0, 5, 2]):
        check_native(proto, {"x": normal(*X), "lengths": np.array(lengths, np.int32)}, isa, oracle=in_numpy)


@pytest.mark.parametrize("bad", [-1, STEPS + 1])
def test_lengths_beyond_the_steps_raise_as_in_numpy(isa, bad):
    ports = [port("x", X), port("lengths", [BATCH], onnx.TensorProto.INT32)]
    proto = make([layer("GRU", ["lengths"], ["y"])], ["y"], parameters("GRU"), ports)
    feeds = {"x": normal(*X), "lengths": np.array([1, bad, 2], np.int32)}
    for executor in (build(proto), build(proto, backend=Native(isa, cache=None))):
        with pytest.raises(IndexRangeError, match=rf"sequence_lens: holds .*{bad}.*, need lengths in \[0, {STEPS}\]"):
            executor.run(feeds)


@pytest.mark.parametrize(
    ("attrs", "computed", "reason"),
    [({}, True, "its weights are not constants"), ({"activations": ["Tanh", "Relu"]}, False, "its directions have different")],
)
def test_layers_that_are_refused(machine, attrs, computed, reason):
    ports, constants = [port("x", X)], parameters("RNN", 2)
    if computed:
        ports, constants = [*ports, port("w", [2, HIDDEN, INPUTS])], constants[1:]
    graph = read(make([layer("RNN", [], ["y"], direction="bidirectional", **attrs)], ["y"], constants, ports)).graph
    (refused,) = Native(machine, cache=None).refusals(graph, propagate(graph, bind(graph))).values()
    assert reason in refused
