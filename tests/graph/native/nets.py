"""Make parts of small networks, and optimised graphs that tests lower."""

import numpy as np

from graph.formats.registry import read
from graph.passes.optimise import optimise
from graph.shapes import bind
from tests.graph.oracle import constant, port

RNG = np.random.default_rng(0)
_BEGINNING = RNG.bit_generator.state


def draw_anew() -> None:
    """Restart the random numbers, so that those of a test depend on no other test."""
    RNG.bit_generator.state = _BEGINNING


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def weights(name: str, *shape: int):
    return constant(name, normal(*shape) / np.sqrt(max(1, int(np.prod(shape[1:])))))


def image(*shape: int):
    return [port("x", list(shape))]


def graph_of(proto, feeds):
    graph = read(proto).graph
    ready = optimise(graph, bind(graph, {name: np.shape(array) for name, array in feeds.items()}))
    return ready.graph, ready.specs
