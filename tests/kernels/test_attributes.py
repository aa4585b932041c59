"""Attributes that several ops share are named in the signature of each op's `infer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from kernels.attributes import lacks, takes
from kernels.errors import ShapeError
from kernels.registry import Op
from kernels.spec import Spec


@dataclass(kw_only=True)
class Shared:
    beta: float = 1.0
    alpha: int = 2


def test_shared_attributes_come_after_the_required_ones_by_name() -> None:
    @takes(Shared)
    def infer(x: Spec, *, size: int, best: int = 0, **shared: Any) -> Spec:
        return x

    op = Op("Some", infer, None, ())
    assert list(op.defaults) == ["size", "alpha", "best", "beta"]
    assert op.bind({"size": 3}) == {"size": 3, "alpha": 2, "best": 0, "beta": 1.0}


def test_an_op_may_take_some_of_the_shared_attributes() -> None:
    @takes(Shared, "alpha")
    def infer(x: Spec, **shared: Any) -> Spec:
        return x

    assert dict(Op("Some", infer, None, ()).defaults) == {"alpha": 2}


def test_an_input_that_an_op_lacks_is_refused() -> None:
    @lacks("c")
    def infer(x: Spec, c: Spec | None = None) -> Spec:
        return x

    x = Spec((1,), np.dtype(np.float32))
    with pytest.raises(ShapeError, match="got 2 inputs"):
        Op("Some", infer, None, ()).infer_specs((x, x), {})
