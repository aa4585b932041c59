"""Signal processing: DFT, STFT, the window functions and MelWeightMatrix. Complex numbers are a last axis of 2."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.cost import Cost, per_element
from kernels.errors import AttributeValueError, DTypeError, IndexRangeError, ShapeError
from kernels.operands import INDICES, NUMBERS, axis_of, element_type, known_scalar
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.scratch import for_each, times
from kernels.spec import FLOATS, Array, Spec
from kernels.upgrades import constant_of


def _known_length(subject: str, spec: Spec, least: int = 1) -> int:
    require_dtype(subject, spec, INDICES)
    length = int(known_scalar(subject, spec))
    if length < least:
        raise ShapeError(f"{subject} is {length}, need {least} or more")
    return length


def _transform_flops(length: int) -> int:
    return math.ceil(5 * length * math.log2(length)) if length > 1 else 0


def _complex(x: Array) -> Array:
    """(…, 1) or (…, 2) as real or complex numbers; half precisions in single."""
    wide = x if x.dtype in (np.float32, np.float64) else x.astype(np.float32)
    return wide[..., 0] if x.shape[-1] == 1 else wide[..., 0] + 1j * wide[..., 1]


def _store(y: Array, values: Array) -> None:
    np.copyto(y[..., 0], values.real, casting="unsafe")
    if y.shape[-1] == 2:
        np.copyto(y[..., 1], values.imag, casting="unsafe")


def _dft_plan(x: Spec, length: Spec | None, axis: Spec | None, inverse: int, onesided: int) -> tuple[int, int]:
    """Axis and number of points."""
    require_dtype("DFT: x", x, FLOATS)
    if x.rank < 2 or x.shape[-1] not in (1, 2):
        raise ShapeError(f"DFT: x is {x}, need a last axis of 1 (real) or 2 (complex) behind the signal's")
    if onesided and (x.shape[-1] == 2) != bool(inverse):
        raise ShapeError(f"DFT: x is {x}, onesided needs real numbers forward and complex ones inverse")
    if axis is not None:
        require_dtype("DFT: axis", axis, INDICES)
    along = axis_of("DFT", -2 if axis is None else known_scalar("DFT: axis", axis), x.rank)
    if along == x.rank - 1:
        raise ShapeError(f"DFT: axis is {along}, the complex one of x {x}, need another")
    if length is not None:
        return along, _known_length("DFT: dft_length", length)
    points = 2 * (x.shape[along] - 1) if inverse and onesided else x.shape[along]
    if points < 1:
        raise ShapeError(f"DFT: x {x} gives {points} points along axis {along}, need 1 or more")
    return along, points


def infer_dft(x: Spec, dft_length: Spec | None = None, axis: Spec | None = None, *, inverse: int = 0, onesided: int = 0) -> Spec:
    """`dft_length` points along the axis, half of them and one when onesided forward; complex unless onesided inverse."""
    along, points = _dft_plan(x, dft_length, axis, inverse, onesided)
    size = points // 2 + 1 if onesided and not inverse else points
    return Spec((*x.shape[:along], size, *x.shape[along + 1 : -1], 1 if onesided and inverse else 2), x.dtype)


def cost_dft(
    out: tuple[Spec, ...],
    x: Spec,
    dft_length: Spec | None = None,
    axis: Spec | None = None,
    *,
    inverse: int = 0,
    onesided: int = 0,
) -> Cost:
    """5·n·log2(n) per transform of n points, rounded up: the usual count of a radix-2 transform."""
    along, points = _dft_plan(x, dft_length, axis, inverse, onesided)
    transforms = math.prod(x.shape[:-1]) // x.shape[along] if x.shape[along] else 0
    return Cost(other_flops=transforms * _transform_flops(points))


def run_dft(
    out: tuple[Array, ...],
    x: Array,
    dft_length: Array | None = None,
    axis: Array | None = None,
    *,
    inverse: int = 0,
    onesided: int = 0,
) -> None:
    """numpy's transforms, which pad or cut to the number of points."""
    length, place = (None if given is None else Spec.of(given) for given in (dft_length, axis))
    along, points = _dft_plan(Spec(x.shape, x.dtype), length, place, inverse, onesided)
    values = _complex(x)
    if not values.size:
        out[0].fill(0)
    elif onesided:
        _store(out[0], (np.fft.irfft if inverse else np.fft.rfft)(values, points, along))
    else:
        _store(out[0], (np.fft.ifft if inverse else np.fft.fft)(values, points, along))


def upgrade_dft(opset: int, attrs: dict[str, Any], outputs: int) -> tuple[dict[str, Any], dict[int, Array]]:
    """Before opset 20 the axis was an attribute, 1 by default."""
    if opset >= 20:
        return attrs, {}
    return {name: v for name, v in attrs.items() if name != "axis"}, {2: constant_of("axis", attrs.get("axis", 1))}


def _stft_plan(x: Spec, step: Spec, window: Spec | None, length: Spec | None, onesided: int) -> tuple[int, int, int]:
    """Frame step, frame length, number of frames."""
    require_dtype("STFT: signal", x, FLOATS)
    if x.rank != 3 or x.shape[2] not in (1, 2) or (onesided and x.shape[2] == 2):
        raise ShapeError(f"STFT: signal is {x}, need (batch, samples, 1), or 2 for a complex one that is not onesided")
    if window is not None and (window.rank != 1 or window.dtype != x.dtype):
        raise ShapeError(f"STFT: window is {window}, need a vector of {x.dtype.name}")
    hop = _known_length("STFT: frame_step", step)
    size = x.shape[1] if window is None else window.elements
    if length is not None:
        size = _known_length("STFT: frame_length", length)
        if window is not None and window.elements != size:
            raise ShapeError(f"STFT: window is {window}, need frame_length {size} numbers")
    if not 1 <= size <= x.shape[1]:
        raise ShapeError(f"STFT: frame length is {size}, need 1 to {x.shape[1]}, the samples of signal {x}")
    return hop, size, (x.shape[1] - size) // hop + 1


def infer_stft(
    x: Spec, frame_step: Spec, window: Spec | None = None, frame_length: Spec | None = None, *, onesided: int = 1
) -> Spec:
    """(batch, frames, points, 2)."""
    _, size, frames = _stft_plan(x, frame_step, window, frame_length, onesided)
    return Spec((x.shape[0], frames, size // 2 + 1 if onesided else size, 2), x.dtype)


def cost_stft(
    out: tuple[Spec, ...],
    x: Spec,
    frame_step: Spec,
    window: Spec | None = None,
    frame_length: Spec | None = None,
    *,
    onesided: int = 1,
) -> Cost:
    """Per frame of n samples 5·n·log2(n), rounded up, and n for the window."""
    _, size, frames = _stft_plan(x, frame_step, window, frame_length, onesided)
    return Cost(other_flops=x.shape[0] * frames * (_transform_flops(size) + (size if window is not None else 0)))


def run_stft(
    out: tuple[Array, ...],
    x: Array,
    frame_step: Array,
    window: Array | None = None,
    frame_length: Array | None = None,
    *,
    onesided: int = 1,
) -> None:
    """All frames, a view of the signal, in one transform."""
    weights, length = (None if given is None else Spec.of(given) for given in (window, frame_length))
    hop, size, _ = _stft_plan(Spec(x.shape, x.dtype), Spec.of(frame_step), weights, length, onesided)
    frames = np.lib.stride_tricks.sliding_window_view(_complex(x), size, axis=1)[:, ::hop]
    if window is not None:
        frames = frames * window.astype(frames.real.dtype)
    _store(out[0], (np.fft.rfft if onesided else np.fft.fft)(frames))


_WINDOWS: dict[str, tuple[float, ...]] = {  # cosine coefficients: a0 - a1·cos(x) + a2·cos(2x)
    "HannWindow": (0.5, 0.5),
    "HammingWindow": (25 / 46, 21 / 46),
    "BlackmanWindow": (0.42, 0.5, 0.08),
}


def _infer_window(name: str) -> Callable[..., Spec]:
    def infer(size: Spec, *, periodic: int = 1, output_datatype: int = 1) -> Spec:
        made = element_type(f"{name}: attribute output_datatype", output_datatype)
        require_dtype(f"{name}: attribute output_datatype", Spec((), made), NUMBERS)
        return Spec((_known_length(f"{name}: size", size, 0),), made)

    return infer


def _run_window(name: str) -> Callable[..., None]:
    def run(out: tuple[Array, ...], size: Array, *, periodic: int = 1, output_datatype: int = 1) -> None:
        """Computed in float64. A periodic window is one longer, its last point left out."""
        (y,) = out
        angle = 2 * math.pi / max(y.size if periodic else y.size - 1, 1) * np.arange(y.size)
        total = sum((-1) ** k * a * np.cos(k * angle) for k, a in enumerate(_WINDOWS[name]))
        np.copyto(y, total, casting="unsafe")

    return run


def infer_mel(
    num_mel_bins: Spec, dft_length: Spec, sample_rate: Spec, lower: Spec, upper: Spec, *, output_datatype: int = 1
) -> Spec:
    """(dft_length // 2 + 1, num_mel_bins)."""
    made = element_type("MelWeightMatrix: attribute output_datatype", output_datatype)
    require_dtype("MelWeightMatrix: attribute output_datatype", Spec((), made), NUMBERS)
    _known_length("MelWeightMatrix: sample_rate", sample_rate)
    for edge in (lower, upper):
        require_dtype("MelWeightMatrix: an edge", edge, FLOATS)
        if edge.elements != 1:
            raise ShapeError(f"MelWeightMatrix: an edge is {edge}, need a scalar")
    bins = _known_length("MelWeightMatrix: num_mel_bins", num_mel_bins)
    return Spec((_known_length("MelWeightMatrix: dft_length", dft_length) // 2 + 1, bins), made)


def run_mel(
    out: tuple[Array, ...],
    num_mel_bins: Array,
    dft_length: Array,
    sample_rate: Array,
    lower: Array,
    upper: Array,
    *,
    output_datatype: int = 1,
) -> None:
    """Triangles with corners evenly spread in mel, rounded down to spectrum bins, each of height 1."""
    (y,) = out
    low, high = float(lower.item()), float(upper.item())
    if not 0 <= low <= high < math.inf:
        raise IndexRangeError(f"MelWeightMatrix: edges are {low} and {high} hertz, need 0 or more, in that order")
    edges = [2595 * math.log10(1 + edge / 700) for edge in (low, high)]
    step = (edges[1] - edges[0]) / (y.shape[1] + 2)
    mels = edges[0] + step * np.arange(y.shape[1] + 2)
    hertz = 700 * (10 ** (mels / 2595) - 1)
    corners = ((dft_length.item() + 1) * hertz // sample_rate.item()).astype(np.int64)
    left, peak, right = corners[:-2], corners[1:-1], corners[2:]
    bins = np.arange(y.shape[0])[:, None]
    rising = np.where((bins >= left) & (bins <= peak), (bins - left) / np.maximum(peak - left, 1), 0.0)
    falling = np.where((bins >= peak) & (bins < right), (right - bins) / np.maximum(right - peak, 1), 0.0)
    # a triangle whose left half spans zero bins still has its peak
    weights = np.where(bins < peak, rising, np.where(bins == peak, 1.0, falling))
    np.copyto(y, weights, casting="unsafe")


def _k(value: float, dtype: Any = np.int64) -> Array:
    return np.array(value, dtype)


_DFT = (
    Case("real", inputs=((2, 8, 1),), cost=Cost(other_flops=240)),
    Case("complex_axis", inputs=((2, 5, 3, 2), None, _k(1))),
    Case("inverse", inputs=((2, 6, 2),), attrs={"inverse": 1}),
    Case("onesided", inputs=((2, 9, 1),), attrs={"onesided": 1}),
    Case("onesided_inverse", inputs=((2, 5, 2),), attrs={"onesided": 1, "inverse": 1}),
    Case("padded", inputs=((1, 5, 1), _k(8))),
    Case("cut", inputs=((1, 5, 2), _k(3))),
    Case("half", inputs=(np.linspace(-1, 1, 8, dtype=np.float16).reshape(1, 8, 1),)),
    Case("complex_onesided", inputs=((1, 5, 2),), attrs={"onesided": 1}, raises=ShapeError),
    Case("last_axis", inputs=((1, 5, 2), None, _k(-1)), raises=ShapeError),
    Case("three_parts", inputs=((1, 5, 3),), raises=ShapeError),
    Case("no_points", inputs=((1, 5, 1), _k(0)), raises=ShapeError),
    Case("ints", inputs=(np.ones((1, 2, 1), np.int32),), raises=DTypeError),
)
_STFT = (
    Case("window", inputs=((2, 16, 1), _k(4), (8,)), cost=Cost(other_flops=2 * 3 * (120 + 8))),
    Case("rectangular", inputs=((1, 10, 1), _k(3), None, _k(5)), attrs={"onesided": 0}),
    Case("whole", inputs=((1, 10, 1), _k(3))),
    Case("complex", inputs=((1, 10, 2), _k(5), (4,)), attrs={"onesided": 0}),
    Case("frame_long", inputs=((1, 10, 1), _k(1), None, _k(11)), raises=ShapeError),
    Case("step_zero", inputs=((1, 10, 1), _k(0)), raises=ShapeError),
    Case("window_length", inputs=((1, 10, 1), _k(1), (4,), _k(5)), raises=ShapeError),
    Case("complex_onesided", inputs=((1, 10, 2), _k(5)), raises=ShapeError),
)
_WINDOW = (
    Case("periodic", inputs=(_k(10),), cost=Cost(other_flops=30)),
    Case("symmetric", inputs=(_k(9),), attrs={"periodic": 0}),
    Case("float64", inputs=(_k(5),), attrs={"output_datatype": 11}),
    Case("two", inputs=(_k(2),)),
    Case("none", inputs=(_k(0),)),
    Case("negative", inputs=(_k(-1),), raises=ShapeError),
    Case("float_size", inputs=((),), raises=DTypeError),
    Case("unknown_type", inputs=(_k(3),), attrs={"output_datatype": 77}, raises=AttributeValueError),
)
_MEL = (
    Case("eight_bins", inputs=(_k(8), _k(16), _k(8192), _k(0, np.float32), _k(4096, np.float32))),
    Case("float64", inputs=(_k(4), _k(32), _k(8000), _k(50, np.float32), _k(4000, np.float32)), attrs={"output_datatype": 11}),
    Case("no_bins", inputs=(_k(0), _k(16), _k(8192), _k(0, np.float32), _k(4096, np.float32)), raises=ShapeError),
)


def _window(name: str) -> Op:
    terms = len(_WINDOWS[name])
    flops = 3 * (terms - 1)  # multiply the angle, cosine, add
    cases = _WINDOW if terms == 2 else tuple(case for case in _WINDOW if case.cost is None)
    formula = "multiply, cosine, add for every cosine"
    return Op(name, _infer_window(name), per_element(flops, formula), (Kernel("cosines", _run_window(name)),), cases=cases)


OPS = (
    Op(
        "DFT",
        infer_dft,
        cost_dft,
        (Kernel("fft", run_dft, scratch_bytes=times(4)),),
        upgrade=upgrade_dft,
        tolerance_eps=16,
        cases=_DFT,
    ),
    Op("STFT", infer_stft, cost_stft, (Kernel("fft", run_stft, scratch_bytes=times(8)),), tolerance_eps=16, cases=_STFT),
    *(_window(name) for name in _WINDOWS),
    Op(
        "MelWeightMatrix",
        infer_mel,
        per_element(3, "subtract, divide, compare"),
        (Kernel("triangles", run_mel, scratch_bytes=for_each(40)),),
        cases=_MEL,
    ),
)
