"""Ops that change the shape alone: Identity, Reshape, Flatten, Squeeze, Unsqueeze."""

from __future__ import annotations

import math

import numpy as np

from kernels.batch_axis import first_input_has_rows
from kernels.cost import Cost, moves
from kernels.errors import DTypeError, ShapeError
from kernels.operands import axes_of, known_ints, one_of
from kernels.registry import Case, Kernel, Op
from kernels.scratch import fixed
from kernels.spec import Array, Spec
from kernels.upgrades import attribute_inputs


def infer_identity(x: Spec) -> Spec:
    """Same shape and dtype; any dtype."""
    return Spec(x.shape, x.dtype)


def infer_reshape(x: Spec, shape: Spec, *, allowzero: int = 0) -> Spec:
    """The shape given by `shape`: -1 is what remains, 0 copies x's size in that place unless `allowzero`."""
    one_of("Reshape: attribute allowzero", allowzero, (0, 1))
    wanted = list(known_ints("Reshape: shape", shape))
    if any(size < -1 for size in wanted) or wanted.count(-1) > 1 or (allowzero and 0 in wanted and -1 in wanted):
        raise ShapeError(f"Reshape: shape is {wanted}, need sizes ≥ 0 and at most one -1 (none beside a true 0)")
    for i, size in enumerate(wanted):
        if size == 0 and not allowzero:
            if i >= x.rank:
                raise ShapeError(f"Reshape: shape {wanted} copies axis {i}, x {x} has {x.rank} axes")
            wanted[i] = x.shape[i]
    if -1 in wanted:
        others = -math.prod(wanted)
        if others == 0 or x.elements % others:
            raise ShapeError(f"Reshape: x {x} has {x.elements} elements, no -1 in {wanted} can hold them")
        wanted[wanted.index(-1)] = x.elements // others
    if math.prod(wanted) != x.elements:
        raise ShapeError(f"Reshape: x {x} has {x.elements} elements, shape {wanted} needs {math.prod(wanted)}")
    return Spec(tuple(wanted), x.dtype)


def infer_flatten(x: Spec, *, axis: int = 1) -> Spec:
    """A matrix: the axes before `axis` by those from it on."""
    if not -x.rank <= axis <= x.rank:
        raise ShapeError(f"Flatten: axis is {axis}, need one in [{-x.rank}, {x.rank}] for x {x}")
    split = axis if axis >= 0 else axis + x.rank
    return Spec((math.prod(x.shape[:split]), math.prod(x.shape[split:])), x.dtype)


def infer_squeeze(x: Spec, axes: Spec | None = None) -> Spec:
    """Drops the axes, all of size 1 when none are named."""
    if axes is None:
        return Spec(tuple(size for size in x.shape if size != 1), x.dtype)
    dropped = axes_of("Squeeze", known_ints("Squeeze: axes", axes), x.rank)
    for axis in dropped:
        if x.shape[axis] != 1:
            raise ShapeError(f"Squeeze: axis {axis} of x {x} has size {x.shape[axis]}, need 1")
    return Spec(tuple(size for i, size in enumerate(x.shape) if i not in dropped), x.dtype)


def infer_unsqueeze(x: Spec, axes: Spec) -> Spec:
    """Adds axes of size 1; `axes` are positions in the output."""
    wanted = known_ints("Unsqueeze: axes", axes)
    added = axes_of("Unsqueeze", wanted, x.rank + len(wanted))
    rest = iter(x.shape)
    return Spec(tuple(1 if i in added else next(rest) for i in range(x.rank + len(added))), x.dtype)


def run(out: tuple[Array, ...], x: Array, *_: Array | None, **attrs: int) -> None:
    """Copies, where the executor does not alias."""
    np.copyto(out[0], x.reshape(out[0].shape))


def _ints(*values: int) -> Array:
    return np.array(values, np.int64)


_IDENTITY = (
    Case("random", inputs=((2, 3),), cost=Cost()),
    Case("strings", inputs=(np.array(["a", "b"], object),)),
    Case("empty", inputs=((0, 2),)),
)
_RESHAPE = (
    Case("explicit", inputs=((2, 3, 4), _ints(4, 6)), cost=Cost()),
    Case("remainder_and_copy", inputs=((2, 3, 4), _ints(0, -1))),
    Case("scalar", inputs=((1, 1), _ints())),
    Case("empty_copied", inputs=((0, 3), _ints(0, -1, 3)), raises=ShapeError),
    Case("empty_allowzero", inputs=((0, 3), _ints(3, 0)), attrs={"allowzero": 1}),
    Case("elements_differ", inputs=((2, 3), _ints(7)), raises=ShapeError),
    Case("remainder_does_not_divide", inputs=((2, 3), _ints(-1, 4)), raises=ShapeError),
    Case("two_remainders", inputs=((2, 3), _ints(-1, -1)), raises=ShapeError),
    Case("copy_beyond_rank", inputs=((2, 3), _ints(2, 3, 0)), raises=ShapeError),
    Case("shape_dtype", inputs=((2, 3), np.array([6], np.float32)), raises=DTypeError),
)
_FLATTEN = (
    Case("default", inputs=((2, 3, 4),), cost=Cost()),
    Case("axis_zero", inputs=((2, 3, 4),), attrs={"axis": 0}),
    Case("axis_rank", inputs=((2, 3),), attrs={"axis": 2}),
    Case("axis_negative", inputs=((2, 3, 4),), attrs={"axis": -1}),
    Case("scalar", inputs=((),), attrs={"axis": 0}),
    Case("axis_out_of_range", inputs=((2, 3),), attrs={"axis": 3}, raises=ShapeError),
)
_SQUEEZE = (
    Case("all", inputs=((1, 3, 1),), cost=Cost()),
    Case("negative_axis", inputs=((1, 3, 1), _ints(-1))),
    Case("two_axes", inputs=((1, 3, 1), _ints(2, 0))),
    Case("size_two", inputs=((1, 2), _ints(1)), raises=ShapeError),
    Case("axis_out_of_range", inputs=((1, 2), _ints(2)), raises=ShapeError),
)
_UNSQUEEZE = (
    Case("front", inputs=((2, 3), _ints(0)), cost=Cost()),
    Case("unordered_negative", inputs=((2, 3), _ints(-1, 1))),
    Case("scalar", inputs=((), _ints(0))),
    Case("twice", inputs=((2, 3), _ints(0, -4)), raises=ShapeError),
    Case("axis_out_of_range", inputs=((2, 3), _ints(3)), raises=ShapeError),
)

_COPY = (Kernel("copy", run, scratch_bytes=fixed),)
_AXES = attribute_inputs(13, "axes")
# in row-major order, row i stays row i where the number of rows does not change, which `graph.batching` checks
OPS = (
    Op("Identity", infer_identity, moves, _COPY, elementwise=True, view=True, cases=_IDENTITY),
    Op("Reshape", infer_reshape, moves, _COPY, view=True, mixes_rows=first_input_has_rows, cases=_RESHAPE),
    Op("Flatten", infer_flatten, moves, _COPY, view=True, mixes_rows=first_input_has_rows, cases=_FLATTEN),
    Op("Squeeze", infer_squeeze, moves, _COPY, view=True, upgrade=_AXES, mixes_rows=first_input_has_rows, cases=_SQUEEZE),
    Op("Unsqueeze", infer_unsqueeze, moves, _COPY, view=True, upgrade=_AXES, mixes_rows=first_input_has_rows, cases=_UNSQUEEZE),
)
