"""Models with resizes and moves by indices are lowered once, and the same lowering serves other sizes of their inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from graph.budget import RunBudget
from graph.formats.registry import read
from graph.native.engine import Native
from graph.passes.optimise import optimise
from graph.run.executor import Executor
from graph.run.lowered import LoweredGraph
from graph.shapes import bind, propagate
from graph.symbols import SymbolicInputs
from kernels.native.target.isa import Isa
from kernels.spec import Array
from tests.graph.native.nets import weights
from tests.graph.native.test_values import code
from tests.graph.oracle import assert_agrees, constant, ints, make, node, port
from tests.kernels.native.conftest import HOST_ISAS

Feeds = Mapping[str, Array]
Dims = Mapping[str, list[Any]]  # of each input; a name is a size that varies


def normal(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def indices(size: int, *shape: int) -> Array:
    return np.random.default_rng(1).integers(-size, size, shape)


def image(sizes: Mapping[str, int]) -> Feeds:
    return {"x": normal(sizes["n"], 3, sizes["h"], sizes["w"])}


def resized(**attrs: Any) -> tuple[list[Any], list[Any]]:
    """Return nodes and constants of a resize of an image in blocks to twice its height and three times its width."""
    nodes = [node("Conv", ["x", "k"], ["c"]), node("Resize", ["c", "", "s"], ["y"], **attrs)]
    return nodes, [weights("k", 24, 3, 1, 1), constant("s", (1, 1, 2, 3))]


SIZES = {"n": (2, 3, 2), "h": (9, 5, 14), "w": (11, 20, 8), "a": (4, 7, 5), "b": (5, 3, 9), "c": (9, 17, 30)}
CASES: Mapping[str, tuple[Dims, Callable[[Mapping[str, int]], Feeds], tuple[list[Any], list[Any]]]] = {
    "nearest": ({"x": ["n", 3, "h", "w"]}, image, resized(mode="nearest")),
    "linear": ({"x": ["n", 3, "h", "w"]}, image, resized(mode="linear")),
    "cubic": ({"x": ["n", 3, "h", "w"]}, image, resized(mode="cubic", coordinate_transformation_mode="align_corners")),
    "resized to the size of another image": (
        {"x": ["n", 3, "h", "w"], "z": ["n", 24, "a", "b"]},
        lambda s: {**image(s), "z": normal(s["n"], 24, s["a"], s["b"])},
        ([node("Conv", ["x", "k"], ["c"]), node("Shape", ["z"], ["plane"], start=2), node("Shape", ["c"], ["outer"], end=2),
          node("Concat", ["outer", "plane"], ["sizes"], axis=0), node("Resize", ["c", "", "", "sizes"], ["r"], mode="linear"),
          node("Add", ["r", "z"], ["y"])], [weights("k", 24, 3, 1, 1)]),
    ),
    "joined channels": (
        {"x": ["n", 3, "h", "w"]}, image,
        ([node("Conv", ["x", "k"], ["c"]), node("Conv", ["x", "l"], ["d"]), node("Concat", ["c", "d"], ["e"], axis=1),
          node("Resize", ["e", "", "s"], ["y"])],
         [weights("k", 21, 3, 1, 1), weights("l", 9, 3, 1, 1), constant("s", (1, 1, 2, 2))]),
    ),
    "Gather": ({"i": ["a", "c"]}, lambda s: {"i": indices(50, s["a"], s["c"])},
               ([node("Gather", ["t", "i"], ["y"])], [weights("t", 50, 24)])),
    "GatherND": ({"x": ["a", "b", 24], "i": ["c", 2]},
                 lambda s: {"x": normal(s["a"], s["b"], 24), "i": indices(min(s["a"], s["b"]), s["c"], 2)},
                 ([node("GatherND", ["x", "i"], ["y"])], [])),
    "GatherElements": ({"x": ["a", "b"], "i": ["a", "c"]},
                       lambda s: {"x": normal(s["a"], s["b"]), "i": indices(s["b"], s["a"], s["c"])},
                       ([node("GatherElements", ["x", "i"], ["y"], axis=1)], [])),
    "ScatterND": ({"x": ["a", 24], "i": ["c", 1], "u": ["c", 24]},
                  lambda s: {"x": normal(s["a"], 24), "i": indices(s["a"], s["c"], 1), "u": normal(s["c"], 24)},
                  ([node("ScatterND", ["x", "i", "u"], ["y"], reduction="add")], [])),
    "ScatterElements": ({"x": ["a", "b"], "i": ["a", "c"], "u": ["a", "c"]},
                        lambda s: {"x": normal(s["a"], s["b"]), "i": indices(s["b"], s["a"], s["c"]),
                                   "u": normal(s["a"], s["c"])},
                        ([node("ScatterElements", ["x", "i", "u"], ["y"], axis=1)], [])),
    "CumSum": ({"x": ["a", "c", "h"]}, lambda s: {"x": normal(s["a"], s["c"], s["h"])},
               ([node("CumSum", ["x", "axis"], ["y"])], [constant("axis", 1, np.int64)])),
    "TopK": ({"x": ["a", "c"]}, lambda s: {"x": normal(s["a"], s["c"])},
             ([node("TopK", ["x", "k"], ["y", "i"])], [ints("k", 5)])),
}  # fmt: skip


@pytest.mark.parametrize("isa", HOST_ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("name", CASES)
def test_one_lowering_serves_other_sizes(name: str, isa: Isa) -> None:
    dims, make_feeds, (nodes, constants) = CASES[name]
    every = [make_feeds({dim: sizes[at] for dim, sizes in SIZES.items()}) for at in range(3)]
    ports = [port(value, dims[value], code(array.dtype)) for value, array in every[0].items()]
    graph = read(make(nodes, list(nodes[-1].output)[:1], constants, ports, opset=21)).graph
    varied = frozenset((value, axis) for value, sizes in dims.items() for axis, size in enumerate(sizes) if isinstance(size, str))
    shapes = [{value: array.shape for value, array in feeds.items()} for feeds in every]
    inputs = SymbolicInputs.of(graph.inputs, shapes[0], varied)
    ready = optimise(graph, inputs.specs)
    lowered = LoweredGraph(ready.graph, ready.specs, {}, 2, Native(isa, cache=None), RunBudget(), inputs.scope)
    for feeds, shape in zip(every, shapes, strict=True):
        executor = Executor.of(lowered, lowered.sizes(inputs.values(shape)), RunBudget())
        wanted = Executor(graph, propagate(graph, bind(graph, shape))).run(feeds)
        assert {step.algorithm.partition("/")[0] for step in executor.steps} <= {"native", "view"}
        assert_agrees(executor.run(feeds), wanted)
