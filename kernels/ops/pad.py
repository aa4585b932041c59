"""Pad and CenterCropPad: rows added (or, when negative, taken away) around a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kernels.batch_axis import Application, only_first_input_has_rows
from kernels.cost import moves
from kernels.errors import AttributeValueError, DTypeError, ShapeError
from kernels.operands import axes_of, known_ints, one_dtype, one_of
from kernels.registry import Case, Kernel, Op
from kernels.scratch import FIXED_BYTES
from kernels.spec import STRING, Array, Spec
from kernels.upgrades import constant_of

_MODES = ("constant", "reflect", "edge", "wrap")


def amounts_of(rank: int, pads: Spec, axes: Spec | None) -> list[tuple[int, int]]:
    """(before, after) of every axis of a Pad; negative takes away."""
    along = range(rank) if axes is None else axes_of("Pad", known_ints("Pad: axes", axes), rank)
    values = known_ints("Pad: pads", pads, 2 * len(along))
    amounts = [(0, 0)] * rank
    for i, axis in enumerate(along):
        amounts[axis] = values[i], values[len(along) + i]
    return amounts


def infer_pad(x: Spec, pads: Spec, fill: Spec | None = None, axes: Spec | None = None, *, mode: str = "constant") -> Spec:
    """Every size plus its two amounts. `reflect` needs 2 rows to mirror, `edge` and `wrap` one, unless nothing is added."""
    one_of("Pad: attribute mode", mode, _MODES)
    if fill is not None:
        one_dtype("Pad: x and constant_value", x, fill)
        if fill.elements != 1:
            raise ShapeError(f"Pad: constant_value is {fill}, need a scalar")
    amounts = amounts_of(x.rank, pads, axes)
    for axis, (size, (before, after)) in enumerate(zip(x.shape, amounts, strict=True)):
        left = size + min(before, 0) + min(after, 0)
        if left < 0:
            raise ShapeError(f"Pad: pads {before} and {after} take more than axis {axis} of x {x} has")
        if mode != "constant" and left < 1 and max(before, after) > 0:
            raise ShapeError(f"Pad: axis {axis} of x {x} has {left} rows left, mode {mode!r} needs 1 or more to repeat")
    return Spec(tuple(size + sum(amount) for size, amount in zip(x.shape, amounts, strict=True)), x.dtype)


def run_pad(
    out: tuple[Array, ...], x: Array, pads: Array, fill: Array | None = None, axes: Array | None = None, *, mode: str = "constant"
) -> None:
    """Constant: fill the frame, copy the middle. Other modes: every output row names the row of x it repeats."""
    (y,) = out
    amounts = amounts_of(x.ndim, Spec.of(pads), None if axes is None else Spec.of(axes))
    left = [slice(max(-a, 0), size - max(-b, 0)) for size, (a, b) in zip(x.shape, amounts, strict=True)]
    index: tuple[Any, ...] = (..., *left)  # the ellipsis makes a view even of a scalar
    kept = x[index]
    added = [(max(a, 0), max(b, 0)) for a, b in amounts]
    if mode != "constant":
        if y.size:
            rows = [_sources(size, before, after, mode) for size, (before, after) in zip(kept.shape, added, strict=True)]
            np.copyto(y, kept[np.ix_(*rows)] if rows else kept)
        return
    value: Any = ("" if x.dtype == STRING else 0) if fill is None else fill.reshape(())[()]
    middle = tuple(slice(before, before + size) for size, (before, _) in zip(kept.shape, added, strict=True))
    for axis, part in enumerate(middle):  # the frame only: the middle is written once
        outside = middle[:axis], (slice(None),) * (y.ndim - axis - 1)
        y[(*outside[0], slice(0, part.start), *outside[1])] = value
        y[(*outside[0], slice(part.stop, None), *outside[1])] = value
    y[middle] = kept


def pad_scratch_bytes(out: tuple[Spec, ...], *inputs: Spec | None, mode: str = "constant") -> int:
    """Nothing for constants. Otherwise the rows that each output row repeats, as indices, and the result before it is copied."""
    return FIXED_BYTES + (0 if mode == "constant" else out[0].nbytes + 40 * sum(out[0].shape))


def _sources(size: int, before: int, after: int, mode: str) -> Array:
    index = np.arange(-before, size + after)
    if mode == "edge":
        return np.clip(index, 0, size - 1)
    if mode == "wrap":
        return index % size
    period = max(2 * (size - 1), 1)  # there and back again, the end rows once
    index = index % period
    return np.minimum(index, period - index) if size > 1 else np.zeros_like(index)


def upgrade_pad(opset: int, attrs: dict[str, Any], outputs: int) -> tuple[dict[str, Any], dict[int, Array]]:
    """Before opset 11 pads and value were attributes."""
    if opset >= 11:
        return attrs, {}
    rest = {name: value for name, value in attrs.items() if name not in ("pads", "value")}
    constants = {1: constant_of("pads", attrs["pads"])} if "pads" in attrs else {}
    value = constant_of("value", attrs.get("value", 0.0), "float32")
    if value.any():  # 0 is the default for every dtype, another value is a float
        constants[2] = value
    return rest, constants


def infer_center(x: Spec, shape: Spec, *, axes: Sequence[int] | None = None) -> Spec:
    """The sizes in `shape` along the axes, all axes by default."""
    sizes = list(x.shape)
    for axis, size in _targets(x, shape, axes).items():
        sizes[axis] = size
    return Spec(tuple(sizes), x.dtype)


def _targets(x: Spec, shape: Spec, axes: Sequence[int] | None) -> dict[int, int]:
    along = axes_of("CenterCropPad", range(x.rank) if axes is None else axes, x.rank)
    wanted = known_ints("CenterCropPad: shape", shape, len(along))
    if any(size < 0 for size in wanted):
        raise ShapeError(f"CenterCropPad: shape is {wanted}, need sizes ≥ 0")
    return dict(zip(along, wanted, strict=True))


def run_center(out: tuple[Array, ...], x: Array, shape: Array, *, axes: Sequence[int] | None = None) -> None:
    """Crops start and pads begin at half the difference, rounded down."""
    (y,) = out
    taken, placed = [slice(None)] * x.ndim, [slice(None)] * x.ndim
    for axis in range(x.ndim):
        given, wanted = x.shape[axis], y.shape[axis]
        common = min(given, wanted)
        taken[axis] = slice((given - common) // 2, (given - common) // 2 + common)
        placed[axis] = slice((wanted - common) // 2, (wanted - common) // 2 + common)
    y.fill("" if x.dtype == STRING else 0)
    y[tuple(placed)] = x[tuple(taken)]


def _ints(*values: int) -> Array:
    return np.array(values, np.int64)


_PADS = _ints(0, 1, 2, 0, 3, 1)
_PAD = (
    Case("zeros", inputs=((2, 3, 4), _PADS)),
    Case("value", inputs=((2, 3), _ints(1, 0, 0, 2), np.array(1.5, np.float32))),
    Case("negative", inputs=((4, 5), _ints(-1, 2, 0, -3))),
    Case("axes", inputs=((2, 3, 4), _ints(1, 2), None, _ints(-1))),
    Case("reflect", inputs=((3, 4), _ints(2, 1, 2, 3)), attrs={"mode": "reflect"}),
    Case("reflect_twice_around", inputs=((3,), _ints(7, 8)), attrs={"mode": "reflect"}),
    Case("edge", inputs=((2, 3, 4), _PADS), attrs={"mode": "edge"}),
    Case("wrap", inputs=((3, 4), _ints(2, 1, 4, 5)), attrs={"mode": "wrap"}),
    Case("ints", inputs=(_ints(5, 6), _ints(1, 1), _ints(9)[0:1].reshape(()))),
    Case("empty_filled", inputs=((0, 2), _ints(1, 0, 1, 0))),
    Case("scalar", inputs=((), _ints())),
    Case("pads_short", inputs=((2, 3), _ints(1, 1)), raises=ShapeError),
    Case("takes_too_much", inputs=((2,), _ints(-2, -1)), raises=ShapeError),
    Case("edge_of_nothing", inputs=((0,), _ints(1, 0)), attrs={"mode": "edge"}, raises=ShapeError),
    Case("unknown_mode", inputs=((2,), _ints(1, 0)), attrs={"mode": "mirror"}, raises=AttributeValueError),
    Case("fill_dtype", inputs=((2,), _ints(1, 0), _ints(0)), raises=DTypeError),
    Case("float_pads", inputs=((2,), (2,)), raises=DTypeError),
)
_CENTER = (
    Case("crop_and_pad", inputs=((5, 4), _ints(2, 7))),
    Case("axes", inputs=((5, 4, 3), _ints(2, 6)), attrs={"axes": (-1, 0)}),
    Case("negative", inputs=((2,), _ints(-1)), raises=ShapeError),
    Case("shape_short", inputs=((2, 3), _ints(1)), raises=ShapeError),
)


def pad_mixes_rows(call: Application) -> str:
    """Padding of axis 0 adds rows."""
    pads, axes = (None if call.inputs[1] is None else call.inputs[1].integers()), call.axes(3)
    if pads is None or axes is None or call.inputs[0] is None:
        return "its pads are not known"
    axes = axes or list(range(len(call.inputs[0].shape)))
    padded = [axis for axis, low, high in zip(axes, pads, pads[len(axes) :], strict=False) if low or high]
    return only_first_input_has_rows(call) or ("it pads axis 0" if 0 in padded else "")


OPS = (
    Op(
        "Pad",
        infer_pad,
        moves,
        (Kernel("copy", run_pad, scratch_bytes=pad_scratch_bytes),),
        upgrade=upgrade_pad,
        mixes_rows=pad_mixes_rows,
        cases=_PAD,
    ),
    Op("CenterCropPad", infer_center, moves, (Kernel("copy", run_center),), cases=_CENTER),
)
