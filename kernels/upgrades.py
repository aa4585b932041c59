"""Upgrades of nodes from older opsets (`Op.upgrade`) that several operators share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.errors import AttributeValueError
from kernels.spec import Array


def attribute_inputs(first_opset: int, *names: str, dtype: str = "int64") -> Callable[..., Any]:
    """Return an upgrade for ops whose inputs 1, 2, … were attributes of these names before `first_opset`."""

    def upgrade(opset: int, attrs: dict[str, Any], outputs: int) -> tuple[dict[str, Any], dict[int, Array]]:
        if opset >= first_opset:
            return attrs, {}
        constants = {i: constant_of(name, attrs[name], dtype) for i, name in enumerate(names, 1) if name in attrs}
        return {name: value for name, value in attrs.items() if name not in names}, constants

    return upgrade


def constant_of(name: str, value: Any, dtype: str = "int64") -> Array:
    """Return the value of an attribute as an input. Raises AttributeValueError where it holds anything but numbers."""
    numbers = value if isinstance(value, tuple | list) else (value,)
    wanted = int if np.dtype(dtype).kind == "i" else int | float
    if not all(isinstance(number, wanted) for number in numbers):
        raise AttributeValueError(f"attribute {name!r} is {str(value)[:40]!r}, need numbers of {dtype}")
    return np.asarray(value, dtype)
