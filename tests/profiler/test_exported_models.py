"""Exports of whole architectures, from the folder that EDGEWISE_EXPORTS names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from profiler.counts import profile

FOLDER = os.environ.get("EDGEWISE_EXPORTS", "")
GOLDEN = {
    "mobilenet_v2": (300_774_272, 3_504_872, 3_487_816),
    "mobilenet_v3_large": (216_589_760, 5_483_032, 5_468_520),
    "resnet18": (1_814_073_344, 11_689_512, 11_684_712),
    "resnet50": (4_089_184_256, 25_557_032, 25_530_472),
    "squeezenet1_1": (349_151_936, 1_235_496, 1_233_288),
    "efficientnet_b0": (385_814_752, 5_288_548, 5_261_140),
    "vgg16": (15_470_264_320, 138_357_544, 138_350_184),
    "vit_b_16": (17_563_828_224, 86_567_656, 86_495_464),
    "bert_base_128": (11_173_625_856, 108_891_648, 108_774_912),
}

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
