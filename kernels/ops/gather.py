"""Gather, GatherElements, GatherND. A negative index counts from the end; one outside the axis is refused."""

from __future__ import annotations

import numpy as np

from kernels.batch_axis import Application
from kernels.cost import Cost, moves
from kernels.errors import DTypeError, IndexRangeError, ShapeError
from kernels.operands import INDICES, axis_of, check_indices
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.scratch import fixed
from kernels.spec import Array, Spec


def _check_known(subject: str, indices: Spec, size: int) -> None:
    if indices.value is not None:
        check_indices(subject, indices.value, size)


def infer_gather(x: Spec, indices: Spec, *, axis: int = 0) -> Spec:
    """The axis is replaced by the shape of the indices."""
    require_dtype("Gather: indices", indices, INDICES)
    along = axis_of("Gather", axis, x.rank)
    _check_known("Gather: indices", indices, x.shape[along])
    return Spec((*x.shape[:along], *indices.shape, *x.shape[along + 1 :]), x.dtype)


def run_gather(out: tuple[Array, ...], x: Array, indices: Array, *, axis: int = 0) -> None:
    """Indices are checked once, so that numpy may take them modulo the axis without its own buffered check."""
    if out[0].size:
        check_indices("Gather: indices", indices, x.shape[axis])
        np.take(x, indices, axis, out=out[0], mode="wrap")


def infer_gather_elements(x: Spec, indices: Spec, *, axis: int = 0) -> Spec:
    """The shape of the indices, which may be smaller than x except along the axis, where any size goes."""
    require_dtype("GatherElements: indices", indices, INDICES)
    along = axis_of("GatherElements", axis, x.rank)
    if indices.rank != x.rank or any(i > n for k, (i, n) in enumerate(zip(indices.shape, x.shape, strict=True)) if k != along):
        raise ShapeError(f"GatherElements: indices are {indices}, need rank {x.rank} and sizes within x {x} but for axis {along}")
    _check_known("GatherElements: indices", indices, x.shape[along])
    return Spec(indices.shape, x.dtype)


def run_gather_elements(out: tuple[Array, ...], x: Array, indices: Array, *, axis: int = 0) -> None:
    """take_along_axis of the part of x that the indices cover."""
    if not indices.size:
        return
    along, size = axis % x.ndim, x.shape[axis]
    check_indices("GatherElements: indices", indices, size)
    covered = tuple(slice(None if k == along else extent) for k, extent in enumerate(indices.shape))
    np.copyto(out[0], np.take_along_axis(x[covered], indices % size, along))


def infer_gather_nd(x: Spec, indices: Spec, *, batch_dims: int = 0) -> Spec:
    """batch + the other axes of the indices + what their last axis leaves of x."""
    require_dtype("GatherND: indices", indices, INDICES)
    batch = batch_dims
    if not 0 <= batch < min(x.rank, indices.rank):
        raise ShapeError(
            f"GatherND: batch_dims is {batch}, need 0 to {min(x.rank, indices.rank) - 1} for x {x}, indices {indices}"
        )
    if x.shape[:batch] != indices.shape[:batch]:
        raise ShapeError(f"GatherND: x {x} and indices {indices} differ in the first {batch} axes, need equal sizes")
    depth = indices.shape[-1]
    if not 1 <= depth <= x.rank - batch:
        raise ShapeError(f"GatherND: indices {indices} have tuples of {depth}, need 1 to {x.rank - batch} for x {x}")
    return Spec((*indices.shape[:-1], *x.shape[batch + depth :]), x.dtype)


def run_gather_nd(out: tuple[Array, ...], x: Array, indices: Array, *, batch_dims: int = 0) -> None:
    """One fancy-indexed copy, the batch axes indexed by open ranges."""
    if not out[0].size:
        return
    tuples = np.moveaxis(indices, -1, 0)
    for offset, column in enumerate(tuples):
        check_indices(f"GatherND: indices[..., {offset}]", column, x.shape[batch_dims + offset])
    ranges = np.ix_(*map(np.arange, x.shape[:batch_dims])) if batch_dims else ()
    trailing = indices.ndim - 1 - batch_dims
    batch = tuple(index.reshape(index.shape + (1,) * trailing) for index in ranges)
    np.copyto(out[0], x[(*batch, *tuples)])


def _ints(values: object) -> Array:
    return np.array(values, np.int64)


_GATHER = (
    Case("rows", inputs=((5, 3), _ints([[0, 4], [2, 2]])), cost=Cost()),
    Case("negative_index_and_axis", inputs=((2, 5), _ints([-1, 0, -5])), attrs={"axis": -1}),
    Case("scalar_index", inputs=((4, 3), _ints(2))),
    Case("of_shape", inputs=(_ints([1, 3, 224, 224]), _ints([0])), cost=Cost()),
    Case("int32_indices", inputs=((5, 3), np.array([1], np.int32))),
    Case("no_index", inputs=((5, 3), _ints([]))),
    Case("strings", inputs=(np.array(["a", "b"], object), _ints([1, 0, 1]))),
    Case("index_out_of_range", inputs=((5, 3), _ints([5])), raises=IndexRangeError),
    Case("axis_out_of_range", inputs=((5, 3), _ints([0])), attrs={"axis": 2}, raises=ShapeError),
    Case("float_indices", inputs=((5, 3), (2,)), raises=DTypeError),
)
_ELEMENTS = (
    Case("columns", inputs=((3, 3), _ints([[0, 2, 1], [-1, 0, 0]])), cost=Cost()),
    Case("axis_one", inputs=((3, 4), _ints([[0, 3, -4, 1, 2], [1, 1, 1, 1, 1]])), attrs={"axis": 1}),
    Case("empty", inputs=((3, 4), np.zeros((0, 4), np.int64))),
    Case("rank_differs", inputs=((3, 3), _ints([0])), raises=ShapeError),
    Case("indices_larger", inputs=((3, 3), np.zeros((1, 4), np.int64)), raises=ShapeError),
    Case("index_out_of_range", inputs=((3, 3), _ints([[3]])), raises=IndexRangeError),
)
_ND = (
    Case("full_tuples", inputs=((2, 3), _ints([[0, 2], [-1, -3]])), cost=Cost()),
    Case("rows", inputs=((2, 3, 4), _ints([[[1]], [[0]]]))),
    Case("batch", inputs=((2, 3, 4), _ints([[1], [-1]])), attrs={"batch_dims": 1}),
    Case("two_batch_axes", inputs=((2, 3, 4, 2), np.ones((2, 3, 5, 1), np.int64)), attrs={"batch_dims": 2}),
    Case("tuples_too_long", inputs=((2, 3), _ints([[0, 0, 0]])), raises=ShapeError),
    Case("batch_differs", inputs=((2, 3), _ints([[1]])), attrs={"batch_dims": 1}, raises=ShapeError),
)


def gather_mixes_rows(call: Application) -> str:
    """Rows of data may be gathered along any axis but 0; rows of indices may look up data that does not depend on the batch."""
    data, indices = call.inputs
    if data is None or indices is None:
        return "one of its inputs is absent"
    along_rows = call.attrs["axis"] % max(len(data.shape), 1) == 0
    if data.is_rows and indices.is_free:
        return "it gathers along axis 0" if along_rows else ""
    if data.is_free and indices.is_rows:
        return "" if along_rows else "its rows land behind axis 0"
    return "its data and indices both depend on the batch"


def gather_elements_mixes_rows(call: Application) -> str:
    """Indices and data of one row belong together unless axis 0 is gathered."""
    if not all(operand is not None and operand.is_rows for operand in call.inputs):
        return "one of its inputs holds no rows"
    return "it gathers along axis 0" if call.attrs["axis"] % max(call.rank, 1) == 0 else ""


OPS = (
    Op(
        "Gather",
        infer_gather,
        moves,
        (Kernel("take", run_gather, scratch_bytes=fixed),),
        mixes_rows=gather_mixes_rows,
        cases=_GATHER,
    ),
    Op(
        "GatherElements",
        infer_gather_elements,
        moves,
        (Kernel("take", run_gather_elements),),
        mixes_rows=gather_elements_mixes_rows,
        cases=_ELEMENTS,
    ),
    Op("GatherND", infer_gather_nd, moves, (Kernel("take", run_gather_nd),), cases=_ND),
)
