"""A segment's storages that are held at the same time do not overlap and fit the arena, on every described machine."""

from __future__ import annotations

import itertools

import pytest

from graph.formats.registry import read
from graph.native.arena import Arena, lay_out
from graph.native.engine import Native
from graph.passes.optimise import optimise
from graph.shapes import bind
from kernels.native.target.isa import Isa
from tests.graph.native.nets import image, weights
from tests.graph.oracle import make, node
from tests.profiler.models import small_convnet


def arena_of(proto, machine: Isa, dims: dict[str, int] | None = None) -> tuple[Arena, tuple[str, ...]]:
    """Return the arena of a model's only segment, and the ops of its nodes."""
    ready = optimise(graph := read(proto).graph, bind(graph, dims=dims))
    native = Native(machine, cache=None)
    ((part, lowering),) = native._lowered(ready.graph, ready.specs, 2, {})
    return lay_out(lowering.calls, len(part.nodes)), tuple(n.op for n in part.nodes)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_what_a_node_holds_never_overlaps_and_fits(machine, batch):
    arena, nodes = arena_of(small_convnet(), machine, {"batch": batch})
    assert arena.held
    for at in range(len(nodes)):
        held = sorted((h.offset_bytes, h.offset_bytes + h.nbytes) for h in arena.held if h.first <= at <= h.last)
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(held))
        assert max((end for _, end in held), default=0) <= arena.nbytes


def test_a_node_that_copies_before_it_computes_holds_what_its_fullest_call_finds(machine):
    """The strided convolution first copies the pixels that it reads. The memory of the original is then free for its result."""
    nodes = [node("Conv", ["x", "w0"], ["a"]), node("Conv", ["a", "w1"], ["b"], strides=[2, 2]), node("Relu", ["b"], ["c"]),
             node("Conv", ["c", "w2"], ["y"])]  # fmt: skip
    constants = [weights("w0", 64, 3, 1, 1), weights("w1", 64, 64, 1, 1), weights("w2", 5, 64, 1, 1)]
    arena, ops = arena_of(make(nodes, ["y"], constants, image(1, 3, 16, 16)), machine)
    assert ops == ("Conv", "Conv", "Conv")
    large, small = 4 * 64 * 16 * 16, 4 * 64 * 8 * 8
    held = [{h.name: h.nbytes for h in arena.held if h.first <= at <= h.last} for at in range(2)]
    assert held == [{"a": large}, {"a": large, "a/picked": small}]
    assert arena.nbytes == large + small
