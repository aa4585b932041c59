"""edgewise.PostTransform: what models of ai.onnx.ml do to their scores, for transforms that ONNX has no operator for."""

from __future__ import annotations

import numpy as np

from kernels.batch_axis import only_first_input_has_rows
from kernels.cost import Cost
from kernels.errors import AttributeValueError, ShapeError
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.scores import MATRIX, check_transform, transform_flops, transformed
from kernels.scratch import times
from kernels.spec import FLOATS, Array, Spec


def infer(x: Spec, *, post_transform: str = "NONE") -> Spec:
    """Shape and dtype of the scores x (n, classes)."""
    require_dtype("edgewise.PostTransform: x", x, FLOATS)
    check_transform("edgewise.PostTransform", post_transform)
    if x.rank != MATRIX:
        raise ShapeError(f"edgewise.PostTransform: x is {x}, need (n, classes)")
    return Spec(x.shape, x.dtype)


def cost(out: tuple[Spec, ...], x: Spec, *, post_transform: str) -> Cost:
    """For each score 5 (SOFTMAX), 4 (LOGISTIC), 7 (SOFTMAX_ZERO) or 14 (PROBIT)."""
    return Cost(other_flops=x.elements * transform_flops(post_transform))


def run(out: tuple[Array, ...], x: Array, *, post_transform: str = "NONE") -> None:
    """In numpy."""
    np.copyto(out[0], transformed(x, post_transform), casting="same_kind")


_SCORES = np.array([[0.25, 0, 0.75], [0.5, 1e-9, 0.125]], np.float32)
POST_TRANSFORM = Op(
    "edgewise.PostTransform",
    infer,
    cost,
    (Kernel("ufuncs", run, scratch_bytes=times(8)),),
    mixes_rows=only_first_input_has_rows,
    tolerance_eps=16,
    cases=(
        Case("probit", inputs=(_SCORES[:, ::2],), attrs={"post_transform": "PROBIT"}, cost=Cost(other_flops=56)),
        Case("softmax_zero", inputs=(_SCORES,), attrs={"post_transform": "SOFTMAX_ZERO"}, cost=Cost(other_flops=42)),
        Case("softmax", inputs=((4, 3),), attrs={"post_transform": "SOFTMAX"}),
        Case("logistic", inputs=((4, 3),), attrs={"post_transform": "LOGISTIC"}),
        Case("none", inputs=((4, 3),), cost=Cost()),
        Case("empty", inputs=((0, 3),), attrs={"post_transform": "SOFTMAX"}),
        Case("no_such_transform", inputs=((4, 3),), attrs={"post_transform": "TANH"}, raises=AttributeValueError),
        Case("vector", inputs=((4,),), raises=ShapeError),
    ),
)
