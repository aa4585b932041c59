from pathlib import Path

import pytest

from graph.native.engine import Native
from graph.passes.optimise import optimise
from graph.shapes import bind
from kernels.native.code import farm
from kernels.native.code.cache import CodeCache, entry_key
from scheduler import warming


@pytest.mark.parametrize("graph", [*warming.common_graphs()], ids=lambda graph: graph.name)
def test_a_common_network_runs_natively_and_reads_no_weights(graph) -> None:
    ready = optimise(graph, bind(graph))
    assert Native(cache=None).refusals(ready.graph, ready.specs) == {}
    assert sum(array.nbytes for array in ready.graph.constants.values() if not array.strides.count(0)) < 100_000


def test_kernels_are_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = [graph for graph in warming.common_graphs() if graph.name == "text-encoder"]
    monkeypatch.setattr(warming, "common_graphs", lambda: iter(graphs))
    native, told = Native(cache=CodeCache(tmp_path / "code")), []
    kernels = warming.warm(native, 2, lambda ready, total: told.append((ready, total)))
    assert kernels > 3
    assert told[-1] == (kernels, kernels)
    sources = warming.common_kernels(native, 2).values()
    assert all(native.cache.get(entry_key(source, native.isa)) is not None for source in sources)
    monkeypatch.setattr(farm, "generate", None)  # nothing is left to compile
    assert warming.warm(native, 2, lambda ready, total: None) == kernels
