"""Reading and rewriting a model end at once when the check says so, also inside bodies of control flow."""

from collections.abc import Callable

import pytest

from graph.errors import LoadStoppedError
from graph.formats.registry import read
from graph.passes.optimise import optimise
from graph.shapes import bind, propagate
from tests.graph.large_models import branches, chain, constants


class Stopping:
    """A check that raises at its n-th call."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise LoadStoppedError("stopped")
        assert self.left > 0, "it went on after it was stopped"


def calls(work: Callable[[Callable[[], None]], object]) -> int:
    """How often some work calls its check."""
    counted: list[None] = []
    work(lambda: counted.append(None))
    return len(counted)


def test_reading_stops_at_any_node() -> None:
    data = chain(50).SerializeToString()
    total = calls(lambda check: read(data, check=check))
    assert total >= 50
    for at in (1, 2, 3, 25, total):
        with pytest.raises(LoadStoppedError):
            read(data, check=Stopping(at))


def test_reading_stops_inside_bodies() -> None:
    data = branches(10).SerializeToString()
    assert calls(lambda check: read(data, check=check)) >= 30  # the Ifs, and a node in each of their branches


def test_inferring_stops_inside_bodies() -> None:
    graph = read(branches(10)).graph
    total = calls(lambda check: propagate(graph, bind(graph), check=check))
    assert total == 30
    for at in range(1, total + 1):
        with pytest.raises(LoadStoppedError):
            propagate(graph, bind(graph), check=Stopping(at))


def test_optimising_stops_between_passes_and_nodes() -> None:
    graph = read(constants(20)).graph
    total = calls(lambda check: optimise(graph, bind(graph), check))
    assert total > 2 * 20  # inferred and folded
    for at in range(1, total + 1):
        with pytest.raises(LoadStoppedError):
            optimise(graph, bind(graph), Stopping(at))
