"""Fixed permutations of elements: DepthToSpace, SpaceToDepth, ReverseSequence."""

from __future__ import annotations

import numpy as np

from kernels.batch_axis import only_first_input_has_rows
from kernels.cost import Cost, moves
from kernels.errors import AttributeValueError, IndexRangeError, ShapeError
from kernels.operands import one_of
from kernels.registry import Case, Kernel, Op
from kernels.scratch import fixed, for_each
from kernels.spec import Array, Spec


def _block(name: str, x: Spec, blocksize: int) -> int:
    if x.rank != 4:
        raise ShapeError(f"{name}: x is {x}, need [n, c, h, w]")
    if blocksize < 1:
        raise AttributeValueError(f"{name}: attribute blocksize is {blocksize}, need 1 or more")
    return blocksize


def infer_depth_to_space(x: Spec, *, blocksize: int, mode: str = "DCR") -> Spec:
    """(n, c, h, w) -> (n, c/b², h·b, w·b)."""
    b = _block("DepthToSpace", x, blocksize)
    one_of("DepthToSpace: attribute mode", mode, ("DCR", "CRD"))
    n, c, h, w = x.shape
    if c % (b * b):
        raise ShapeError(f"DepthToSpace: x {x} has {c} channels, need a multiple of {b * b}")
    return Spec((n, c // (b * b), h * b, w * b), x.dtype)


def run_depth_to_space(out: tuple[Array, ...], x: Array, *, blocksize: int, mode: str = "DCR") -> None:
    """One strided copy into the output seen as (n, c, h, b, w, b)."""
    b = blocksize
    n, c, h, w = x.shape
    if mode == "DCR":
        source = x.reshape(n, b, b, c // (b * b), h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        source = x.reshape(n, c // (b * b), b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    np.copyto(out[0].reshape(source.shape), source)


def infer_space_to_depth(x: Spec, *, blocksize: int, mode: str = "DCR") -> Spec:
    """(n, c, h, w) -> (n, c·b², h/b, w/b)."""
    b = _block("SpaceToDepth", x, blocksize)
    one_of("SpaceToDepth: attribute mode", mode, ("DCR", "CRD"))
    n, c, h, w = x.shape
    if h % b or w % b:
        raise ShapeError(f"SpaceToDepth: x is {x}, need a height and width that {b} divides")
    return Spec((n, c * b * b, h // b, w // b), x.dtype)


def run_space_to_depth(out: tuple[Array, ...], x: Array, *, blocksize: int, mode: str = "DCR") -> None:
    """One strided copy of x seen as (n, c, h, b, w, b)."""
    b = blocksize
    n, c, h, w = x.shape
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    source = x.reshape(n, c, h // b, b, w // b, b).transpose(order)
    np.copyto(out[0].reshape(source.shape), source)


def infer_reverse(x: Spec, lengths: Spec, *, batch_axis: int = 1, time_axis: int = 0) -> Spec:
    """Same shape and dtype; one length a batch row."""
    if {batch_axis, time_axis} != {0, 1} or x.rank < 2:
        raise ShapeError(f"ReverseSequence: batch_axis {batch_axis} and time_axis {time_axis}, need 0 and 1 of x {x}")
    if lengths.dtype != np.int64 or lengths.shape != (x.shape[batch_axis],):
        raise ShapeError(f"ReverseSequence: sequence_lens are {lengths}, need {x.shape[batch_axis]} int64, one a batch row")
    return Spec(x.shape, x.dtype)


def run_reverse(out: tuple[Array, ...], x: Array, lengths: Array, *, batch_axis: int = 1, time_axis: int = 0) -> None:
    """Time t of a row comes from length - 1 - t where t is within the length, else from t."""
    steps = x.shape[time_axis]
    if lengths.size and not (lengths.min() >= 0 and lengths.max() <= steps):
        raise IndexRangeError(f"ReverseSequence: sequence_lens hold {lengths.min()} to {lengths.max()}, need 0 to {steps}")
    time = np.arange(steps)[:, None]
    source = np.where(time < lengths, lengths - 1 - time, time)
    batch = np.arange(len(lengths))
    index = (source, batch) if time_axis == 0 else (batch[:, None], source.T)
    np.copyto(out[0], x[index])


_DEPTH = (
    Case("dcr", inputs=((2, 8, 2, 3),), attrs={"blocksize": 2}, cost=Cost()),
    Case("crd", inputs=((1, 18, 2, 2),), attrs={"blocksize": 3, "mode": "CRD"}),
    Case("one", inputs=((1, 3, 2, 2),), attrs={"blocksize": 1}),
    Case("empty", inputs=((0, 4, 2, 2),), attrs={"blocksize": 2}),
    Case("channels", inputs=((1, 6, 2, 2),), attrs={"blocksize": 2}, raises=ShapeError),
    Case("rank", inputs=((4, 2, 2),), attrs={"blocksize": 2}, raises=ShapeError),
    Case("block_zero", inputs=((1, 4, 2, 2),), attrs={"blocksize": 0}, raises=AttributeValueError),
    Case("unknown_mode", inputs=((1, 4, 2, 2),), attrs={"blocksize": 2, "mode": "RDC"}, raises=AttributeValueError),
)
_SPACE = (
    Case("two", inputs=((2, 3, 4, 6),), attrs={"blocksize": 2}, cost=Cost()),
    Case("three", inputs=((1, 2, 3, 6),), attrs={"blocksize": 3}),
    Case("crd", inputs=((1, 2, 4, 2),), attrs={"blocksize": 2, "mode": "CRD"}),
    Case("size", inputs=((1, 2, 3, 4),), attrs={"blocksize": 2}, raises=ShapeError),
    Case("block_negative", inputs=((1, 4, 2, 2),), attrs={"blocksize": -2}, raises=AttributeValueError),
)
_LENGTHS = np.array([1, 4, 2], np.int64)
_REVERSE = (
    Case("time_first", inputs=((4, 3), _LENGTHS), cost=Cost()),
    Case("batch_first", inputs=((3, 4, 2), _LENGTHS), attrs={"batch_axis": 0, "time_axis": 1}),
    Case("same_axis", inputs=((3, 4), _LENGTHS), attrs={"batch_axis": 0}, raises=ShapeError),
    Case("lengths", inputs=((4, 2), _LENGTHS), raises=ShapeError),
)

OPS = (
    Op(
        "DepthToSpace",
        infer_depth_to_space,
        moves,
        (Kernel("copy", run_depth_to_space, scratch_bytes=fixed),),
        mixes_rows=only_first_input_has_rows,
        cases=_DEPTH,
    ),
    Op(
        "SpaceToDepth",
        infer_space_to_depth,
        moves,
        (Kernel("copy", run_space_to_depth, scratch_bytes=fixed),),
        mixes_rows=only_first_input_has_rows,
        cases=_SPACE,
    ),
    Op("ReverseSequence", infer_reverse, moves, (Kernel("gather", run_reverse, scratch_bytes=for_each(24)),), cases=_REVERSE),
)
