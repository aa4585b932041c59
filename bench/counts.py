"""The counts of the exported models against published integers: a profiler that is off by one fails here."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

import edgewise
from bench.models import exports_folder

# MACs and parameters: torchvision's and transformers' own figures, MACs recomputed from the layer lists
GOLDEN = {
    "mobilenet_v2": (300_774_272, 3_504_872),
    "mobilenet_v3_large": (216_589_760, 5_483_032),
    "resnet18": (1_814_073_344, 11_689_512),
    "resnet50": (4_089_184_256, 25_557_032),
    "squeezenet1_1": (349_151_936, 1_235_496),
    "efficientnet_b0": (385_814_752, 5_288_548),
    "vgg16": (15_470_264_320, 138_357_544),
    "vit_b_16": (17_563_828_224, 86_567_656),
    "bert_base_128": (11_173_625_856, 108_891_648),
}


def check_counts(names: list[str]) -> None:
    """Print MACs and parameters of every export; exit 1 where one differs."""
    table = Table(title="counts of the exports")
    for column in ("model", "MACs", "parameters", "as published"):
        table.add_column(column, justify="left" if column == "model" else "right")
    wrong = []
    for name in names:
        counted = edgewise.profile(exports_folder() / f"{name}.onnx")
        right = GOLDEN.get(name) in (None, (counted.macs, counted.params))
        wrong += [] if right else [name]
        table.add_row(name, f"{counted.macs:,}", f"{counted.params:,}", "yes" if right else "NO")
    Console(width=100).print(table)
    if wrong:
        sys.exit(f"bench: counts of {', '.join(wrong)} differ from the published ones")
