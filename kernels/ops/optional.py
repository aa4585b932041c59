"""Optionals, which hold one tensor or sequence or nothing: Optional, OptionalHasElement, OptionalGetElement."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.containers import contained, fill, is_optional, item_spec, items, optional_of, sequence_of
from kernels.cost import Cost, moves
from kernels.errors import DTypeError, ShapeError
from kernels.registry import Case, Kernel, Op
from kernels.scratch import fixed, times
from kernels.spec import BOOL, Array, DType, Spec


def infer_optional(x: Spec | None = None, *, type: DType | None = None) -> Spec:
    """An optional that holds x, or none of the type that an attribute names."""
    if x is None:
        if type is None or is_optional(type):
            raise DTypeError(f"Optional: it has 0 inputs and its type is {type}, need a tensor's or a sequence's type")
        return Spec((0,), optional_of(type))
    if is_optional(x.dtype):
        raise DTypeError(f"Optional: x is {x}, need a tensor or a sequence")
    return Spec((1,), optional_of(x.dtype))


def run_optional(out: tuple[Array, ...], x: Array | None = None, **attrs: Any) -> None:
    """A copy of x."""
    fill(out[0], () if x is None else (x.copy(),))


def infer_has(x: Spec | None = None) -> Spec:
    """A scalar bool. A tensor or a sequence counts as an optional that holds it."""
    return Spec((), BOOL)


def run_has(out: tuple[Array, ...], x: Array | None = None) -> None:
    """Whether there is something."""
    out[0][...] = x is not None and (not is_optional(x.dtype) or len(x) > 0)


def infer_get(x: Spec) -> Spec:
    """What an optional holds. A tensor or a sequence counts as an optional that holds it."""
    if not is_optional(x.dtype):
        return Spec(x.shape, x.dtype)
    if x.shape != (1,):
        raise ShapeError(f"OptionalGetElement: x is {x}, need one that holds something")
    return item_spec(x, 0, "OptionalGetElement: x").with_value(None)


def run_get(out: tuple[Array, ...], x: Array) -> None:
    """A copy; the tensors of a sequence are shared."""
    np.copyto(out[0], items(x)[0] if is_optional(x.dtype) else x)


_F32 = np.dtype(np.float32)
_ROW = np.arange(3, dtype=np.float32)
_SEQUENCE = contained(sequence_of(_F32), [_ROW, _ROW[:1]])
_HELD, _NONE = contained(optional_of(_F32), [_ROW]), contained(optional_of(_F32), [])
OPS = (
    Op(
        "Optional",
        infer_optional,
        moves,
        (Kernel("copy", run_optional, scratch_bytes=times(1)),),
        cases=(
            Case("tensor", inputs=((2, 3),), cost=Cost()),
            Case("sequence", inputs=(_SEQUENCE,)),
            Case("nothing", inputs=(), attrs={"type": _F32}),
            Case("no_type", inputs=(), raises=DTypeError),
            Case("of_optional", inputs=(_HELD,), raises=DTypeError),
        ),
    ),
    Op(
        "OptionalHasElement",
        infer_has,
        moves,
        (Kernel("look", run_has, scratch_bytes=fixed),),
        cases=(
            Case("held", inputs=(_HELD,), cost=Cost()),
            Case("nothing", inputs=(_NONE,)),
            Case("absent", inputs=()),
            Case("tensor", inputs=((2,),)),
        ),
    ),
    Op(
        "OptionalGetElement",
        infer_get,
        moves,
        (Kernel("copy", run_get, scratch_bytes=fixed),),
        cases=(
            Case("held", inputs=(_HELD,), cost=Cost()),
            Case("sequence", inputs=(contained(optional_of(sequence_of(_F32)), [_SEQUENCE]),)),
            Case("tensor", inputs=((2, 3),)),
            Case("nothing", inputs=(_NONE,), raises=ShapeError),
        ),
    ),
)
