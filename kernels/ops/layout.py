"""Ops that move elements without changing them: Transpose, Concat, Split, Slice, Expand, Tile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kernels.batch_axis import Application, first_input_has_rows, only_first_input_has_rows, works_along_axis
from kernels.cost import Cost, moves
from kernels.errors import AttributeValueError, DTypeError, ShapeError
from kernels.operands import Taken, axes_of, axis_of, broadcast, known_ints, one_dtype, taken_by_slice
from kernels.registry import Case, Kernel, Op
from kernels.scratch import fixed
from kernels.spec import Array, Spec
from kernels.upgrades import attribute_inputs, constant_of


def infer_transpose(x: Spec, *, perm: Sequence[int] = ()) -> Spec:
    """Axis i of the output is axis perm[i] of x; all reversed when no perm is given."""
    order = tuple(perm) or tuple(reversed(range(x.rank)))
    if sorted(order) != list(range(x.rank)):
        raise ShapeError(f"Transpose: perm is {order}, need each of the {x.rank} axes of x {x} once")
    return Spec(tuple(x.shape[axis] for axis in order), x.dtype)


def run_transpose(out: tuple[Array, ...], x: Array, *, perm: Sequence[int] = ()) -> None:
    """A strided copy."""
    np.copyto(out[0], x.transpose(tuple(perm) or None))


def infer_concat(*inputs: Spec | None, axis: int) -> Spec:
    """Sizes along `axis` add up, the others are equal."""
    if not inputs:
        raise ShapeError("Concat: has no inputs, need at least one")
    specs = [spec for spec in inputs if spec is not None]
    if len(specs) != len(inputs):
        raise ShapeError(f"Concat: input {inputs.index(None)} of {len(inputs)} is absent, need all of them")
    first = specs[0]
    along = axis_of("Concat", axis, first.rank)
    for i, spec in enumerate(specs):
        if spec.rank != first.rank or any(
            a != b for k, (a, b) in enumerate(zip(spec.shape, first.shape, strict=True)) if k != along
        ):
            raise ShapeError(f"Concat: input {i} is {spec}, need input 0's {first} except along axis {along}")
    total = sum(spec.shape[along] for spec in specs)
    return Spec((*first.shape[:along], total, *first.shape[along + 1 :]), one_dtype("Concat", *specs))


def run_concat(out: tuple[Array, ...], *inputs: Array, axis: int) -> None:
    """One copy per input."""
    np.concatenate(inputs, axis, out=out[0])


def infer_slice(x: Spec, starts: Spec, ends: Spec, axes: Spec | None = None, steps: Spec | None = None) -> Spec:
    """Slices the named axes: negative counts from the end, beyond the ends is clamped, no step is 0."""
    shape = list(x.shape)
    for axis, taken in _taken(x.shape, starts, ends, axes, steps).items():
        shape[axis] = taken.number
    return Spec(tuple(shape), x.dtype)


def _taken(shape: tuple[int, ...], starts: Spec, ends: Spec, axes: Spec | None, steps: Spec | None) -> dict[int, Taken]:
    begin, end = known_ints("Slice: starts", starts), known_ints("Slice: ends", ends, starts.elements)
    along = axes_of("Slice", range(len(begin)) if axes is None else known_ints("Slice: axes", axes, len(begin)), len(shape))
    stride = (1,) * len(begin) if steps is None else known_ints("Slice: steps", steps, len(begin))
    if 0 in stride:
        raise AttributeValueError(f"Slice: steps are {stride}, need none to be 0")
    bounds = zip(along, begin, end, stride, strict=True)
    return {axis: taken_by_slice(shape[axis], start, stop, step) for axis, start, stop, step in bounds}


def run_slice(
    out: tuple[Array, ...], x: Array, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None
) -> None:
    """A strided copy."""
    specs = [None if bound is None else Spec.of(bound) for bound in (axes, steps)]
    slices = [slice(None)] * x.ndim
    for axis, (first, count, step) in _taken(x.shape, Spec.of(starts), Spec.of(ends), *specs).items():
        stop = first + count * step
        # a stop of -1 is "through element 0" where a slice is counted, and "up to the last element" to numpy
        slices[axis] = slice(first, None if stop < 0 else stop, step) if count else slice(0)
    np.copyto(out[0], x[tuple(slices)])


def infer_expand(x: Spec, shape: Spec) -> Spec:
    """Both shapes broadcast: a 1 in either takes the other's size."""
    wanted = known_ints("Expand: shape", shape)
    if any(size < 0 for size in wanted):
        raise ShapeError(f"Expand: shape is {wanted}, need sizes ≥ 0")
    return Spec(broadcast("Expand", x.shape, wanted), x.dtype)


def run_expand(out: tuple[Array, ...], x: Array, shape: Array) -> None:
    """A broadcast copy."""
    np.copyto(out[0], x)


def infer_tile(x: Spec, repeats: Spec) -> Spec:
    """Every size times its repeat."""
    times = known_ints("Tile: repeats", repeats, x.rank)
    if any(count < 0 for count in times):
        raise ShapeError(f"Tile: repeats are {times}, need counts ≥ 0")
    return Spec(tuple(size * count for size, count in zip(x.shape, times, strict=True)), x.dtype)


def run_tile(out: tuple[Array, ...], x: Array, repeats: Array) -> None:
    """One broadcast copy into the output seen as (repeat, size) pairs."""
    pairs = [extent for count, size in zip(repeats.tolist(), x.shape, strict=True) for extent in (count, size)]
    np.copyto(out[0].reshape(pairs), x.reshape([extent for size in x.shape for extent in (1, size)]))


def infer_split(x: Spec, split: Spec | None = None, *, axis: int = 0, num_outputs: int | None = None) -> tuple[Spec, ...]:
    """Sizes from `split`, or `num_outputs` equal ones, the last smaller where they do not divide."""
    along = axis_of("Split", axis, x.rank)
    size = x.shape[along]
    if split is None:
        sizes = _equal_parts(size, num_outputs)
    else:
        sizes = known_ints("Split: split", split)
        if sum(sizes) != size or any(part < 0 for part in sizes):
            raise ShapeError(
                f"Split: split is {sizes} with sum {sum(sizes)}, need sizes ≥ 0 that add up to {size}, axis {along} of x {x}"
            )
        if num_outputs not in (None, len(sizes)):
            raise ShapeError(f"Split: split is {sizes}, need {num_outputs} sizes, one an output")
    return tuple(Spec((*x.shape[:along], part, *x.shape[along + 1 :]), x.dtype) for part in sizes)


def _equal_parts(size: int, parts: int | None) -> tuple[int, ...]:
    """Return the sizes of equal parts, size / parts rounded up; the last has the rest, which may be nothing."""
    if parts is None or parts < 1:
        raise AttributeValueError(f"Split: num_outputs is {parts} without split, need 1 or more")
    part = -(-size // parts)
    rest = size - part * (parts - 1)
    if rest < 0:
        raise AttributeValueError(
            f"Split: num_outputs is {parts}, but {parts - 1} parts of {part} are more than the axis of {size}"
        )
    return (*[part] * (parts - 1), rest)


def run_split(
    out: tuple[Array | None, ...], x: Array, split: Array | None = None, *, axis: int = 0, num_outputs: int | None = None
) -> None:
    """One copy for each output that is read; the last ones may be left out."""
    sizes = split.tolist() if split is not None else _equal_parts(x.shape[axis], num_outputs)
    stop = 0
    parts = np.moveaxis(x, axis, 0)
    for y, size in zip(out, sizes, strict=False):
        stop += size
        if y is not None:
            np.copyto(np.moveaxis(y, axis, 0), parts[stop - size : stop])


def upgrade_split(opset: int, attrs: dict[str, Any], outputs: int) -> tuple[dict[str, Any], dict[int, Array]]:
    """Before opset 18 the number of parts was the node's number of outputs; before 13 sizes were an attribute."""
    if opset >= 18:
        return attrs, {}
    attrs = dict(attrs)
    sizes = attrs.pop("split", None)
    if sizes is not None:
        return attrs, {1: constant_of("split", sizes)}
    return {**attrs, "num_outputs": outputs}, {}


def transpose_mixes_rows(call: Application) -> str:
    """Rows stay where axis 0 stays."""
    kept = first_input_has_rows(call) == "" and tuple(call.attrs["perm"][:1]) == (0,)
    return "" if kept else "it moves axis 0"


def concat_mixes_rows(call: Application) -> str:
    """Rows may be joined to rows along any axis but 0."""
    if call.attrs["axis"] % max(call.rank, 1) == 0:
        return "it joins along axis 0"
    rows = all(operand is not None and operand.is_rows for operand in call.inputs)
    return "" if rows else "one of its inputs holds no rows"


def slice_mixes_rows(call: Application) -> str:
    """Axis 0 must not be cut."""
    starts, axes = (None if call.inputs[1] is None else call.inputs[1].integers()), call.axes(3)
    if axes == [] and starts is not None:
        axes = list(range(len(starts)))
    return only_first_input_has_rows(call) or ("it cuts axis 0" if axes is None or 0 in axes else "")


def expand_mixes_rows(call: Application) -> str:
    """Rows may be repeated along other axes. A value that does not depend on the batch may be repeated for every row."""
    operand = call.inputs[0]
    if operand is not None and operand.is_rows:
        return "" if len(operand.shape) == call.rank else "its rows are broadcast across axis 0"
    alike = operand is not None and operand.is_free and (len(operand.shape) < call.rank or operand.shape[0] == 1)
    return "" if alike else "its rows would differ by their place"


def tile_mixes_rows(call: Application) -> str:
    """Axis 0 must not be repeated."""
    repeats = None if call.inputs[1] is None else call.inputs[1].integers()
    return "" if repeats and repeats[0] == 1 and first_input_has_rows(call) == "" else "it repeats axis 0"


def _ints(*values: int) -> Array:
    return np.array(values, np.int64)


_FREE = Cost()
_TRANSPOSE = (
    Case("default", inputs=((2, 3, 4),), cost=_FREE),
    Case("heads", inputs=((2, 5, 3, 4),), attrs={"perm": (0, 2, 1, 3)}),
    Case("scalar", inputs=((),)),
    Case("empty", inputs=((0, 3),)),
    Case("strings", inputs=(np.array([["a", "b"]], object),)),
    Case("perm_short", inputs=((2, 3),), attrs={"perm": (0,)}, raises=ShapeError),
    Case("perm_twice", inputs=((2, 3),), attrs={"perm": (1, 1)}, raises=ShapeError),
)
_CONCAT = (
    Case("channels", inputs=((2, 3, 4), (2, 1, 4), (2, 2, 4)), attrs={"axis": 1}, cost=_FREE),
    Case("negative_axis", inputs=((2, 3), (2, 2)), attrs={"axis": -1}),
    Case("one", inputs=((2, 3),), attrs={"axis": 0}),
    Case("empty_part", inputs=((0, 3), (2, 3)), attrs={"axis": 0}),
    Case("int64", inputs=(_ints(1), _ints(3, 224)), attrs={"axis": 0}),
    Case("strings", inputs=(np.array(["a"], object), np.array(["b"], object)), attrs={"axis": 0}),
    Case("other_axis_differs", inputs=((2, 3), (3, 3)), attrs={"axis": 1}, raises=ShapeError),
    Case("rank_differs", inputs=((2, 3), (2,)), attrs={"axis": 0}, raises=ShapeError),
    Case("dtype_differs", inputs=((2,), _ints(1)), attrs={"axis": 0}, raises=DTypeError),
    Case("axis_out_of_range", inputs=((2,), (2,)), attrs={"axis": 1}, raises=ShapeError),
    Case("absent_input", inputs=((2,), None), attrs={"axis": 0}, raises=ShapeError),
)
_SLICE = (
    Case("two_axes", inputs=((5, 6), _ints(1, 0), _ints(4, 6)), cost=_FREE),
    Case("steps", inputs=((5, 6), _ints(0, 1), _ints(5, 6), _ints(0, 1), _ints(2, 3))),
    Case("reversed", inputs=((5, 6), _ints(-1), _ints(-100), _ints(-1), _ints(-2))),
    Case("clamped", inputs=((5,), _ints(-9), _ints(2**63 - 1))),
    Case("past_the_end", inputs=((5,), _ints(7), _ints(9))),
    Case("of_empty", inputs=((0, 2), _ints(0), _ints(3), _ints(0), _ints(-1))),
    Case("int32_bounds", inputs=((5,), np.array([1], np.int32), np.array([3], np.int32))),
    Case("step_zero", inputs=((5,), _ints(0), _ints(3), _ints(0), _ints(0)), raises=AttributeValueError),
    Case("ends_short", inputs=((5, 6), _ints(0, 1), _ints(3)), raises=ShapeError),
    Case("axis_out_of_range", inputs=((5,), _ints(0), _ints(3), _ints(1)), raises=ShapeError),
    Case("axis_twice", inputs=((5, 6), _ints(0, 0), _ints(3, 3), _ints(0, -2)), raises=ShapeError),
)
_EXPAND = (
    Case("rows", inputs=((3, 1), _ints(2, 3, 4)), cost=_FREE),
    Case("shape_smaller", inputs=((3, 4), _ints(1))),
    Case("scalar", inputs=((), _ints(2, 2))),
    Case("to_empty", inputs=((1,), _ints(0))),
    Case("sizes_differ", inputs=((3,), _ints(2)), raises=ShapeError),
    Case("negative", inputs=((1,), _ints(-1)), raises=ShapeError),
)
_TILE = (
    Case("matrix", inputs=((2, 3), _ints(2, 2)), cost=_FREE),
    Case("rows_once", inputs=((2, 3), _ints(1, 2))),
    Case("zero_times", inputs=((2, 3), _ints(0, 1))),
    Case("scalar", inputs=((), _ints())),
    Case("repeats_short", inputs=((2, 3), _ints(2)), raises=ShapeError),
    Case("negative", inputs=((2,), _ints(-1)), raises=ShapeError),
)
_SPLIT = (
    Case("sizes", inputs=((2, 6), _ints(2, 0, 4)), attrs={"axis": 1}, outputs=3, cost=_FREE),
    Case("equal", inputs=((6, 2),), attrs={"num_outputs": 3}, outputs=3),
    Case("last_empty", inputs=((2, 3),), attrs={"num_outputs": 3}, outputs=3),
    Case("last_smaller", inputs=((7,),), attrs={"num_outputs": 4}, outputs=4),
    Case("negative_axis", inputs=((2, 4), _ints(1, 3)), attrs={"axis": -1}, outputs=2),
    Case("sum_differs", inputs=((6,), _ints(2, 3)), raises=ShapeError, outputs=2),
    Case("neither", inputs=((6,),), raises=AttributeValueError, outputs=2),
    Case("too_many_parts", inputs=((2,),), attrs={"num_outputs": 4}, raises=AttributeValueError, outputs=4),
)

_BOUNDS = attribute_inputs(10, "starts", "ends", "axes")
OPS = (
    Op(
        "Transpose",
        infer_transpose,
        moves,
        (Kernel("copy", run_transpose, scratch_bytes=fixed),),
        mixes_rows=transpose_mixes_rows,
        cases=_TRANSPOSE,
    ),
    Op(
        "Concat",
        infer_concat,
        moves,
        (Kernel("copy", run_concat, scratch_bytes=fixed),),
        mixes_rows=concat_mixes_rows,
        cases=_CONCAT,
    ),
    Op(
        "Slice",
        infer_slice,
        moves,
        (Kernel("copy", run_slice, scratch_bytes=fixed),),
        upgrade=_BOUNDS,
        mixes_rows=slice_mixes_rows,
        cases=_SLICE,
    ),
    Op(
        "Expand",
        infer_expand,
        moves,
        (Kernel("copy", run_expand, scratch_bytes=fixed),),
        mixes_rows=expand_mixes_rows,
        cases=_EXPAND,
    ),
    Op("Tile", infer_tile, moves, (Kernel("copy", run_tile, scratch_bytes=fixed),), mixes_rows=tile_mixes_rows, cases=_TILE),
    Op(
        "Split",
        infer_split,
        moves,
        (Kernel("copy", run_split, scratch_bytes=fixed),),
        upgrade=upgrade_split,
        mixes_rows=works_along_axis,
        cases=_SPLIT,
    ),
)
