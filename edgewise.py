"""Edgewise: profile an ONNX model op by op, plan how this device should run it, and run it with that plan."""

from __future__ import annotations

from kernels.errors import EdgewiseError
from profiler.counts import profile
from scheduler.local import device
from scheduler.planner import plan
from scheduler.session import Session
from scheduler.tuner import TuneProgress, tune

__version__ = "0.1.0"
__all__ = ["EdgewiseError", "Session", "TuneProgress", "__version__", "device", "plan", "profile", "tune"]

if __name__ == "__main__":
    from app.cli import main

    main()
