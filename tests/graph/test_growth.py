"""Work on a model grows in proportion to its nodes, whatever form it has."""

import time
from collections.abc import Callable
from functools import partial

import onnx
import pytest

from graph import placement
from graph.formats.registry import read
from graph.ir import Model
from graph.native.arena import lay_out
from graph.native.barriers import with_barriers
from graph.native.place import Storage
from graph.passes import editor, epilogues
from graph.passes.optimise import optimise
from graph.run.prepared import PreparedGraph
from graph.shapes import bind, propagate
from kernels.native.run.program import Ref
from tests.graph.large_models import FORMS, branches, equal_names
from tests.graph.oracle import NATIVE
from tests.growth import steep_lines

Form = Callable[[int], onnx.ModelProto]


def name(form: Form) -> str:
    return form.func.__name__ + "_of_" + "_".join(form.keywords["ops"]) if isinstance(form, partial) else form.__name__


every_form = pytest.mark.parametrize("form", FORMS, ids=name)


@pytest.fixture(autouse=True)
def low_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Constants that bound work for each node, lowered so that small models reach them."""
    monkeypatch.setattr(editor, "MAX_ORIGINS", 4)
    monkeypatch.setattr(epilogues, "MAX_FUSED", 4)
    monkeypatch.setattr(placement, "_COMPARED_BLOCKS", 8)


class Models:
    """Models of a form by size, read once: what is counted is the work on them."""

    def __init__(self, form: Form) -> None:
        self._form = form
        self._models: dict[int, Model] = {}

    def __call__(self, n: int) -> Model:
        if n not in self._models:
            self._models[n] = read(self._form(n))
        return self._models[n]


@every_form
def test_reading_is_linear(form: Form) -> None:
    protos = {n: form(n).SerializeToString() for n in (30, 120)}
    assert steep_lines(lambda n: read(protos[n]), 30) == []


@every_form
def test_optimising_is_linear(form: Form) -> None:
    models = Models(form)
    models(30), models(120)
    assert steep_lines(lambda n: optimise(models(n).graph, bind(models(n).graph), native=True), 30) == []


@every_form
def test_preparing_in_numpy_is_linear(form: Form) -> None:
    models = Models(form)
    bound = {n: (models(n).graph, propagate(models(n).graph, bind(models(n).graph))) for n in (30, 120)}
    assert steep_lines(lambda n: PreparedGraph(*bound[n]), 30) == []


@pytest.mark.skipif(NATIVE is None, reason="no instruction set for native code")
@every_form
def test_lowering_is_linear(form: Form) -> None:
    """All that is done for segments but compiling them."""
    models = Models(form)
    ready = {n: optimise(models(n).graph, bind(models(n).graph), native=True) for n in (30, 120)}

    def lower(n: int) -> None:
        for part, lowering in NATIVE._lowered(ready[n].graph, ready[n].specs, 1, {}):
            arena = lay_out(lowering.calls, len(part.nodes))
            storages: dict[Storage, None] = {s: None for call in lowering.calls for s, _ in call.arguments.values()}
            slots = {s: Ref(at) if s not in arena.offsets else Ref(0, arena.offsets[s]) for at, s in enumerate(storages, 1)}
            with_barriers(list(lowering.calls), slots)
        NATIVE.kernels(ready[n].graph, ready[n].specs, 1, {})

    assert steep_lines(lower, 30) == []


def seconds(work: Callable[[], object]) -> float:
    """Processor time of the faster of two runs."""
    found = []
    for _ in range(2):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


@pytest.mark.parametrize(("form", "n"), [(equal_names, 2000), (branches, 700)], ids=["equal_names", "branches"])
def test_reading_a_large_file_takes_time_in_proportion(form: Form, n: int) -> None:
    """What loops in C take, such as copies of tables, shows at sizes like these alone."""
    few, many = form(n).SerializeToString(), form(4 * n).SerializeToString()
    assert seconds(lambda: read(many)) < 8 * max(seconds(lambda: read(few)), 0.02)


def test_inferring_many_branches_takes_time_in_proportion() -> None:
    few, many = read(branches(700)).graph, read(branches(2800)).graph
    assert seconds(lambda: propagate(many, bind(many))) < 8 * max(seconds(lambda: propagate(few, bind(few))), 0.02)
