"""Resize and the older Upsample: every output position has a coordinate in the input and takes the values around it.

Interpolation is separable: one pass an axis, each a weighted sum of a few taps (2 linear, 4 cubic, more when a shrinking
axis is filtered against aliasing). Axes whose coordinates are their positions are left alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from kernels.batch_axis import Application, first_input_has_rows
from kernels.cost import Cost
from kernels.errors import AttributeValueError, DTypeError, ShapeError
from kernels.operands import NUMBERS, axes_of, known_ints, one_of
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.resampling import COORDINATES, NEAREST, Axis, Pass, is_copied, leaves_alone, resize_axis, tap_count
from kernels.scratch import FIXED_BYTES
from kernels.spec import BOOL, FLOATS, Array, Spec
from kernels.upgrades import attribute_inputs

_POLICIES = {"stretch": None, "not_larger": min, "not_smaller": max}


def _resized_axes(
    name: str,
    x: Spec,
    roi: Spec | None,
    scales: Spec | None,
    sizes: Spec | None,
    *,
    axes: Sequence[int] | None,
    keep_aspect_ratio_policy: str,
    coordinate_transformation_mode: str,
    **_: Any,
) -> list[Axis]:
    """Return every axis to resize. An empty input counts as absent, as in opset 11."""
    along = axes_of(name, range(x.rank) if axes is None else axes, x.rank)
    scales, sizes, roi = (None if given is None or given.elements == 0 else given for given in (scales, sizes, roi))
    given_sizes = [x.shape[axis] for axis in along]
    if (scales is None) == (sizes is None):
        raise ShapeError(f"{name}: scales are {scales} and sizes {sizes}, need exactly one of them for x {x}")
    if scales is not None:
        factors = _floats(f"{name}: scales", scales, len(along))
        if not all(0 < factor < math.inf for factor in factors):
            raise AttributeValueError(f"{name}: scales are {factors}, need finite numbers above 0")
        wanted = [_scaled(size, factor) for size, factor in zip(given_sizes, factors, strict=True)]
        ratios = [factor.as_integer_ratio() for factor in factors]
    elif sizes is not None:
        wanted = list(known_ints(f"{name}: sizes", sizes, len(along)))
        if any(new < 0 or (old == 0 and new != 0) for new, old in zip(wanted, given_sizes, strict=True)):
            raise ShapeError(f"{name}: sizes are {wanted} of {given_sizes}, need sizes ≥ 0, and 0 of axes that are empty")
        ratios = [(new, old) if old != 0 else (1, 1) for new, old in zip(wanted, given_sizes, strict=True)]
        choose = _POLICIES[keep_aspect_ratio_policy]
        if choose is not None:
            ratios = [choose(ratios, key=lambda ratio: ratio[0] / ratio[1])] * len(along)
            wanted = [_scaled(size, ratios[0][0] / ratios[0][1], 0.5) for size in given_sizes]
    regions = [(0.0, 1.0)] * len(along)
    if coordinate_transformation_mode == "tf_crop_and_resize":
        if roi is None:
            raise ShapeError(f"{name}: roi is absent, mode tf_crop_and_resize needs {2 * len(along)} numbers")
        ends = _floats(f"{name}: roi", roi, 2 * len(along))
        if not all(map(math.isfinite, ends)):
            raise AttributeValueError(f"{name}: roi is {ends}, need finite numbers")
        regions = list(zip(ends[: len(along)], ends[len(along) :], strict=True))
    return [Axis(*plan) for plan in zip(along, given_sizes, wanted, ratios, regions, strict=True)]


def _scaled(size: int, scale: float, add: float = 0.0) -> int:
    """Return size · scale + add, rounded down."""
    over, under = scale.as_integer_ratio()
    if add == 0 and size * over < 1 << 24:  # exact in fp32 too
        return size * over // under
    return math.floor(_single(size, scale) + add)


def _single(size: int, scale: float) -> float:
    """Return size · scale in fp32: 10 times the fp32 number nearest to 1.3 is 13 there, and 12.9999995 in fp64."""
    return float(np.float32(size) * np.float32(scale))


def _resized(x: Spec, plans: list[Axis]) -> Spec:
    shape = list(x.shape)
    for plan in plans:
        shape[plan.axis] = plan.size_out
    return Spec(tuple(shape), x.dtype)


def _floats(subject: str, spec: Spec, length: int) -> list[float]:
    require_dtype(subject, spec, FLOATS)
    if spec.shape != (length,):
        raise ShapeError(f"{subject} are {spec}, need {length} numbers")
    return [float(value) for value in spec.known(subject)]


def infer(
    x: Spec,
    roi: Spec | None = None,
    scales: Spec | None = None,
    sizes: Spec | None = None,
    *,
    mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    keep_aspect_ratio_policy: str = "stretch",
    scales_second: bool = False,
) -> Spec:
    """Sizes from `sizes`, or every size times its scale, rounded down. `scales_second`: opset 10's order of inputs."""
    require_dtype("Resize: x", x, NUMBERS | {BOOL} if mode == "nearest" else NUMBERS)
    if not math.isfinite(cubic_coeff_a):
        raise AttributeValueError(f"Resize: attribute cubic_coeff_a is {cubic_coeff_a}, need a finite number")
    one_of("Resize: attribute mode", mode, ("nearest", "linear", "cubic"))
    one_of("Resize: attribute coordinate_transformation_mode", coordinate_transformation_mode, COORDINATES)
    one_of("Resize: attribute nearest_mode", nearest_mode, NEAREST)
    one_of("Resize: attribute keep_aspect_ratio_policy", keep_aspect_ratio_policy, _POLICIES)
    if scales_second:
        roi, scales = None, roi
    plans = _resized_axes(
        "Resize",
        x,
        roi,
        scales,
        sizes,
        axes=axes,
        keep_aspect_ratio_policy=keep_aspect_ratio_policy,
        coordinate_transformation_mode=coordinate_transformation_mode,
    )
    return _resized(x, plans)


def cost(
    out: tuple[Spec, ...],
    x: Spec,
    roi: Spec | None = None,
    scales: Spec | None = None,
    sizes: Spec | None = None,
    *,
    scales_second: bool = False,
    **attrs: Any,
) -> Cost:
    """0 for nearest; else per resized axis 2·taps - 1 (multiply, add) for every element that pass makes."""
    if attrs["mode"] == "nearest":
        return Cost()
    if scales_second:
        roi, scales = None, roi
    shape, flops = list(x.shape), 0
    for plan in _resized_axes("Resize", x, roi, scales, sizes, **attrs):
        if not is_copied(plan, **attrs):
            shape[plan.axis] = plan.size_out
            flops += (2 * tap_count(plan, attrs["mode"], attrs["antialias"]) - 1) * math.prod(shape)
    return Cost(other_flops=flops)


def passes(
    x: Spec,
    roi: Spec | None = None,
    scales: Spec | None = None,
    sizes: Spec | None = None,
    *,
    scales_second: bool = False,
    **attrs: Any,
) -> list[Pass]:
    """One pass for each axis that is resized; an axis whose coordinates are its positions, rounded or not, needs none."""
    plans = resize_plans(x, roi, scales, sizes, scales_second=scales_second, **attrs)
    found = [resize_axis(plan, **attrs) for plan in plans]
    return [step for step in found if not leaves_alone(step, x.shape[step.axis])]


def run(
    out: tuple[Array, ...],
    x: Array,
    roi: Array | None = None,
    scales: Array | None = None,
    sizes: Array | None = None,
    **attrs: Any,
) -> None:
    """One pass an axis: a gather for nearest, a sum of weighted gathers otherwise, in float32 or float64.

    Weighted integers are rounded to the nearest and saturate, as PyTorch's.
    """
    (y,) = out
    if not y.size:
        return
    inputs = [None if given is None else Spec.of(given) for given in (roi, scales, sizes)]
    work = x if attrs["mode"] == "nearest" or x.dtype in (np.float32, np.float64) else x.astype(_wide(x))
    found = passes(Spec(x.shape, x.dtype), *inputs, **attrs)
    for step in found:
        if step.weights is None:
            work = np.take(work, step.index[:, 0], step.axis)
        else:
            work = _weigh(work, step.axis, step.index, step.weights)
    if work.dtype.kind == "f" and y.dtype.kind in "iu":
        work = np.clip(np.rint(work), np.iinfo(y.dtype).min, np.iinfo(y.dtype).max)
    np.copyto(y, work, casting="unsafe")
    for step in found:
        if step.outside.any():
            np.moveaxis(y, step.axis, 0)[step.outside] = attrs["extrapolation_value"]


def scratch_bytes(out: tuple[Spec, ...], x: Spec, *inputs: Spec | None, **attrs: Any) -> int:
    """What lies between the passes, which may be larger than both ends: of one pass its input, the sum, and two taps' parts."""
    shape, most, tables, before = list(x.shape), 0, 0, x.elements
    for plan in resize_plans(x, *inputs, **attrs):
        shape[plan.axis] = plan.size_out
        made = math.prod(shape)
        most, before = max(most, before + 3 * made), made
        taps = 1 if attrs["mode"] == "nearest" else tap_count(plan, attrs["mode"], attrs["antialias"])
        tables += 64 * plan.size_out * taps
    itemsize = x.dtype.itemsize if attrs["mode"] == "nearest" else max(x.dtype.itemsize, 4 if x.dtype in FLOATS else 8)
    return FIXED_BYTES + tables + itemsize * (most + x.elements)


def resize_plans(
    x: Spec,
    roi: Spec | None = None,
    scales: Spec | None = None,
    sizes: Spec | None = None,
    *,
    scales_second: bool = False,
    **attrs: Any,
) -> list[Axis]:
    """Return the axes to resize of a Resize with these inputs and attributes, without those that are copied."""
    if scales_second:
        roi, scales = None, roi
    found = _resized_axes("Resize", x, roi, scales, sizes, **attrs)
    return [plan for plan in found if not is_copied(plan, **attrs)]


def _wide(x: Array) -> Any:
    return np.float32 if x.dtype in FLOATS else np.float64


def _weigh(x: Array, axis: int, index: Array, weights: Array) -> Array:
    column = weights.astype(x.dtype).reshape((*weights.shape, *(1,) * (x.ndim - axis - 1)))
    total: Array = np.take(x, index[:, 0], axis)
    total *= column[:, 0]
    for tap in range(1, index.shape[1]):
        part = np.take(x, index[:, tap], axis)
        part *= column[:, tap]
        total += part
    return total


def upgrade(opset: int, attrs: dict[str, Any], outputs: int) -> tuple[dict[str, Any], dict[int, Array]]:
    """Opset 10 had the scales second, and the coordinates of Upsample."""
    return ({**attrs, **_UPSAMPLE, "scales_second": True} if opset < 11 else attrs), {}


_DEFAULTS = {name: value for name, value in (infer.__kwdefaults__ or {}).items() if name != "scales_second"}
_UPSAMPLE: dict[str, Any] = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


def upsample_attributes(*, mode: str) -> dict[str, Any]:
    """Return the attributes of the Resize that an Upsample is equal to."""
    return {**_DEFAULTS, **_UPSAMPLE, "mode": mode, "scales_second": True}


def infer_upsample(x: Spec, scales: Spec, *, mode: str = "nearest") -> Spec:
    """Every size times its scale, rounded down."""
    require_dtype("Upsample: x", x, NUMBERS)
    one_of("Upsample: attribute mode", mode, ("nearest", "linear"))
    return _resized(x, _resized_axes("Upsample", x, None, scales, None, **{**_DEFAULTS, **_UPSAMPLE}))


def cost_upsample(out: tuple[Spec, ...], x: Spec, scales: Spec, *, mode: str = "nearest") -> Cost:
    """As Resize."""
    return cost(out, x, scales, **upsample_attributes(mode=mode))


def scratch_bytes_upsample(out: tuple[Spec, ...], x: Spec, scales: Spec, *, mode: str = "nearest") -> int:
    """As Resize."""
    return scratch_bytes(out, x, scales, **upsample_attributes(mode=mode))


def run_upsample(out: tuple[Array, ...], x: Array, scales: Array, *, mode: str = "nearest") -> None:
    """As Resize."""
    run(out, x, scales, **upsample_attributes(mode=mode))


def _f(*values: float) -> Array:
    return np.array(values, np.float32)


def _i(*values: int) -> Array:
    return np.array(values, np.int64)


_ROI = _f(0, 0, 0.4, 0.6, 1, 1, 0.6, 1.1)
_IMAGE = (1, 2, 4, 5)
_HALF = np.linspace(-1, 1, 20, dtype=np.float16).reshape(4, 5)
_BYTES = np.array([[0, 255, 255, 9], [250, 3, 0, 255]], np.uint8)
_CROP = {"coordinate_transformation_mode": "tf_crop_and_resize"}
_CASES = (
    Case("nearest_twice", inputs=(_IMAGE, None, _f(1, 1, 2, 2)), cost=Cost()),
    Case("nearest_sizes_floor", inputs=(_IMAGE, None, None, _i(1, 2, 7, 3)), attrs={"nearest_mode": "floor"}),
    Case(
        "nearest_ceil_asymmetric",
        inputs=(_IMAGE, None, _f(1, 1, 0.6, 1.7)),
        attrs={"nearest_mode": "ceil", "coordinate_transformation_mode": "asymmetric"},
    ),
    Case("nearest_prefer_ceil", inputs=(_IMAGE, None, None, _i(1, 2, 8, 8)), attrs={"nearest_mode": "round_prefer_ceil"}),
    Case("nearest_ints", inputs=(np.arange(6, dtype=np.uint8).reshape(2, 3), None, _f(2, 2))),
    Case("linear_bytes", inputs=(_BYTES, None, None, _i(3, 7)), attrs={"mode": "linear"}),
    Case("cubic_bytes", inputs=(_BYTES, None, None, _i(3, 7)), attrs={"mode": "cubic"}),
    Case("linear_up", inputs=(_IMAGE, None, _f(1, 1, 2, 2)), attrs={"mode": "linear"}, cost=Cost(other_flops=3 * (80 + 160))),
    Case("linear_down", inputs=(_IMAGE, None, _f(1, 1, 0.6, 0.6)), attrs={"mode": "linear"}),
    Case(
        "linear_align_corners",
        inputs=(_IMAGE, None, None, _i(1, 2, 7, 9)),
        attrs={"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    ),
    Case(
        "linear_pytorch_to_one",
        inputs=(_IMAGE, None, None, _i(1, 2, 1, 3)),
        attrs={"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
    ),
    Case(
        "linear_symmetric",
        inputs=(_IMAGE, None, _f(1, 1, 1.3, 0.7)),
        attrs={"mode": "linear", "coordinate_transformation_mode": "half_pixel_symmetric"},
    ),
    Case("linear_antialias", inputs=((1, 1, 9, 11), None, _f(1, 1, 0.4, 0.6)), attrs={"mode": "linear", "antialias": 1}),
    Case("linear_half", inputs=(_HALF, None, _f(2, 1.5)), attrs={"mode": "linear"}),
    Case("cubic_up", inputs=(_IMAGE, None, _f(1, 1, 2, 1)), attrs={"mode": "cubic"}, cost=Cost(other_flops=7 * 80)),
    Case(
        "cubic_excluding",
        inputs=(_IMAGE, None, _f(1, 1, 1.5, 0.8)),
        attrs={"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": 1},
    ),
    Case("cubic_antialias", inputs=((1, 1, 9, 11), None, _f(1, 1, 0.4, 0.6)), attrs={"mode": "cubic", "antialias": 1}),
    Case(
        "crop",
        inputs=(_IMAGE, _ROI, None, _i(1, 2, 3, 4)),
        attrs={"mode": "linear", **_CROP, "extrapolation_value": 10.0},
    ),
    Case("axes", inputs=(_IMAGE, None, None, _i(7, 2)), attrs={"mode": "linear", "axes": (3, 2)}),
    Case("not_larger", inputs=(_IMAGE, None, None, _i(8, 8)), attrs={"axes": (2, 3), "keep_aspect_ratio_policy": "not_larger"}),
    Case("not_smaller", inputs=(_IMAGE, None, None, _i(8, 8)), attrs={"axes": (2, 3), "keep_aspect_ratio_policy": "not_smaller"}),
    Case("single_size", inputs=((1, 1, 10), None, _f(1, 1, 1.3)), attrs={"mode": "linear"}, cost=Cost(other_flops=3 * 13)),
    Case(
        "linear_aligned_scale",
        inputs=((1, 1, 4, 7), None, _f(1, 1, 1.6, 1.5)),
        attrs={"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    ),
    Case(
        "nearest_aligned_scale",
        inputs=((1, 1, 4, 7), None, _f(1, 1, 1.6, 1.5)),
        attrs={"nearest_mode": "floor", "coordinate_transformation_mode": "align_corners"},
    ),
    Case(
        "crop_scale", inputs=((1, 1, 4, 7), _f(0, 0, 0.1, 0, 1, 1, 1, 0.9), _f(1, 1, 1.6, 1.5)), attrs={"mode": "linear", **_CROP}
    ),
    Case("crop_only", inputs=((1, 1, 4, 5), _f(0, 0, 0.25, 0, 1, 1, 1, 0.75), _f(1, 1, 1, 1)), attrs={"mode": "linear", **_CROP}),
    Case("nearest_halfway", inputs=((1, 1, 20), None, None, _i(1, 1, 6)), attrs={"nearest_mode": "round_prefer_ceil"}),
    Case(
        "nearest_single",
        inputs=((1, 1, 12), None, _f(1, 1, 1.1)),
        attrs={"nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"},
    ),
    Case("nearest_halfway_floor", inputs=((1, 1, 14), None, None, _i(1, 1, 19))),
    Case(
        "nearest_unrounded_channels",
        inputs=(_IMAGE, None, _f(1, 1, 1, 1.4)),
        attrs={"nearest_mode": "round_prefer_ceil", "coordinate_transformation_mode": "tf_half_pixel_for_nn"},
    ),
    Case("linear_unchanged_size", inputs=((1, 1, 5, 10), None, _f(1, 1, 1.6, 1.05)), attrs={"mode": "linear"}),
    Case(
        "nearest_symmetric",
        inputs=((1, 1, 3), None, None, _i(1, 1, 13)),
        attrs={"coordinate_transformation_mode": "half_pixel_symmetric", "nearest_mode": "floor"},
    ),
    Case("older_inputs", inputs=(_IMAGE, _f(1, 1, 2, 2)), attrs={"scales_second": True, **_UPSAMPLE}),
    Case("to_nothing", inputs=((2, 3), None, _f(0.1, 1)), cost=Cost()),
    Case("of_nothing", inputs=((0, 1, 3, 3), None, None, _i(0, 1, 6, 6)), cost=Cost()),
    Case("from_nothing", inputs=((0, 1, 3, 3), None, None, _i(1, 1, 6, 6)), raises=ShapeError),
    Case("neither", inputs=(_IMAGE,), raises=ShapeError),
    Case("both", inputs=(_IMAGE, None, _f(1, 1, 1, 1), _i(1, 2, 4, 5)), raises=ShapeError),
    Case("scale_zero", inputs=(_IMAGE, None, _f(1, 1, 0, 1)), raises=AttributeValueError),
    Case("scales_short", inputs=(_IMAGE, None, _f(2, 2)), raises=ShapeError),
    Case("crop_without_roi", inputs=((4,), None, _f(2)), attrs=_CROP, raises=ShapeError),
    Case("unknown_mode", inputs=((4,), None, _f(2)), attrs={"mode": "area"}, raises=AttributeValueError),
    Case("strings", inputs=(np.array(["a"], object), None, _f(2)), raises=DTypeError),
)
_UPSAMPLE_CASES = (
    Case("nearest", inputs=(_IMAGE, _f(1, 1, 2, 3)), cost=Cost()),
    Case("linear", inputs=(_IMAGE, _f(1, 1, 2, 2)), attrs={"mode": "linear"}, cost=Cost(other_flops=3 * (80 + 160))),
    Case("scales_short", inputs=(_IMAGE, _f(2)), raises=ShapeError),
)


def mixes_rows(call: Application) -> str:
    """Rows are read by themselves along an axis of scale 1. Other scales may leave the size of small batches, and mix rows."""
    if call.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return "it crops"
    axes = call.attrs.get("axes") or range(call.rank)
    along = [axis % call.rank for axis in axes]
    if 0 in along and call.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return "it keeps the aspect ratio of the batch"
    scales = call.input(1 if call.attrs.get("scales_second", True) else 2)
    if 0 in along and scales is not None and (scales.spec is None or scales.spec.elements):
        if scales.spec is None or scales.spec.value is None or not scales.is_free:
            return f"{scales.name!r} is only known at run time"
        if scales.spec.value.ravel()[along.index(0)] != 1:
            return "it resizes the batch"
    return first_input_has_rows(call)


OPS = (
    Op(
        "Resize",
        infer,
        cost,
        (Kernel("separable", run, scratch_bytes=scratch_bytes),),
        upgrade=upgrade,
        tolerance_eps=16,
        mixes_rows=mixes_rows,
        cases=_CASES,
    ),
    Op(
        "Upsample",
        infer_upsample,
        cost_upsample,
        (Kernel("separable", run_upsample, scratch_bytes=scratch_bytes_upsample),),
        upgrade=attribute_inputs(9, "scales", dtype="float32"),
        mixes_rows=mixes_rows,
        cases=_UPSAMPLE_CASES,
    ),
)
