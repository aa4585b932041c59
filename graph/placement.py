"""Placement of blocks in one arena: small, and such that no two blocks that are held at the same time overlap.

This is dynamic storage allocation with all lifetimes known, which is NP-hard. Each block, in some order, goes into the smallest
gap that holds it. The best of several orders is kept and improved by random swaps, until the arena is no larger than the most
bytes that are held at once, which no placement can undercut.
Thousands of blocks are placed in the order of execution alone, in which gaps can be kept from one block to the next.
Source: Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference", arXiv 2001.03288 (by size, by breadth).
"""

from __future__ import annotations

import bisect
import heapq
import random
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from kernels.record import record
from kernels.spec import Array

ALIGNMENT_BYTES = 64  # a cache line, and the widest vector register
_CLIMB_BLOCKS = 400  # hill-climbing stops paying when each try takes milliseconds
_CLIMB_TRIES = 48
_COMPARED_BLOCKS = 4000  # an order of n blocks takes n² steps to try, one second at this size


@record
class Block:
    """A block to place: its bytes, and the first and last step in which it is held, both included."""

    nbytes: int
    first: int
    last: int


def place_blocks(blocks: Sequence[Block]) -> tuple[list[int], int]:
    """Place blocks of any sizes, which are rounded up.

    Returns: the offset of each block, such that no two held at once overlap, and the bytes of the arena.
    """
    rounded = [Block(aligned(block.nbytes), block.first, block.last) for block in blocks]
    steps = max((block.last for block in blocks), default=-1) + 1
    lower_bound_bytes = max(bytes_by_step(steps, [(b.nbytes, b.first, b.last) for b in rounded]), default=0)
    _, offsets, arena_bytes = place(rounded, lower_bound_bytes)
    return offsets, arena_bytes


def held_by_step(blocks: Sequence[Block], step_of: Sequence[int]) -> list[tuple[int, int] | None]:
    """Return the first and the last step that each block is counted in, where steps consist of several moments.

    A step counts the blocks held at its fullest moment, the first one of equals. Blocks of one step that are never held at the
    same time may share memory, so the sum over the whole step would be more than is ever used.

    Args:    blocks: held from a moment to a moment. step_of: the step of each moment, ascending, none left out.
    Returns: (first step, last step) of each block; None for a block that is not held at any step's fullest moment.
    """
    sums = bytes_by_step(len(step_of), [(block.nbytes, block.first, block.last) for block in blocks])
    fullest: dict[int, int] = {}  # step -> moment
    for moment, step in enumerate(step_of):
        if sums[moment] > sums[fullest.setdefault(step, moment)]:
            fullest[step] = moment
    steps, moments = list(fullest), list(fullest.values())
    found: list[tuple[int, int] | None] = []
    for block in blocks:
        first, behind = bisect.bisect_left(moments, block.first), bisect.bisect_right(moments, block.last)
        found.append((steps[first], steps[behind - 1]) if first < behind else None)
    return found


def aligned(nbytes: int) -> int:
    """Round up to a multiple of ALIGNMENT_BYTES."""
    return -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def bytes_by_step(steps: int, held: Iterable[tuple[int, int, int]]) -> list[int]:
    """Return the bytes held in each step. held: (bytes, first step, last step) of each block, both included."""
    change = [0] * (steps + 1)
    for nbytes, first, last in held:
        change[first] += nbytes
        change[min(last + 1, steps)] -= nbytes
    total, sums = 0, []
    for delta in change[:steps]:
        total += delta
        sums.append(total)
    return sums


def place(blocks: Sequence[Block], lower_bound_bytes: int) -> tuple[str, list[int], int]:
    """Try the orders, then swaps in the best of them, until the lower bound is met. Of very many blocks only one order is tried.

    Returns: the name of the order ("climbed" after swaps), the offset of each block and the bytes of the arena.
    """
    if len(blocks) > _COMPARED_BLOCKS:
        return "execution", *fit_as_executed(blocks)
    candidates = orders(blocks)
    best_name, best_order = next(candidates)
    best_offsets, best_bytes = fit(blocks, best_order)
    for name, order in candidates:
        if best_bytes == lower_bound_bytes:
            break
        offsets, arena_bytes = fit(blocks, order)
        if arena_bytes < best_bytes:
            best_name, best_order, best_offsets, best_bytes = name, order, offsets, arena_bytes
    if len(blocks) > _CLIMB_BLOCKS:
        return best_name, best_offsets, best_bytes

    rng = random.Random(0)  # noqa: S311  a search, repeatable on purpose
    for _ in range(_CLIMB_TRIES):
        if best_bytes == lower_bound_bytes:
            break
        order = best_order.copy()
        top = max(range(len(blocks)), key=lambda i: best_offsets[i] + blocks[i].nbytes)
        order.remove(top)
        order.insert(rng.randrange(len(blocks)), top)
        a, b = rng.randrange(len(blocks)), rng.randrange(len(blocks))
        order[a], order[b] = order[b], order[a]
        offsets, arena_bytes = fit(blocks, order)
        if arena_bytes < best_bytes:
            best_name, best_order, best_offsets, best_bytes = "climbed", order, offsets, arena_bytes
    return best_name, best_offsets, best_bytes


def orders(blocks: Sequence[Block]) -> Iterator[tuple[str, list[int]]]:
    """Yield the orders to try, each with its name, as indices of blocks. The first one is the best on most networks."""
    indices = range(len(blocks))
    steps = max((block.last for block in blocks), default=-1) + 1
    breadth = bytes_by_step(steps, [(b.nbytes, b.first, b.last) for b in blocks])
    yield "size", sorted(indices, key=lambda i: (-blocks[i].nbytes, blocks[i].first))
    widest = [max(breadth[b.first : b.last + 1]) for b in blocks]
    yield "breadth", sorted(indices, key=lambda i: (-widest[i], -blocks[i].nbytes, blocks[i].first))
    yield "execution", _as_executed(blocks)
    yield "area", sorted(indices, key=lambda i: (-blocks[i].nbytes * (blocks[i].last - blocks[i].first + 1), blocks[i].first))


def fit(blocks: Sequence[Block], order: Sequence[int]) -> tuple[list[int], int]:
    """Put each block, in order, into the smallest gap that holds it between blocks that are placed and held at the same time.

    Returns: the offset of each block and the bytes of the arena.
    """
    first = np.array([blocks[i].first for i in order], np.int64)
    last = np.array([blocks[i].last for i in order], np.int64)
    start = np.zeros(len(order), np.int64)
    end = np.zeros(len(order), np.int64)
    arena_bytes = 0
    for position, index in enumerate(order):
        block = blocks[index]
        rivals = np.flatnonzero((first[:position] <= block.last) & (last[:position] >= block.first))
        offset = _smallest_gap(start[rivals], end[rivals], block.nbytes)
        start[position], end[position] = offset, offset + block.nbytes
        arena_bytes = max(arena_bytes, offset + block.nbytes)
    offsets = [0] * len(order)
    for position, index in enumerate(order):
        offsets[index] = int(start[position])
    return offsets, arena_bytes


def fit_as_executed(blocks: Sequence[Block]) -> tuple[list[int], int]:
    """Return what `fit` returns for the order of execution, in n log n steps.

    All placed blocks that end before the next one begins are gone for good, so the gaps between the others are kept.
    """
    gaps = _Gaps()
    ending: list[tuple[int, int, int]] = []  # a heap of (last step, offset, bytes) of the blocks that are held
    offsets = [0] * len(blocks)
    for index in _as_executed(blocks):
        block = blocks[index]
        while ending and ending[0][0] < block.first:
            _, offset, nbytes = heapq.heappop(ending)
            gaps.free(offset, nbytes)
        offsets[index] = gaps.take(block.nbytes)
        heapq.heappush(ending, (block.last, offsets[index], block.nbytes))
    return offsets, gaps.arena_bytes


def _as_executed(blocks: Sequence[Block]) -> list[int]:
    return sorted(range(len(blocks)), key=lambda i: (blocks[i].first, -blocks[i].nbytes))


class _Gaps:
    """The free ranges below the end of the last block that is held.

    Each lies in three tables: sorted by (bytes, offset), and its other end by its first and by its last byte's end.
    """

    def __init__(self) -> None:
        self.arena_bytes = 0
        self._used_bytes = 0  # up to the end of the last block that is held
        self._by_bytes: list[tuple[int, int]] = []
        self._end_of: dict[int, int] = {}
        self._begin_of: dict[int, int] = {}

    def take(self, nbytes: int) -> int:
        """Return the offset of the smallest gap that holds a block, or the end of what is used, and use it."""
        if not nbytes:
            return 0
        at = bisect.bisect_left(self._by_bytes, (nbytes, 0))
        if at == len(self._by_bytes):
            offset = self._used_bytes
            self._used_bytes += nbytes
            self.arena_bytes = max(self.arena_bytes, self._used_bytes)
            return offset
        _, offset = self._by_bytes[at]
        end = self._end_of[offset]
        self._remove(offset, end)
        if offset + nbytes < end:
            self._insert(offset + nbytes, end)
        return offset

    def free(self, offset: int, nbytes: int) -> None:
        """Make a gap of a block, joined with the gaps beside it."""
        if not nbytes:
            return
        begin, end = offset, offset + nbytes
        if (before := self._begin_of.get(begin)) is not None:
            self._remove(before, begin)
            begin = before
        if (behind := self._end_of.get(end)) is not None:
            self._remove(end, behind)
            end = behind
        if end == self._used_bytes:
            self._used_bytes = begin
        else:
            self._insert(begin, end)

    def _insert(self, begin: int, end: int) -> None:
        bisect.insort(self._by_bytes, (end - begin, begin))
        self._end_of[begin], self._begin_of[end] = end, begin

    def _remove(self, begin: int, end: int) -> None:
        del self._by_bytes[bisect.bisect_left(self._by_bytes, (end - begin, begin))]
        del self._end_of[begin], self._begin_of[end]


def _smallest_gap(start: Array, end: Array, nbytes: int) -> int:
    """Return the offset of the smallest gap of at least `nbytes` between the intervals, or the end of the last interval."""
    if not len(start):
        return 0
    order = np.argsort(start, kind="stable")
    start, reach = start[order], np.maximum.accumulate(end[order])
    gap_start = np.concatenate(([0], reach[:-1]))
    gap_bytes = start - gap_start
    fits = np.flatnonzero(gap_bytes >= nbytes)
    return int(gap_start[fits[np.argmin(gap_bytes[fits])]]) if len(fits) else int(reach[-1])
