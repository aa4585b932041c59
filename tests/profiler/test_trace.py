from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from graph.errors import FeedError
from graph.formats.onnx.reader import read
from graph.ir import Fused
from graph.run.executor import DYNAMIC, Executor
from graph.shapes import bind, propagate
from profiler.errors import MeasurementError
from profiler.run.trace import UNATTRIBUTED, trace
from tests.profiler.models import branch, model, node, random, small_convnet
from tests.profiler.timed import scripted

STEPS = 11
times = st.lists(st.integers(0, 10**9), min_size=STEPS, max_size=STEPS)
runs = st.lists(st.tuples(times, st.integers(0, 10**8)).map(lambda run: (run[0], sum(run[0]) + run[1])), min_size=2, max_size=12)


@settings(deadline=None)
@given(runs)
def test_steps_and_the_rest_add_up_to_the_wall_in_every_run(script):
    measured = trace(scripted(script), {}, runs=len(script) - 1, warmup=0)
    for run in (measured.first, *measured.runs):
        assert sum(run.step_ns) + run.unattributed_ns == run.wall_ns


@settings(deadline=None)
@given(runs)
def test_shares_add_up_to_100_percent(script):
    measured = trace(scripted(script), {}, runs=len(script) - 1, warmup=0)
    if measured.wall.total_ns:
        for rows in (measured.rows, measured.ranked(), measured.by_op()):
            assert sum(row.share_percent for row in rows) == pytest.approx(100)
            assert rows[-1].cumulative_percent == 100
            assert [row.cumulative_percent for row in rows] == sorted(row.cumulative_percent for row in rows)
        assert sum(row.durations.mean_ns for row in measured.rows) == pytest.approx(measured.wall.mean_ns)


def test_the_first_run_is_told_apart_and_warmup_thrown_away():
    cold, warm, steady = ([1000] * STEPS, 20_000), ([500] * STEPS, 9_000), ([100] * STEPS, 2_000)
    executor = scripted([cold, warm, warm, steady, steady])
    measured = trace(executor, {}, runs=2, warmup=2)
    assert executor.runs == 5
    assert measured.wall.first_ns == 20_000
    assert measured.wall.mean_ns == measured.wall.p50_ns == 2_000
    assert measured.ops[0].durations.first_ns == 1000
    assert measured.ops[0].durations.mean_ns == 100
    assert measured.unattributed.durations.first_ns == 20_000 - STEPS * 1000
    assert measured.unattributed.durations.mean_ns == 2_000 - STEPS * 100


def test_statistics_of_a_step():
    script = [([1] * STEPS, 100)] + [([ns, *[0] * (STEPS - 1)], 100) for ns in (10, 20, 30, 40, 50)]
    durations = trace(scripted(script), {}, runs=5, warmup=0).ops[0].durations
    assert (durations.first_ns, durations.min_ns, durations.p50_ns, durations.mean_ns) == (1, 10, 30, 30)
    assert durations.p90_ns == 46
    assert durations.std_ns == pytest.approx(200**0.5)
    assert durations.total_ns == 150


def test_rows_are_in_execution_order_and_end_with_the_rest():
    measured = trace(scripted([([1] * STEPS, 20)] * 2), {}, runs=1, warmup=0)
    assert [row.name for row in measured.ops][:3] == ["conv1", "relu1", "pool"]
    assert measured.unattributed.name == UNATTRIBUTED
    assert len(measured.rows) == STEPS + 1


def test_ranked_puts_the_slowest_first():
    times = [5, 1, 1, 30, *[1] * (STEPS - 4)]
    ranked = trace(scripted([(times, 60)] * 2), {}, runs=1, warmup=0).ranked()
    assert [row.name for row in ranked[:3]] == ["depthwise", UNATTRIBUTED, "conv1"]
    assert ranked[0].cumulative_percent == 50


def test_by_op_sums_steps_of_a_kind():
    measured = trace(scripted([([10] * STEPS, 200)] * 2), {}, runs=1, warmup=0)
    conv = next(kind for kind in measured.by_op() if kind.op == "Conv")
    assert (conv.steps, conv.mean_ns, conv.share_percent) == (2, 20, 10)


def test_steps_carry_the_cost_of_what_ran():
    measured = trace(scripted([([1] * STEPS, 20)] * 2, batch=2), {}, runs=1, warmup=0)
    conv = measured.ops[0]
    assert conv.cost.macs == conv.executed_macs == 2 * 8 * 14 * 14 * 27
    assert conv.origins == ("conv1",)


def test_a_fused_step_names_every_onnx_node_it_computes():
    executor = scripted([([1] * (STEPS - 1), 20)] * 2)
    conv, relu, *others = executor.steps
    fused = replace(
        conv.node, outputs=relu.node.outputs, origins=("conv1", "bn1"), epilogue=(Fused("Relu", ("",), relu.node.attrs, "relu1"),)
    )
    executor.steps = [replace(conv, node=fused), *others]
    measured = trace(executor, {}, runs=1, warmup=0)
    assert measured.ops[0].origins == ("conv1", "bn1", "relu1")


def test_median_run_is_the_one_nearest_the_median():
    script = [([0] * STEPS, wall) for wall in (1, 10, 500, 30)]
    assert trace(scripted(script), {}, runs=3, warmup=0).median_run.wall_ns == 30


@pytest.mark.parametrize(
    "outcome",
    [([1] * (STEPS - 1), 100), ([50] * STEPS, 100), ([-1, *[1] * (STEPS - 1)], 100)],
    ids=["missing", "longer", "negative"],
)
def test_times_that_contradict_themselves_are_refused(outcome):
    with pytest.raises(MeasurementError, match="steps must lie in their run"):
        trace(scripted([outcome]), {}, runs=1, warmup=0)


@pytest.mark.parametrize(("runs", "warmup"), [(0, 0), (1, -1)])
def test_runs_out_of_range(runs, warmup):
    with pytest.raises(MeasurementError, match="need at least 1 and 0"):
        trace(scripted([]), {}, runs=runs, warmup=warmup)


def executor_of(proto, **dims) -> Executor:
    graph = read(proto).graph
    return Executor(graph, propagate(graph, bind(graph, dims=dims)), threads=1)


def test_a_real_executor_is_traced_to_the_nanosecond():
    measured = trace(executor_of(small_convnet(), batch=2), {"x": random(2, 3, 14, 14)}, runs=5, warmup=1)
    assert len(measured.ops) == STEPS
    for run in (measured.first, *measured.runs):
        assert sum(run.step_ns) + run.unattributed_ns == run.wall_ns
    assert all(row.durations.min_ns > 0 for row in measured.ops)
    assert measured.unattributed.durations.min_ns > 0


def test_control_flow_is_traced_as_one_step():
    inner = branch("then", node("Relu", "x", "a"), output="a"), branch("else", node("Exp", "x", "b"), output="b")
    choice = node("If", "c", "y", name="choice", then_branch=inner[0], else_branch=inner[1])
    proto = model([choice], {"x": [8], "c": []}, ["y"], dtypes={"c": TensorProto.BOOL})
    measured = trace(executor_of(proto), {"x": random(8), "c": np.array(True)}, runs=2, warmup=0)
    (row,) = measured.ops
    assert (row.op, row.algorithm, row.origins) == ("If", DYNAMIC, ("choice",))
    assert row.cost.body


def test_feeds_that_do_not_fit_are_refused():
    with pytest.raises(FeedError):
        trace(executor_of(small_convnet(), batch=2), {"x": random(1, 3, 14, 14)}, runs=1, warmup=0)
