"""Edgewise: profile an ONNX model op by op, plan how this device should run it, and run it with that plan."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kernels.version import VERSION

if TYPE_CHECKING:
    from kernels.errors import EdgewiseError
    from profiler.counting.counts import profile
    from scheduler.local import device
    from scheduler.planning.planner import plan
    from scheduler.session import Session
    from scheduler.tuning.tuner import TuneProgress, tune

__version__ = VERSION
__all__ = ["EdgewiseError", "Session", "TuneProgress", "__version__", "device", "plan", "profile", "tune"]

_HOMES = {
    "EdgewiseError": "kernels.errors",
    "Session": "scheduler.session",
    "TuneProgress": "scheduler.tuning.tuner",
    "device": "scheduler.local",
    "plan": "scheduler.planning.planner",
    "profile": "profiler.counting.counts",
    "tune": "scheduler.tuning.tuner",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is: who only runs models holds no database library in memory."""
    if name not in _HOMES:
        raise AttributeError(f"module 'edgewise' has no attribute {name!r}, it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


if __name__ == "__main__":
    from app.cli.main import main

    main()
