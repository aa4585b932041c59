"""Features of ai.onnx.ml picked and put side by side: ArrayFeatureExtractor and FeatureVectorizer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kernels.batch_axis import only_first_input_has_rows
from kernels.cost import moves
from kernels.errors import AttributeValueError, IndexRangeError, ShapeError
from kernels.operands import check_indices
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.scores import F32, MODEL_INPUTS, rows_of
from kernels.spec import STRING, Array, Spec

_INT64 = np.dtype(np.int64)


def infer_extractor(x: Spec, indices: Spec) -> Spec:
    """The last axis of x has an element for each index; of a vector (1, indices)."""
    subject = "ai.onnx.ml.ArrayFeatureExtractor"
    require_dtype(f"{subject}: x", x, MODEL_INPUTS | {STRING})
    require_dtype(f"{subject}: indices", indices, frozenset({_INT64}))
    if x.rank < 1:
        raise ShapeError(f"{subject}: x is {x}, need an axis to pick from")
    if indices.value is not None:
        check_indices(subject, indices.value, x.shape[-1])
    elif indices.elements and not x.shape[-1]:
        raise IndexRangeError(f"{subject}: x is {x}, need elements for {indices.elements} indices")
    outer = x.shape[:-1] if x.rank > 1 else (1,)
    return Spec((*outer, indices.elements), x.dtype)


def run_extractor(out: tuple[Array, ...], x: Array, indices: Array) -> None:
    """Indices below 0 count from the end. Raises IndexRangeError for one that is out of range."""
    check_indices("ai.onnx.ml.ArrayFeatureExtractor", indices, x.shape[-1])
    np.copyto(out[0], x[..., indices.reshape(-1)])


def infer_vectorizer(*inputs: Spec | None, inputdimensions: Sequence[int] = ()) -> Spec:
    """(n, sum of the dimensions) float32. A vector is a row."""
    subject = "ai.onnx.ml.FeatureVectorizer"
    if len(inputs) != len(inputdimensions) or not inputs or min(inputdimensions) < 0:
        sizes = str(list(inputdimensions))[:80]
        raise AttributeValueError(
            f"{subject}: attribute inputdimensions is {sizes}, need a size for each of {len(inputs)} inputs"
        )
    rows = []
    for position, spec in enumerate(inputs):
        if spec is None:
            raise ShapeError(f"{subject}: input {position} is absent, need all {len(inputs)}")
        rows.append(rows_of(f"{subject}: input {position}", spec)[0])
    if any(count != rows[0] for count in rows):
        raise ShapeError(f"{subject}: inputs have {rows} rows, need as many of all")
    return Spec((rows[0], sum(inputdimensions)), F32)


def run_vectorizer(out: tuple[Array, ...], *inputs: Array, inputdimensions: Sequence[int] = ()) -> None:
    """The first features of each input, and zeros where it has fewer than its dimension."""
    (y,) = out
    y.fill(0)
    start = 0
    for x, size in zip(inputs, inputdimensions, strict=True):
        rows = x.reshape(-1, x.shape[-1]) if x.shape[-1] else x.reshape(len(y), 0)
        taken = min(rows.shape[1], size)
        np.copyto(y[:, start : start + taken], rows[:, :taken], casting="unsafe")
        start += size


def _ints(*values: int) -> Array:
    return np.array(values, np.int64)


_EXTRACTOR = (
    Case("columns", inputs=((3, 4), _ints(2, 0))),
    Case("vector", inputs=((4,), _ints(2, 0, 1).reshape(1, 3))),
    Case("square_of_indices", inputs=((3, 4), _ints(2, 0, 1, 3).reshape(2, 2))),
    Case("strings", inputs=(np.array(["a", "b"], STRING), _ints(1, 0))),
    Case("index_beyond", inputs=((3, 4), _ints(4)), raises=IndexRangeError),
    Case("scalar", inputs=((), _ints(0)), raises=ShapeError),
)
_VECTORIZER = (
    Case("padded", inputs=((3, 2), (3, 3)), attrs={"inputdimensions": (4, 3)}),
    Case("cut", inputs=(_ints(1, 2, 3, 4, 5, 6).reshape(3, 2), _ints(1, 2, 3).reshape(3, 1)), attrs={"inputdimensions": (1, 1)}),
    Case("vector", inputs=((3,),), attrs={"inputdimensions": (3,)}),
    Case("sizes_missing", inputs=((3, 2), (3, 3)), attrs={"inputdimensions": (4,)}, raises=AttributeValueError),
    Case("rows_differ", inputs=((3, 2), (2, 3)), attrs={"inputdimensions": (2, 3)}, raises=ShapeError),
)

OPS = (
    Op(
        "ai.onnx.ml.ArrayFeatureExtractor",
        infer_extractor,
        moves,
        (Kernel("take", run_extractor),),
        mixes_rows=only_first_input_has_rows,
        cases=_EXTRACTOR,
    ),
    Op("ai.onnx.ml.FeatureVectorizer", infer_vectorizer, moves, (Kernel("copy", run_vectorizer),), cases=_VECTORIZER),
)
