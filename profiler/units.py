"""Numbers with units, written so that people can read them. One MAC (multiply–accumulate) is two FLOPs."""

from __future__ import annotations


def quantity(value: float, unit: str) -> str:
    """Format a number with a prefix: 300774272 MACs → 300.8 MMACs."""
    for prefix, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= scale:
            return f"{value / scale:.1f} {prefix}{unit}"
    return f"{value:.0f} {unit}"
