"""Where: x where the condition holds, else y, all three broadcast."""

from __future__ import annotations

import numpy as np

from kernels.cost import Cost, moves
from kernels.errors import DTypeError, ShapeError
from kernels.expression import applied
from kernels.operands import broadcast, one_dtype
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.scratch import fixed
from kernels.spec import BOOL, Array, Spec


def infer(condition: Spec, x: Spec, y: Spec) -> Spec:
    """Broadcast shape, the dtype of x and y."""
    require_dtype("Where: condition", condition, frozenset({BOOL}))
    return Spec(broadcast("Where", condition.shape, x.shape, y.shape), one_dtype("Where: x and y", x, y))


def run(out: tuple[Array, ...], condition: Array, x: Array, y: Array) -> None:
    """Two copies, through a temporary where the output shares memory with an input that the second copy still reads."""
    (z,) = out
    if np.may_share_memory(z, x) or np.may_share_memory(z, condition):
        np.copyto(z, np.where(condition, x, y))
    else:
        np.copyto(z, y)
        np.copyto(z, x, where=condition)


_MASK = np.array([[True, False, True]])
CASES = (
    Case("broadcast", inputs=(_MASK, (2, 3), (1,)), cost=Cost()),
    Case("same_shape", inputs=(_MASK, (1, 3), (1, 3))),
    Case("bools", inputs=(_MASK, _MASK, ~_MASK)),
    Case("int64_shape", inputs=(np.array([True, False]), np.array([1, 1], np.int64), np.array([7, 8], np.int64))),
    Case("strings", inputs=(np.array([True, False]), np.array(["a", "b"], object), np.array(["c"], object))),
    Case("empty", inputs=(np.ones((0, 3), bool), (1, 3), (1, 1))),
    Case("float_condition", inputs=((3,), (3,), (3,)), raises=DTypeError),
    Case("dtypes_differ", inputs=(_MASK, (3,), np.ones(3, np.int64)), raises=DTypeError),
    Case("shapes_differ", inputs=(_MASK, (3,), (2,)), raises=ShapeError),
)

WHERE = Op(
    "Where",
    infer,
    moves,
    (Kernel("select", run, scratch_bytes=fixed),),
    elementwise=True,
    expression=applied("where"),
    cases=CASES,
)
