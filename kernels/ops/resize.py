"""Resize and the older Upsample: every output position has a coordinate in the input and takes the values around it.

Interpolation is separable: one pass an axis, each a weighted sum of a few taps (2 linear, 4 cubic, more when a shrinking
axis is filtered against aliasing). Axes whose coordinates are their positions are left alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kernels.batch_axis import Application, first_input_has_rows
from kernels.cost import Cost
from kernels.errors import AttributeValueError, DTypeError, ShapeError
from kernels.operands import NUMBERS, axes_of, known_ints, one_of
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.spec import BOOL, FLOATS, Array, Spec
from kernels.upgrades import attribute_inputs


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis to resize. scale: the given one, or size_out / size_in where sizes are given."""

    axis: int
    size_in: int
    size_out: int
    scale: float
    roi: tuple[float, float]


def _half_pixel(a: Axis, x: Array) -> Array:
    return (x + 0.5) / a.scale - 0.5


def _half_pixel_symmetric(a: Axis, x: Array) -> Array:
    """Half pixels, moved so that the images' centres meet although size_out was rounded."""
    width = np.multiply(a.scale, a.size_in, dtype=x.dtype)
    moved = a.size_in / 2 * (1 - a.size_out / width)
    rounded = replace(a, scale=float(x.dtype.type(a.scale)))
    y: Array = (_half_pixel(rounded, x.astype(np.float64)) + moved).astype(x.dtype)
    return y


def _crop(a: Axis, x: Array) -> Array:
    start, end = a.roi
    last = a.size_in - 1
    if a.size_out == 1:
        return np.full_like(x, 0.5 * (start + end) * last)
    extent = np.subtract(end, start, dtype=x.dtype)
    y: Array = np.multiply(start, last, dtype=x.dtype) + x * extent * last / (a.size_out - 1)
    return y


_COORDINATES: dict[str, Callable[[Axis, Array], Array]] = {
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _half_pixel_symmetric,
    "pytorch_half_pixel": lambda a, x: _half_pixel(a, x) if a.size_out > 1 else x * 0.0,
    "align_corners": lambda a, x: x * (a.size_in - 1) / (a.size_out - 1) if a.size_out > 1 else x * 0.0,
    "asymmetric": lambda a, x: x / a.scale,
    "tf_half_pixel_for_nn": lambda a, x: (x + 0.5) / a.scale,
    "tf_crop_and_resize": _crop,
}
_NEAREST: dict[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5 - _HALFWAY),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5 + _HALFWAY),
    "floor": np.floor,
    "ceil": np.ceil,
}
_HALFWAY = 1e-6  # a coordinate as near as this to the middle of two inputs lies there; ONNX Runtime has the same tolerance
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
        wanted = [math.floor(_single(size, factor)) for size, factor in zip(given_sizes, factors, strict=True)]
    elif sizes is not None:
        wanted = list(known_ints(f"{name}: sizes", sizes, len(along)))
        if any(size < 0 for size in wanted) or 0 in given_sizes:
            raise ShapeError(f"{name}: sizes are {wanted} of {given_sizes}, need sizes ≥ 0 of axes that are not empty")
        factors = [new / old for new, old in zip(wanted, given_sizes, strict=True)]
        choose = _POLICIES[keep_aspect_ratio_policy]
        if choose is not None:
            factors = [choose(factors)] * len(along)
            wanted = [math.floor(_single(size, factors[0]) + 0.5) for size in given_sizes]
    regions = [(0.0, 1.0)] * len(along)
    if coordinate_transformation_mode == "tf_crop_and_resize":
        if roi is None:
            raise ShapeError(f"{name}: roi is absent, mode tf_crop_and_resize needs {2 * len(along)} numbers")
        ends = _floats(f"{name}: roi", roi, 2 * len(along))
        if not all(map(math.isfinite, ends)):
            raise AttributeValueError(f"{name}: roi is {ends}, need finite numbers")
        regions = list(zip(ends[: len(along)], ends[len(along) :], strict=True))
    return [Axis(*plan) for plan in zip(along, given_sizes, wanted, factors, regions, strict=True)]


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
    one_of("Resize: attribute coordinate_transformation_mode", coordinate_transformation_mode, _COORDINATES)
    one_of("Resize: attribute nearest_mode", nearest_mode, _NEAREST)
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


def _taps(plan: Axis, x: Array, mode: str, a: float, antialias: int, exclude_outside: int) -> tuple[Array, Array]:
    """Indices and weights, both (size_out, taps). A tap beyond an edge reads the edge, or nothing when excluded."""
    stretch = min(plan.scale, 1.0) if antialias else 1.0
    reach = math.ceil((1 if mode == "linear" else 2) / stretch)
    index = np.floor(x)[:, None] + np.arange(1 - reach, reach + 1)
    distance = np.abs(index - x[:, None]) * stretch
    weights = np.clip(1 - distance, 0, None) if mode == "linear" else _cubic(distance, a)
    if exclude_outside:
        weights = np.where((index < 0) | (index >= plan.size_in), 0, weights)
    if exclude_outside or stretch < 1:
        total = weights.sum(1, keepdims=True)
        weights = weights / np.where(total == 0, 1, total)
    return np.clip(index, 0, plan.size_in - 1).astype(np.intp), weights


def _cubic(distance: Array, a: float) -> Array:
    """Keys' kernel, R. G. Keys 1981, equation 4."""
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))


def _tap_count(plan: Axis, mode: str, antialias: int) -> int:
    return 2 * math.ceil((1 if mode == "linear" else 2) / (min(plan.scale, 1.0) if antialias else 1.0))


def _coordinates(plan: Axis, mode: str, dtype: type[np.floating[Any]] = np.float64) -> Array:
    """Return where each output lies in the input, (size_out,) fp64, computed in `dtype`.

    Weights follow from coordinates in fp64. What is chosen by a coordinate, a nearest input or whether it lies outside, follows
    from fp32 as in PyTorch and ONNX Runtime, since both types round a coordinate that should lie halfway to different sides.
    """
    return _COORDINATES[mode](plan, np.arange(plan.size_out, dtype=dtype)).astype(np.float64)


def _is_copied(plan: Axis, *, mode: str, antialias: int, coordinate_transformation_mode: str, **_: Any) -> bool:
    """Whether outputs are the inputs at their positions.

    An axis of scale 1 is not resized, whatever its coordinates say, but may be cropped. One whose size stays although its scale
    is another, as 10 · 1.05 does, is copied too where PyTorch's `nearest` and `bilinear` are meant, which do so.
    """
    if plan.size_in != plan.size_out:
        return False
    place = coordinate_transformation_mode
    if plan.scale == 1 and place != "tf_crop_and_resize":
        return True
    if (mode == "linear" and not antialias and place.endswith("half_pixel")) or (mode == "nearest" and place == "asymmetric"):
        return True
    return np.array_equal(_coordinates(plan, place), np.arange(plan.size_in))


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
        if not _is_copied(plan, **attrs):
            shape[plan.axis] = plan.size_out
            flops += (2 * _tap_count(plan, attrs["mode"], attrs["antialias"]) - 1) * math.prod(shape)
    return Cost(other_flops=flops)


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """The interpolation along one axis. index: (size_out, taps), the inputs of every output. weights: of these inputs, None where
    each output is a copy of one input. outside: (size_out,), outputs that get the extrapolation value."""

    axis: int
    index: Array
    weights: Array | None
    outside: Array

    @property
    def copies(self) -> bool:
        """Whether every output is one input."""
        return self.weights is None and not self.outside.any()


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
    if scales_second:
        roi, scales = None, roi
    found = [
        _pass(plan, **attrs) for plan in _resized_axes("Resize", x, roi, scales, sizes, **attrs) if not _is_copied(plan, **attrs)
    ]
    return [step for step in found if not (step.copies and np.array_equal(step.index[:, 0], np.arange(x.shape[step.axis])))]


def _pass(plan: Axis, **attrs: Any) -> Pass:
    place, mode = attrs["coordinate_transformation_mode"], attrs["mode"]
    outside = np.zeros(plan.size_out, bool)
    if place == "tf_crop_and_resize":
        rounded = _coordinates(plan, place, np.float32)
        outside = (rounded < 0) | (rounded > plan.size_in - 1)
    if mode == "nearest":
        nearest = _NEAREST[attrs["nearest_mode"]](_coordinates(plan, place, np.float32))
        return Pass(plan.axis, np.clip(nearest, 0, plan.size_in - 1).astype(np.intp)[:, None], None, outside)
    coordinates = _coordinates(plan, place)
    taps = _taps(plan, coordinates, mode, attrs["cubic_coeff_a"], attrs["antialias"], attrs["exclude_outside"])
    return Pass(plan.axis, *taps, outside)


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
    """Along an axis whose length does not change, every mode reads the row itself alone, except for crops."""
    if call.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return "it crops"
    return first_input_has_rows(call)


OPS = (
    Op(
        "Resize", infer, cost, (Kernel("separable", run),), upgrade=upgrade, tolerance_eps=16, mixes_rows=mixes_rows, cases=_CASES
    ),
    Op(
        "Upsample",
        infer_upsample,
        cost_upsample,
        (Kernel("separable", run_upsample),),
        upgrade=attribute_inputs(9, "scales", dtype="float32"),
        mixes_rows=mixes_rows,
        cases=_UPSAMPLE_CASES,
    ),
)
