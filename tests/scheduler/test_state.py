"""What runs hand on from one to the next: values that grow in place, hidden states, and what happens when a run fails."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from graph.errors import FeedError
from graph.growing import find_growing
from kernels.errors import ShapeError
from scheduler.session import Session

HEADS, SIZE = 2, 8
WIDTH = HEADS * SIZE


def decoder(layers: int = 2, *, renamed: bool = False) -> onnx.ModelProto:
    """Attention over keys and values that grow, by some layers; batch, length and past are open."""
    rng = np.random.default_rng(0)
    nodes, weights, inputs, outputs = [], [], [], []

    def weight(name: str) -> str:
        weights.append(numpy_helper.from_array(rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 4, name))
        return name

    def constant(name: str, values: list[int]) -> str:
        weights.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def node(op: str, names: list[str], made: str, **attrs: Any) -> str:
        nodes.append(helper.make_node(op, names, [made], name=made, **attrs))
        return made

    value = "x"
    constant("heads", [0, 0, HEADS, SIZE])
    constant("flat", [0, 0, WIDTH])
    for layer in range(layers):
        projected = {}
        for name in "qkv":
            made = node("MatMul", [value, weight(f"w{name}{layer}")], f"{name}{layer}")
            made = node("Reshape", [made, "heads"], f"{name}{layer}_heads")
            projected[name] = node("Transpose", [made], f"{name}{layer}_turned", perm=[0, 2, 1, 3])
        for name in "kv":
            past = f"past_{name}{layer}"
            inputs.append(helper.make_tensor_value_info(past, TensorProto.FLOAT, ["batch", HEADS, "past", SIZE]))
            outputs.append(helper.make_tensor_value_info(f"present_{name}{layer}", TensorProto.FLOAT, None))
            source = node("Identity", [past], f"{past}_same") if renamed else past
            node("Concat", [source, projected[name]], f"present_{name}{layer}", axis=-2)
        keys = node("Transpose", [f"present_k{layer}"], f"keys{layer}", perm=[0, 1, 3, 2])
        scores = node("Softmax", [node("MatMul", [projected["q"], keys], f"scores{layer}")], f"shares{layer}", axis=-1)
        mixed = node("MatMul", [scores, f"present_v{layer}"], f"mixed{layer}")
        mixed = node("Reshape", [node("Transpose", [mixed], f"back{layer}", perm=[0, 2, 1, 3]), "flat"], f"joined{layer}")
        value = node("Add", [mixed, value], f"y{layer}" if layer + 1 < layers else "y")
    inputs.insert(0, helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", WIDTH]))
    outputs.insert(0, helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    graph = helper.make_graph(nodes, "decoder", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def accumulator() -> onnx.ModelProto:
    """h' = h / 2 + x: a hidden state, which does not grow."""
    x, h = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xh")
    next_ = helper.make_tensor_value_info("next", TensorProto.FLOAT, ["n", 4])
    half = numpy_helper.from_array(np.array(0.5, np.float32), "half")
    nodes = [helper.make_node("Mul", ["h", "half"], ["less"]), helper.make_node("Add", ["less", "x"], ["next"])]
    graph = helper.make_graph(nodes, "accumulator", [x, h], [next_], [half])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


class Oracle:
    """The same decoder in ONNX Runtime, which is handed its values as arrays."""

    def __init__(self, proto: onnx.ModelProto, batch: int) -> None:
        self._session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        self._names = [value.name for value in self._session.get_inputs()[1:]]
        self.values = {name: np.zeros((batch, HEADS, 0, SIZE), np.float32) for name in self._names}

    def run(self, x: np.ndarray) -> np.ndarray:
        y, *values = self._session.run(None, {"x": x, **self.values})
        self.values = dict(zip(self._names, values, strict=True))
        return np.asarray(y)


def tokens(rng: np.random.Generator, batch: int, length: int) -> np.ndarray:
    return rng.standard_normal((batch, length, WIDTH)).astype(np.float32)


@pytest.mark.parametrize("renamed", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_decoder_grows_its_keys_and_values_in_place(threads: int, renamed: bool) -> None:
    proto = decoder(renamed=renamed)
    session, oracle, rng = Session(proto.SerializeToString(), threads=threads), Oracle(proto, 2), np.random.default_rng(1)
    state = session.state()
    assert sorted(state.inputs) == ["past_k0", "past_k1", "past_v0", "past_v1"]
    lengths = [5, 1, 1, 3, *[1] * 70, 40, *[1] * 5]
    for number, length in enumerate(lengths):
        x = tokens(rng, 2, length)
        outputs = session.run({"x": x}, state=state)
        assert list(outputs) == ["y"]
        np.testing.assert_allclose(outputs["y"], oracle.run(x), rtol=1e-4, atol=1e-5)
        assert state.length == sum(lengths[: number + 1])
    for name, value in state.values().items():
        np.testing.assert_allclose(value, oracle.values[name], rtol=1e-4, atol=1e-5)
    assert state._lowered is not None
    assert len(state._lowered.lowering.graph.kept) == 4


def test_steps_are_seldom_lowered_and_keep_their_executor() -> None:
    session, rng = Session(decoder().SerializeToString(), threads=1), np.random.default_rng(1)
    state = session.state()
    session.run({"x": tokens(rng, 1, 4)}, state=state)
    executors, lowerings = set(), set()
    for _ in range(250):
        session.run({"x": tokens(rng, 1, 1)}, state=state)
        executors.add(id(state._executor))
        lowerings.add(id(state._lowered and state._lowered.lowering))
    assert len(lowerings) <= 4  # a new one where lengths are four times those of the last
    assert len(executors) <= 12


def test_states_of_one_session_are_apart() -> None:
    proto = decoder()
    session, rng = Session(proto.SerializeToString(), threads=1), np.random.default_rng(2)
    states, oracles = [session.state() for _ in range(3)], [Oracle(proto, batch) for batch in (1, 2, 1)]
    for _ in range(12):
        for state, oracle, batch in zip(states, oracles, (1, 2, 1), strict=True):
            x = tokens(rng, batch, int(rng.integers(1, 4)))
            np.testing.assert_allclose(session.run({"x": x}, state=state)["y"], oracle.run(x), rtol=1e-4, atol=1e-5)


def test_plain_arrays_still_work_beside_states() -> None:
    proto = decoder()
    session, oracle, rng = Session(proto.SerializeToString(), threads=1), Oracle(proto, 1), np.random.default_rng(3)
    state, values = session.state(), dict(oracle.values)
    for _ in range(4):
        x = tokens(rng, 1, 2)
        wanted = oracle.run(x)
        np.testing.assert_allclose(session.run({"x": x}, state=state)["y"], wanted, rtol=1e-4, atol=1e-5)
        outputs = session.run({"x": x, **values})
        np.testing.assert_allclose(outputs.pop("y"), wanted, rtol=1e-4, atol=1e-5)
        values = {name.replace("present", "past"): array for name, array in outputs.items()}


def test_truncate_and_reset() -> None:
    session, rng = Session(decoder().SerializeToString(), threads=1), np.random.default_rng(4)
    state, first, second = session.state(), tokens(rng, 1, 6), tokens(rng, 1, 1)
    session.run({"x": first}, state=state)
    wanted = session.run({"x": second}, state=state)["y"]
    session.run({"x": tokens(rng, 1, 1)}, state=state)
    state.truncate(6)
    np.testing.assert_array_equal(session.run({"x": second}, state=state)["y"], wanted)
    with pytest.raises(FeedError, match="length is 9, need one from 0 to 7"):
        state.truncate(9)
    state.reset()
    assert state.length == 0
    session.run({"x": first}, state=state)
    np.testing.assert_allclose(session.run({"x": second}, state=state)["y"], wanted, rtol=1e-5, atol=1e-6)


def test_a_start_is_continued() -> None:
    proto = decoder(1)
    session, oracle, rng = Session(proto.SerializeToString(), threads=1), Oracle(proto, 1), np.random.default_rng(5)
    oracle.run(tokens(rng, 1, 9))
    state = session.state(start=dict(oracle.values))
    assert state.length == 9
    x = tokens(rng, 1, 1)
    np.testing.assert_allclose(session.run({"x": x}, state=state)["y"], oracle.run(x), rtol=1e-4, atol=1e-5)


def test_hidden_states_are_handed_on() -> None:
    session = Session(accumulator().SerializeToString(), threads=1)
    state = session.state({"h": "next"}, start={"h": np.zeros((2, 4), np.float32)})
    for _ in range(3):
        assert session.run({"x": np.ones((2, 4), np.float32)}, state=state) == {}
    np.testing.assert_array_equal(state.values()["h"], np.full((2, 4), 1.75, np.float32))
    state.reset()
    np.testing.assert_array_equal(state.values()["h"], np.zeros((2, 4), np.float32))


def test_a_run_that_fails_changes_nothing() -> None:
    proto = decoder()
    session, oracle, rng = Session(proto.SerializeToString(), threads=1), Oracle(proto, 2), np.random.default_rng(6)
    state = session.state()
    x = tokens(rng, 2, 3)
    session.run({"x": x}, state=state)
    oracle.run(x)
    with pytest.raises((FeedError, ShapeError)):
        session.run({"x": tokens(rng, 3, 1)}, state=state)  # another batch
    with pytest.raises(FeedError, match="the state stands for this input"):
        session.run({"x": x, "past_k0": oracle.values["past_k0"]}, state=state)
    assert state.length == 3
    x = tokens(rng, 2, 1)
    np.testing.assert_allclose(session.run({"x": x}, state=state)["y"], oracle.run(x), rtol=1e-4, atol=1e-5)


def test_refusals_name_the_input() -> None:
    session = Session(accumulator().SerializeToString())
    with pytest.raises(FeedError, match="no output of this model appends to an input"):
        session.state()
    with pytest.raises(FeedError, match="'h' does not grow, give its first value"):
        session.state({"h": "next"})
    with pytest.raises(FeedError, match="input 'g' does not exist"):
        session.state({"g": "next"})
    with pytest.raises(FeedError, match="output 'other' does not exist"):
        session.state({"h": "other"})
    with pytest.raises(FeedError, match="start has 'x'"):
        session.state({"h": "next"}, start={"h": np.zeros((2, 4), np.float32), "x": np.zeros((2, 4), np.float32)})


def test_what_grows_is_found_in_the_graph() -> None:
    assert find_growing(Session(accumulator().SerializeToString()).model.graph) == []
    found = find_growing(Session(decoder(1).SerializeToString()).model.graph)
    assert [(each.input, each.output, each.axis) for each in found] == [
        ("past_k0", "present_k0", 2),
        ("past_v0", "present_v0", 2),
    ]
