from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from graph.choice import Choice
from scheduler.build import Build
from scheduler.errors import NotFoundError, PlanFormatError
from scheduler.plan import EXECUTOR, MAX_PLAN_BYTES, Candidate, Constraints, Plan, State
from scheduler.planning.compare import diff, explain, what_if
from scheduler.strategy import Strategy
from tests.scheduler.samples import BUILD, DEVICE, ROWS, plan, step

FAST = Strategy("numpy", "fast", "fp32", 2)


def altered(path: tuple[str | int, ...], value: object) -> str:
    """Return the sample plan's JSON with one value replaced."""
    document = json.loads(plan().to_json())
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(document)


def test_plan_reads_back_equal():
    assert Plan.from_json(plan().to_json()) == plan()


def test_plan_json_carries_its_version_and_strategies_as_text():
    document = json.loads(plan().to_json())
    assert document["schema_version"] == 1
    assert document["steps"][0]["strategy"] == "numpy/rows/fp32/t2"


def test_plan_is_immutable():
    with pytest.raises(ValidationError, match="frozen"):
        plan().threads = 4


def test_plan_of_another_version_is_refused():
    with pytest.raises(PlanFormatError, match="schema_version is 2, this build reads 1"):
        Plan.from_json(altered(("schema_version",), 2))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("threads",), 0),
        (("threads",), 10**6),
        (("threads",), "2"),
        (("threads",), True),
        (("threads",), None),
        (("predicted_ns",), -1.0),
        (("predicted_ns",), "NaN"),
        (("predicted_ns",), 1e30),
        (("memory_bytes",), -1),
        (("memory_bytes",), 2**70),
        (("model_digest",), "../../etc"),
        (("device_fingerprint",), ""),
        (("objective",), "speed"),
        (("precision",), "fp8"),
        (("unknown",), 1),
        (("steps",), "none"),
        (("steps", 0, "strategy"), "numpy/rows"),
        (("steps", 0, "strategy"), {"backend": "numpy"}),
        (("steps", 0, "strategy"), 7),
        (("steps", 0, "node"), "x" * 2000),
        (("steps", 0, "bound_by"), "luck"),
        (("steps", 0, "candidates", 0, "verdict"), "best"),
        (("steps", 0, "kernel_source"), "; rm"),
        (("inputs", 0, "shape"), [-1]),
        (("inputs", 0, "shape"), [1] * 65),
        (("constraints", "max_latency_ms"), 0),
        (("constraints", "max_error"), 2),
        (("state", "status"), "fine"),
        (("error_estimate",), -1),
    ],
)
def test_plan_with_a_value_out_of_bounds_is_refused_with_its_place(path, value):
    with pytest.raises(PlanFormatError) as raised:
        Plan.from_json(altered(path, value))
    assert all(str(part) in str(raised.value) for part in path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "1", "[" * 200_000, '{"schema_version":1}', b"\xff\xfe", '"\\ud800"'])
def test_text_that_is_no_plan_is_refused(text):
    with pytest.raises(PlanFormatError, match="plan"):
        Plan.from_json(text)


def test_plan_with_a_number_that_is_none_is_refused():
    with pytest.raises(PlanFormatError):
        Plan.from_json(plan().to_json().replace('"predicted_ns":200.0', '"predicted_ns":NaN'))


def test_plan_too_long_is_refused_before_it_is_parsed():
    with pytest.raises(PlanFormatError, match=str(MAX_PLAN_BYTES)):
        Plan.from_json(b" " * (MAX_PLAN_BYTES + 1))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)
    )
)
def test_any_json_gives_a_plan_or_a_typed_error(value):
    with pytest.raises(PlanFormatError):
        Plan.from_json(json.dumps(value))


@given(st.data())
def test_plan_with_any_value_replaced_is_a_plan_or_a_typed_error(data):
    document = json.loads(plan().to_json())
    field = data.draw(st.sampled_from(sorted(document)))
    document[field] = data.draw(st.none() | st.integers() | st.text() | st.floats() | st.lists(st.integers()))
    try:
        found = Plan.from_json(json.dumps(document))
    except PlanFormatError:
        return
    assert Plan.from_json(found.to_json()) == found


def test_plan_id_does_not_depend_on_its_state_or_measured_time():
    stale = plan(state=State(status="stale", reason="x"), measured_ns=5.0)
    assert stale.id == plan().id
    assert plan(threads=4).id != plan().id


def test_request_depends_on_what_was_asked_only():
    assert plan(threads=4, why="other").request == plan().request
    assert plan(objective="memory").request != plan().request
    assert plan(constraints=Constraints(max_threads=1)).request != plan().request


def test_choices_leave_out_what_the_executor_decides():
    view = step("flatten", "Flatten", strategy=Strategy(EXECUTOR, "view", "fp32", 2))
    assert plan(steps=(step(), view)).choices == {"conv": Choice("numpy", "rows")}


def test_plan_made_elsewhere_stays_predicted_there():
    predicted = plan(state=State(status="predicted", reason="not this machine"))
    assert predicted.judged(DEVICE.fingerprint, BUILD).state.status == "predicted"
    assert predicted.judged("feedfeed", BUILD).state.status == "stale"


def test_plan_judged_fresh_again_is_current():
    stale = plan(state=State(status="stale", reason="x"))
    assert stale.judged(DEVICE.fingerprint, BUILD).state == State()


def test_staleness_names_device_build_and_kernel():
    assert plan().staleness(DEVICE.fingerprint, BUILD) == ""
    assert "made for device" in plan().staleness("feedfeed", BUILD)
    assert "engine build" in plan().staleness(DEVICE.fingerprint, Build("other", BUILD.kernels))
    assert "source of Conv, Relu changed" in plan().staleness(DEVICE.fingerprint, Build(BUILD.id, {}))


def test_explain_puts_the_chosen_candidate_first_and_the_refused_last():
    row = explain(plan())[0]
    assert [candidate.verdict for candidate in row.candidates] == ["chosen", "slower", "refused"]
    assert row.strategy == "numpy/rows/fp32/t2"


def test_explain_shares_add_up():
    assert math.isclose(sum(row.share_percent for row in explain(plan())), 100)


def test_explain_of_a_plan_without_steps_is_empty():
    assert explain(plan(steps=())) == ()


def test_expected_time_is_the_measured_one_where_there_is_one():
    assert Candidate(strategy=ROWS, predicted_ns=3.0, measured_ns=2.0, verdict="chosen").expected_ns == 2.0
    assert Candidate(strategy=ROWS, predicted_ns=3.0, verdict="chosen").expected_ns == 3.0


def test_diff_of_equal_plans_is_empty():
    found = diff(plan(), plan())
    assert (found.changes, found.steps, found.ratio) == ((), (), 1.0)


def test_diff_names_what_changed():
    after = plan(threads=4, predicted_ns=100.0, steps=(step("conv", strategy=FAST, predicted_ns=40.0), step("pool", "MaxPool")))
    found = diff(plan(), after)
    assert [(change.what, change.before, change.after) for change in found.changes] == [("threads", "2", "4")]
    assert [(change.node, change.before, change.after) for change in found.steps] == [
        ("conv", str(ROWS), str(FAST)),
        ("relu", str(ROWS), ""),
        ("pool", "", str(ROWS)),
    ]
    assert found.ratio == 0.5


def test_diff_does_not_list_every_step_when_only_the_thread_count_differs():
    other = Strategy("numpy", "rows", "fp32", 4)
    after = plan(threads=4, steps=(step("conv", strategy=other), step("relu", "Relu", strategy=other)))
    assert diff(plan(), after).steps == ()


def test_what_if_takes_the_fastest_candidate_that_begins_so():
    found = what_if(plan(), {"conv": "numpy/slow"})
    (step,) = found.steps
    assert (step.node, step.before, step.after, step.measured) == ("conv", "numpy/rows/fp32/t2", "numpy/slow/fp32/t2", False)
    assert (found.before_ns, found.after_ns, found.ratio) == (200.0, 250.0, 1.25)
    assert what_if(plan(), {}, "numpy").steps == ()  # the fastest of numpy is what is planned
    assert len(what_if(plan(), {"relu": "numpy/rows"}, "numpy/slow").steps) == 1


def test_what_if_keeps_what_is_refused_and_says_why():
    found = what_if(plan(), {"conv": "numpy/bf"})
    assert (found.steps, found.refused, found.after_ns) == ((), (("conv", "no kernel"),), 200.0)
    assert [node for node, _ in what_if(plan(), {}, "numpy/bf").refused] == ["conv", "relu"]


def test_what_if_says_what_was_measured():
    fast = Candidate(strategy=Strategy("numpy", "fast", "fp32", 2), predicted_ns=9.0, measured_ns=50.0, verdict="slower")
    base = step("conv")
    found = what_if(plan(steps=(base.model_copy(update={"candidates": (*base.candidates, fast)}),)), {"conv": "numpy/fast"})
    assert (found.steps[0].after_ns, found.steps[0].measured) == (50.0, True)
    assert (found.before_measured, found.after_measured) == (0, 1)


@pytest.mark.parametrize(("nodes", "says"), [({"nope": "numpy"}, "no step 'nope'"), ({"conv": "num"}, "'conv' has no candidate")])
def test_what_if_of_nothing_is_refused(nodes, says):
    with pytest.raises(NotFoundError, match=says):
        what_if(plan(), nodes)
