"""Numbers with units, written so that people can read them. One MAC (multiply–accumulate) is two FLOPs.

The pages have the same in `app/pages/static/js/format.js`; a test compares the two.
"""

from __future__ import annotations


def quantity(value: float, unit: str) -> str:
    """Write a number with a decimal prefix: 300774272 MACs is "300.8 MMACs", 12 without a unit is "12"."""
    for prefix, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= scale:
            return f"{value / scale:.1f} {prefix}{unit}"
    return f"{value:.0f} {unit}".rstrip()


def milliseconds(nanoseconds: float | None) -> str:
    """Write a time to the microsecond: 1234567 ns is "1.235 ms", None is "unknown"."""
    return "unknown" if nanoseconds is None else f"{nanoseconds / 1e6:.3f} ms"
