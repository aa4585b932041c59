"""Small models that ask for 15 GiB and more: each is refused before it is allocated, with the node, the need and the limit."""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graph.budget import ProcessMemory
from graph.errors import LimitError
from graph.passes.optimise import optimise
from graph.run.feeds import random_feeds
from graph.shapes import FOLD_BYTES, bind, propagate
from kernels.errors import OutOfMemoryError
from kernels.spec import Spec
from scheduler.session import Session, SessionLimits
from tests.graph.protos import model
from tests.graph.vast import DYNAMIC, STATIC, floats, ints, vast

ROOT = Path(__file__).parents[2]
LIMIT = 4 << 30
NODE = re.compile(r"\(node 'vast(/\w+)?'\)")
LITTLE_BYTES = 32 << 20  # that reading, rewriting and preparing a small model may take


def refused(name: str, backend: str) -> str:
    """Run a model with a limit of 4 GiB. Returns the message of the LimitError, after nothing large was allocated."""
    proto, feeds = STATIC[name]()
    session = Session(proto, threads=1, backend=backend, limits=SessionLimits(arena_bytes=LIMIT))  # type: ignore[arg-type]
    tracemalloc.start()
    try:
        with pytest.raises(LimitError) as raised:
            session.run(feeds)
        assert tracemalloc.get_traced_memory()[1] < LITTLE_BYTES
    finally:
        tracemalloc.stop()
    return str(raised.value)


@pytest.mark.parametrize("name", STATIC)
def test_a_model_that_needs_more_than_the_limit_is_refused(name: str) -> None:
    message = refused(name, "numpy")
    assert message.startswith("Mul: " if name == "Einsum" else f"{name}: ")  # an Einsum runs as products, each named after it
    assert NODE.search(message)
    assert f"the limit is {LIMIT}; use smaller shapes, or raise SessionLimits.arena_bytes" in message


@pytest.mark.parametrize("name", ["ConstantOfShape", "Expand", "Tile", "Pad", "MaxPool", "AveragePool"])
def test_it_is_refused_before_native_code_is_made_for_it(name: str) -> None:
    assert f"the limit is {LIMIT}" in refused(name, "auto")


CHILD = """
import json, resource, sys
import kernels.registry, scheduler.session
kernels.registry.operators()
baseline = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (baseline + (1 << 30),) * 2)
from graph.budget import model_share_bytes
from kernels.errors import EdgewiseError
from scheduler.session import Session
from tests.graph import vast
found = {"limit": model_share_bytes()}
for kind in ("STATIC", "DYNAMIC"):
    for name, make in getattr(vast, kind).items():
        proto, feeds = make()
        try:
            Session(proto, threads=1, backend="numpy").run(feeds)
            found[kind + name] = "it ran"
        except EdgewiseError as error:
            found[kind + name] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and limits the address space")
def test_all_are_refused_by_the_defaults_of_a_process_with_little_memory() -> None:
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    limit = found.pop("limit")
    assert len(found) == len(STATIC) + len(DYNAMIC)
    for name, message in found.items():
        assert message.startswith("LimitError: "), (name, message)
        assert NODE.search(message), message
        assert str(limit) in message or name.startswith("DYNAMIC")


def test_a_large_constant_is_not_folded() -> None:
    for name in ("ConstantOfShape", "Expand", "Tile", "Range"):
        read = Session(STATIC[name]()[0], backend="numpy").model
        tracemalloc.start()
        made = optimise(read.graph, bind(read.graph))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert [node.op for node in made.graph.nodes] == [name]
        assert peak < LITTLE_BYTES


def test_a_small_constant_is_not_folded_where_computing_it_takes_much_memory() -> None:
    proto, _ = vast("Einsum", {"x": floats(2**16), "z": floats(2**16), "w": floats(2**16)}, "", equation="a,b,a->b")
    read = Session(proto, backend="numpy").model
    tracemalloc.start()
    made = optimise(read.graph, {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert made.graph.nodes[0].op == "Mul"  # of x and z: 16 GiB on the way to 256 KiB
    assert peak < LITTLE_BYTES


def test_values_known_before_the_run_are_bounded_together() -> None:
    """Each range is small enough to be computed with the shapes; all of them together are not."""
    names = [f"r{i}" for i in range(300)]
    nodes = [helper.make_node("Range", ["zero", "many", "one"], [name], f"make {name}") for name in names]
    nodes.append(helper.make_node("Concat", names, ["y"], "all", axis=0))
    constants = [numpy_helper.from_array(np.array(value), name) for name, value in (("zero", 0), ("many", 65_536), ("one", 1))]
    graph = Session(model(nodes, constants, outputs=("y",)), backend="numpy").model.graph
    specs = propagate(graph, bind(graph, dims={"batch": 1}))
    known = sum(spec.nbytes for name, spec in specs.items() if spec is not None and spec.value is not None)
    assert known <= FOLD_BYTES + 3 * 8
    assert specs["y"] == Spec((300 * 65_536,), np.dtype(np.int64))


def test_packed_weights_are_refused_before_they_are_packed() -> None:
    proto, feeds = vast("Conv", {"x": floats(1, 64, 8, 8), "w": floats(512, 64, 3, 3)}, "x")
    session = Session(proto, threads=1, backend="native", limits=SessionLimits(arena_bytes=1 << 20))
    with pytest.raises(LimitError, match=r"^Conv: its weights take \d+ bytes packed \(node 'vast'\): .*the limit is 1048576"):
        session.run(feeds)


def test_models_of_one_process_share_its_memory() -> None:
    process = ProcessMemory(8 << 20)
    limits = SessionLimits(process=process)
    sessions = [Session(chain(), backend="numpy", limits=limits) for _ in range(2)]
    x = np.ones((1, 200_000), np.float32)
    assert sessions[0].run({"x": x})["y"].shape == x.shape
    assert process.taken_bytes >= x.nbytes
    with pytest.raises(OutOfMemoryError, match=r"models and runs of this process take \d+ of 8388608; try again later"):
        sessions[1].run({"x": np.ones((1, 600_000), np.float32)})
    del sessions
    gc.collect()
    assert process.taken_bytes == 0


def chain() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Exp", ["x"], ["a"]),
        helper.make_node("Softmax", ["a"], ["b"]),
        helper.make_node("Neg", ["b"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, "n"]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_memory_that_the_system_refuses_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(chain(), backend="numpy")
    x = np.ones((1, 8), np.float32)
    expected = session.run({"x": x})["y"]

    def refuse(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 15.0 GiB")

    monkeypatch.setattr("graph.run.prepared.np.empty", refuse)
    with pytest.raises(
        OutOfMemoryError, match=r"^g \(allocation of the outputs\): the system has no more .* 15.0 GiB; try again"
    ):
        session.run({"x": x})
    monkeypatch.undo()
    np.testing.assert_array_equal(session.run({"x": x})["y"], expected)
    monkeypatch.setattr("graph.run.prepared.aligned_empty", refuse)
    with pytest.raises(OutOfMemoryError, match=r"^g: preparing it: the system has no more"):
        session.run({"x": np.ones((1, 9), np.float32)})
    monkeypatch.undo()
    assert session.run({"x": np.ones((1, 9), np.float32)})["y"].shape == (1, 9)


def test_random_inputs_are_refused_where_they_are_too_large() -> None:
    with pytest.raises(LimitError, match=r"^x: its random values take \d+ bytes"):
        random_feeds({"x": Spec((1 << 33,), np.dtype(np.float32))})


def test_a_run_may_take_what_is_not_planned() -> None:
    proto, feeds = DYNAMIC["Expand"]()
    session = Session(proto, backend="numpy", limits=SessionLimits(arena_bytes=LIMIT))
    executor = session.executor(feeds)
    assert executor.free_bytes == LIMIT - executor.needed_bytes
    assert ints(1).size == 1
