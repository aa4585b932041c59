"""Sweeps: the cost of a model at several sizes of its dynamic dimensions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from graph.formats.registry import read
from graph.ir import Model
from kernels.record import record
from profiler.counting.counts import Profile, profile
from profiler.errors import SweepError

MAX_POINTS = 1000


@record
class SweepPoint:
    """The totals of a profile at one choice of dimensions."""

    dims: Mapping[str, int]
    macs: int
    other_flops: int
    flops: int
    read_bytes: int
    write_bytes: int
    param_bytes: int
    peak_activation_bytes: int
    intensity: float
    coverage_percent: float


def sweep(
    model: Model | str | Path | bytes | onnx.ModelProto,
    dims: Mapping[str, Sequence[int]],
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> list[SweepPoint]:
    """Count a model at every combination of the given sizes, the last dimension varying fastest.

    Args:   dims: name of a dynamic dimension -> sizes. shapes: of inputs that do not vary.
    Raises: SweepError for more than MAX_POINTS combinations, or none; otherwise like `profile`.
    """
    combinations = math.prod(len(sizes) for sizes in dims.values())
    if not dims or not 1 <= combinations <= MAX_POINTS:
        given = {name: len(sizes) for name, sizes in dims.items()}
        raise SweepError(f"sweep: {combinations if dims else 0} combinations of {given}, need 1 … {MAX_POINTS}")
    loaded = model if isinstance(model, Model) else read(model)
    return [
        _point(dict(zip(dims, sizes, strict=True)), profile(loaded, shapes, dict(zip(dims, sizes, strict=True))))
        for sizes in itertools.product(*dims.values())
    ]


def _point(dims: Mapping[str, int], counted: Profile) -> SweepPoint:
    return SweepPoint(
        dims=dims,
        macs=counted.macs,
        other_flops=counted.other_flops,
        flops=counted.flops,
        read_bytes=counted.read_bytes,
        write_bytes=counted.write_bytes,
        param_bytes=counted.param_bytes,
        peak_activation_bytes=counted.peak_activation_bytes,
        intensity=counted.intensity,
        coverage_percent=counted.coverage_percent,
    )
