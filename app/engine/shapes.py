"""Input shapes for a model when the caller names none."""

from __future__ import annotations

from graph.ir import Port
from scheduler.session import Session


def smallest_shapes(session: Session) -> dict[str, tuple[int, ...]]:
    """Return each input's declared shape with 1 for open dimensions; inputs of unknown rank are left out."""
    return {port.name: _smallest(port) for port in session.inputs if port.dims is not None}


def _smallest(port: Port) -> tuple[int, ...]:
    return tuple(dim if isinstance(dim, int) else 1 for dim in port.dims or ())
