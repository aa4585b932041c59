"""The time that a product will take on a GPU, estimated, to rank the ways to compute it before any is measured."""

from __future__ import annotations

from kernels.cuda.driver import Attribute, Device
from kernels.cuda.families.problem import Cut
from kernels.cuda.families.product_work import Precision

# Of an H200 (docs/cuda.md): the highest measured rate of a processor, FLOP/ns, by mma.sync or multiply-adds, and by wgmma.
_RATES: dict[tuple[Precision, bool], float] = {
    ("fp32", False): 500,
    ("tf32", False): 2470,
    ("tf32", True): 3570,
    ("bf16", False): 4900,
    ("bf16", True): 6800,
    ("fp16", False): 4800,
    ("fp16", True): 6400,
}
_STEP_NS = 190.0  # of a step of the depth in a small tile, which waits for copies
_BYTES_PER_NS = 80.0  # that a processor copies from L2
_MEETING_NS = {1: 0.0, 2: 1600.0, 3: 2000.0, 4: 2500.0}  # of slices that meet
_MORE_MEETING_NS = 250.0  # of each slice more
_TEAMS_NS = 400.0  # of teams that add up their sums
_CLUSTER_NS = 600.0  # of blocks of a cluster that do so
_ENDS_NS = 1500.0  # of a launch, the first copies and the results


def estimated_ns(cut: Cut, device: Device) -> float:
    """Return the nanoseconds that a product cut into chunks will take, weights and images in L2."""
    tile, form = cut.form.tile, cut.form
    flops = 2 * tile.rows * tile.columns * 128 // form.item_bytes
    busy = flops / _RATES[form.precision, form.groups], (tile.rows + tile.columns) * 128 / _BYTES_PER_NS
    step = max(_STEP_NS, *(tile.deep * each for each in busy))
    steps = -(-cut.steps // (cut.slices * tile.deep))
    processors = device.attribute(Attribute.PROCESSORS)
    beside = max(1, min(device.attribute(Attribute.SHARED_BYTES_PER_BLOCK) // tile.shared_bytes, 2048 // tile.threads))
    waves = -(-cut.chunks // processors)
    alone = min(waves, beside)
    together = max(step, alone * tile.deep * max(busy))  # of the steps of blocks that a processor works on at once
    meeting = _TEAMS_NS if tile.deep > 1 else 0.0
    if cut.meets:
        meeting = _MEETING_NS.get(cut.slices, _MEETING_NS[4] + (cut.slices - 4) * _MORE_MEETING_NS)
    elif form.cluster > 1:
        meeting += _CLUSTER_NS
    return _ENDS_NS + -(-waves // alone) * steps * together + meeting
