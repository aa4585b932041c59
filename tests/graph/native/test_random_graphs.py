"""Random small graphs run natively on every instruction set, as in numpy at float64 and in ONNX Runtime.

A failing test says its graph. `EDGEWISE_TEST_SEEDS=1000:2000` runs other seeds than the few of the suite.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import onnx
import pytest

from graph.choice import Choice
from graph.formats.registry import read
from graph.ir import Graph, Node, Specs
from graph.native.engine import Native
from graph.passes.optimise import Optimised, optimise
from graph.run.executor import Executor
from graph.shapes import bind
from kernels.native.code.cache import CodeCache
from kernels.native.target.isa import Isa
from kernels.spec import Array
from tests.graph.interpreter import interpret
from tests.graph.native.emulated import run_call_by_call
from tests.graph.native.random_build import RandomGraph
from tests.graph.native.random_graphs import random_graph
from tests.graph.oracle import assert_agrees, build, expected, poison
from tests.kernels.native.conftest import EMULATED_ISAS, HOST_ISAS, needs_emulator

FIRST, _, END = os.environ.get("EDGEWISE_TEST_SEEDS", "0:40").partition(":")
SEEDS = range(int(FIRST), int(END))
TOLERANCE = 1e-4  # of the largest number: Winograd's sums are the least exact
FLOAT_CODE, DOUBLE_CODE = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE


def in_float64(graph: Graph, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """What a graph computes where every float32 is a float64."""

    def wide(array: Array) -> Array:
        return array.astype(np.float64) if array.dtype == np.float32 else array

    def cast(node: Node) -> Node:
        return replace(node, attrs={**node.attrs, "to": DOUBLE_CODE}) if node.attrs.get("to") == FLOAT_CODE else node

    constants = {name: wide(array) for name, array in graph.constants.items()}
    widened = replace(graph, constants=constants, nodes=tuple(cast(node) for node in graph.nodes))
    made = interpret(widened, {name: wide(array) for name, array in feeds.items()})
    return {name: array.astype(np.float32) for name, array in made.items()}


@contextmanager
def shown(made: RandomGraph) -> Iterator[None]:
    """Add the graph to what an error says."""
    try:
        yield
    except Exception as error:
        error.add_note(str(made))
        raise


def made_ready(made: RandomGraph) -> tuple[Optimised, dict[str, Array]]:
    """The optimised graph, and what it is to answer: at float64, which numpy and ONNX Runtime agree with."""
    graph, feeds = read(made.proto).graph, dict(made.feeds)
    wanted = in_float64(graph, feeds)
    assert_agrees(expected(made.proto, feeds), wanted, TOLERANCE)
    shapes = {name: array.shape for name, array in feeds.items()}
    assert_agrees(build(made.proto, shapes).run(feeds), wanted, TOLERANCE)
    return optimise(graph, bind(graph, shapes)), wanted


def some_choices(native: Native, graph: Graph, specs: Specs, rng: np.random.Generator) -> dict[str, Choice]:
    """One of its candidates for every second native node."""
    refused, chosen = native.refusals(graph, specs), dict[str, Choice]()
    for node in graph.nodes:
        if node.name not in refused and rng.integers(2):
            candidates = native.candidates(node, graph, specs, 2)
            chosen[node.name] = candidates[int(rng.integers(len(candidates)))]
    return chosen


@pytest.fixture(scope="module")
def cache() -> CodeCache | None:
    """Compiled code that the processes of a session share, and later sessions: many graphs have the same kernels."""
    return CodeCache.default()


@pytest.mark.parametrize("isa", HOST_ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("seed", SEEDS)
def test_random_graph_runs_natively_as_at_float64(isa: Isa, seed: int, cache: CodeCache | None) -> None:
    """Over poisoned memory, with any of the candidates, and with the same bits again on another number of threads."""
    made = random_graph(seed, isa.lanes)
    with shown(made):
        ready, wanted = made_ready(made)
        native = Native(isa, cache=cache)
        choices = some_choices(native, ready.graph, ready.specs, np.random.default_rng(seed))
        one, two = (Executor(ready.graph, ready.specs, choices, threads=threads, backend=native) for threads in (1, 2))
        for executor in (one, two):
            poison(executor)
        first = one.run(made.feeds)
        assert_agrees(first, wanted, TOLERANCE)
        assert_agrees(two.run(made.feeds), first, tolerance=0)


@needs_emulator
@pytest.mark.parametrize("isa", EMULATED_ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("seed", SEEDS)
def test_random_graph_runs_in_the_emulator_as_at_float64(isa: Isa, seed: int) -> None:
    made = random_graph(seed, isa.lanes)
    with shown(made):
        ready, wanted = made_ready(made)
        choices = some_choices(Native(isa, cache=None), ready.graph, ready.specs, np.random.default_rng(seed))
        assert_agrees(run_call_by_call(ready.graph, ready.specs, isa, choices, made.feeds), wanted, TOLERANCE)


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_the_graphs_of_a_seed_are_the_same_each_time(lanes: int) -> None:
    again = [random_graph(7, lanes) for _ in range(2)]
    assert again[0].proto.SerializeToString() == again[1].proto.SerializeToString()
    assert str(again[0]) == str(again[1])
