"""Exports of whole architectures run natively from their first node to their last, in one segment."""

import os
from pathlib import Path

import pytest

from bench.exports import EXPORTS
from graph.formats.registry import read
from graph.ir import SEGMENT
from graph.passes.optimise import optimise
from graph.shapes import bind
from tests.graph.oracle import NATIVE

FOLDER = os.environ.get("EDGEWISE_EXPORTS", "")
IN_NUMPY: dict[str, set[str]] = {}  # by export, the ops that run in numpy; an export that is not listed has none

pytestmark = [
    pytest.mark.exports,
    pytest.mark.skipif(not FOLDER, reason="EDGEWISE_EXPORTS names no folder of exported models"),
]


@pytest.mark.parametrize("name", EXPORTS)
def test_export_is_one_segment(name: str) -> None:
    graph = read(Path(FOLDER) / f"{name}.onnx").graph
    shapes = {port.name: tuple(dim if isinstance(dim, int) else 1 for dim in port.dims or ()) for port in graph.inputs}
    ready = optimise(graph, bind(graph, shapes))
    rest, parts = NATIVE.parts(ready.graph, ready.specs, {})
    assert {node.op for node in rest.nodes if node.op != SEGMENT} == IN_NUMPY.get(name, set())
    assert len(parts) == 1
