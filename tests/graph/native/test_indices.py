"""Operators that pick and write elements by indices, inside of graphs and compared with numpy, which they equal bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph.formats.registry import read
from graph.native.engine import Native
from graph.run.executor import Executor
from graph.shapes import bind, propagate
from kernels.errors import IndexRangeError
from tests.graph.native.test_values import DTYPES, RELAXED, model, natively, values
from tests.graph.oracle import ints, node
from tests.kernels.native.conftest import HOST_ISAS

REDUCTIONS = ["none", "add", "mul", "max", "min"]


def draw_shape(data, low: int, high: int) -> list[int]:
    return data.draw(st.lists(st.integers(1, 6), min_size=low, max_size=high))


def turned(data, name: str, rank: int) -> tuple[list, str]:
    """Return two transpositions that cancel out, or none, and the name of their result: a value that is not row-major."""
    if not data.draw(st.booleans()):
        return [], name
    perm = data.draw(st.permutations(range(rank)))
    back = [perm.index(n) for n in range(rank)]
    return [node("Transpose", [name], ["t"], perm=perm), node("Transpose", ["t"], ["u"], perm=back)], "u"


def run(data, nodes, feeds, dtype) -> None:
    """Compare with numpy on any instruction set, and assert that an index outside is refused as in numpy."""
    proto = model(nodes, {"y": dtype}, [], feeds)
    natively(proto, feeds, data.draw(st.sampled_from(HOST_ISAS)))
    graph = read(proto).graph
    specs = propagate(graph, bind(graph))
    bad = feeds["i"].copy()
    bad.ravel()[data.draw(st.integers(0, bad.size - 1))] = data.draw(st.sampled_from([50, -50]))
    for executor in (Executor(graph, specs), Executor(graph, specs, threads=2, backend=Native(HOST_ISAS[0], cache=None))):
        with pytest.raises(IndexRangeError, match=r"index -?50 points outside an axis"):
            executor.run({**feeds, "i": bad})


@RELAXED
@given(data=st.data())
def test_rows_picked_by_tuples(data):
    rng, dtype = np.random.default_rng(data.draw(st.integers(0, 99))), data.draw(st.sampled_from(DTYPES))
    shape = draw_shape(data, 1, 4)
    batch = data.draw(st.integers(0, len(shape) - 1))
    depth = data.draw(st.integers(1, len(shape) - batch))
    count = (*shape[:batch], *draw_shape(data, 0, 2))
    kind = data.draw(st.sampled_from([np.int32, np.int64]))
    indices = np.stack([rng.integers(-size, size, count) for size in shape[batch : batch + depth]], -1).astype(kind)
    before, x = turned(data, "x", len(shape))
    feeds = {"x": values(rng, shape, dtype), "i": indices}
    run(data, [*before, node("GatherND", [x, "i"], ["y"], batch_dims=batch)], feeds, dtype)


@RELAXED
@given(data=st.data())
def test_elements_picked_one_by_one(data):
    rng, dtype = np.random.default_rng(data.draw(st.integers(0, 99))), data.draw(st.sampled_from(DTYPES))
    shape = draw_shape(data, 1, 4)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    picked = [data.draw(st.integers(1, size)) for size in shape]
    picked[axis] = data.draw(st.integers(1, 8))
    before, x = turned(data, "x", len(shape))
    indices = rng.integers(-shape[axis], shape[axis], picked).astype(data.draw(st.sampled_from([np.int32, np.int64])))
    feeds = {"x": values(rng, shape, dtype), "i": indices}
    run(data, [*before, node("GatherElements", [x, "i"], ["y"], axis=axis)], feeds, dtype)


@RELAXED
@given(data=st.data())
def test_elements_written_one_by_one(data):
    rng, dtype = np.random.default_rng(data.draw(st.integers(0, 99))), data.draw(st.sampled_from(DTYPES))
    reduction = "none" if dtype == np.bool_ else data.draw(st.sampled_from(REDUCTIONS))
    shape = draw_shape(data, 1, 4)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    written = [data.draw(st.integers(1, size)) for size in shape]
    written[axis] = data.draw(st.integers(1, 8))
    before, updates = turned(data, "v", len(shape))
    indices = rng.integers(-shape[axis], shape[axis], written).astype(data.draw(st.sampled_from([np.int32, np.int64])))
    feeds = {"x": values(rng, shape, dtype), "i": indices, "v": values(rng, written, dtype)}
    nodes = [*before, node("ScatterElements", ["x", "i", updates], ["y"], axis=axis, reduction=reduction)]
    run(data, nodes, feeds, dtype)


@RELAXED
@given(data=st.data())
def test_rows_written_by_tuples(data):
    rng, dtype = np.random.default_rng(data.draw(st.integers(0, 99))), data.draw(st.sampled_from(DTYPES))
    reduction = "none" if dtype == np.bool_ else data.draw(st.sampled_from(REDUCTIONS))
    shape = draw_shape(data, 1, 4)
    depth, count = data.draw(st.integers(1, len(shape))), tuple(draw_shape(data, 0, 2))
    kind = data.draw(st.sampled_from([np.int32, np.int64]))
    indices = np.stack([rng.integers(-size, size, count) for size in shape[:depth]], -1).astype(kind)
    before, x = turned(data, "x", len(shape))
    feeds = {"x": values(rng, shape, dtype), "i": indices, "v": values(rng, (*count, *shape[depth:]), dtype)}
    run(data, [*before, node("ScatterND", [x, "i", "v"], ["y"], reduction=reduction)], feeds, dtype)


@RELAXED
@given(data=st.data())
def test_largest_and_smallest_along_any_axis(data):
    rng, dtype = (
        np.random.default_rng(data.draw(st.integers(0, 99))),
        data.draw(st.sampled_from([np.float32, np.int8, np.uint32])),
    )
    shape = draw_shape(data, 1, 4)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    before, x = turned(data, "x", len(shape))
    largest = data.draw(st.integers(0, 1))
    nodes = [*before, node("TopK", [x, "k"], ["v", "i"], axis=axis, largest=largest), node("Add", ["v", "v"], ["y"])]
    feeds = {"x": values(rng, shape, dtype)}
    proto = model(nodes, {"y": dtype, "i": np.int64}, [ints("k", data.draw(st.integers(1, shape[axis])))], feeds)
    natively(proto, feeds, data.draw(st.sampled_from(HOST_ISAS)))


@pytest.mark.parametrize("isa", HOST_ISAS, ids=lambda isa: isa.name)
def test_a_scatter_waits_for_the_copy_that_it_writes_to(isa):
    """The copy is made by many chunks of several threads, the last of which the scatter writes over."""
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal((4000, 300)).astype(np.float32), "i": np.full((1, 1), 3999),
             "v": np.ones((1, 300), np.float32)}  # fmt: skip
    nodes = [node("ScatterND", ["x", "i", "v"], ["s"]), node("Relu", ["s"], ["y"])]
    for _ in range(5):
        natively(model(nodes, {"y": np.float32}, [], feeds), feeds, isa, threads=2)


@pytest.mark.parametrize("isa", HOST_ISAS, ids=lambda isa: isa.name)
def test_what_is_fused_behind_a_scatter_is_computed(isa):
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal((5, 7)).astype(np.float32), "i": rng.integers(-5, 5, (3, 7)),
             "v": rng.standard_normal((3, 7)).astype(np.float32)}  # fmt: skip
    nodes = [node("ScatterElements", ["x", "i", "v"], ["s"], reduction="add"), node("Mul", ["s", "x"], ["y"])]
    natively(model(nodes, {"y": np.float32}, [], feeds), feeds, isa)
