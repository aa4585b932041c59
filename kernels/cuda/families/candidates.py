"""The ways in which a GPU can compute a product, an attention, or an operator on rows or windows, for a contest among them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from kernels.cuda.driver import Attribute, Device
from kernels.cuda.emit.epilogue import STORAGES, UNCHANGED
from kernels.cuda.families.attention import AttentionForm, Mask
from kernels.cuda.families.attention_problem import Attention
from kernels.cuda.families.problem import Cut, Problem
from kernels.cuda.families.product import Form
from kernels.cuda.families.product_work import GROUP_UNITS, Precision, Tile
from kernels.cuda.families.rows import HELD, HELD_ELEMENTS, TEAMS, RowForm, Rows
from kernels.cuda.families.sliding import WAYS, WindowForm
from kernels.expression import Expression

# On an H200 the best of these with one team is within 1 % of the best of some 30 tiles, as a mean over shapes of resnet50,
# vit_b_16 and bert-base at batch 1 and 32, for every precision; the order is by how much each adds (2026-11-30).
# Several teams are for deep products of few tiles.
GROUP_TILES = (
    Tile(64, 64, 4, 1, 4),
    Tile(128, 128, 8, 1, 3),
    Tile(64, 32, 4, 1, 8),
    Tile(64, 128, 4, 1, 3),
    Tile(128, 64, 8, 1, 4),
    Tile(128, 192, 8, 1, 4),
    Tile(64, 32, 4, 1, 4, 4),
    Tile(64, 64, 4, 1, 3, 4),
    Tile(64, 64, 4, 1, 4, 2),
    Tile(128, 64, 8, 1, 3, 2),
    Tile(64, 128, 4, 1, 4, 2),
    Tile(64, 96, 4, 1, 4),
    Tile(64, 96, 4, 1, 4, 2),
    Tile(64, 80, 4, 1, 4),
)
TENSOR_TILES = (
    Tile(64, 64, 2, 2, 4),
    Tile(256, 128, 4, 2, 3),
    Tile(32, 64, 2, 2, 6),
    Tile(128, 64, 2, 2, 4),
    Tile(128, 128, 2, 2, 3),
    Tile(32, 64, 2, 2, 4, 4),
    Tile(32, 32, 2, 2, 4, 4),
    Tile(64, 64, 2, 2, 3, 4),
    Tile(64, 64, 2, 2, 4, 2),
    Tile(32, 64, 2, 2, 4, 2),
)
FMA_TILES = (
    Tile(64, 64, 2, 2, 4),
    Tile(128, 128, 4, 2, 3),
    Tile(64, 64, 4, 2, 4),
    Tile(64, 32, 2, 1, 4),
    Tile(32, 32, 2, 1, 6),
)
MOST_VALUES = 160  # of a thread in an attention: with more, registers spill
CLUSTERS = (2, 4, 8)
KEY_TEAMS = (2, 4)  # of an attention; in a causal one the tiles that teams take are not alike
MOST_THREADS = 512  # of a block with several teams in an attention
SLICES = (1, 2, 3, 4, 6, 8, 12, 16)


def candidates(
    precision: Precision,
    problem: Problem,
    device: Device,
    *,
    bias: bool = False,
    expression: Expression = UNCHANGED,
    early: bool = False,
) -> Iterator[Cut]:
    """Yield every tile that the GPU has room for; where its tiles leave processors idle, also with the depth cut into slices, or
    shared by a cluster where a tile has several teams.

    early: whether no launch before writes w.
    """
    processors, room = device.attribute(Attribute.PROCESSORS), device.attribute(Attribute.SHARED_BYTES_PER_BLOCK)
    windows, copy_bytes, whole = problem.window is not None, problem.copy_bytes(precision), problem.whole(precision)
    tiles = [(tile, False) for tile in (FMA_TILES if precision == "fp32" else TENSOR_TILES)]
    if precision in GROUP_UNITS and device.capability == (9, 0):
        tiles += [(tile, True) for tile in GROUP_TILES]
    for tile, groups in tiles:
        if tile.shared_bytes > room:
            continue
        form = Form(precision, tile, windows, copy_bytes, whole, bias, expression, groups, problem.batch is not None, early)
        if tile.deep > 1:
            yield from _in_clusters(form, problem, device)
            continue
        chunks, seen = Cut.into(form, problem).chunks, set[int]()
        for slices in SLICES:
            if slices > 1 and (chunks >= processors or chunks * slices > 2 * processors):
                break
            cut = Cut.into(form, problem, slices)
            if cut.slices not in seen:
                seen.add(cut.slices)
                yield cut


def _in_clusters(form: Form, problem: Problem, device: Device) -> Iterator[Cut]:
    """Yield a tile of several teams, and where its tiles leave processors idle, clusters that share the depth of each."""
    alone = Cut.into(form, problem)
    yield alone
    for cluster in CLUSTERS if device.capability == (9, 0) else ():
        if alone.chunks * cluster > device.attribute(Attribute.PROCESSORS) or alone.steps < cluster * form.tile.deep:
            break
        yield Cut.into(replace(form, cluster=cluster), problem)


def attention_candidates(
    precision: Precision, attention: Attention, device: Device, *, causal: bool = False, mask: Mask | None = None
) -> Iterator[AttentionForm]:
    """Yield every number of warps and of keys in a tile that the GPU has room for. mask: what its elements are."""
    room = device.attribute(Attribute.SHARED_BYTES_PER_BLOCK)
    depth, copy_bytes = -(-attention.depth // 16) * 16, attention.copy_bytes(precision)
    for tall, warps, keys in itertools.product((1, 2), (1, 2, 4, 8), (32, 64, 128)):
        form = AttentionForm(precision, depth, warps, keys, copy_bytes, causal, mask, tall)
        if form.values > MOST_VALUES:
            continue
        teams = [1] if causal else [1, *(teams for teams in KEY_TEAMS if (teams - 1) * keys < attention.keys)]
        for each in teams:
            fits = each == 1 or (4 * form.kept * form.team <= form.team_bytes and each * form.team <= MOST_THREADS)
            if fits and replace(form, teams=each).shared_bytes <= room:
                yield replace(form, teams=each)


def row_candidates(rows: Rows, form: RowForm) -> Iterator[RowForm]:
    """Yield every team that can hold these rows in registers, with as few as do, and one that reads them for every pass."""
    for team in TEAMS:
        held = next((held for held in HELD if held * form.run * team >= rows.n), None)
        if held is not None and held * form.run <= HELD_ELEMENTS:
            yield replace(form, team=team, held=held)
    yield replace(form, team=TEAMS[-1], held=0)


def window_candidates(form: WindowForm) -> Iterator[WindowForm]:
    """Yield every number of pixels, of taps and of channels that a thread may take: a whole run, a half or a quarter of it."""
    least = 32 // STORAGES[form.storage].bits
    runs = [form.run // part for part in (1, 2, 4) if form.run % part == 0 and form.run // part >= least] or [form.run]
    for run, (pixels, each) in itertools.product(runs, WAYS.items()):
        for taps in each:
            yield replace(form, run=run, pixels=pixels, taps=taps)
