"""The numbers in reports of counts and of runs agree with each other and with the counts and times that they come from."""

from __future__ import annotations

import itertools
import json

import pytest

from graph.native.engine import Native
from profiler.counting.counts import profile
from profiler.errors import ProfileFormatError
from profiler.report.document import Report
from profiler.report.makers import static_report
from tests.kernels.native.conftest import HOST_ISAS
from tests.profiler.models import model, node, small_convnet
from tests.profiler.traced import traced


@pytest.fixture(scope="module", params=[*HOST_ISAS, None], ids=lambda isa: f"native-{isa.name}" if isa else "numpy")
def report(request) -> Report:
    """Return the report of a run in numpy, and of one on each instruction set, whose width decides which calls a step makes."""
    return traced(small_convnet(), 2, request.param and Native(request.param))


def test_a_static_report_says_what_was_counted():
    counted = profile(small_convnet(), dims={"batch": 1})
    report = static_report(counted)
    assert (report.schema_version, report.kind, report.setup, report.timeline, report.roof) == (2, "static", None, None, None)
    assert report.model.inputs == {"x": "float32[1,3,14,14]"}
    assert report.totals.macs == counted.macs == sum(op.macs for op in report.ops)
    assert report.totals.flops == 2 * report.totals.macs + report.totals.other_flops
    assert report.totals.wall_p50_ns is None
    assert [op.name for op in report.ops] == [op.name for op in counted.ops]
    assert sum(op.share_percent for op in report.ops) == pytest.approx(100)
    assert report.ops[0].inputs == ("x", "w1", "b1")


def test_values_held_add_up_to_what_is_live():
    report = static_report(profile(small_convnet(), dims={"batch": 1}))
    for op in report.ops:
        assert sum(value.nbytes for value in report.alive(op.index)) == op.live_bytes
    assert max(op.live_bytes for op in report.ops) == report.totals.peak_activation_bytes


def test_times_add_up_to_the_wall(report):
    totals = report.totals
    assert sum(op.p50_ns for op in report.ops) + totals.unattributed_ns == pytest.approx(totals.wall_p50_ns)
    assert sum(op.share_percent for op in report.ops) <= 100.0001
    assert sum(op.wasted_ns or 0 for op in report.ops) == pytest.approx(totals.wasted_ns)
    assert totals.predicted_ns == 10.0 * len(report.ops)


def test_a_trace_counts_what_the_model_is(report):
    assert report.totals.macs == profile(small_convnet(), dims={"batch": 2}).macs
    assert report.totals.executed_macs == sum(op.executed_macs for op in report.ops)


def test_every_origin_is_in_one_step(report):
    origins = [origin for op in report.ops for origin in op.origins]
    assert len(origins) == len(set(origins))
    assert "relu1" in origins


def test_steps_say_how_they_ran(report):
    for op in report.ops:
        assert op.backend == {"native": "native", "numpy": "numpy", "view": "view"}[op.strategy.partition("/")[0]]
        assert (op.roof_ns is None) == (op.backend == "view")


def test_memory_of_a_trace_adds_up_and_fits_its_arena(report):
    for op in report.ops:
        alive = report.alive(op.index)
        assert sum(value.nbytes for value in alive) == op.live_bytes
        placed = sorted((v.offset_bytes, v.offset_bytes + v.nbytes) for v in alive if v.offset_bytes is not None)
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(placed))
        assert max((end for _, end in placed), default=0) <= report.totals.arena_bytes
    assert {value.name for value in report.values if value.offset_bytes is None} >= set(report.model.inputs)


def test_threads_do_one_thing_at_a_time_within_the_run(report):
    assert report.timeline.threads
    for thread in report.timeline.threads:
        at = 0
        for index, start_ns, duration_ns, doing in thread:
            assert 0 <= index < len(report.ops)
            assert doing in ("work", "wait")
            assert start_ns >= at - 1
            at = start_ns + duration_ns
        assert at <= report.timeline.wall_ns
    worked = {index for thread in report.timeline.threads for index, _, _, doing in thread if doing == "work"}
    assert worked >= {op.index for op in report.ops if op.backend == "native"}


def test_the_roof_is_the_devices(report):
    assert [level.level for level in report.roof.bandwidths] == ["L1", "L2", "L3", "DRAM"]
    assert report.roof.bandwidths[-1].capacity_bytes is None
    assert [peak.precision for peak in report.roof.peaks] == ["fp32"]


def test_the_check_names_what_is_above_its_roof(report):
    above = {op.name: op.contradiction for op in report.ops if op.contradiction}
    assert {problem.name: problem.reason for problem in report.check.problems} == above
    assert report.check.ok == (not above)


def test_a_report_reads_back_equal(report):
    assert Report.from_json(report.to_json()) == report
    assert static_report(profile(small_convnet(), dims={"batch": 1})).to_json()


def test_what_cannot_be_counted_is_listed():
    made = model([node("NonZero", "x", "at"), node("Cast", "at", "y", to=1)], {"x": ["n"]}, ["y"])
    report = static_report(profile(made, dims={"n": 4}))
    assert [missing.reason for missing in report.uncounted] == [op.reason for op in report.ops if not op.counted]
    assert report.ops[0].output == "?"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema_version": 1}, "schema_version"),
        ({"kind": "trace"}, "lacks its setup"),
        ({"extra": 1}, "extra"),
        ({"totals": {}}, "totals"),
        ({"ops": [{"index": -1}]}, r"ops\.0"),
    ],
)
def test_a_document_that_breaks_the_schema_is_refused(change, says):
    document = json.loads(static_report(profile(small_convnet(), dims={"batch": 1})).to_json())
    with pytest.raises(ProfileFormatError, match=says):
        Report.from_json(json.dumps({**document, **change}))
