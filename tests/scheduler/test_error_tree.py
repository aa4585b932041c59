"""Any model that loads is profiled, planned, run and traced, or refused by a typed error that names its place."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping

import pytest

from graph.formats.registry import read
from graph.ir import Model
from graph.limits import Limits
from kernels.errors import EdgewiseError
from kernels.spec import Array
from profiler.counting.counts import profile
from scheduler.planning.planner import make_plan
from scheduler.session import Session
from tests.graph.oracle import NATIVE
from tests.scheduler.samples import DEVICE
from tests.spoiled_models import spoiled_model

PLACE = re.compile(r"node|input '|initializer|Constant|graph")
Use = Callable[[Model, Mapping[str, Array]], object]


def outcomes(seeds: range, uses: Mapping[str, Use], nodes: int) -> Counter[str]:
    """Use the model of each seed in each way. Returns how often each way worked, and how often a model was refused."""
    found: Counter[str] = Counter()
    for seed in seeds:
        proto, feeds = spoiled_model(seed, nodes)
        try:
            model = read(proto.SerializeToString(), Limits(tensor_elements=1 << 20))
        except EdgewiseError:
            found["not read"] += 1
            continue
        wanted = {port.name: feeds[port.name] for port in model.graph.inputs}
        for way, use in uses.items():
            try:
                use(model, wanted)
                found[way] += 1
            except EdgewiseError as error:
                found[f"{way} refused"] += 1
                if not PLACE.search(str(error)):
                    raise AssertionError(f"seed {seed}, {way}: the message has no place") from error
            except Exception as error:
                error.add_note(f"seed {seed}, {way}, {[node.op_type for node in proto.graph.node]}")
                raise
    return found


def shapes(feeds: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in feeds.items()}


def test_models_are_counted_planned_and_run_in_numpy_or_refused() -> None:
    uses: dict[str, Use] = {
        "profile": lambda model, feeds: profile(model, shapes(feeds)),
        "run": lambda model, feeds: Session(model, threads=1, backend="numpy").run(feeds),
        "plan": lambda model, feeds: make_plan(model, DEVICE, shapes=shapes(feeds), max_threads=1),
    }
    found = outcomes(range(400), uses, nodes=4)
    assert min(found[way] for way in uses) > 200
    assert found["run refused"] > 20


@pytest.mark.skipif(NATIVE is None, reason="no instruction set for native code")
def test_models_are_run_and_traced_natively_or_refused() -> None:
    uses: dict[str, Use] = {
        "run": lambda model, feeds: Session(model, threads=1).run(feeds),
        "trace": lambda model, feeds: Session(model, threads=1).trace(feeds, runs=1),
    }
    found = outcomes(range(1000, 1030), uses, nodes=3)
    assert min(found[way] for way in uses) > 15
