"""The choice of how to compute one node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kernels.precision import Precision

Backend = Literal["numpy", "native", "cuda"]


@dataclass(frozen=True, slots=True, order=True)
class Choice:
    """How to compute one node: a numpy kernel by name, or a native algorithm with its parameters.

    params: (name, value) pairs in order of their names, such as ("tile", "6x4"). precision: of the factors of its products.
    """

    backend: Backend
    algorithm: str
    params: tuple[tuple[str, str], ...] = ()
    precision: Precision = "fp32"

    def __str__(self) -> str:
        params = "{" + ",".join(f"{name}={value}" for name, value in self.params) + "}" if self.params else ""
        return f"{self.backend}/{self.algorithm}{params}{'' if self.precision == 'fp32' else f'/{self.precision}'}"

    def param(self, name: str) -> str | None:
        """The value of a parameter; None where the native rule decides it."""
        return dict(self.params).get(name)
