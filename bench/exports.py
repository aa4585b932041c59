"""The exported architectures that benchmarks and tests use, and the exact counts that each must have."""

from __future__ import annotations

from typing import NamedTuple


class Golden(NamedTuple):
    """Published counts at batch 1. macs: recomputed from the layer lists. initializer_elements: numbers that the file stores."""

    macs: int
    params: int
    initializer_elements: int


GOLDEN = {
    "mobilenet_v2": Golden(300_774_272, 3_504_872, 3_487_816),
    "mobilenet_v3_large": Golden(216_589_760, 5_483_032, 5_468_520),
    "resnet18": Golden(1_814_073_344, 11_689_512, 11_684_712),
    "resnet50": Golden(4_089_184_256, 25_557_032, 25_530_472),
    "squeezenet1_1": Golden(349_151_936, 1_235_496, 1_233_288),
    "efficientnet_b0": Golden(385_814_752, 5_288_548, 5_261_140),
    "vgg16": Golden(15_470_264_320, 138_357_544, 138_350_184),
    "vit_b_16": Golden(17_563_828_224, 86_567_656, 86_495_464),
    "bert_base_128": Golden(11_173_625_856, 108_891_648, 108_774_912),
}
EXPORTS = tuple(GOLDEN)
