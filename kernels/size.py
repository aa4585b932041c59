"""Sizes: whole numbers, and what to use in place of `min`, `max` and comparisons where a size may be a symbol."""

from __future__ import annotations


def hint(size: int) -> int:
    """Return the whole number to decide by where every choice is right and one is fastest: of tiles, chunks, thresholds."""
    return size


def least(*sizes: int) -> int:
    """Return the smallest of several sizes."""
    return min(sizes)


def most(*sizes: int) -> int:
    """Return the largest of several sizes."""
    return max(sizes)
