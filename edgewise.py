"""Edgewise: profile an ONNX model op by op, plan how this device should run it, and run it with that plan.

    import edgewise

    counts = edgewise.profile("model.onnx", shapes={"x": (1, 3, 224, 224)})   # counts only; runs nothing
    session = edgewise.Session("model.onnx", threads=4)
    outputs = session.run({"x": array})                                       # every graph output by name
    plan = edgewise.plan("model.onnx", objective="latency")                   # chooses kernels, by measurement where there is one
    plan = edgewise.tune("model.onnx", budget_s=60)                           # measures on this machine, then plans
    device = edgewise.device()                                                # what this machine was measured to do

Every error raised on purpose is an EdgewiseError. Each name is imported when it is first used, so that a program which only runs
models loads no database library.
"""
# pathlib takes 10 ms to import, as long as everything else that `edgewise --help` needs.
# ruff: noqa: PTH118, PTH120

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.machinery import PathFinder

TYPE_CHECKING = False  # type checkers take it as true; `typing` takes 15 ms to import
if TYPE_CHECKING:
    from typing import Any

    from kernels.errors import EdgewiseError
    from profiler.counting.counts import profile
    from scheduler.local import device
    from scheduler.planning.planner import plan
    from scheduler.session import Session
    from scheduler.tuning.tuner import TuneProgress, tune

_PACKAGES = ("kernels", "graph", "profiler", "scheduler", "app", "migrations")


def _load_packages() -> None:
    """Import Edgewise's packages from this file's own folder, not by sys.path (docs/decisions/0012).

    Raises: ImportError when another module has one of the names already.
    """
    folder = os.path.dirname(os.path.realpath(__file__))
    for name in _PACKAGES:
        if name in sys.modules:
            _require_ours(name, os.path.join(folder, name))
            continue
        spec = PathFinder.find_spec(name, [folder])
        if spec is None or spec.loader is None:
            raise ImportError(f"edgewise: no package {name!r} in {folder}, install Edgewise again", name=name)
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise


def _require_ours(name: str, home: str) -> None:
    """Raise ImportError unless the imported module of this name is the package in the folder `home`."""
    module = sys.modules[name]
    places = [os.path.realpath(place) for place in getattr(module, "__path__", ())]
    if home not in places:
        where = getattr(module, "__file__", None) or ", ".join(places) or "an unknown place"
        raise ImportError(
            f"edgewise: the module {name!r} imported from {where} hides Edgewise's package of that name, "
            f"rename it (Edgewise needs the names {', '.join(_PACKAGES)})",
            name=name,
        )


_load_packages()

from kernels.version import VERSION  # noqa: E402  only now is it certain to be ours

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
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'edgewise' has no attribute {name!r}, it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """List the public names alone."""
    return sorted(__all__)


def _main() -> None:
    """Run the command line: what `python -m edgewise` and the installed command `edgewise` call."""
    from app.cli.main import main  # noqa: PLC0415  the library has no use for it

    main()


if __name__ == "__main__":
    _main()
