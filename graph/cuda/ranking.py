"""The time that a product will take on a GPU, estimated, to rank the ways to compute it before any is measured.

The constants are fitted to 3,483 timings of the products and convolutions of five exports at batch 1, in bf16 and tf32, on an
H200 (2026-12-01): the estimates are 19 % off (root mean square of logarithms), and the way that they rank first takes 1.05 times
as long as the fastest (geometric mean of 140 problems; at most 1.41 times).
"""

from __future__ import annotations

from kernels.cuda.driver import Attribute, Device
from kernels.cuda.emit.unit import ROW_BYTES
from kernels.cuda.families.problem import Cut
from kernels.cuda.families.product_work import Precision

# The highest measured rate of a processor, FLOP/ns, by mma.sync or multiply-adds, and by wgmma (docs/cuda.md).
_RATES: dict[tuple[Precision, bool], float] = {
    ("fp32", False): 500,
    ("tf32", False): 2470,
    ("tf32", True): 3570,
    ("bf16", False): 4900,
    ("bf16", True): 6800,
    ("fp16", False): 4800,
    ("fp16", True): 6400,
}
_OFF_PEAK = 2.6  # times as long as at that rate, in tiles that are copied by their own threads
_BYTES_PER_NS = 128.0  # that a processor copies from L2
_STEP_NS, _STEP_TILE_NS = 300.0, 65.0  # of a step of the depth that waits for copies, and for each 64×64 results of its tile
_GROUPS = 0.83  # of that time, where wgmma multiplies
_SHARING = 0.5  # longer, with each block more that a processor works on at once
_SLICES_NS, _SLICE_NS = 1970.0, 370.0  # of two slices that meet in memory, and of each more
_CLUSTER_NS, _BLOCK_NS = 630.0, 230.0  # of blocks of a cluster that add up their sums, and of each but the first
_TEAMS_NS, _TEAM_TILE_NS = 380.0, 59.0  # of teams that do so, and for each 64×64 sums of each
_ENDS_NS, _ENDS_TILE_NS = 1280.0, 440.0  # of a launch with its first copies, and of each 64×64 results
_BLOCKS_OF_132 = {1: 132, 2: 132, 4: 120, 8: 112}  # by blocks of a cluster, how many run at once: they lie in one part of the GPU


def estimated_ns(cut: Cut, device: Device) -> float:
    """Return the nanoseconds that a product cut into chunks will take, weights and images in L2."""
    tile, form = cut.form.tile, cut.form
    size = tile.rows * tile.columns / 4096
    flops = 2 * tile.rows * tile.columns * ROW_BYTES // form.item_bytes
    busy = max(flops / _RATES[form.precision, form.groups] * _OFF_PEAK, (tile.rows + tile.columns) * ROW_BYTES / _BYTES_PER_NS)
    step = max(_STEP_NS * (_GROUPS if form.groups else 1.0) + _STEP_TILE_NS * size, tile.deep * busy)
    at_once = device.attribute(Attribute.PROCESSORS) * _BLOCKS_OF_132[form.cluster] // 132
    room = device.attribute(Attribute.SHARED_BYTES_PER_BLOCK) // tile.shared_bytes
    waves = -(-cut.chunks // at_once)
    beside = min(waves, max(1, min(room, 2048 // tile.threads)))  # blocks that a processor works on at once
    turns = -(-waves // beside)
    together = max(step, beside * tile.deep * busy) * (1 + _SHARING * (beside - 1))
    ends = _ENDS_NS + _ENDS_TILE_NS * size / (tile.deep * form.cluster)
    steps = -(-cut.steps // (cut.slices * tile.deep))
    return turns * (ends + steps * together) + _meeting_ns(cut, size)


def _meeting_ns(cut: Cut, size: float) -> float:
    """Return the nanoseconds in which slices, teams and blocks add up. size: of a tile, in 64×64 results."""
    form, taken = cut.form, 0.0
    if form.cluster > 1:
        taken += _CLUSTER_NS + _BLOCK_NS * (form.cluster - 1)
    elif cut.slices > 1:
        taken += _SLICES_NS + _SLICE_NS * (cut.slices - 2)
    if form.tile.deep > 1:
        taken += _TEAMS_NS + _TEAM_TILE_NS * form.tile.deep * size
    return taken
