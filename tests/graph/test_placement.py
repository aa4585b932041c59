"""The placement of memory blocks takes the best of several orders, improves it by swaps, and knows each step's peak."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph.placement import Block, bytes_by_step, fit, fit_as_executed, held_by_step, orders, place


@given(
    st.lists(st.builds(lambda size, first, more: Block(64 * size, first, first + more), *[st.integers(0, 9)] * 3), max_size=24)
)
@settings(max_examples=100, deadline=None)
def test_the_best_of_several_orders_is_kept(blocks: list[Block]) -> None:
    name, offsets, arena_bytes = place(blocks, lower_bound_bytes=0)
    tried = {order: fit(blocks, indices)[1] for order, indices in orders(blocks)}
    assert arena_bytes <= min(tried.values())
    assert name in (*tried, "climbed")
    assert arena_bytes == max((offset + block.nbytes for offset, block in zip(offsets, blocks, strict=True)), default=0)


def test_no_order_is_tried_behind_one_that_meets_the_lower_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [Block(64 * (1 + i % 3), i, i + 1) for i in range(20)]
    first = next(orders(blocks))[1]
    offsets, least_bytes = fit(blocks, first)
    tried: list[list[int]] = []
    monkeypatch.setattr("graph.placement.fit", lambda blocks, order: tried.append(order) or fit(blocks, order))
    assert place(blocks, least_bytes) == ("size", offsets, least_bytes)
    assert tried == [first]


def test_climbing_finds_what_no_order_does() -> None:
    rng = np.random.default_rng(5)
    found = set()
    for _ in range(60):
        first = rng.integers(0, 12, 16)
        blocks = [
            Block(64 * int(size), int(f), int(f + m))
            for size, f, m in zip(rng.integers(1, 20, 16), first, rng.integers(0, 6, 16), strict=True)
        ]
        found.add(place(blocks, max(bytes_by_step(20, [(b.nbytes, b.first, b.last) for b in blocks])))[0])
    assert found >= {"size", "climbed"}


def test_blocks_of_one_step_that_are_never_held_together_are_not_added():
    blocks = [Block(100, 0, 1), Block(50, 1, 2), Block(200, 2, 4), Block(7, 2, 2), Block(10, 3, 5)]
    found = held_by_step(blocks, [0, 1, 1, 1, 2, 3])  # step 1 is moments 1 to 3, and holds most at moment 2: 257 bytes
    assert found == [(0, 0), (1, 1), (1, 2), (1, 1), (2, 3)]


def test_a_block_that_is_held_beside_the_fullest_moment_only_is_in_no_step():
    assert held_by_step([Block(1, 0, 0), Block(2, 1, 1), Block(2, 2, 2)], [0, 0, 0]) == [None, (0, 0), None]
    assert held_by_step([], [0, 1]) == []


@given(
    st.lists(
        st.builds(lambda size, first, more: Block(64 * size, first, first + more), st.integers(1, 9), *[st.integers(0, 9)] * 2),
        max_size=40,
    )
)
@settings(max_examples=100, deadline=None)
def test_the_order_of_execution_needs_no_comparison_with_all_blocks(blocks: list[Block]) -> None:
    executed = dict(orders(blocks))["execution"]
    assert fit_as_executed(blocks) == fit(blocks, executed)


def test_very_many_blocks_are_placed_in_the_order_of_execution() -> None:
    blocks = [Block(64 * (1 + i % 3), i, i + 1) for i in range(10_000)]
    assert place(blocks, lower_bound_bytes=0) == ("execution", *fit_as_executed(blocks))
