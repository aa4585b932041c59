"""The one rule by which times are ranked: a measured time goes before a predicted one, and devices stay apart.

The lowest of many uncertain predictions is low mostly by chance. So a prediction goes before a measurement only where even its
upper bound lies below the fastest measurement. A time of one device says nothing of another: only times of one device are ranked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from kernels.record import record

T = TypeVar("T")


@record
class Timing:
    """What is known of a time, in nanoseconds. at_most_ns: of a prediction, its upper bound; None where none is known."""

    ns: float
    measured: bool
    at_most_ns: float | None = None


def ranked(items: Iterable[T], timing: Callable[[T], Timing]) -> list[T]:
    """Return things of one device, the one of least time first; equals stay in their order. timing: gives that of each."""
    found = [(timing(item), item) for item in items]
    fastest_ns = min((each.ns for each, _ in found if each.measured), default=None)
    return [item for _, item in sorted(found, key=lambda each: (not _counts(each[0], fastest_ns), each[0].ns))]


def beats(one: Timing, other: Timing) -> bool:
    """Return whether one time is known to be less than another of the same device."""
    if one.measured == other.measured:
        return one.ns < other.ns
    return one.measured or _counts(one, other.ns)


def by_device(items: Sequence[T], device: Callable[[T], str], first: str) -> list[list[T]]:
    """Return things in groups of one device each. first: the device whose group comes first; the others are in their order."""
    groups: dict[str, list[T]] = {first: []}
    for item in items:
        groups.setdefault(device(item), []).append(item)
    return [group for group in groups.values() if group]


def _counts(known: Timing, fastest_ns: float | None) -> bool:
    """Return whether a time may go before the fastest measured one."""
    return known.measured or fastest_ns is None or (known.at_most_ns is not None and known.at_most_ns < fastest_ns)
