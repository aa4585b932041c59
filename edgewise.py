"""Edgewise: profile an ONNX model op by op, plan how this device should run it, and run it with that plan."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernels.errors import EdgewiseError
    from profiler.counts import profile
    from scheduler.local import device
    from scheduler.planner import plan
    from scheduler.session import Session
    from scheduler.tuner import TuneProgress, tune

__version__ = "0.1.0"
__all__ = ["EdgewiseError", "Session", "TuneProgress", "__version__", "device", "plan", "profile", "tune"]

_HOMES = {
    "EdgewiseError": "kernels.errors",
    "Session": "scheduler.session",
    "TuneProgress": "scheduler.tuner",
    "device": "scheduler.local",
    "plan": "scheduler.planner",
    "profile": "profiler.counts",
    "tune": "scheduler.tuner",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is: who only runs models holds no database library in memory."""
    if name not in _HOMES:
        raise AttributeError(f"module 'edgewise' has no attribute {name!r}, it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


if __name__ == "__main__":
    from app.cli import main

    main()
