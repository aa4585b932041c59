"""Exports of whole architectures, from the folder that EDGEWISE_EXPORTS names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.exports import GOLDEN
from profiler.counting.counts import profile

FOLDER = os.environ.get("EDGEWISE_EXPORTS", "")

pytestmark = [
    pytest.mark.exports,
    pytest.mark.skipif(not FOLDER, reason="EDGEWISE_EXPORTS names no folder of exported models"),
]


@pytest.mark.parametrize("name", GOLDEN)
def test_export_is_counted_exactly(name):
    counted = profile(Path(FOLDER) / f"{name}.onnx")
    assert (counted.macs, counted.params, counted.initializer_elements) == GOLDEN[name]
    assert counted.coverage_percent == 100
    assert not counted.uncounted
