"""How one node is to be computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Backend = Literal["numpy", "native"]


@dataclass(frozen=True, slots=True, order=True)
class Choice:
    """A kernel of numpy by its name, or a native algorithm with its parameters, sorted by name: ("tile", "6x4")."""

    backend: Backend
    algorithm: str
    params: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        params = "{" + ",".join(f"{name}={value}" for name, value in self.params) + "}" if self.params else ""
        return f"{self.backend}/{self.algorithm}{params}"

    def param(self, name: str) -> str | None:
        """The value of a parameter, or None where it is left to the rule."""
        return dict(self.params).get(name)
