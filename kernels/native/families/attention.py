"""Attention without its matrix of scores: y = softmax(q·kᵀ·scale + mask)·v. Tiles, and the numbers that the code reads.

The code is in `attention_kernel`. Keys are taken block by block: y and the sum so far are multiplied by exp(old maximum - new
maximum) before each: online softmax, Milakov and Gimelshein 2018 (arXiv:1805.02867).
q, k, v and y may be any views whose last dimension has no gaps: slices of one matrix [tokens, 3·heads·size] are read in place.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Literal

import numpy as np

from kernels.native.emit.builder import Function, Value
from kernels.native.emit.kernel import SCRATCH, Bounds, NativeKernel, emitted, kernel_name
from kernels.native.emit.product import BUSY, MOST_PIXELS, even, most_rows, rest_rows, steps_in_vectors
from kernels.native.errors import EmitError
from kernels.native.families.attention_kernel import EXP_VECTORS, AttentionCode, AttentionEmitter, Masks
from kernels.native.memory.view import View
from kernels.native.target.isa import Isa
from kernels.record import record
from kernels.size import hinted

BLOCK_KEYS = 512  # most at once: their scores stay in L2
CHUNK_MACS = (256 << 10, 2 << 20)  # least and most of one chunk: 2 to 15 µs
CHUNKS = 32
FEW_ROWS = (1, 2, 4, 8, 16)  # of tiles lower than the tallest


@record
class Attention:
    """q (batch, heads, queries, size), k (batch, kv heads, keys, size), v (batch, kv heads, keys, v size), y like q with v's.

    Query head h uses kv head h // (heads / kv heads).
    mask: added to the scores, (batch, heads, queries, keys) or 1 in place of a size; without gaps along keys or queries, or the
    same for all queries.
    causal: query i sees the keys up to i + past. blind: the result for a query that sees no key, all its scores being -infinity.
    """

    q: View
    k: View
    v: View
    y: View
    scale: float
    mask: View | None = None
    causal: bool = False
    past: int = 0
    blind: Literal["nan", "zero"] = "nan"

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names of the pointers that its kernel takes."""
        return ("q", "k", "v", *(("mask",) if self.mask else ()), "y", SCRATCH)

    @property
    def mask_strides(self) -> tuple[int, ...]:
        """By batch, head, query and key; 0 where the mask repeats."""
        pairs = zip(self.mask.shape, self.mask.strides, strict=True) if self.mask else [(1, 0)] * 4
        return tuple(0 if size == 1 else stride for size, stride in pairs)

    @property
    def macs(self) -> int:
        """Multiply–accumulates of both products, those of hidden keys included."""
        batch, heads, queries, size = self.q.shape
        return batch * heads * queries * self.k.shape[2] * (size + self.v.shape[3])


@record
class AttentionTile:
    """keys × vectors: the tile of scores, vectors of queries, which make a group. rows × columns: that of y, columns in vectors.

    block: most keys at once. groups: of a chunk.
    """

    keys: int
    vectors: int
    rows: int
    columns: int
    block: int
    groups: int

    def __str__(self) -> str:
        return f"{self.keys}x{self.vectors}_{self.rows}x{self.columns}"


def attention_tiles(attention: Attention, isa: Isa, limit: int = 6) -> tuple[AttentionTile, ...]:
    """Return the tiles that a port model estimates to be fastest, the best first."""
    return _ranked_tiles(hinted(attention), isa, limit)


@functools.lru_cache(1024)
def _ranked_tiles(attention: Attention, isa: Isa, limit: int) -> tuple[AttentionTile, ...]:
    queries, v_size = attention.q.shape[2], attention.v.shape[3]
    made = [
        make_attention_tile(attention, isa, vectors, columns)
        for vectors in range(1, 7)
        for columns in range(1, 5)
        if vectors <= -(-queries // isa.lanes) and columns <= -(-v_size // isa.lanes)
    ]
    found = dict.fromkeys(each for tile in made for each in (tile, *_lower(tile, attention, isa)))
    return tuple(sorted(found, key=lambda tile: _estimate(attention, tile, isa))[:limit])


def _lower(tile: AttentionTile, attention: Attention, isa: Isa) -> Iterator[AttentionTile]:
    """Return tiles of fewer rows than fit, of which less is left over: of scores, of y, and of both."""
    rows = next(few for few in reversed(FEW_ROWS) if few <= tile.rows)
    keys = next((few for few in reversed(FEW_ROWS) if few < tile.keys and few * tile.vectors >= BUSY), tile.keys)
    block = _block(attention.k.shape[2], keys)
    for each in (tile, replace(tile, rows=rows)):
        yield from (each, replace(each, keys=keys, block=block))


def make_attention_tile(attention: Attention, isa: Isa, vectors: int, columns: int) -> AttentionTile:
    """Make a tile of these sizes; the rest follows by rule."""
    attention = hinted(attention)
    batch, heads, queries = attention.q.shape[:3]
    keys = min(most_rows(vectors, isa), MOST_PIXELS)
    rows = even(vectors * isa.lanes, most_rows(columns, isa))
    rows = next((few for few in FEW_ROWS if queries <= few < rows), rows)
    blocks = batch * heads * -(-queries // (vectors * isa.lanes))
    macs = attention.macs // queries * -(-queries // isa.lanes) * isa.lanes  # idle lanes take as long
    wanted = min(max(macs // CHUNKS, CHUNK_MACS[0]), CHUNK_MACS[1])
    groups = max(1, min(blocks, wanted // max(macs // blocks, 1)))
    return AttentionTile(keys, vectors, rows, columns, _block(attention.k.shape[2], keys), groups)


def _block(keys: int, height: int) -> int:
    """Return how many keys to take at once: even blocks of whole tiles of that height."""
    return -(-even(keys, BLOCK_KEYS) // height) * height


def _estimate(attention: Attention, tile: AttentionTile, isa: Isa) -> float:
    """Estimate the cycles of one head: two multiply–adds and two loads a cycle, latency 4; loads from L2 cost a little."""
    (queries, size), (keys, v_size) = attention.q.shape[2:], attention.v.shape[2:]
    rest = rest_rows(tile.keys, tile.vectors)

    def scores(height: int, vectors: int) -> float:
        return size * (max(height * vectors / 2, (height + vectors) / 2, 4) + 0.05 * vectors + 0.1 * height)

    def products(rows: int, vectors: int) -> float:
        return keys * (max(rows * vectors / 2, (rows + vectors) / 2, 4) + 0.2 * vectors + 0.1)

    full, left = divmod(-(-queries // isa.lanes), tile.vectors)
    tiles = keys // tile.keys * scores(tile.keys, tile.vectors)
    tiles += -(-(keys % tile.keys) // rest) * scores(rest, tile.vectors) if rest else 0
    total = full * tiles + left * -(-keys // BUSY) * scores(BUSY, 1) + -(-queries // isa.lanes) * keys * 8
    width = tile.vectors * isa.lanes
    row_tiles = queries // width * -(-width // tile.rows) + -(-(queries % width) // tile.rows)
    columns, left = divmod(v_size, tile.columns * isa.lanes)
    each = columns * products(tile.rows, tile.columns) + -(-left // isa.lanes) * products(tile.rows, 1)
    return total + row_tiles * each


def emit_attention(attention: Attention, tile: AttentionTile, isa: Isa) -> NativeKernel:
    """Emit the kernel. Raises EmitError for views that it cannot read."""
    _check(attention)
    sizes = (tile.keys, tile.vectors, tile.rows, tile.columns)
    code = AttentionCode(*sizes, _mask(attention), attention.causal, attention.blind)
    words = [f"y{tile.rows}x{tile.columns * isa.lanes}", *(["causal"] if attention.causal else [])]
    words += [] if code.mask == "none" else [f"masked_by_{code.mask}"]
    numbers, elements = _numbers(attention, tile, isa)

    def body(k: Function, pointers: Mapping[str, Value], sizes: Mapping[str, Value], chunks: Bounds) -> None:
        AttentionEmitter(k, code, sizes, pointers).emit(*chunks)

    return emitted(
        isa,
        kernel_name(f"f32_attention_{tile.keys}x{tile.vectors * isa.lanes}", code, isa, words),
        attention.arguments,
        -(-numbers["groups"] // tile.groups),
        body,
        numbers,
        scratch_bytes=4 * elements,
    )


def _mask(attention: Attention) -> Masks:
    """Return how the mask lies."""
    if attention.mask is None:
        return "none"
    by_query = attention.mask_strides[2]
    return "keys" if by_query == 0 else "queries" if by_query == 1 else "turned"


def _numbers(attention: Attention, tile: AttentionTile, isa: Isa) -> tuple[dict[str, int], int]:
    """Return the numbers that the code reads, by name, and the elements of scratch memory. Strides count elements.

    chunk_groups, groups: of a chunk, and in all. query_blocks: of a head. heads, sharing: query heads, and how many use one
    head of k and v. queries, keys, size, v_size, past: of the attention; v_lanes: v_size in whole vectors. block: most keys at
    once. scale: its bits. q_at, held_at: where parts of scratch memory begin. q_first, q_batch, q_head, q_row: from an address
    to the first element, and between batches, heads and rows; the same for k, v, y and the mask; mask_key: between keys.
    """
    width, (batch, heads, queries, size), v_size = tile.vectors * isa.lanes, attention.q.shape, attention.v.shape[3]
    query_blocks, v_lanes = -(-queries // width), steps_in_vectors(v_size, isa.lanes)
    scores = steps_in_vectors(tile.block, isa.lanes) + max(BUSY, EXP_VECTORS)
    q_at = (3 + scores) * width
    held_at = q_at + steps_in_vectors(size, isa.lanes) * width
    numbers = {
        "chunk_groups": tile.groups, "groups": batch * heads * query_blocks, "query_blocks": query_blocks, "heads": heads,
        "sharing": heads // attention.k.shape[1], "queries": queries, "keys": attention.k.shape[2], "size": size,
        "v_size": v_size, "v_lanes": v_lanes, "past": attention.past, "block": tile.block,
        "scale": int(np.float32(attention.scale).view(np.int32)), "q_at": q_at, "held_at": held_at,
    }  # fmt: skip
    views = {"q": attention.q, "k": attention.k, "v": attention.v, "y": attention.y}
    for name, view in views.items():
        by_batch, by_head, by_row = view.strides[:3]
        numbers |= {f"{name}_first": view.offset, f"{name}_batch": by_batch, f"{name}_head": by_head, f"{name}_row": by_row}
    if attention.mask:
        names = ("mask_batch", "mask_head", "mask_row", "mask_key")
        numbers |= {"mask_first": attention.mask.offset, **dict(zip(names, attention.mask_strides, strict=True))}
    return numbers, held_at + -(-width // tile.rows) * tile.rows * v_lanes


def _check(attention: Attention) -> None:
    q, k, v, y, mask = attention.q, attention.k, attention.v, attention.y, attention.mask
    fits = len({len(view.shape) for view in (q, k, v, y)}) == 1 and len(q.shape) == 4 and y.shape == (*q.shape[:3], v.shape[3])
    fits = fits and (k.shape[0], k.shape[3]) == (q.shape[0], q.shape[3]) and k.shape[:3] == v.shape[:3]
    if not fits or q.shape[1] % max(k.shape[1], 1) or 0 in (*q.shape, *k.shape, *v.shape):
        shapes = f"q is {q.shape}, k is {k.shape}, v is {v.shape}, y is {y.shape}"
        raise EmitError(f"attention: {shapes}, need (batch, heads, length, size) that fit, without 0")
    for name, view in (("q", q), ("k", k), ("v", v), ("y", y)):
        if view.shape[3] > 1 and view.strides[3] != 1:
            raise EmitError(f"attention: elements of a row of {name} are {view.strides[3]} apart, need 1")
    if mask is None:
        return
    full = (*q.shape[:3], k.shape[2])
    if len(mask.shape) != 4 or any(a not in (1, b) for a, b in zip(mask.shape, full, strict=True)):
        raise EmitError(f"attention: the mask is {mask.shape}, need {full} or 1 in place of a size")
    by_query, by_key = attention.mask_strides[2:]
    if by_query not in (0, 1) and by_key != 1:
        raise EmitError(f"attention: the mask's strides are {mask.strides}, need 1 along queries or keys, or 0 along queries")
