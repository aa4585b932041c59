"""Counting a model takes work in proportion to its nodes, whatever form it has."""

import pytest

from graph import placement
from graph.formats.registry import read
from profiler.counting.counts import profile
from tests.graph.large_models import FORMS
from tests.graph.test_growth import Form, name
from tests.growth import steep_lines


@pytest.mark.parametrize("form", FORMS, ids=name)
def test_counting_is_linear(form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "_COMPARED_BLOCKS", 8)
    models = {n: read(form(n)) for n in (30, 120)}
    assert steep_lines(lambda n: profile(models[n]), 30) == []
