"""Float32 copies of constants in half precision: dropped once native code holds packed weights, and shared between shapes."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest

from graph.native.engine import find_native
from graph.wide import half_of, standing_for, widened
from kernels.half import is_half
from scheduler.session import Session, SessionLimits
from tests.graph.halves import BF16, DTYPES, F16, in_half
from tests.graph.oracle import constant, make, node, port

EACH = pytest.mark.parametrize("code", [F16, BF16], ids=["f16", "bf16"])
WIDTH, LAYERS = 512, 6
PACKED_BYTES = 4 * LAYERS * WIDTH * WIDTH
pytestmark = pytest.mark.skipif(find_native("auto") is None, reason="no native backend here")


def products() -> onnx.ModelProto:
    """Products with large weights, one after the other; the number of rows is open."""
    rng = np.random.default_rng(0)
    weights = [constant(f"w{n}", rng.standard_normal((WIDTH, WIDTH)) / 20) for n in range(LAYERS)]
    names = ["x", *(f"v{n}" for n in range(LAYERS - 1)), "y"]
    nodes = [node("MatMul", [names[n], f"w{n}"], [names[n + 1]], f"n{n}") for n in range(LAYERS)]
    return make(nodes, ["y"], weights, [port("x", ["rows", WIDTH])])


@EACH
def test_copy_is_exact_and_knows_its_half(code) -> None:
    half = np.linspace(-3, 3, 50).astype(DTYPES[code])
    copy = widened(half)
    assert copy.dtype == np.float32
    assert half_of(copy) is half
    np.testing.assert_array_equal(copy, half.astype(np.float32))
    same = half.copy()
    assert half_of(standing_for(copy, same)) is same
    for other in (copy[1:], copy + 0, copy.reshape(5, 10), np.asarray(copy), half):
        assert half_of(other) is None


@EACH
def test_copies_are_dropped_when_weights_are_packed(code, tmp_path: Path) -> None:
    onnx.save(in_half(products(), code), tmp_path / "m.onnx")
    session = Session(tmp_path / "m.onnx", backend="native", threads=1)
    feeds = [{"x": np.ones((rows, WIDTH), DTYPES[code])} for rows in (1, 2, 3)]
    session.executor({"x": np.ones((1, WIDTH), DTYPES[code])})  # loads what native code needs
    session = Session(tmp_path / "m.onnx", backend="native", threads=1)
    tracemalloc.start()
    try:
        for each in feeds:
            session.run(each)
        kept_bytes, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert PACKED_BYTES <= kept_bytes < 1.3 * PACKED_BYTES
    assert peak_bytes < 2.5 * PACKED_BYTES
    executors = [session.executor(each) for each in feeds]
    assert all(is_half(each.graph.constants[f"w{n}/single"].dtype) for each in executors for n in range(LAYERS))
    assert len({id(packed) for each in executors for packed in each.packed if packed.array.size > WIDTH}) == LAYERS


@EACH
def test_copies_that_numpy_reads_stay_and_are_shared(code) -> None:
    nodes = [node("MatMul", ["x", "w"], ["s"]), node("Einsum", ["s", "w"], ["y"], equation="ij,kk->i")]
    proto = make(nodes, ["y"], [constant("w", np.eye(64))], [port("x", ["rows", 64])])
    session = Session(in_half(proto, code), backend="native", threads=1)
    executors = [session.executor({"x": np.ones((rows, 64), DTYPES[code])}) for rows in (5, 1)]
    assert {step.node.op for step in executors[0].steps if not step.algorithm.startswith("native")} == {"Einsum"}
    copies = [each.graph.constants["w/single"] for each in executors]
    assert copies[0] is copies[1]
    assert half_of(copies[0]) is not None
    for rows in (5, 1):
        assert (session.run({"x": np.ones((rows, 64), DTYPES[code])})["y"] == 64 * 64).all()


@EACH
def test_parameters_keep_their_values(code) -> None:
    """Shapes follow from them, which a report of the steps asks for again."""
    nodes = [node("Resize", ["x", "", "scales"], ["y"])]
    proto = in_half(make(nodes, ["y"], [constant("scales", [1, 1, 2, 1.5])], [port("x", [1, 2, 3, 4])]), code)
    executor = Session(proto, backend="native", threads=1).executor({"x": np.ones((1, 2, 3, 4), DTYPES[code])})
    assert "Resize" in {step.node.op for step in executor.steps}
    np.testing.assert_array_equal(executor.specs["scales/single"].value, np.array([1, 1, 2, 1.5], np.float32))


@EACH
def test_room_for_copies_is_needed_while_weights_are_packed(code) -> None:
    halved = in_half(products(), code)
    limits = SessionLimits(arena_bytes=PACKED_BYTES + (1 << 20))
    session = Session(halved, backend="native", threads=1, limits=limits)
    session.run({"x": np.ones((1, WIDTH), DTYPES[code])})
    assert session.memory_bytes < session.model.nbytes + PACKED_BYTES + (1 << 20)
